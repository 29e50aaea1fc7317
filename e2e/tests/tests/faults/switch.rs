//! The change of mode under load: many times, and disturbed in every phase.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_tests::{
    lab::{Lab, Mode, repository},
    load::{self, Load, Path},
    picture,
    processes::{kill_agents, kill_leader},
    rollout::{self, Follow, Phase, Policy, is_in, number},
    scene::Scene,
};

use crate::fault::{Fault, Held, writes};

/// What is done in the midst of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    OneAgent,
    AllAgents,
    Leader,
    TurnRound,
    Pause,
}

impl Disturbance {
    const ALL: [Self; 5] = [
        Self::OneAgent,
        Self::AllAgents,
        Self::Leader,
        Self::TurnRound,
        Self::Pause,
    ];

    /// Whether `make test` tries it in this phase.
    fn in_short(self, phase: Phase) -> bool {
        match self {
            Self::OneAgent => true,
            Self::Leader | Self::TurnRound => phase == Phase::Switch,
            Self::AllAgents | Self::Pause => false,
        }
    }

    /// Part of the scenario's name, and what the table says.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::OneAgent => ("an_agent_killed", "SIGKILL to worker1's agent"),
            Self::AllAgents => ("all_agents_killed", "SIGKILL to every agent"),
            Self::Leader => ("the_leader_killed", "SIGKILL to the leading operator"),
            Self::TurnRound => ("turned_round", "the old mode asked for again"),
            Self::Pause => ("paused_and_resumed", "spec.rollout.paused for 3 s"),
        }
    }
}

/// All faults of the switch.
pub(crate) fn faults() -> Vec<Fault> {
    let mut all = vec![
        Fault::new(
            "switch::twenty_times_there_and_back",
            "kubectl patch clusternetwork, 20 times",
            Mode::Tunnel,
            |scene| there_and_back(scene, 20),
        ),
        Fault::new(
            "switch::one_change_drawn",
            "kubectl patch clusternetwork",
            Mode::Tunnel,
            drawn,
        )
        .short(),
        Fault::new(
            "switch::canary_first_and_one_at_a_time",
            "spec.rollout: canary worker2, maxConcurrent 1",
            Mode::Tunnel,
            canary,
        ),
        Fault::new(
            "switch::api_server_lost_in_switch",
            "SIGKILL to kube-apiserver, for twice the confirm timeout",
            Mode::Tunnel,
            without_api,
        ),
    ];
    let mut from = Mode::Tunnel;
    for phase in Phase::CHANGE {
        for disturbance in Disturbance::ALL {
            let (scenario, injected) = disturbance.words();
            let name = format!("switch::{scenario}_in_{}", phase.name().to_lowercase());
            let to = other(from);
            let fault = Fault::new(name, injected, from, move |scene| {
                disturbed(scene, (from, to), phase, disturbance)
            });
            all.push(fault.short_if(disturbance.in_short(phase)));
            // So that most need no change before theirs.
            if disturbance != Disturbance::TurnRound {
                from = to;
            }
        }
    }
    all
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Tunnel => Mode::Native,
        Mode::Native | Mode::Hybrid => Mode::Tunnel,
    }
}

fn there_and_back(scene: &Scene, times: u32) -> Result<Held> {
    let lab = &scene.lab;
    let mut longest = Duration::ZERO;
    let ((), report) = load::under(lab, &Path::ALL, || {
        let mut mode = Mode::Tunnel;
        for _ in 0..times {
            mode = other(mode);
            let start = Instant::now();
            lab.set_mode(mode)?;
            longest = longest.max(start.elapsed());
        }
        Ok(())
    })?;
    report.unharmed()?;
    let figure = format!(
        "{}; the slowest change took {:.1} s",
        report.figure(),
        longest.as_secs_f64()
    );
    Ok(Held::new("all traffic", figure))
}

/// One change with some time before and after, as a picture.
fn drawn(scene: &Scene) -> Result<Held> {
    const AROUND: Duration = Duration::from_secs(2);
    let lab = &scene.lab;
    let mut follow = Follow::network(lab)?;
    follow.until("Ready", |n| n["status"]["epoch"]["phase"] == "Ready")?;
    let mut load = Load::start(lab, &Path::ALL)?;
    let began = load.began();
    load.goes_on(AROUND)?;
    lab.set_mode(Mode::Native)?;
    load.goes_on(AROUND)?;
    let report = load.stop()?;
    let steps = picture::steps(&follow.stop(), began);
    report.unharmed()?;
    let picture = picture::draw(
        "One change from Tunnel to Native under load",
        &report,
        &steps,
    );
    let figure = report.figure();
    if !writes() {
        return Ok(Held::new("all traffic", figure));
    }
    let path = repository().join("docs/switch.svg");
    fs::write(&path, picture).with_context(|| format!("write {}", path.display()))?;
    Ok(Held::new("all traffic; drawn in docs/switch.svg", figure))
}

