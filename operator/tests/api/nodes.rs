//! Nodes and their blocks, with the operator as a process.

use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;
use veer_crds::manifests::SCHEMA_VERSION_KEY;
use veer_crds::v1alpha1::TAINT_AGENT_NOT_READY;

use crate::play::NETWORK;
use crate::server::{Server, eventually};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

async fn taint_is(server: &Server, node: &str, wanted: bool) {
    eventually(&format!("node {node}: tainted is {wanted}"), async || {
        let taints = server
            .nodes()
            .get(node)
            .await
            .unwrap()
            .spec
            .and_then(|s| s.taints);
        let keys: Vec<String> = taints
            .unwrap_or_default()
            .into_iter()
            .map(|t| t.key)
            .collect();
        let tainted = keys.iter().any(|k| k == TAINT_AGENT_NOT_READY);
        if tainted == wanted {
            Ok(())
        } else {
            Err(format!("{keys:?}"))
        }
    })
    .await;
}

/// What must hold always: no two claims overlap, and every node's blocks are
/// its own claims.
pub(crate) async fn assert_sound(server: &Server) {
    let claims = server.all_claims().await;
    for (i, a) in claims.iter().enumerate() {
        for b in &claims[i + 1..] {
            let (a, b) = (&a.spec, &b.spec);
            assert!(
                !a.cidr.contains(&b.cidr) && !b.cidr.contains(&a.cidr),
                "{a:?} {b:?}"
            );
        }
    }
    let owner: BTreeMap<IpNet, String> = claims
        .into_iter()
        .map(|c| (c.spec.cidr, c.spec.node_name))
        .collect();
    for network in server
        .networks()
        .list(&ListParams::default())
        .await
        .unwrap()
    {
        for block in &network.spec.pod_cidrs {
            assert_eq!(owner.get(block), Some(&network.name_any()), "{block}");
        }
    }
}

#[tokio::test]
async fn a_node_gets_blocks_of_both_families_and_loses_the_taint_with_its_agents_report() {
    let server = Server::bare().await;
    let network = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}, \
                   {cidr: 'fd00:10:244::/48', nodeMaskSize: 64}]";
    server.add_node("a").await;
    // The operator brings its CRDs itself.
    let operator = server.operator(network, &[]);
    let block = server.block_of("a").await;
    assert_eq!(block, net("10.244.0.0/24"));
    let told = server.network_of("a").await.spec;
    assert_eq!(told.pod_cidrs, [block, net("fd00:10:244::/64")]);
    taint_is(&server, "a", true).await;
    server.agent("a").await;
    taint_is(&server, "a", false).await;
    let seen = server.report_of("a").await.status.unwrap();
    let condition = |t: &str| {
        seen.conditions
            .iter()
            .any(|c| c.type_ == t && c.status == "True")
    };
    assert!(condition("Ready") && condition("CIDRAllocated"), "{seen:?}");

    // A reboot: another boot id, and the agent has not spoken since.
    let patch = json!({ "status": { "nodeInfo": { "bootID": "after-reboot" } } });
    let params = PatchParams::default();
    server
        .nodes()
        .patch_status("a", &params, &Patch::Strategic(patch))
        .await
        .unwrap();
    taint_is(&server, "a", true).await;
    assert_sound(&server).await;
    operator.terminate();
}

#[tokio::test]
async fn two_operators_that_both_lead_never_hand_out_one_block_twice() {
    let server = Server::start().await;
    // Little room, so that they meet; nodes come while both are at work.
    let network = "podCIDRs: [{cidr: 10.8.0.0/24, nodeMaskSize: 30}]";
    let _one = server.operator(network, &["--lease-name", "one"]);
    let _two = server.operator(network, &["--lease-name", "two"]);
    server.network().await;
    let names: Vec<String> = (0..60).map(|i| format!("n{i}")).collect();
    for name in &names {
        server.add_node(name).await;
    }
    let mut blocks = BTreeMap::new();
    for name in &names {
        let block = server.block_of(name).await;
        assert_eq!(
            blocks.insert(block, name),
            None,
            "{block} was handed out twice"
        );
    }
    // Both may have claimed for one node; once agents say what they hold, the
    // second claim goes.
    for name in &names {
        server.agent(name).await;
    }
    eventually("each node has one claim", async || {
        let count = server.all_claims().await.len();
        if count == names.len() {
            Ok(())
        } else {
            Err(count.to_string())
        }
    })
    .await;
    assert_sound(&server).await;
    // And what a node was told first is what it still has.
    for (block, name) in blocks {
        let told = server.network_of(name).await.spec.pod_cidrs;
        assert!(told == [block], "{name}: first {block}, now {told:?}");
    }
}

