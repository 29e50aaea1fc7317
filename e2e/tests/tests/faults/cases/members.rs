//! Nodes under other names, and the objects of nodes deleted.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Role, await_condition};
use veer_e2e_tests::{
    client,
    lab::{Lab, Mode},
    pods,
    scene::Scene,
    snapshot,
    workloads::STARTED,
};

use super::{NODE, works};
use crate::{
    fault::{Fault, Held},
    node::{PATIENCE, VICTIM, join, load_images},
    survive::{SETTLED, changeable, unharmed},
};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        Fault::new(
            "members::node_back_under_another_name_with_its_address",
            "a node removed, its machine added again under a name that sorts before the old one",
            Mode::Tunnel,
            renamed,
        ),
        Fault::new(
            "members::all_node_networks_deleted",
            "kubectl delete nodenetworks --all",
            Mode::Tunnel,
            networks_deleted,
        ),
    ]
}

fn renamed(scene: &Scene) -> Result<Held> {
    const NEW: &str = "blade";
    let mut lab = changeable(scene)?;
    join(&mut lab)?;
    let address = lab.cluster.address(VICTIM)?;
    lab.cluster.remove_node(VICTIM)?;
    let outcome = (|| {
        lab.cluster.add_node(NEW, Role::Worker)?;
        ensure!(
            lab.cluster.address(NEW)? == address,
            "the new node has another address, which proves nothing"
        );
        load_images(&lab)?;
        lab.cluster.await_nodes_ready(PATIENCE)?;
        let pod = pods::await_ready(&lab, veer_e2e_tests::scene::DEMO, "app=demo", 4, PATIENCE)?;
        let pod = pod.into_iter().find(|p| p.node == NEW).context("no pod")?;
        await_condition("the node works under its new name", STARTED, || {
            let all = works(scene, &pod)
                .and_then(|()| client::reaches(&scene.demo_on(NODE)?.site, pod.address, 5));
            all.map(Some).map_err(|e| format!("{e:#}"))
        })?;
        Ok(())
    })();
    lab.cluster.remove_node(NEW)?;
    pods::forget(&lab, NEW)?;
    snapshot::await_agrees(&lab, PATIENCE)?;
    outcome.map(|()| Held::new("pods, DNS, services and the world, both ways", ""))
}

/// The block of every node.
fn blocks(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let list = lab.kubectl().json(&["get", "nodenetworks"])?;
    let mut all = BTreeMap::new();
    for network in list["items"].as_array().context("no list")? {
        let name = network["metadata"]["name"].as_str().unwrap_or_default();
        all.insert(name.to_owned(), network["spec"]["podCIDRs"].to_string());
    }
    Ok(all)
}

fn networks_deleted(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let nodes = lab.cluster.node_names();
    let own = |all: BTreeMap<String, String>| -> BTreeMap<String, String> {
        all.into_iter().filter(|(n, _)| nodes.contains(n)).collect()
    };
    let before = own(blocks(lab)?);
    let held = unharmed(
        scene,
        "all traffic; every node has its former block",
        || {
            lab.kubectl()
                .run(&["delete", "nodenetworks", "--all", "--wait=false"])?;
            await_condition("every node has its former block", STARTED, || {
                let now = own(blocks(lab).map_err(|e| format!("{e:#}"))?);
                if now == before {
                    Ok(Some(()))
                } else {
                    Err(format!("{before:?}, now {now:?}"))
                }
            })?;
            snapshot::await_agrees(lab, SETTLED)?;
            let made = super::Made::on(lab, NODE, "after-deletion")?;
            works(scene, &made.pod)?;
            made.deleted()
        },
        |()| format!("{} nodes", before.len()),
    )?;
    Ok(held)
}
