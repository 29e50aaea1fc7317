//! An agent killed at each system call by which it changes something: while it
//! starts, while it carries out a change of mode, while it wires a pod, while it
//! unwires one. The kubelet starts the next one, which must bring the node to
//! exactly where an undisturbed one brings it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    agents,
    deaths::{self, Death, Watch},
    lab::{Lab, Mode},
    load::{self, Path},
    pods,
    scene::{DEMO, Scene},
    snapshot::{self, Snapshot},
    workloads,
};

use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, quick_or_full},
};

/// Where agents are killed.
const NODE: &str = "worker2";
/// How long whatever is under way may take with a death in it.
const DONE: Duration = Duration::from_mins(2);
/// Steps in the quick form, of each kind of undertaking.
const SAMPLE: usize = 4;

/// All faults of this kind.
pub(crate) fn faults() -> Vec<Fault> {
    let which = quick_or_full("some of the calls", "every call");
    let fault = |name: &str, during: &str, run: fn(&Scene) -> Result<Held>| {
        let injected = format!("SIGKILL at {which} that changes something, {during}");
        Fault::new(format!("injector::{name}"), injected, Mode::Tunnel, run)
    };
    vec![
        fault("while_starting", "while agents start", starting).short(),
        fault("while_wiring_a_pod", "during ADD", wiring),
        fault("while_unwiring_a_pod", "during DEL", unwiring),
        fault(
            "while_the_mode_changes",
            "during a change of mode, three agents at once, each at another call",
            switching,
        ),
    ]
}

/// All of them, or some that are evenly spread.
fn chosen(all: &[Death]) -> Vec<Death> {
    let count = quick_or_full(SAMPLE, all.len()).min(all.len());
    (0..count)
        .filter_map(|n| all.get(n * all.len() / count.max(1)))
        .cloned()
        .collect()
}

/// What came of stepping.
struct Stepped {
    steps: usize,
    deaths: usize,
}

/// Kills at each chosen step of `reference` by `attempt`, under load, `at_once` steps
/// in one undertaking; after each all nodes must be as `attempt` says, which
/// returns how many of its steps were reached.
fn stepped(
    scene: &Scene,
    reference: &[Death],
    at_once: usize,
    mut attempt: impl FnMut(&[Death]) -> Result<usize>,
) -> Result<Held> {
    ensure!(
        !reference.is_empty(),
        "no call that changes something was seen"
    );
    let steps = chosen(reference);
    let (stepped, report) = load::under(&scene.lab, &Path::ALL, || {
        let mut deaths = 0;
        for some in steps.chunks(at_once) {
            let names = || {
                let name = |step: &Death| format!("{} number {}", step.call, step.number);
                let names: Vec<String> = some.iter().map(name).collect();
                format!("killed at {}", names.join(", "))
            };
            deaths += attempt(some).with_context(names)?;
        }
        Ok(Stepped {
            steps: steps.len(),
            deaths,
        })
    })?;
    report.unharmed()?;
    ensure!(
        stepped.deaths > 0,
        "no agent died at any of {} steps",
        stepped.steps
    );
    Ok(Held::new(
        "all traffic; after each death all is as without it",
        format!(
            "{} steps, {} tried, {} died there; {}",
            reference.len(),
            stepped.steps,
            stepped.deaths,
            report.figure()
        ),
    ))
}

fn starting(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    snapshot::await_agrees(lab, SETTLED)?;
    let before = snapshot::cluster(lab)?;
    let nodes = lab.cluster.node_names();
    let outcome = deaths::wrap(lab).and_then(|()| {
        restart(lab, NODE, None)?;
        let trace = deaths::take_trace(&lab.node(NODE)?)?;
        end_traced(lab, NODE)?;
        stepped(scene, &deaths::steps(&trace), nodes.len(), |steps| {
            let mut deaths = 0;
            for (node, step) in nodes.iter().zip(steps) {
                restart(lab, node, Some(step))?;
                if deaths::is_traced(lab, node)? {
                    end_traced(lab, node)?;
                } else {
                    deaths += 1;
                }
            }
            snapshot::await_same(lab, &before, SETTLED)?;
            Ok(deaths)
        })
    });
    deaths::unwrap(lab)?;
    let held = outcome?;
    snapshot::await_same(lab, &before, SETTLED)?;
    Ok(held)
}

/// Has the agent of a node start under strace, and die at a step, or be noted;
/// returns when the one after it, or it, is ready.
fn restart(lab: &Lab, node: &str, step: Option<&Death>) -> Result<()> {
    let old = agents::pid(lab, node)?;
    deaths::arm(lab, node, step)?;
    agents::signal(lab, node, "KILL")?;
    let ended = Instant::now();
    await_condition("the traced agent has begun", DONE, || {
        let begun = deaths::has_begun(lab, node).map_err(|e| format!("{e:#}"))?;
        Ok(begun.then_some(()))
    })?;
    agents::await_back(lab, node, old, ended)?;
    Ok(())
}

