//! Chains of others that drop what is forwarded.

use anyhow::Result;
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    scene::Scene,
    told::{self, DEGRADED},
    workloads::STARTED,
};

use super::{held, well_again};
use crate::{
    cases::{Foreign, NODE, works},
    fault::Held,
};

/// Pods of the node work, or its `NodeReport` names all of `words`.
fn works_or_told(scene: &Scene, words: &[&str]) -> Result<Held> {
    let lab = &scene.lab;
    let pod = scene.demo_on(NODE)?;
    let seen = await_condition("pods work, or the cause is named", STARTED, || {
        let Err(error) = works(scene, pod) else {
            return Ok(Some("all traffic of pods"));
        };
        let now = told::condition(lab, NODE, DEGRADED).map_err(|e| format!("{e:#}"))?;
        if now.0 == "True" && words.iter().all(|w| now.1.contains(w)) {
            Ok(Some("named in status: table, chain, and what to do"))
        } else {
            Err(format!("{error:#}; Degraded {} {}", now.0, now.1))
        }
    })?;
    Ok(held(seen))
}

pub(super) fn forward_drops(scene: &Scene) -> Result<Held> {
    let foreign = Foreign::put(
        &scene.lab,
        NODE,
        "nft add table inet e2e_firewall; nft add chain inet e2e_firewall e2e_forward \
         '{ type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet e2e_firewall 2>/dev/null || true",
    )?;
    let held = works_or_told(scene, &["e2e_firewall", "e2e_forward"]);
    foreign.undone()?;
    well_again(scene)?;
    held
}

pub(super) fn iptables_drops(scene: &Scene) -> Result<Held> {
    let undo = "iptables -P FORWARD ACCEPT";
    let foreign = Foreign::put(&scene.lab, NODE, "iptables -P FORWARD DROP", undo)?;
    let held = works_or_told(scene, &["filter", "FORWARD"]);
    foreign.undone()?;
    well_again(scene)?;
    held
}

pub(super) fn legacy_drops(scene: &Scene) -> Result<Held> {
    const SAID: [&str; 2] = [
        "iptables-legacy -I FORWARD -i veer+ -j ACCEPT",
        "iptables-legacy -I FORWARD -o veer+ -j ACCEPT",
    ];
    let undo = "iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD";
    let foreign = Foreign::put(&scene.lab, NODE, "iptables-legacy -P FORWARD DROP", undo)?;
    told::await_told(&scene.lab, NODE, DEGRADED, "True", &SAID)?;
    let node = scene.lab.node(NODE)?;
    for command in SAID {
        node.exec(&["sh", "-ec", command])?;
    }
    // The policy is still to drop.
    well_again(scene)?;
    foreign.undone()?;
    well_again(scene)?;
    Ok(held("named with the commands, which help"))
}
