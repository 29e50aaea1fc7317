//! Nodes that take no part, and nodes on which no agent ever runs.

use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;
use veer_crds::v1alpha1::{Phase, TAINT_AGENT_NOT_READY};

use crate::modes::{ready_cluster, told};
use crate::server::{Server, eventually};

const LINUX: &str = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}]\n\
                     nodeSelector: {matchLabels: {os: linux}}";

async fn is_untouched(server: &Server, node: &str) {
    eventually(&format!("nothing is there of {node}"), async || {
        let taints = server.nodes().get(node).await.unwrap().spec;
        let taints = taints.and_then(|s| s.taints).unwrap_or_default();
        let tainted = taints.iter().any(|t| t.key == TAINT_AGENT_NOT_READY);
        let network = server.networks().get_opt(node).await.unwrap();
        let report = server.reports().get_opt(node).await.unwrap();
        let claims = server.all_claims().await;
        let claimed = claims.iter().any(|c| c.spec.node_name == node);
        if !tainted && network.is_none() && report.is_none() && !claimed {
            Ok(())
        } else {
            Err(format!("{taints:?} {network:?} {report:?} {claimed}"))
        }
    })
    .await;
}

async fn asked_to_leave(server: &Server, node: &str, wanted: bool) {
    eventually(&format!("{node} is asked to leave: {wanted}"), async || {
        let network = server.network_of(node).await;
        if network.spec.decommission == wanted {
            Ok(())
        } else {
            Err(format!("{network:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_not_selected_gets_nothing_and_delays_nothing() {
    let server = Server::start().await;
    server.add_namespace("shop", &[]).await;
    let _operator = server.operator(LINUX, &[]);
    server.network().await;
    server.add_node("windows").await;
    server.kubelet("windows", true).await;
    server.add_node("linux").await;
    server.label("linux", "os", Some("linux")).await;
    // Ready, and never heard of: it would hold back every block.
    let block = server.block_of("linux").await;
    server.kubelet("linux", true).await;
    server.agent("linux").await;
    is_untouched(&server, "windows").await;
    eventually("one node is counted", async || {
        let status = server.network().await.status.unwrap_or_default();
        match status.nodes.total {
            1 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;

    // It takes no part any more: its block stays while a pod is there.
    server.add_pod_on("shop", "web", "linux").await;
    server.label("linux", "os", None).await;
    eventually("the claim is leaving", async || {
        let claim = server.all_claims().await.remove(0);
        let state = claim.status.unwrap_or_default().state;
        if state == "Leaving" {
            Ok(())
        } else {
            Err(state)
        }
    })
    .await;
    let spec = server.network_of("linux").await.spec;
    assert_eq!(spec.pod_cidrs, [block]);
    server.delete_pod("shop", "web").await;
    // Its agent may still wire pods: the block is nobody else's before it has removed
    // veer, and the node's own if it takes part again.
    asked_to_leave(&server, "linux", true).await;
    server.label("linux", "os", Some("linux")).await;
    asked_to_leave(&server, "linux", false).await;
    let claims = server.all_claims().await;
    assert!(claims.iter().any(|c| c.spec.cidr == block), "{claims:?}");
    server.label("linux", "os", None).await;
    asked_to_leave(&server, "linux", true).await;
    assert_eq!(server.network_of("linux").await.spec.pod_cidrs, [block]);
    let gone = json!({ "bootID": "boot-linux", "decommissioned": true });
    server.report("linux", gone).await;
    is_untouched(&server, "linux").await;
    let left = server.networks().list(&ListParams::default()).await;
    assert!(left.unwrap().items.is_empty());
}

#[tokio::test]
async fn while_there_is_no_network_no_node_is_added_and_none_is_dropped() {
    let server = Server::start().await;
    let _operator = server.operator(LINUX, &[]);
    server.add_node("linux").await;
    server.label("linux", "os", Some("linux")).await;
    let block = server.block_of("linux").await;
    let networks = server.cluster_networks();
    let how = DeleteParams::default();
    networks.delete("default", &how).await.unwrap();
    server.add_node("windows").await;
    server.kubelet("windows", true).await;
    server.label("linux", "os", None).await;
    // What was there before is looked after, and later than the other came.
    let first = server.report_of("linux").await.uid();
    server.reports().delete("linux", &how).await.unwrap();
    eventually("the report is made anew", async || {
        let report = server.report_of("linux").await;
        if report.uid() == first {
            Err(format!("{report:?}"))
        } else {
            Ok(())
        }
    })
    .await;
    assert_eq!(server.network_of("linux").await.spec.pod_cidrs, [block]);
    is_untouched(&server, "windows").await;
    assert_eq!(server.all_claims().await.len(), 1);
}

#[tokio::test]
async fn a_mode_change_does_not_wait_for_a_node_that_never_ran_an_agent() {
    let (server, _operator) = ready_cluster().await;
    server.add_node("silent").await;
    server.kubelet("silent", true).await;
    server.network_of("silent").await;
    let change = json!({ "routing": { "mode": "Native" } });
    server.change(change).await;
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
        Phase::Ready,
    ] {
        for name in ["a", "b", "c"] {
            told(&server, name, 2, phase).await;
            server.agent(name).await;
        }
    }
    server.await_network("Progressing", "False", "Done").await;
    let status = server.network().await.status.unwrap();
    let excluded: Vec<_> = status.excluded_nodes.iter().map(|n| &n.node).collect();
    assert_eq!(excluded, ["silent"]);
}