#[tokio::test]
async fn exhaustion_is_reported_where_it_hurts_and_ends_when_there_is_room() {
    let server = Server::start().await;
    let _operator = server.operator("podCIDRs: [{cidr: 10.8.0.0/23, nodeMaskSize: 24}]", &[]);
    for name in ["a", "b"] {
        server.add_node(name).await;
        server.block_of(name).await;
        server.agent(name).await;
    }
    server
        .await_network("CIDRsAvailable", "False", "Full")
        .await;
    let before = eventually("node a is settled", async || {
        let network = server.network_of("a").await;
        if network.spec.epoch.is_some() {
            Ok(network)
        } else {
            Err(format!("{network:?}"))
        }
    })
    .await;
    server.add_node("c").await;
    let said = server
        .await_network("CIDRsAvailable", "False", "Exhausted")
        .await;
    assert!(
        said.contains("2 of 2 of 10.8.0.0/23") && said.contains("(c)"),
        "{said}"
    );
    let waiting = server.report_of("c").await.status.unwrap();
    let said = waiting
        .conditions
        .iter()
        .find(|c| c.type_ == "CIDRAllocated")
        .unwrap();
    assert_eq!(
        (said.status.as_str(), said.reason.as_str()),
        ("False", "Exhausted")
    );
    assert!(
        said.message.contains("10.8.0.0/23 has 2 parts of /24"),
        "{}",
        said.message
    );
    let after = server.network_of("a").await;
    assert_eq!(
        before.resource_version(),
        after.resource_version(),
        "others were touched"
    );

    server
        .change(json!({ "podCIDRs": [
            { "cidr": "10.8.0.0/23", "nodeMaskSize": 24 },
            { "cidr": "10.9.0.0/24", "nodeMaskSize": 24 },
        ]}))
        .await;
    assert_eq!(server.block_of("c").await, net("10.9.0.0/24"));
    server
        .await_network("CIDRsAvailable", "False", "Full")
        .await;
    assert_sound(&server).await;
}

