//! Pairs of nodes between which the target form does not work: found before
//! anything changes, or only when they have switched.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    broken::{Broken, Form},
    lab::{AGENT, Lab, Mode, NAMESPACE},
    load::{self, Load, Path},
    pods,
    processes::{REPLACED, Signal, signal_agents},
    rollout::{self, Follow, Phase, Policy, is_in, number},
    scene::Scene,
};

use crate::fault::{Fault, Held};

/// The pair that breaks.
const PAIR: [&str; 2] = ["worker1", "worker2"];
/// Seconds that switched nodes have to confirm.
const CONFIRM: u64 = 5;
/// How long pairs that failed may take to be probed again: some attempts.
const AGAIN: Duration = Duration::from_mins(2);

/// What becomes of the agents of the pair once their nodes have switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agents {
    Alive,
    Frozen,
    Removed,
}

/// All faults of broken pairs.
pub(crate) fn faults() -> Vec<Fault> {
    let mut all = vec![
        Fault::new(
            "pairs::broken_bare_path_stops_the_change_before_it_begins",
            "bare packets between two nodes dropped in the bridge; failedPairs Stop",
            Mode::Tunnel,
            |scene| stopped(scene, Form::Bare),
        ),
        Fault::new(
            "pairs::broken_tunnel_stops_the_change_before_it_begins",
            "UDP 8472 between two nodes dropped in the bridge; failedPairs Stop",
            Mode::Native,
            |scene| stopped(scene, Form::Tunnel),
        ),
        Fault::new(
            "pairs::broken_pair_alone_keeps_the_old_form",
            "bare packets between two nodes dropped in the bridge; failedPairs Keep",
            Mode::Tunnel,
            kept,
        ),
    ];
    for (agents, scenario, injected) in [
        (Agents::Alive, "switched_pair_falls_back", "after Prepare"),
        (
            Agents::Frozen,
            "switched_pair_falls_back_under_frozen_agents",
            "after Prepare, SIGSTOP to both agents after Switch",
        ),
        (
            Agents::Removed,
            "switched_pair_falls_back_without_agents",
            "after Prepare, the agents' pods removed after Switch",
        ),
    ] {
        let fault = Fault::new(
            format!("pairs::{scenario}"),
            format!("bare packets between two nodes dropped {injected}"),
            Mode::Tunnel,
            move |scene| falls_back(scene, agents),
        );
        all.push(fault.short_if(agents == Agents::Removed));
    }
    all
}

/// The pairs that the ClusterNetwork names, sorted.
fn named(network: &Value) -> Vec<(String, String)> {
    let pairs = network["status"]["failedPairs"].as_array();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut pairs: Vec<(String, String)> = pairs
        .into_iter()
        .flatten()
        .map(|p| (text(&p["from"]), text(&p["to"])))
        .collect();
    pairs.sort();
    pairs
}

/// Whether exactly the pair is named, in both directions.
fn is_named(network: &Value) -> bool {
    let [a, b] = PAIR.map(str::to_owned);
    named(network) == [(a.clone(), b.clone()), (b, a)]
}

fn await_mode(lab: &Lab, mode: Mode) -> Result<()> {
    let mut follow = Follow::network(lab)?;
    let start = Instant::now();
    // Each attempt is a minute at most; the wait for all of them has an end.
    while start.elapsed() < AGAIN {
        if follow.until("Ready", |n| is_ready(n, mode)).is_ok() {
            return lab.await_mode(mode);
        }
    }
    lab.await_mode(mode)
}

fn is_ready(network: &Value, mode: Mode) -> bool {
    network["status"]["epoch"]["phase"] == "Ready"
        && network["status"]["epoch"]["mode"] == mode.name()
}

/// With Stop the change waits in Preflight, nothing moves, and it goes on by
/// itself when the pair is mended.
fn stopped(scene: &Scene, form: Form) -> Result<Held> {
    let lab = &scene.lab;
    let (from, to) = match form {
        Form::Bare => (Mode::Tunnel, Mode::Native),
        Form::Tunnel => (Mode::Native, Mode::Tunnel),
    };
    let (waited, report) = load::under(lab, &Path::ALL, || {
        // The old form goes on where the new one is broken.
        let broken = Broken::between(lab, PAIR, form)?;
        let before = number(&rollout::network(lab)?);
        let mut follow = Follow::network(lab)?;
        rollout::ask(lab, to)?;
        let start = Instant::now();
        follow.until("the broken pair is named", is_named)?;
        let named_after = start.elapsed();
        follow.until("it is tried again", |n| {
            number(n) > before && n["status"]["epoch"]["attempt"].as_i64() > Some(0)
        })?;
        let now = rollout::network(lab)?;
        ensure!(
            is_in(&now, before, Phase::Preflight) && is_named(&now),
            "the change did not stop: {}",
            now["status"]
        );
        for (a, b) in [("worker1", "worker2"), ("worker1", "control")] {
            let path = scene.path(a, b)?;
            ensure!(path == from, "{a} sends to {b} by {path:?} in Preflight");
        }
        broken.mend()?;
        await_mode(lab, to)?;
        Ok(named_after)
    })?;
    report.unharmed()?;
    Ok(Held::new(
        "the pair named, all in the old form; when mended, the change went on by itself",
        format!(
            "named after {:.1} s; {}",
            waited.as_secs_f64(),
            report.figure()
        ),
    ))
}

