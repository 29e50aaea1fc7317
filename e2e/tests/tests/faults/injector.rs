//! An agent killed at each system call by which it changes something: while it
//! starts, while it carries out a change of mode, while it wires a pod, while it
//! unwires one. The kubelet starts the next one, which must bring the node to
//! exactly where an undisturbed one brings it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    agents,
    deaths::{self, Step, Watch},
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
        fault("while_starting", "while an agent starts", starting).short(),
        fault("while_wiring_a_pod", "during ADD", wiring),
        fault("while_unwiring_a_pod", "during DEL", unwiring),
        fault(
            "while_the_mode_changes",
            "during a change of mode",
            switching,
        ),
    ]
}

/// All of them, or some that are evenly spread.
fn chosen(all: &[Step]) -> Vec<Step> {
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

/// Kills at each chosen step of `reference` by `attempt`, under load; after each
/// all nodes must be as `attempt` says, which returns whether the step was
/// reached.
fn stepped(
    scene: &Scene,
    reference: &[Step],
    mut attempt: impl FnMut(&Step) -> Result<bool>,
) -> Result<Held> {
    ensure!(
        !reference.is_empty(),
        "no call that changes something was seen"
    );
    let steps = chosen(reference);
    let (stepped, report) = load::under(&scene.lab, &Path::ALL, || {
        let mut deaths = 0;
        for step in &steps {
            let died = attempt(step)
                .with_context(|| format!("killed at {} number {}", step.call, step.number))?;
            deaths += usize::from(died);
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
    let outcome = deaths::wrap(lab).and_then(|()| {
        let restart = |step: Option<&Step>| -> Result<bool> {
            let old = agents::pid(lab, NODE)?;
            deaths::arm(lab, NODE, step)?;
            agents::signal(lab, NODE, "KILL")?;
            let ended = Instant::now();
            await_condition("the traced agent has begun", DONE, || {
                let begun = deaths::has_begun(lab, NODE).map_err(|e| format!("{e:#}"))?;
                Ok(begun.then_some(()))
            })?;
            agents::await_back(lab, NODE, old, ended)?;
            let survived = deaths::is_traced(lab, NODE)?;
            Ok(!survived)
        };
        restart(None)?;
        let trace = deaths::take_trace(&lab.node(NODE)?)?;
        end_traced(lab)?;
        stepped(scene, &deaths::steps(&trace), |step| {
            let died = restart(Some(step))?;
            if !died {
                end_traced(lab)?;
            }
            snapshot::await_same(lab, &before, SETTLED)?;
            Ok(died)
        })
    });
    deaths::unwrap(lab)?;
    let held = outcome?;
    snapshot::await_same(lab, &before, SETTLED)?;
    Ok(held)
}

/// Ends an agent that runs under strace: the next one does not.
fn end_traced(lab: &Lab) -> Result<()> {
    let old = agents::pid(lab, NODE)?;
    agents::signal(lab, NODE, "KILL")?;
    agents::await_back(lab, NODE, old, Instant::now())?;
    Ok(())
}

/// Runs `act` while the agent is watched; with a step it dies there. Returns
/// whether it died, and else its calls.
fn watched(
    lab: &Lab,
    step: Option<&Step>,
    act: impl FnOnce() -> Result<()>,
) -> Result<(bool, String)> {
    let old = agents::pid(lab, NODE)?;
    let mut watch = Watch::attach(lab, NODE, step)?;
    let acted = act();
    let died = watch.has_killed()?;
    let trace = watch.end(&lab.node(NODE)?)?;
    acted?;
    if died {
        agents::await_back(lab, NODE, old, Instant::now())?;
    }
    Ok((died, trace))
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
    attempt: impl Fn(&Lab, &Snapshot, Option<&Step>) -> Result<(bool, String)>,
) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    snapshot::await_agrees(lab, SETTLED)?;
    let before = snapshot::cluster(lab)?;
    // The identity exists from here on.
    let (_, trace) = attempt(lab, &before, None)?;
    let held = stepped(scene, &deaths::steps(&trace), |step| {
        Ok(attempt(lab, &before, Some(step))?.0)
    });
    delete(lab)?;
    held
}

fn wiring(scene: &Scene) -> Result<Held> {
    with_a_pod(scene, |lab, before, step| {
        let seen = watched(lab, step, || make(lab))?;
        snapshot::await_agrees(lab, SETTLED)?;
        delete(lab)?;
        snapshot::await_same(lab, before, SETTLED)?;
        Ok(seen)
    })
}

fn unwiring(scene: &Scene) -> Result<Held> {
    with_a_pod(scene, |lab, before, step| {
        make(lab)?;
        let seen = watched(lab, step, || {
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
        let (_, trace) = watched(lab, None, || lab.set_mode(mode))?;
        steps.extend(deaths::steps(&trace));
        reference.push((mode, snapshot::cluster(lab)?));
    }
    steps.sort();
    steps.dedup();
    let mut turns = reference.iter().cycle();
    let held = stepped(scene, &steps, |step| {
        let (mode, wanted) = turns.next().context("two modes")?;
        let (died, _) = watched(lab, Some(step), || lab.set_mode(*mode))?;
        snapshot::await_same(lab, wanted, SETTLED)?;
        Ok(died)
    });
    lab.set_mode(Mode::Tunnel)?;
    held
}