/// Disturbs a change when it comes to `phase`.
fn disturbed(
    scene: &Scene,
    (from, to): (Mode, Mode),
    phase: Phase,
    disturbance: Disturbance,
) -> Result<Held> {
    let lab = &scene.lab;
    let nodes = lab.cluster.node_names();
    let all: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let (took, report) = load::under(lab, &Path::ALL, || {
        let start = Instant::now();
        if disturbance == Disturbance::Pause {
            paused(lab, to, phase)?;
            lab.await_mode(to)?;
            return Ok(start.elapsed());
        }
        let mut follow = Follow::network(lab)?;
        let before = number(&rollout::network(lab)?);
        rollout::ask(lab, to)?;
        follow.until(phase.name(), |n| is_in(n, before, phase))?;
        match disturbance {
            Disturbance::OneAgent => kill_agents(lab, &["worker1"])?,
            Disturbance::AllAgents => kill_agents(lab, &all)?,
            Disturbance::Leader => {
                kill_leader(lab)?;
            }
            Disturbance::TurnRound => {
                rollout::ask(lab, from)?;
                lab.await_mode(from)?;
                return Ok(start.elapsed());
            }
            Disturbance::Pause => {}
        }
        lab.await_mode(to)?;
        Ok(start.elapsed())
    })?;
    report.unharmed()?;
    let figure = format!(
        "{}; the change took {:.1} s",
        report.figure(),
        took.as_secs_f64()
    );
    let what = match disturbance {
        Disturbance::TurnRound => "all traffic, and every node is back",
        Disturbance::OneAgent
        | Disturbance::AllAgents
        | Disturbance::Leader
        | Disturbance::Pause => "all traffic, and the change came to its end",
    };
    Ok(Held::new(what, figure))
}

/// Holds a change in a phase, sees that it stays there, and lets it go on.
fn paused(lab: &Lab, to: Mode, phase: Phase) -> Result<()> {
    let held = rollout::hold(lab, to, phase)?;
    let mut follow = Follow::network(lab)?;
    let epoch = &held["status"]["epoch"];
    follow.never("a paused change goes on", Duration::from_secs(3), |n| {
        n["status"]["epoch"]["phase"] != epoch["phase"] || number(n) != number(&held)
    })?;
    rollout::pause(lab, false)
}

/// One state of all nodes, as the last versions of their objects say.
fn switching(nodes: &[Value], epoch: i64) -> (Vec<&str>, Vec<&str>) {
    let reached = |e: &Value| {
        e["number"].as_i64() == Some(epoch)
            && ["Switch", "Finalize", "Ready"].contains(&e["phase"].as_str().unwrap_or_default())
    };
    let mut under_way = Vec::new();
    let mut done = Vec::new();
    for node in nodes {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        if reached(&node["status"]["applied"]) {
            done.push(name);
        } else if reached(&node["spec"]["epoch"]) {
            under_way.push(name);
        }
    }
    (under_way, done)
}

fn canary(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let _policy = Policy::set(
        lab,
        &serde_json::json!({
            "canary": {"matchLabels": {"kubernetes.io/hostname": "worker2"}},
            "maxConcurrent": 1,
        }),
    )?;
    let (versions, report) = load::under(lab, &Path::ALL, || {
        let follow = Follow::start(lab, &["nodenetworks"])?;
        lab.set_mode(Mode::Native)?;
        Ok(follow.stop())
    })?;
    report.unharmed()?;
    let epoch = number(&rollout::network(lab)?);
    let mut nodes: Vec<Value> = Vec::new();
    let mut order: Vec<String> = Vec::new();
    for (_, version) in versions {
        nodes.retain(|n| n["metadata"]["name"] != version["metadata"]["name"]);
        nodes.push(version);
        let (under_way, done) = switching(&nodes, epoch);
        ensure!(under_way.len() <= 1, "{under_way:?} switch at once");
        ensure!(
            done.contains(&"worker2") || under_way.iter().all(|n| *n == "worker2"),
            "{under_way:?} switch before the canary has"
        );
        for name in done {
            if !order.iter().any(|o| o == name) {
                order.push(name.to_owned());
            }
        }
    }
    // The objects of nodes that are gone may still be there.
    ensure!(
        order.len() == lab.cluster.node_names().len(),
        "only {order:?} were seen to switch"
    );
    Ok(Held::new(
        "the canary first, then one at a time",
        format!("{}; {}", order.join(", "), report.figure()),
    ))
}

fn without_api(scene: &Scene) -> Result<Held> {
    // Long enough for probes on a busy machine: no pair may fall back because a probe
    // was late.
    const CONFIRM: u64 = 30;
    let lab = &scene.lab;
    let _policy = Policy::set(lab, &serde_json::json!({"confirmTimeoutSeconds": CONFIRM}))?;
    let (forms, report) = load::under(lab, &Path::ALL, || {
        rollout::hold(lab, Mode::Native, Phase::Switch)?;
        scene.await_path("worker1", "worker2", Mode::Native)?;
        lab.cluster.stop_process("control", "kube-apiserver")?;
        let outcome = scene
            .pings_for("worker1", "worker2", Duration::from_secs(2 * CONFIRM))
            .and_then(|()| scene.path("worker1", "worker2"));
        lab.cluster.start_process("control", "kube-apiserver")?;
        let form = outcome.context("while the API server was away")?;
        rollout::pause(lab, false)?;
        lab.await_mode(Mode::Native)?;
        Ok(form)
    })?;
    report.unharmed()?;
    ensure!(
        forms == Mode::Native,
        "without the API server the pair went back to {forms:?}"
    );
    Ok(Held::new(
        "nothing reverted: bare packets all the time, on the wire",
        report.figure(),
    ))
}
