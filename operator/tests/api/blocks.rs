//! Blocks when objects vanish, when they run out, and when an entry is drained.

use std::collections::BTreeMap;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use veer_crds::v1alpha1::PodCIDR;

use crate::nodes::assert_sound;
use crate::play::NETWORK;
use crate::server::{PATIENCE, Server, eventually};

async fn blocks(server: &Server) -> BTreeMap<String, Vec<IpNet>> {
    let list = server.networks().list(&ListParams::default()).await;
    let items = list.map(|list| list.items).unwrap_or_default();
    let pair = |n: veer_crds::v1alpha1::NodeNetwork| (n.name_any(), n.spec.pod_cidrs);
    items.into_iter().map(pair).collect()
}

async fn blocks_are(server: &Server, wanted: &BTreeMap<String, Vec<IpNet>>) {
    eventually("every node has its former block", async || {
        let seen = blocks(server).await;
        if seen == *wanted {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    assert_sound(server).await;
}

/// Nodes a and b with their blocks in reverse order, so that none gets its own by
/// chance; their agents hold them.
async fn two_nodes(server: &Server) -> BTreeMap<String, Vec<IpNet>> {
    for name in ["b", "a"] {
        server.join(name).await;
        server.block_of(name).await;
        server.agent(name).await;
    }
    blocks(server).await
}

/// What the agents held before is what they report once they have an object to.
async fn agents_report(server: &Server, held: &BTreeMap<String, Vec<IpNet>>) {
    for (name, blocks) in held {
        server.network_of(name).await;
        let status = json!({ "bootID": format!("boot-{name}"), "heldPodCIDRs": blocks });
        server.report(name, status).await;
    }
}

async fn delete_crds(server: &Server, names: &[&str]) {
    let crds: Api<CustomResourceDefinition> = Api::all(server.client.clone());
    for name in names {
        crds.delete(name, &DeleteParams::default()).await.unwrap();
    }
    eventually("the CRDs are gone", async || {
        for name in names {
            if crds.get_opt(name).await.unwrap().is_some() {
                return Err((*name).to_owned());
            }
        }
        Ok(())
    })
    .await;
    for name in names {
        let kind = name.split('.').next().unwrap();
        let file = format!(
            "{}/../crds/manifests/{kind}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        server
            .apply(&std::fs::read_to_string(file).unwrap())
            .unwrap();
    }
}

#[tokio::test]
async fn after_its_crds_were_deleted_every_node_has_its_former_block_back() {
    let server = Server::start().await;
    let operator = server.operator(NETWORK, &[]);
    let before = two_nodes(&server).await;
    // The NodeNetworks alone.
    let (how, all) = (DeleteParams::default(), ListParams::default());
    server
        .networks()
        .delete_collection(&how, &all)
        .await
        .unwrap();
    blocks_are(&server, &before).await;
    agents_report(&server, &before).await;
    // Their kind.
    delete_crds(&server, &["nodenetworks.veer.dev"]).await;
    blocks_are(&server, &before).await;
    agents_report(&server, &before).await;
    // The claims' kind, and a node comes at once.
    delete_crds(&server, &["podcidrs.veer.dev"]).await;
    server.add_node("new").await;
    let given = server.block_of("new").await;
    assert!(
        !before.values().flatten().any(|b| *b == given),
        "{given}: {}",
        operator.said()
    );
    eventually("all claims are there", async || {
        let count = server.all_claims().await.len();
        if count == 3 {
            Ok(())
        } else {
            Err(count.to_string())
        }
    })
    .await;
    assert_sound(&server).await;
    operator.terminate();

    // Both kinds, while no operator runs; the next one brings them itself.
    let mut before = blocks(&server).await;
    before.remove("new");
    server.delete_node("new").await;
    delete_crds(
        &server,
        &[
            "nodenetworks.veer.dev",
            "podcidrs.veer.dev",
            "nodereports.veer.dev",
        ],
    )
    .await;
    let _operator = server.operator(NETWORK, &[]);
    agents_report(&server, &before).await;
    blocks_are(&server, &before).await;
}

#[tokio::test]
async fn a_claim_deleted_under_a_node_that_is_gone_comes_back_for_the_quarantine() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    let block = server.block_of("a").await;
    server.delete_node("a").await;
    eventually("a is marked as gone", async || {
        let told = server.network_of("a").await.spec;
        if told.node_uid.is_empty() {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    let claim = server.all_claims().await.remove(0);
    let how = DeleteParams::default();
    server
        .claims()
        .delete(&claim.name_any(), &how)
        .await
        .unwrap();
    eventually("the claim is back", async || {
        let claims = server.all_claims().await;
        let back = claims
            .iter()
            .any(|c| c.spec.cidr == block && c.uid() != claim.uid());
        if back {
            Ok(())
        } else {
            Err(format!("{claims:?}"))
        }
    })
    .await;
    assert_eq!(server.network_of("a").await.spec.pod_cidrs, [block]);
}

#[tokio::test]
async fn a_node_network_deleted_under_a_node_that_is_gone_is_made_again_with_its_block() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_node("a").await;
    let block = server.block_of("a").await;
    server.delete_node("a").await;
    eventually(
        "a is marked as gone, and its claim as orphaned",
        async || {
            let told = server.network_of("a").await.spec;
            let claims = server.all_claims().await;
            let orphaned = |c: &PodCIDR| c.status.as_ref().is_some_and(|s| s.state == "Orphaned");
            let all = told.node_uid.is_empty() && claims.iter().all(orphaned);
            all.then_some(())
                .ok_or_else(|| format!("{told:?} {claims:?}"))
        },
    )
    .await;
    // By then nothing else is under way for the claim, until the quarantine ends.
    server.add_node("mark").await;
    server.block_of("mark").await;
    let uid = server.network_of("a").await.uid();
    let how = DeleteParams::default();
    server.networks().delete("a", &how).await.unwrap();
    eventually("it is there again", async || {
        let there = server.networks().get_opt("a").await.unwrap();
        let again = there.filter(|n| n.uid() != uid && n.spec.pod_cidrs == [block]);
        again.map(|_| ()).ok_or_else(|| "not there".to_owned())
    })
    .await;
}

#[tokio::test]
async fn agents_see_the_blocks_of_a_node_go_before_its_object() {
    let server = Server::start().await;
    let _operator = server.operator(NETWORK, &["--cidr-quarantine-seconds", "1"]);
    server.add_node("a").await;
    server.block_of("a").await;
    let networks = server.networks();
    let from = server.network_of("a").await.resource_version().unwrap();
    let events = networks.watch(&WatchParams::default(), &from).await;
    let mut events = std::pin::pin!(events.unwrap());
    server.delete_node("a").await;
    let deleted = async {
        loop {
            let event = events.next().await.expect("the watch goes on").unwrap();
            if let WatchEvent::Deleted(network) = event {
                break network;
            }
        }
    };
    let deleted = tokio::time::timeout(PATIENCE, deleted).await;
    let deleted = deleted.expect("its NodeNetwork is deleted");
    assert_eq!(deleted.spec.pod_cidrs, []);
}

#[tokio::test]
async fn where_nothing_is_left_the_block_of_a_node_that_is_gone_is_given() {
    let server = Server::start().await;
    server.add_namespace("shop", &[]).await;
    let _operator = server.operator(
        "podCIDRs: [{cidr: 10.8.0.0/23, nodeMaskSize: 24}]",
        &["--cidr-scarce-seconds", "5"],
    );
    let mut given = BTreeMap::new();
    for name in ["a", "b"] {
        server.add_node(name).await;
        given.insert(name, server.block_of(name).await);
        server.agent(name).await;
    }
    server.add_pod_on("shop", "web", "b").await;
    server.delete_node("b").await;
    server.add_node("c").await;
    // It is told when, and not given while a pod is bound to the old node.
    eventually("c is told when there will be a block", async || {
        let said = server.report_of("c").await.status.unwrap_or_default();
        let said = said.conditions.into_iter().map(|c| c.message);
        let said: String = said.collect::<Vec<_>>().join("; ");
        let block = given["b"];
        if said.contains(&format!("{block} of node b, which is gone, is free from ")) {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
    assert!(server.network_of("c").await.spec.pod_cidrs.is_empty());
    server.delete_pod("shop", "web").await;
    assert_eq!(server.block_of("c").await, given["b"]);
    assert!(server.networks().get_opt("b").await.unwrap().is_none());
    assert_sound(&server).await;
}

#[tokio::test]
async fn a_drained_entry_is_left_by_each_node_once_it_has_no_pods() {
    let server = Server::start().await;
    let _operator = server.operator("podCIDRs: [{cidr: 10.8.0.0/16, nodeMaskSize: 24}]", &[]);
    server.add_node("a").await;
    server.block_of("a").await;
    server.agent("a").await;
    let pods = async |count: i32| {
        let patch = Patch::Merge(json!({ "status": { "endpoints": count } }));
        let params = PatchParams::default();
        let reports = server.reports();
        reports.patch_status("a", &params, &patch).await.unwrap();
    };
    pods(1).await;
    server
        .change(json!({ "podCIDRs": [
            { "cidr": "10.8.0.0/16", "nodeMaskSize": 24, "state": "Draining" },
            { "cidr": "10.9.0.0/16", "nodeMaskSize": 24 },
        ]}))
        .await;
    let said = server.await_network("Draining", "True", "InUse").await;
    assert!(
        said.contains("10.8.0.0/16 is in use on 1 node(s): a; move their pods away"),
        "{said}"
    );
    pods(0).await;
    eventually("a is told a block of the other entry", async || {
        let told = server.network_of("a").await.spec.pod_cidrs;
        if told == ["10.9.0.0/24".parse::<IpNet>().unwrap()] {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    // Its agent takes it over.
    server.agent("a").await;
    server
        .await_network("Draining", "False", "NothingToDrain")
        .await;
    server
        .change(json!({ "podCIDRs": [{ "cidr": "10.9.0.0/16", "nodeMaskSize": 24 }] }))
        .await;
    assert_sound(&server).await;
}

#[tokio::test]
async fn a_family_comes_to_nodes_with_pods_and_goes_once_no_pod_has_an_address_of_it() {
    let server = Server::start().await;
    let v6 = json!({ "cidr": "fd00:8::/48", "nodeMaskSize": 64 });
    let v4 = json!({ "cidr": "10.8.0.0/16", "nodeMaskSize": 24 });
    let _operator = server.operator("podCIDRs: [{cidr: 'fd00:8::/48', nodeMaskSize: 64}]", &[]);
    server.add_node("a").await;
    let [of_v6, of_v4] = ["fd00:8::/64", "10.8.0.0/24"].map(|b| b.parse::<IpNet>().unwrap());
    assert_eq!(server.block_of("a").await, of_v6);
    server.agent("a").await;
    let told = async |wanted: &[IpNet]| {
        eventually(&format!("a is told {wanted:?}"), async || {
            let told = server.network_of("a").await.spec.pod_cidrs;
            (told == wanted).then_some(()).ok_or(format!("{told:?}"))
        })
        .await;
    };
    let report = async |held: &[IpNet]| {
        let status = json!({ "bootID": "boot-a", "heldPodCIDRs": held, "endpoints": 3 });
        server.report("a", status).await;
    };
    report(&[of_v6]).await;
    server.change(json!({ "podCIDRs": [v6, v4] })).await;
    told(&[of_v4, of_v6]).await;

    let mut goes = v6.clone();
    goes["state"] = json!("Draining");
    report(&[of_v4, of_v6]).await;
    server.change(json!({ "podCIDRs": [goes, v4] })).await;
    let said = server.await_network("Draining", "True", "InUse").await;
    assert!(said.contains("kubectl rollout restart"), "{said}");
    assert!(!said.contains("kubectl drain"), "{said}");
    // A new node gets none of it, and lacks nothing.
    server.add_node("b").await;
    assert!(server.block_of("b").await.addr().is_ipv4());
    assert_eq!(server.network_of("b").await.spec.pod_cidrs.len(), 1);
    assert_eq!(server.network_of("a").await.spec.pod_cidrs, [of_v4, of_v6]);
    // Its last pod is gone; others are not.
    report(&[of_v4]).await;
    told(&[of_v4]).await;
    server
        .await_network("Draining", "False", "NothingToDrain")
        .await;
    server.change(json!({ "podCIDRs": [v4] })).await;
    assert_sound(&server).await;
}
