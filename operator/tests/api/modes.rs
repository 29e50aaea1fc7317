//! The change of the routing mode, with the operator as a process and agents
//! that acknowledge when the test says so.

use serde_json::json;
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use crate::play::NETWORK;
use crate::server::{Server, eventually};

pub(crate) async fn told(server: &Server, node: &str, number: i64, phase: Phase) -> Epoch {
    eventually(
        &format!("{node} is told epoch {number} {phase:?}"),
        async || {
            let epoch = server.network_of(node).await.spec.epoch;
            let as_wanted = epoch
                .clone()
                .filter(|e| e.number == number && e.phase == phase);
            as_wanted.ok_or_else(|| format!("{epoch:?}"))
        },
    )
    .await
}

pub(crate) async fn ready_cluster() -> (Server, crate::server::Process) {
    let server = Server::start().await;
    let operator = server.operator(NETWORK, &[]);
    for name in ["a", "b", "c"] {
        server.join(name).await;
    }
    for name in ["a", "b", "c"] {
        server.block_of(name).await;
        told(&server, name, 1, Phase::Ready).await;
        server.agent(name).await;
    }
    server.await_network("Ready", "True", "InForce").await;
    (server, operator)
}

#[tokio::test]
async fn a_patch_of_the_mode_takes_every_node_through_every_phase() {
    let (server, _operator) = ready_cluster().await;
    server
        .change(json!({ "routing": { "mode": "Native" } }))
        .await;
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
        Phase::Ready,
    ] {
        for name in ["a", "b", "c"] {
            let epoch = told(&server, name, 2, phase).await;
            assert_eq!(epoch.mode, RoutingMode::Native);
        }
        let before = server.network().await.status.unwrap();
        let expected = if phase < Phase::Finalize {
            RoutingMode::Tunnel
        } else {
            RoutingMode::Native
        };
        assert_eq!(before.active_mode, Some(expected), "{phase:?}");
        server.agent("a").await;
        server.agent("b").await;
        if phase < Phase::Ready {
            // Two have acknowledged and are counted; the third is awaited.
            let said = server
                .await_network("Progressing", "True", "AwaitingNodes")
                .await;
            assert!(said.contains("awaits "), "{said}");
            let status = eventually("only c is awaited", async || {
                let status = server.network().await.status.unwrap();
                let nodes: Vec<&str> = status.slowest.iter().map(|n| n.node.as_str()).collect();
                if nodes == ["c"] && status.slowest[0].reason.starts_with("told ") {
                    Ok(status)
                } else {
                    Err(format!("{:?}", status.slowest))
                }
            })
            .await;
            assert_eq!(
                (status.phase, status.progress.as_str()),
                (Some(phase), "2/3")
            );
        }
        server.agent("c").await;
    }
    server.await_network("Progressing", "False", "Done").await;
    server.await_network("Ready", "True", "InForce").await;
    let status = server.network().await.status.unwrap();
    assert_eq!(status.active_mode, Some(RoutingMode::Native));
    assert_eq!(
        (
            status.nodes.total,
            status.nodes.switched,
            status.nodes.excluded
        ),
        (3, 3, 0)
    );
}

#[tokio::test]
async fn turning_round_and_a_node_that_is_away() {
    let (server, _operator) = ready_cluster().await;
    server
        .change(json!({ "routing": { "mode": "Native" } }))
        .await;
    told(&server, "a", 2, Phase::Preflight).await;
    server
        .change(json!({ "routing": { "mode": "Tunnel" } }))
        .await;
    let back = told(&server, "a", 3, Phase::Preflight).await;
    assert_eq!(back.mode, RoutingMode::Tunnel);

    // c falls away: the others go on to Switch and wait there.
    server.kubelet("c", false).await;
    for phase in [Phase::Preflight, Phase::Prepare, Phase::Switch] {
        for name in ["a", "b"] {
            told(&server, name, 3, phase).await;
            server.agent(name).await;
        }
    }
    let said = server
        .await_network("Progressing", "True", "NodesExcluded")
        .await;
    assert!(said.contains("awaits c"), "{said}");
    assert_eq!(server.network().await.status.unwrap().nodes.excluded, 1);

    // It comes back and follows, one step after the other.
    server.kubelet("c", true).await;
    for phase in [Phase::Preflight, Phase::Prepare, Phase::Switch] {
        told(&server, "c", 3, phase).await;
        server.agent("c").await;
    }
    for phase in [Phase::Finalize, Phase::Ready] {
        for name in ["a", "b", "c"] {
            told(&server, name, 3, phase).await;
            server.agent(name).await;
        }
    }
    server.await_network("Ready", "True", "InForce").await;
}

#[tokio::test]
async fn a_pod_block_over_node_addresses_is_a_condition_and_disturbs_nobody() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    let block = server.block_of("a").await;
    let addresses = json!({ "status": { "addresses": [
        { "type": "InternalIP", "address": "10.244.77.1" },
    ]}});
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Strategic(addresses);
    server
        .nodes()
        .patch_status("a", &params, &patch)
        .await
        .unwrap();
    let said = server.await_network("Degraded", "True", "Invalid").await;
    assert!(
        said.contains("10.244.77.1 of node a lies in the pod block 10.244.0.0/16"),
        "{said}"
    );
    assert_eq!(server.block_of("a").await, block);
}
