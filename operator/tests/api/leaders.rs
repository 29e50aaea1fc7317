//! Leaders that are stopped at any moment, past their Lease, and go on with an
//! old view; and a store that goes back in time under a change of mode.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt;
use ipnet::IpNet;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use kube_runtime::{WatchStreamExt, watcher};
use serde_json::json;
use veer_crds::v1alpha1::{ClusterNetwork, Epoch, NodeNetwork, Phase, RoutingMode};

use crate::modes::ready_cluster;
use crate::nodes::assert_sound;
use crate::play::NETWORK;
use crate::server::{Process, Server, eventually};

/// What must hold over the whole history, and where it did not.
#[derive(Default)]
struct History {
    cluster: Option<Epoch>,
    told: BTreeMap<String, Epoch>,
    blocks: BTreeMap<IpNet, String>,
    faults: Vec<String>,
}

fn key(epoch: &Epoch) -> (i64, Phase, i32) {
    (epoch.number, epoch.phase, epoch.attempt)
}

impl History {
    fn cluster(&mut self, network: &ClusterNetwork) {
        let Some(now) = network.status.as_ref().and_then(|s| s.epoch.clone()) else {
            return;
        };
        if let Some(last) = &self.cluster
            && key(&now) < key(last)
        {
            self.faults
                .push(format!("the status went back: {last:?} → {now:?}"));
        }
        self.cluster = Some(now);
    }

    fn node(&mut self, network: &NodeNetwork) {
        let name = network.name_any();
        if let Some(now) = network.spec.epoch.clone()
            && let Some(last) = self.told.insert(name.clone(), now.clone())
            && key(&now) < key(&last)
        {
            self.faults
                .push(format!("{name} was told to go back: {last:?} → {now:?}"));
        }
        for block in &network.spec.pod_cidrs {
            let owner = self.blocks.entry(*block).or_insert_with(|| name.clone());
            if *owner != name {
                self.faults
                    .push(format!("{block} is of {owner} and of {name}"));
            }
        }
    }
}

/// Follows all writes until dropped.
fn record(server: &Server) -> (Arc<Mutex<History>>, [tokio::task::JoinHandle<()>; 2]) {
    let history = Arc::new(Mutex::new(History::default()));
    let (one, two) = (Arc::clone(&history), Arc::clone(&history));
    let networks = watcher(server.cluster_networks(), watcher::Config::default());
    let nodes = watcher(server.networks(), watcher::Config::default());
    let tasks = [
        tokio::spawn(async move {
            let seen = networks.default_backoff().applied_objects();
            let all = seen.try_for_each(|n| {
                one.lock().unwrap().cluster(&n);
                std::future::ready(Ok(()))
            });
            all.await.unwrap();
        }),
        tokio::spawn(async move {
            let seen = nodes.default_backoff().applied_objects();
            let all = seen.try_for_each(|n| {
                two.lock().unwrap().node(&n);
                std::future::ready(Ok(()))
            });
            all.await.unwrap();
        }),
    ];
    (history, tasks)
}

async fn holder(server: &Server) -> String {
    let leases: Api<Lease> = Api::namespaced(server.client.clone(), "default");
    let lease = leases.get("veer-operator").await;
    let spec = lease.ok().and_then(|l| l.spec);
    spec.and_then(|s| s.holder_identity).unwrap_or_default()
}

