//! Which addresses of a node others are told to believe.

use std::net::IpAddr;

use serde_json::json;

use crate::play::NETWORK;
use crate::server::{Server, eventually};

async fn believed(server: &Server, node: &str, wanted: &[&str]) {
    let wanted: Vec<IpAddr> = wanted.iter().map(|a| a.parse().unwrap()).collect();
    eventually(&format!("{wanted:?} of {node} are believed"), async || {
        let seen = server.network_of(node).await.spec.addresses;
        if seen == wanted {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
}

async fn reports(server: &Server, node: &str, addresses: &[&str]) {
    let status = json!({
        "bootID": format!("boot-{node}"), "addresses": addresses,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Ready", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    });
    server.report(node, status).await;
}

#[tokio::test]
async fn an_address_that_only_the_agent_knows_is_believed_by_nobody() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    server.addresses("a", &["192.0.2.1"]).await;
    // The DNS service's address and a load balancer's come first.
    let seen = ["10.96.0.10", "192.0.2.1", "192.0.2.200"];
    reports(&server, "a", &seen).await;
    believed(&server, "a", &["192.0.2.1"]).await;

    let extra = |list: serde_json::Value| json!({ "extraNodeAddresses": list });
    let listed = json!([{ "node": "a", "addresses": ["192.0.2.200"] }]);
    server.change(extra(listed)).await;
    believed(&server, "a", &["192.0.2.1", "192.0.2.200"]).await;

    // What the user withdraws goes, and what the agent withdraws, at once.
    server.change(extra(json!([]))).await;
    believed(&server, "a", &["192.0.2.1"]).await;
    reports(&server, "a", &["10.96.0.10"]).await;
    believed(&server, "a", &[]).await;

    // A report that is lost withdraws nothing.
    reports(&server, "a", &["192.0.2.1"]).await;
    believed(&server, "a", &["192.0.2.1"]).await;
    let uid = server.report_of("a").await.metadata.uid;
    let how = kube::api::DeleteParams::default();
    server.reports().delete("a", &how).await.unwrap();
    eventually("the report is there again", async || {
        let now = server.report_of("a").await.metadata.uid;
        if now == uid {
            Err(String::new())
        } else {
            Ok(())
        }
    })
    .await;
    believed(&server, "a", &["192.0.2.1"]).await;
}

#[tokio::test]
async fn a_machine_under_a_new_name_takes_its_address_along() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("worker2").await;
    server.addresses("worker2", &["192.0.2.2"]).await;
    reports(&server, "worker2", &["192.0.2.2"]).await;
    believed(&server, "worker2", &["192.0.2.2"]).await;
    server.delete_node("worker2").await;
    // As long as nobody else has it, pods that may still run there are reached.
    eventually("worker2 is marked as gone", async || {
        let told = server.network_of("worker2").await.spec;
        if told.node_uid.is_empty() {
            assert_eq!(told.addresses.len(), 1);
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    server.add_node("blade").await;
    server.addresses("blade", &["192.0.2.2"]).await;
    believed(&server, "worker2", &[]).await;
    reports(&server, "blade", &["192.0.2.2"]).await;
    believed(&server, "blade", &["192.0.2.2"]).await;
    believed(&server, "worker2", &[]).await;
}
