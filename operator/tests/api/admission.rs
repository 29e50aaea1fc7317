//! What the admission policy refuses: who asks, and deletion.

use k8s_openapi::api::events::v1::Event;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use veer_crds::names::{pod_endpoint_name, pod_endpoint_name_of_node};
use veer_crds::v1alpha1::{ClusterNetwork, NodeNetwork, NodeReport, PodEndpoint};

use crate::server::{Server, eventually};

const POLICY: &str = include_str!("../../../charts/veer/templates/admission-policy.yaml");

/// The policy in force, an agent's account that RBAC lets do everything, and
/// NodeNetworks of nodes a and b.
async fn guarded() -> Server {
    let server = Server::start().await;
    server
        .apply(&POLICY.replace("{{ include \"veer.namespace\" . }}", "veer"))
        .unwrap();
    server.add_namespace("veer", &[]).await;
    server.add_account("veer", "veer-agent").await;
    let out = server.kubectl(&[
        "create",
        "clusterrolebinding",
        "agent",
        "--clusterrole=cluster-admin",
        "--serviceaccount=veer:veer-agent",
    ]);
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for name in ["a", "b"] {
        server.add_node(name).await;
        let network = NodeNetwork::new(name, veer_crds::v1alpha1::NodeNetworkSpec::default());
        server
            .networks()
            .create(&PostParams::default(), &network)
            .await
            .unwrap();
        let report = NodeReport::new(name, veer_crds::v1alpha1::NodeReportSpec::default());
        server
            .reports()
            .create(&PostParams::default(), &report)
            .await
            .unwrap();
    }
    // The API server takes a moment to enforce a policy.
    eventually("the policy is enforced", async || {
        let agent = server.as_account("veer", "veer-agent", Some("a")).await;
        match report(&agent, "b").await {
            Err(error) if error.contains("may not write") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    server
}

async fn report(client: &Client, node: &str) -> Result<(), String> {
    let params = PatchParams::apply("veer-agent").force();
    let body = |kind: &str, status: Value| {
        Patch::Apply(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": kind, "metadata": { "name": node },
            "status": status,
        }))
    };
    let networks: Api<NodeNetwork> = Api::all(client.clone());
    let status = json!({ "heldPodCIDRs": ["10.0.0.0/24"], "pathMtu": 1500 });
    let done = networks
        .patch_status(node, &params, &body("NodeNetwork", status))
        .await;
    done.map_err(|e| e.to_string())?;
    remark(client, node).await
}

/// Writes the NodeReport alone.
async fn remark(client: &Client, node: &str) -> Result<(), String> {
    let reports: Api<NodeReport> = Api::all(client.clone());
    let body = json!({
        "apiVersion": "veer.dev/v1alpha1", "kind": "NodeReport", "metadata": { "name": node },
        "status": {
            "mtu": 1500,
            "repairs": { "route": 2 },
            "probes": {
                "number": 2, "mode": "Native", "attempt": 1, "failedCount": 1,
                "failed": [{ "node": "b", "reason": "no answer" }],
            },
        },
    });
    let params = PatchParams::apply("veer-agent").force();
    let done = reports
        .patch_status(node, &params, &Patch::Apply(body))
        .await;
    done.map(drop).map_err(|e| e.to_string())
}

fn endpoint(node: &str) -> PodEndpoint {
    let name = format!("pod-on-{node}");
    let spec: Value = json!({
        "podName": name, "podUID": "u", "nodeName": node, "endpointId": 1,
        "addresses": ["10.0.0.1"], "identity": 256, "serial": 1,
    });
    PodEndpoint::new(&name, serde_json::from_value(spec).unwrap())
}

#[tokio::test]
async fn an_agent_writes_only_its_own_nodes_objects() {
    let server = guarded().await;
    let agent = server.as_account("veer", "veer-agent", Some("a")).await;
    report(&agent, "a").await.unwrap();
    let said = report(&agent, "b").await.unwrap_err();
    assert!(
        said.contains("the agent of node a may not write the NodeNetwork b"),
        "{said}"
    );
    let said = remark(&agent, "b").await.unwrap_err();
    assert!(
        said.contains("the agent of node a may not write the NodeReport b"),
        "{said}"
    );
    let reports: Api<NodeReport> = Api::all(agent.clone());
    let said = reports
        .delete("a", &DeleteParams::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("writes the status of its"), "{said}");

    let networks: Api<NodeNetwork> = Api::all(agent.clone());
    let spec = Patch::Merge(json!({ "spec": { "podCIDRs": ["10.9.9.0/24"] } }));
    let said = networks
        .patch("a", &PatchParams::default(), &spec)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("writes the status of its NodeNetwork and NodeReport only"),
        "{said}"
    );
    let said = networks
        .delete("a", &DeleteParams::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("writes the status of its NodeNetwork and NodeReport only"),
        "{said}"
    );

    let endpoints: Api<PodEndpoint> = Api::namespaced(agent.clone(), "veer");
    endpoints
        .create(&PostParams::default(), &endpoint("a"))
        .await
        .unwrap();
    let said = endpoints
        .create(&PostParams::default(), &endpoint("b"))
        .await
        .unwrap_err();
    assert!(
        said.to_string()
            .contains("may not write a PodEndpoint of another node"),
        "{said}"
    );
    let other = server.as_account("veer", "veer-agent", Some("b")).await;
    let others: Api<PodEndpoint> = Api::namespaced(other, "veer");
    let said = others
        .delete("pod-on-a", &DeleteParams::default())
        .await
        .unwrap_err();
    assert!(
        said.to_string()
            .contains("may not write a PodEndpoint of another node"),
        "{said}"
    );
    endpoints
        .delete("pod-on-a", &DeleteParams::default())
        .await
        .unwrap();

    let nowhere = server.as_account("veer", "veer-agent", None).await;
    let said = report(&nowhere, "a").await.unwrap_err();
    assert!(said.contains("does not say which node it is of"), "{said}");
}