/// The agents do what they are told until the change with this number is done.
async fn agents_until_done(server: &Server, names: &[String], number: i64) {
    eventually(&format!("epoch {number} is done"), async || {
        for name in names {
            let network = server.network_of(name).await;
            let epoch = network.spec.epoch.filter(|e| e.number == number);
            let status = network.status.unwrap_or_default();
            let said = server.report_of(name).await.status.unwrap_or_default();
            let probed = said.probes.map(|p| (p.number, p.attempt));
            let done = epoch.as_ref().is_some_and(|e| {
                status.applied.as_ref() == Some(e)
                    || (e.phase == Phase::Preflight && probed == Some((e.number, e.attempt)))
            });
            if epoch.is_some() && !done {
                server.agent(name).await;
            }
        }
        let status = server.network().await.status.unwrap_or_default();
        let epoch = status.epoch.clone().unwrap_or_default();
        if (epoch.number, epoch.phase) == (number, Phase::Ready) && status.slowest.is_empty() {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
}

async fn join(server: &Server, name: &str) {
    server.add_node(name).await;
    server.kubelet(name, true).await;
    server.network_of(name).await;
    let boot = json!({ "bootID": format!("boot-{name}") });
    server.report(name, boot).await;
}

#[tokio::test]
async fn a_leader_stopped_past_its_lease_does_no_harm_when_it_goes_on() {
    let server = Server::start().await;
    let mut leader = server.operator(NETWORK, &[]);
    let mut names: Vec<String> = ["a", "b", "c"].map(String::from).to_vec();
    for name in &names {
        join(&server, name).await;
    }
    for name in &names {
        server.block_of(name).await;
        server.agent(name).await;
    }
    agents_until_done(&server, &names, 1).await;
    let (history, tasks) = record(&server);
    let mut standby: Process = server.operator(NETWORK, &[]);
    for (round, mode) in ["Native", "Tunnel", "Hybrid"].into_iter().enumerate() {
        let held = holder(&server).await;
        // In the middle of work: a change of mode and new nodes.
        server.change(json!({ "routing": { "mode": mode } })).await;
        let new: Vec<String> = (0..4).map(|i| format!("n{round}{i}")).collect();
        for name in &new {
            server.add_node(name).await;
        }
        leader.signal("STOP");
        eventually("the other leads", async || {
            let now = holder(&server).await;
            if now != held && !now.is_empty() {
                Ok(())
            } else {
                Err(now)
            }
        })
        .await;
        for name in &new {
            server.block_of(name).await;
            server.kubelet(name, true).await;
            server.agent(name).await;
        }
        names.extend(new);
        // It wakes while the other takes the change through its phases.
        leader.signal("CONT");
        agents_until_done(&server, &names, i64::try_from(round).unwrap() + 2).await;
        eventually("the stopped one knows", async || {
            let said = leader.said();
            if said.contains("no longer leading") {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
        std::mem::swap(&mut leader, &mut standby);
    }
    assert_sound(&server).await;
    let history = history.lock().unwrap();
    assert!(history.faults.is_empty(), "{:#?}", history.faults);
    assert_eq!(history.cluster.as_ref().map(|e| e.number), Some(4));
    assert_eq!(history.blocks.len(), names.len());
    assert!(!tasks.iter().any(tokio::task::JoinHandle::is_finished));
}

#[tokio::test]
async fn a_store_restored_from_before_a_change_begins_one_above_what_nodes_have_done() {
    let (mut server, operator) = ready_cluster().await;
    let names = ["a", "b", "c"].map(String::from);
    server.backup().await;
    server
        .change(json!({ "routing": { "mode": "Native" } }))
        .await;
    agents_until_done(&server, &names, 2).await;
    let native = server.network_of("a").await.status.unwrap().applied;
    assert_eq!(native.as_ref().map(|e| e.mode), Some(RoutingMode::Native));
    // The backup says Tunnel, epoch 1; the agents are where they are, and say so.
    server.restore().await;
    for name in &names {
        let held = server.network_of(name).await.status.unwrap().held_pod_cidrs;
        let mut said = server.report_of(name).await.status.unwrap();
        // The one condition there that is not the agent's.
        said.conditions.retain(|c| c.type_ != "CIDRAllocated");
        let mut status = serde_json::to_value(said).unwrap();
        status["applied"] = serde_json::to_value(&native).unwrap();
        status["heldPodCIDRs"] = serde_json::to_value(held).unwrap();
        server.report(name, status).await;
    }
    agents_until_done(&server, &names, 3).await;
    let status = server.network().await.status.unwrap();
    assert_eq!(
        status.active_mode,
        Some(RoutingMode::Tunnel),
        "{}",
        operator.said()
    );
    assert_sound(&server).await;
}