/// Ends an agent that runs under strace: the next one does not.
fn end_traced(lab: &Lab, node: &str) -> Result<()> {
    agents::end(lab, node, "KILL").map(|_| ())
}

/// Runs `act` while agents are watched; one with a step dies there. Returns of each
/// whether it died, and else its calls.
fn watched(
    lab: &Lab,
    agents: &[(&str, Option<&Death>)],
    act: impl FnOnce() -> Result<()>,
) -> Result<Vec<(bool, String)>> {
    let mut watches = Vec::new();
    for (node, step) in agents {
        let old = agents::pid(lab, node)?;
        watches.push((*node, old, Watch::attach(lab, node, *step)?));
    }
    let acted = act();
    let mut seen = Vec::new();
    let mut dead = Vec::new();
    for (node, old, mut watch) in watches {
        let died = watch.has_killed()?;
        seen.push((died, watch.end(&lab.node(node)?)?));
        if died {
            dead.push((node, old));
        }
    }
    acted?;
    for (node, old) in dead {
        agents::await_back(lab, node, old, Instant::now())?;
    }
    Ok(seen)
}

/// [`watched`] of the one agent on [`NODE`].
fn one_watched(
    lab: &Lab,
    step: Option<&Death>,
    act: impl FnOnce() -> Result<()>,
) -> Result<(bool, String)> {
    let seen = watched(lab, &[(NODE, step)], act)?;
    seen.into_iter().next().context("nothing was watched")
}

/// A pod that is made and deleted.
const NAME: &str = "stepped";

fn make(lab: &Lab) -> Result<()> {
    let labels = format!("{{app: {NAME}}}");
    lab.kubectl()
        .apply(&workloads::single(DEMO, NAME, NODE, &labels))?;
    pods::await_ready(lab, DEMO, &format!("app={NAME}"), 1, DONE)?;
    Ok(())
}

fn delete(lab: &Lab) -> Result<()> {
    lab.kubectl().run(&[
        "-n",
        DEMO,
        "delete",
        "pod",
        NAME,
        "--ignore-not-found",
        "--wait=true",
        "--timeout=100s",
    ])?;
    Ok(())
}

/// Steps through one undertaking with a pod. `attempt` carries it out, with a death
/// or without, and leaves all nodes as in the snapshot.
fn with_a_pod(
    scene: &Scene,
    attempt: impl Fn(&Lab, &Snapshot, Option<&Death>) -> Result<(bool, String)>,
) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    snapshot::await_agrees(lab, SETTLED)?;
    let before = snapshot::cluster(lab)?;
    // The identity exists from here on.
    let (_, trace) = attempt(lab, &before, None)?;
    let held = stepped(scene, &deaths::steps(&trace), 1, |steps| {
        Ok(usize::from(attempt(lab, &before, steps.first())?.0))
    });
    delete(lab)?;
    held
}

fn wiring(scene: &Scene) -> Result<Held> {
    with_a_pod(scene, |lab, before, step| {
        let seen = one_watched(lab, step, || make(lab))?;
        snapshot::await_agrees(lab, SETTLED)?;
        delete(lab)?;
        snapshot::await_same(lab, before, SETTLED)?;
        Ok(seen)
    })
}

fn unwiring(scene: &Scene) -> Result<Held> {
    with_a_pod(scene, |lab, before, step| {
        make(lab)?;
        let seen = one_watched(lab, step, || {
            delete(lab)?;
            // The API forgets a pod before it is unwired.
            snapshot::await_agrees(lab, DONE).map(|_| ())
        })?;
        snapshot::await_same(lab, before, SETTLED)?;
        Ok(seen)
    })
}

fn switching(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    snapshot::await_agrees(lab, SETTLED)?;
    // As an undisturbed change leaves all nodes, in either mode.
    let mut reference = Vec::new();
    let mut steps = Vec::new();
    for mode in [Mode::Native, Mode::Tunnel] {
        let (_, trace) = one_watched(lab, None, || lab.set_mode(mode))?;
        steps.extend(deaths::steps(&trace));
        reference.push((mode, snapshot::cluster(lab)?));
    }
    steps.sort();
    steps.dedup();
    let mut turns = reference.iter().cycle();
    let nodes = lab.cluster.node_names();
    let held = stepped(scene, &steps, nodes.len(), |steps| {
        let (mode, wanted) = turns.next().context("two modes")?;
        let agents = nodes.iter().zip(steps);
        let agents: Vec<_> = agents.map(|(n, s)| (n.as_str(), Some(s))).collect();
        let seen = watched(lab, &agents, || lab.set_mode(*mode))?;
        snapshot::await_same(lab, wanted, SETTLED)?;
        Ok(seen.iter().filter(|(died, _)| *died).count())
    });
    lab.set_mode(Mode::Tunnel)?;
    held
}