/// With Keep the others change, and the pair follows when it is mended.
fn kept(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let _policy = Policy::set(lab, &json!({"failedPairs": "Keep"}))?;
    let (mended, report) = load::under(lab, &Path::ALL, || {
        let broken = Broken::between(lab, PAIR, Form::Bare)?;
        lab.set_mode(Mode::Native)?;
        let network = rollout::network(lab)?;
        ensure!(is_named(&network), "named: {:?}", named(&network));
        for (a, b, form) in [
            ("worker1", "worker2", Mode::Tunnel),
            ("worker2", "worker1", Mode::Tunnel),
            ("worker1", "control", Mode::Native),
            ("control", "worker2", Mode::Native),
        ] {
            let path = scene.path(a, b)?;
            ensure!(path == form, "{a} sends to {b} by {path:?}");
        }
        broken.mend()?;
        let start = Instant::now();
        scene.await_path("worker1", "worker2", Mode::Native)?;
        scene.await_path("worker2", "worker1", Mode::Native)?;
        let took = start.elapsed();
        await_condition("nothing is named any more", Duration::from_mins(1), || {
            let network = rollout::network(lab).map_err(|e| format!("{e:#}"))?;
            let named = named(&network);
            if named.is_empty() {
                Ok(Some(()))
            } else {
                Err(format!("{named:?}"))
            }
        })?;
        Ok(took)
    })?;
    report.unharmed()?;
    Ok(Held::new(
        "just the pair stayed in the tunnel, on the wire; mended, it followed",
        format!(
            "bare {:.1} s after it was mended; {}",
            mended.as_secs_f64(),
            report.figure()
        ),
    ))
}

/// Takes away or gives back the agents of all nodes.
fn remove_agents(lab: &Lab, removed: bool) -> Result<()> {
    let selector = if removed {
        json!({"veer.dev/e2e-removed": "yes"})
    } else {
        json!({"veer.dev/e2e-removed": null})
    };
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
    let kubectl = lab.kubectl();
    kubectl.run(&["-n", NAMESPACE, "patch", AGENT, "-p", &patch.to_string()])?;
    if !removed {
        return Ok(lab.cluster.await_rollout(NAMESPACE, AGENT, REPLACED)?);
    }
    await_condition("no agent runs", REPLACED, || {
        let label = "app.kubernetes.io/name=veer-agent";
        let left = pods::running(lab, NAMESPACE, label).map_err(|e| format!("{e:#}"))?;
        Ok(left.is_empty().then_some(()))
    })?;
    Ok(())
}

/// A pair that cannot confirm falls back without its agents, and nothing is lost
/// afterwards.
fn falls_back(scene: &Scene, agents: Agents) -> Result<Held> {
    let lab = &scene.lab;
    let _policy = Policy::set(lab, &json!({"confirmTimeoutSeconds": CONFIRM}))?;
    rollout::hold(lab, Mode::Native, Phase::Prepare)?;
    let mut follow = Follow::network(lab)?;
    let mut load = Load::start(lab, &Path::ALL)?;
    let broken = Broken::between(lab, PAIR, Form::Bare)?;
    rollout::pause(lab, false)?;
    await_condition(
        "the pair's pods send bare packets",
        rollout::PATIENCE,
        || {
            let dropped = broken.dropped().map_err(|e| format!("{e:#}"))?;
            Ok((dropped > 0).then_some(()))
        },
    )?;
    let undo = match agents {
        Agents::Alive => Ok(()),
        Agents::Frozen => signal_agents(lab, &PAIR, Signal::Stop),
        Agents::Removed => remove_agents(lab, true),
    };
    // From here on the agents must be given back whatever comes.
    let outcome = undo.and_then(|()| {
        load.goes_on(Duration::from_secs(1))
            .context("after the time to confirm")?;
        let dark = load.stop()?;
        let after = afterwards(scene, agents)?;
        Ok((dark, after))
    });
    match agents {
        Agents::Alive => {}
        Agents::Frozen => signal_agents(lab, &PAIR, Signal::Continue)?,
        Agents::Removed => remove_agents(lab, false)?,
    }
    let (dark, after) = outcome?;
    dark.only(&[Path::SameNode]).unharmed()?;
    ensure!(
        dark.flows.iter().all(|f| f.resets.is_empty()),
        "connections broke: {}",
        dark.losses()
    );
    named_since(&mut follow, agents)?;
    broken.mend()?;
    await_mode(lab, Mode::Native)?;
    let longest = dark.longest_gap().map_or(0.0, |gap| gap.as_secs_f64());
    Ok(Held::new(
        "the pair back in the tunnel, on the wire; nothing lost from then on; mended, it followed",
        format!(
            "dark for {longest:.1} s of {CONFIRM} s to confirm, no connection broke; then {after}"
        ),
    ))
}

/// The pair uses the tunnel, and nothing is lost.
fn afterwards(scene: &Scene, agents: Agents) -> Result<String> {
    let ((), report) = load::under(&scene.lab, &Path::ALL, || {
        for (a, b) in [("worker1", "worker2"), ("worker2", "worker1")] {
            let path = scene.path(a, b)?;
            ensure!(
                path == Mode::Tunnel,
                "{a} sends to {b} by {path:?} after the time to confirm, agents {agents:?}"
            );
        }
        Ok(())
    })?;
    report.unharmed().context("after the fall-back")?;
    Ok(report.figure())
}

/// The user was informed since the watch began: with the next attempt the pair is
/// listed as failing, and its nodes no longer as fallen back. If agents were away for
/// longer than the operator waits between attempts, the next attempt begins as soon
/// as they are back.
fn named_since(follow: &mut Follow, agents: Agents) -> Result<()> {
    follow.until("the pair that fell back is named", |n| {
        let nodes = n["status"]["failedNodes"].as_array();
        let listed = |node: &&str| nodes.is_some_and(|l| l.iter().any(|f| f["node"] == **node));
        is_named(n) && (agents != Agents::Alive || PAIR.iter().all(listed))
    })?;
    Ok(())
}
