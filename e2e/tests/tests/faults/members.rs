//! Nodes that are away, join or lose power while the mode changes: each ends where
//! the others are.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    evidence,
    lab::{Lab, Mode},
    load,
    rollout::{self, Phase},
    scene::Scene,
};

use crate::{
    fault::{Fault, Held},
    node::{PATIENCE, VICTIM, await_pod, connected, join, leave, settle, start_pod, with_victim},
    survive::{changeable, seconds, unharmed},
};

/// All faults of this kind.
pub(crate) fn faults() -> Vec<Fault> {
    let fault = |name: &str, injected: &str, run: fn(&Scene) -> Result<Held>| {
        Fault::new(format!("members::{name}"), injected, Mode::Tunnel, run)
    };
    vec![
        fault(
            "away_through_a_change",
            "all processes of a node frozen until it is NotReady, then the mode changed",
            |scene| back_in_tunnel(scene, with_victim(scene, away)),
        ),
        fault(
            "joins_in_a_change",
            "a node added while a change is held in Switch",
            |scene| back_in_tunnel(scene, joins(scene)),
        ),
        fault(
            "power_cut_in_a_change",
            "all of a node ended and started from its disk while a change is held in Switch",
            |scene| back_in_tunnel(scene, with_victim(scene, loses_power)),
        ),
    ]
}

/// The next fault begins where this one did.
fn back_in_tunnel(scene: &Scene, held: Result<Held>) -> Result<Held> {
    rollout::ask(&scene.lab, Mode::Tunnel)?;
    scene.lab.await_mode(Mode::Tunnel)?;
    held
}

/// Whether the status says that all ready nodes send by `mode`, and that the victim
/// is left out.
fn without_victim(network: &Value, mode: Mode) -> bool {
    let status = &network["status"];
    let excluded = status["excludedNodes"].as_array();
    let named = excluded.is_some_and(|all| all.iter().any(|n| n["node"] == VICTIM));
    named && status["activeMode"] == mode.name() && status["nodes"]["switched"] == 3
}

/// Waits until the victim's pairs are bare both ways, on the wire, and its epoch is
/// the cluster's.
fn arrives(scene: &Scene, lab: &Lab) -> Result<()> {
    settle(lab)?;
    let pod = await_pod(lab)?;
    let other = scene.demo_on("worker1")?;
    await_condition(
        "the victim sends and is sent bare packets",
        PATIENCE,
        || {
            for (from, to) in [(&pod, other), (other, &pod)] {
                let form = evidence::form_on_wire(lab, from, to).map_err(|e| format!("{e:#}"))?;
                if form != Mode::Native {
                    return Err(format!("{} → {} by {}", from.name, to.name, form.name()));
                }
            }
            Ok(Some(()))
        },
    )?;
    lab.await_mode(Mode::Native)?;
    connected(scene, &pod)
}

fn away(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    unharmed(
        scene,
        "all other traffic; the others changed and named it; back, it followed",
        || {
            lab.cluster.pause_node(VICTIM)?;
            let changed = (|| {
                await_condition("the victim is NotReady", PATIENCE, || {
                    let node = lab.kubectl().json(&["get", "node", VICTIM]);
                    let node = node.map_err(|e| e.to_string())?;
                    let conditions = node["status"]["conditions"].as_array();
                    let ready = conditions.into_iter().flatten();
                    let ready = ready.filter(|c| c["type"] == "Ready");
                    let away = ready.into_iter().any(|c| c["status"] != "True");
                    Ok(away.then_some(()))
                })?;
                let start = Instant::now();
                rollout::ask(lab, Mode::Native)?;
                await_condition("the others have changed", PATIENCE, || {
                    let network = rollout::network(lab).map_err(|e| format!("{e:#}"))?;
                    if without_victim(&network, Mode::Native) {
                        Ok(Some(()))
                    } else {
                        Err(network["status"].to_string())
                    }
                })?;
                ensure!(
                    scene.path("worker1", "worker2")? == Mode::Native,
                    "the others are still in the tunnel"
                );
                Ok(start.elapsed())
            })();
            lab.cluster.resume_node(VICTIM)?;
            let changed: Duration = changed?;
            let back = Instant::now();
            arrives(scene, lab)?;
            Ok((changed, back.elapsed()))
        },
        |(changed, followed)| {
            format!(
                "the others changed within {}; it followed within {}",
                seconds(*changed),
                seconds(*followed)
            )
        },
    )
}

/// Holds a change in Switch, has `act` happen, lets it go on and sees the victim
/// arrive. Returns how long that took from then on.
fn held_in_switch(
    scene: &Scene,
    lab: &mut Lab,
    act: impl FnOnce(&mut Lab) -> Result<()>,
) -> Result<Duration> {
    rollout::hold(lab, Mode::Native, Phase::Switch)?;
    act(lab)?;
    rollout::pause(lab, false)?;
    let start = Instant::now();
    arrives(scene, lab)?;
    Ok(start.elapsed())
}

fn joins(scene: &Scene) -> Result<Held> {
    let mut lab = changeable(scene)?;
    // Makes the load's pods, when this is the first fault.
    load::limit(&scene.lab)?;
    let held = unharmed(
        scene,
        "all traffic; the new node ended in the new mode",
        || {
            held_in_switch(scene, &mut lab, |lab| {
                join(lab)?;
                start_pod(lab).map(|_| ())
            })
        },
        |time| format!("all there {} after it went on", seconds(*time)),
    );
    let gone = leave(&mut lab);
    let held = held?;
    gone?;
    Ok(held)
}

fn loses_power(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    unharmed(
        scene,
        "all other traffic; it came back into the change and ended in the new mode",
        || held_in_switch(scene, lab, |lab| Ok(lab.cluster.reboot_node(VICTIM)?)),
        |time| format!("all there {} after it went on", seconds(*time)),
    )
}