#[tokio::test]
async fn a_deleted_node_keeps_its_block_until_quarantine_ends_and_takes_it_back_if_it_returns() {
    let server = Server::start().await;
    let operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    let block = server.block_of("a").await;
    server.agent("a").await;
    server.delete_node("a").await;
    let claim = |state: &'static str| {
        let server = &server;
        async move {
            eventually(&format!("the claim is {state}"), async || {
                let claims = server.all_claims().await;
                let seen = claims
                    .first()
                    .and_then(|c| c.status.clone())
                    .unwrap_or_default();
                if seen.state == state {
                    Ok(seen)
                } else {
                    Err(format!("{seen:?}"))
                }
            })
            .await
        }
    };
    assert!(claim("Orphaned").await.orphaned_since.is_some());
    eventually(
        "the NodeNetwork is nobody's, and keeps the block",
        async || {
            let told = server.network_of("a").await.spec;
            if told.node_uid.is_empty() && told.pod_cidrs == [block] {
                Ok(())
            } else {
                Err(format!("{told:?}"))
            }
        },
    )
    .await;
    server.add_node("b").await;
    assert_ne!(server.block_of("b").await, block);
    // It returns under its name with another UID.
    server.add_node("a").await;
    let uid = server.nodes().get("a").await.unwrap().uid();
    eventually("the NodeNetwork is the new Node's", async || {
        let told = server.network_of("a").await.spec;
        if Some(&told.node_uid) == uid.as_ref() {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    assert_eq!(server.block_of("a").await, block);
    let bound = claim("Bound").await;
    assert_eq!((bound.held_by_uid, bound.orphaned_since), (uid, None));
    operator.terminate();

    // With a short quarantine it is released, and given to the next.
    let _operator = server.operator(NETWORK, &["--cidr-quarantine-seconds", "2"]);
    server.delete_node("a").await;
    eventually("claim and NodeNetwork are gone", async || {
        let claims = server.all_claims().await.len();
        let networks = server
            .networks()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len();
        if (claims, networks) == (1, 1) {
            Ok(())
        } else {
            Err(format!("{claims}, {networks}"))
        }
    })
    .await;
    server.add_node("c").await;
    assert_eq!(server.block_of("c").await, block);
    assert_sound(&server).await;
}

#[tokio::test]
async fn after_a_restore_nothing_is_given_out_before_ready_nodes_said_what_they_hold() {
    let server = Server::start().await;
    // The store is older than node a: neither its NodeNetwork nor its claim is
    // in it, but its agent holds 10.244.0.0/24 on disk.
    server.add_node("a").await;
    server.kubelet("a", true).await;
    server.add_node("new").await;
    let _operator = server.operator(NETWORK, &[]);
    let said = server
        .await_network("CIDRsAvailable", "False", "WaitingForAgents")
        .await;
    assert!(said.contains("hold: a;"), "{said}");
    server.network_of("new").await;
    assert!(server.all_claims().await.is_empty());
    let held = json!({ "bootID": "boot-a", "heldPodCIDRs": ["10.244.0.0/24"] });
    server.network_of("a").await;
    server.report("a", held).await;
    assert_eq!(server.block_of("a").await, net("10.244.0.0/24"));
    assert_eq!(server.block_of("new").await, net("10.244.1.0/24"));
    assert_sound(&server).await;
}

#[tokio::test]
async fn an_operator_that_lives_through_a_restore_does_not_give_out_what_was_forgotten() {
    let mut server = Server::start().await;
    let operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    server.block_of("a").await;
    server.agent("a").await;
    server.kubelet("a", true).await;
    server.backup().await;
    // The backup does not know b.
    server.add_node("b").await;
    let block = server.block_of("b").await;
    server.agent("b").await;
    server.restore().await;
    // The operator looks once at what it has, before b's kubelet registers again.
    eventually("the operator noticed the restore", async || {
        let said = operator.said();
        said.contains("restored from a backup")
            .then_some(())
            .ok_or(said)
    })
    .await;
    server
        .change(json!({ "deniedPrefixes": ["203.0.113.0/24"] }))
        .await;
    server.await_network("CIDRsAvailable", "True", "Room").await;
    // A new node comes with b.
    server.add_node("b").await;
    server.kubelet("b", true).await;
    server.add_node("new").await;
    // b's agent still holds its block, and reports when it has an object to.
    server.network_of("b").await;
    let held = json!({ "bootID": "boot-b", "heldPodCIDRs": [block] });
    server.report("b", held).await;
    let other = server.block_of("new").await;
    assert_eq!(server.block_of("b").await, block, "{}", operator.said());
    assert_ne!(other, block, "{}", operator.said());
    assert_sound(&server).await;
}

#[tokio::test]
async fn a_claim_deleted_by_hand_comes_back_to_the_node_that_holds_it() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    let block = server.block_of("a").await;
    server.agent("a").await;
    let first = server.all_claims().await.remove(0);
    server
        .claims()
        .delete(&first.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    server.add_node("b").await;
    assert_ne!(server.block_of("b").await, block);
    eventually("the claim is back", async || {
        let claims = server.all_claims().await;
        let back = claims
            .iter()
            .find(|c| c.spec.cidr == block && c.uid() != first.uid());
        back.map(|c| assert_eq!(c.spec.node_name, "a"))
            .ok_or_else(|| format!("{claims:?}"))
    })
    .await;
    assert_sound(&server).await;
}

#[tokio::test]
async fn a_standby_takes_over_and_a_newer_schema_is_left_alone() {
    let server = Server::start().await;
    let crds: Api<CustomResourceDefinition> = Api::all(server.client.clone());
    let version =
        |v: &str| Patch::Merge(json!({ "metadata": { "annotations": { SCHEMA_VERSION_KEY: v } } }));
    let params = PatchParams::default();
    crds.patch("podcidrs.veer.dev", &params, &version("0"))
        .await
        .unwrap();
    crds.patch("nodenetworks.veer.dev", &params, &version("999"))
        .await
        .unwrap();
    let first = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    server.block_of("a").await;
    let version = async |name: &str| {
        let crd = crds.get(name).await.unwrap();
        crd.annotations()
            .get(SCHEMA_VERSION_KEY)
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(version("nodenetworks.veer.dev").await, "999");
    assert_eq!(
        version("podcidrs.veer.dev").await,
        veer_crds::manifests::SCHEMA_VERSION.to_string()
    );

    let second = server.operator(NETWORK, &[]);
    eventually("the second waits for its turn", async || {
        let said = second.said();
        assert!(!said.contains("leading"), "two lead by one Lease: {said}");
        let lease = server.kubectl(&["get", "lease", "veer-operator", "-o", "yaml"]);
        if lease.status.success() {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    first.terminate();
    server.add_node("b").await;
    server.block_of("b").await;
    assert!(second.said().contains("leading"), "{}", second.said());
    assert_sound(&server).await;
}
