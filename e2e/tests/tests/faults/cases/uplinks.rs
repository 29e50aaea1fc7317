//! Uplinks of other kinds than the usual.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, await_condition};
use veer_e2e_tests::{
    client,
    lab::{Lab, Mode},
    maps,
    rollout::{self, Follow, Phase, is_in, number},
    scene::Scene,
    tun::Network,
};

use super::{NODE, OTHER, await_works};
use crate::{
    fault::{Fault, Held},
    node::PATIENCE,
    survive::changeable,
};

pub(super) fn faults() -> Vec<Fault> {
    vec![Fault::new(
        "uplinks::without_ethernet",
        "two nodes with their addresses on TUN devices, as on WireGuard; then mode Native",
        Mode::Tunnel,
        without_ethernet,
    )]
}

/// The nodes whose addresses change.
const NODES: [&str; 2] = [NODE, OTHER];

/// Waits until every node knows the others by these addresses, and by no former ones.
fn await_known(lab: &Lab, known: [Ipv4Addr; 2], former: [Ipv4Addr; 2]) -> Result<()> {
    for name in lab.cluster.node_names() {
        let node = lab.node(&name)?;
        let of_others = |all: [Ipv4Addr; 2]| -> Vec<Ipv4Addr> {
            let all = NODES.into_iter().zip(all);
            all.filter(|(n, _)| *n != name).map(|(_, a)| a).collect()
        };
        let (known, former) = (of_others(known), of_others(former));
        let what = format!("{name} knows {known:?} and not {former:?}");
        await_condition(&what, PATIENCE, || {
            let nodes = maps::dump(&node, "NODES").map_err(|e| format!("{e:#}"))?;
            let has = |a: &Ipv4Addr| nodes.iter().any(|(k, _)| *k == maps::key((*a).into()));
            if known.iter().all(has) && !former.iter().any(has) {
                Ok(Some(()))
            } else {
                Err(format!("{nodes:?}"))
            }
        })?;
    }
    Ok(())
}

/// Pods of all nodes work, and those of the two reach each other through the network.
fn await_carried(scene: &Scene, network: &Network) -> Result<u64> {
    const PINGS: u32 = 20;
    for pod in &scene.demo {
        await_works(scene, pod)?;
    }
    let before = network.carried();
    client::reaches(
        &scene.demo_on(NODE)?.site,
        scene.demo_on(OTHER)?.address,
        PINGS,
    )?;
    let carried = network.carried() - before;
    ensure!(
        carried >= u64::from(2 * PINGS),
        "{PINGS} pings and their answers, of which {carried} packets went by the devices"
    );
    Ok(carried)
}

/// Native is refused for the pairs of the two, and says why.
fn refused(lab: &Lab) -> Result<()> {
    let before = number(&rollout::network(lab)?);
    let mut follow = Follow::network(lab)?;
    rollout::ask(lab, Mode::Native)?;
    let wanted = |pair: &Value| {
        let [from, to] = [&pair["from"], &pair["to"]].map(|n| n.as_str().unwrap_or_default());
        let reason = pair["reason"].as_str().unwrap_or_default();
        (from, to) == (NODE, OTHER) && reason.contains("no Ethernet device")
    };
    let named = follow.until("the pair is named with the reason", |n| {
        let pairs = n["status"]["failedPairs"].as_array();
        pairs.into_iter().flatten().any(wanted)
    })?;
    ensure!(
        is_in(&named, before, Phase::Preflight),
        "the change went on: {}",
        named["status"]
    );
    Ok(())
}

fn without_ethernet(scene: &Scene) -> Result<Held> {
    const MTU: u32 = 1_400;
    const DEVICE: &str = "e2etun";
    let mut lab = changeable(scene)?;
    let new = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
    let old = [lab.cluster.address(NODE)?, lab.cluster.address(OTHER)?];
    let mut members = Vec::new();
    for name in lab.cluster.node_names() {
        let of_two = NODES.into_iter().zip(new).find(|(node, _)| *node == name);
        let address = match of_two {
            Some((_, address)) => address,
            // The others keep theirs, and are reached by the devices too.
            None => lab.cluster.address(&name)?,
        };
        members.push((lab.node_site(&name)?, address));
    }
    let network = Network::between(DEVICE, MTU, &members)?;
    if lab.cluster.families().has(Family::V6) {
        // Kubelets announce one of this family too, and only what they find on a device.
        for (site, address) in members.iter().filter(|(_, a)| new.contains(a)) {
            let v6 = Family::V6.planned(*address).to_string();
            site.exec(&["ip", "address", "add", &v6, "dev", DEVICE, "nodad"])?;
        }
    }
    let mut announce = |addresses: [Ipv4Addr; 2]| -> Result<()> {
        for (node, address) in NODES.into_iter().zip(addresses) {
            lab.cluster.announce_address(node, address)?;
        }
        lab.cluster.await_nodes_ready(PATIENCE)?;
        Ok(())
    };
    let outcome = announce(new).and_then(|()| {
        let lab = &scene.lab;
        await_known(lab, new, old)?;
        let carried = await_carried(scene, &network)?;
        let refused = refused(lab);
        let back = lab.set_mode(Mode::Tunnel);
        refused?;
        back?;
        await_carried(scene, &network)?;
        Ok(carried)
    });
    let back = announce(old);
    drop(network);
    if let Err(error) = back {
        outcome?;
        return Err(error).context("kubelets back at their former addresses");
    }
    await_known(&scene.lab, old, new)?;
    for pod in &scene.demo {
        await_works(scene, pod)?;
    }
    let carried = outcome?;
    Ok(Held::new(
        "all traffic of pods in Tunnel; Native refused with the reason",
        format!("20 pings as {carried} packets by the devices"),
    ))
}