#[tokio::test]
async fn a_pods_agent_has_a_name_for_its_object_that_no_other_agent_can_take() {
    let server = guarded().await;
    let of = async |node: &str| -> Api<PodEndpoint> {
        let agent = server.as_account("veer", "veer-agent", Some(node)).await;
        Api::namespaced(agent, "veer")
    };
    let (theirs, own) = (of("a").await, of("b").await);
    let params = PatchParams::apply("veer-agent").force();
    let write = async |api: &Api<PodEndpoint>, name: &str, node: &str| {
        let mut object = endpoint(node);
        object.metadata.name = Some(name.into());
        object.spec.pod_name = "shop.cart".into();
        let done = api.patch(name, &params, &Patch::Apply(&object)).await;
        done.map_err(|e| e.to_string())
    };
    let uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    // The agent of node a takes the usual name of a pod of node b.
    let usual = pod_endpoint_name("shop.cart", uid);
    write(&theirs, &usual, "a").await.unwrap();
    let said = write(&own, &usual, "b").await.unwrap_err();
    assert!(said.contains("nodeName cannot be changed"), "{said}");
    // The other name it cannot take, nor may it be part of another node's.
    let second = pod_endpoint_name_of_node("shop.cart", uid, "b").unwrap();
    for name in [&second, "shop-cart-0f1e2d3c.b.a.node", "b.node"] {
        let said = write(&theirs, name, "a").await.unwrap_err();
        assert!(said.contains("is of the node that it names"), "{said}");
    }
    let made = PodEndpoint::new(&second, endpoint("a").spec);
    let done = theirs.create(&PostParams::default(), &made).await;
    let said = done.unwrap_err().to_string();
    assert!(said.contains("is of the node that it names"), "{said}");
    write(&own, &second, "b").await.unwrap();
    write(&own, &second, "b").await.unwrap();
    let said = write(&theirs, &second, "b").await.unwrap_err();
    assert!(said.contains("PodEndpoint of another node"), "{said}");
    let said = write(&theirs, &second, "a").await.unwrap_err();
    assert!(said.contains("nodeName cannot be changed"), "{said}");
    let now = DeleteParams::default();
    let said = theirs.delete(&second, &now).await.unwrap_err().to_string();
    assert!(said.contains("PodEndpoint of another node"), "{said}");
    own.delete(&second, &now).await.unwrap();
}

#[tokio::test]
async fn an_agent_writes_events_on_its_own_node_and_on_pods_only() {
    let server = guarded().await;
    let agent = server.as_account("veer", "veer-agent", Some("a")).await;
    let event = |name: &str, regarding: Value| -> Event {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default" },
            "eventTime": "2026-01-01T00:00:00.000000Z", "action": "R", "reason": "R",
            "type": "Warning", "note": "n", "regarding": regarding,
            "reportingController": "veer.dev/agent", "reportingInstance": "a",
        }))
        .unwrap()
    };
    let events: Api<Event> = Api::namespaced(agent, "default");
    let params = PostParams::default();
    let again = Patch::Merge(json!({ "series": {
        "count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z" } }));
    for (name, regarding) in [
        ("node", json!({ "kind": "Node", "name": "a", "uid": "a" })),
        (
            "pod",
            json!({ "kind": "Pod", "name": "p", "namespace": "default" }),
        ),
    ] {
        let done = events.create(&params, &event(name, regarding)).await;
        done.unwrap();
        let done = events.patch(name, &PatchParams::default(), &again).await;
        done.unwrap();
    }
    for regarding in [
        json!({ "kind": "Node", "name": "b" }),
        json!({ "kind": "ClusterNetwork", "name": "default" }),
        json!({}),
    ] {
        let done = events.create(&params, &event("other", regarding)).await;
        let said = done.unwrap_err().to_string();
        assert!(said.contains("on its own Node and on Pods only"), "{said}");
    }
    // Nor may it rewrite what the operator said of another node.
    let operators: Api<Event> = Api::namespaced(server.client.clone(), "default");
    let others = event("operators", json!({ "kind": "Node", "name": "b" }));
    operators.create(&params, &others).await.unwrap();
    let merge = PatchParams::default();
    let done = events.patch("operators", &merge, &again).await;
    let said = done.unwrap_err().to_string();
    assert!(said.contains("on its own Node and on Pods only"), "{said}");
}

#[tokio::test]
async fn a_network_in_use_is_not_deleted_unless_that_is_meant() {
    let server = guarded().await;
    let networks: Api<ClusterNetwork> = server.cluster_networks();
    let spec = serde_json::from_value(json!({
        "podCIDRs": [{ "cidr": "10.244.0.0/16", "nodeMaskSize": 24 }],
    }));
    let network = ClusterNetwork::new("default", spec.unwrap());
    networks
        .create(&PostParams::default(), &network)
        .await
        .unwrap();
    let status = Patch::Merge(json!({ "status": { "nodes": { "total": 2 } } }));
    networks
        .patch_status("default", &PatchParams::default(), &status)
        .await
        .unwrap();
    let said = networks
        .delete("default", &DeleteParams::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("is in use by 2 node(s): change it instead"),
        "{said}"
    );
    let meant = Patch::Merge(json!({
        "metadata": { "annotations": { "veer.dev/allow-delete": "true" } },
    }));
    networks
        .patch("default", &PatchParams::default(), &meant)
        .await
        .unwrap();
    networks
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();

    networks
        .create(&PostParams::default(), &network)
        .await
        .unwrap();
    networks
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
}
