//! Agents end, are killed, are replaced: traffic is none of their business.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    agents::{self, Back},
    datagrams::ToOne,
    lab::{AGENT, Lab, Mode, NAMESPACE, RELEASE, repository},
    scene::{FIXED, Scene},
    translator::{Translator, Translators},
    workloads,
};

use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, quick_or_full, seconds, unchanged},
};

/// How long the rollout of all agents may take.
const ROLLOUT: Duration = Duration::from_mins(2);

/// All faults of agents.
pub(crate) fn faults() -> Vec<Fault> {
    // A hundred of both modes.
    let kills = quick_or_full(5, 50);
    let upgrades = quick_or_full(2, 50);
    vec![
        Fault::new(
            "agent::ended",
            "SIGTERM to every agent in turn",
            Mode::Tunnel,
            |scene| signalled(scene, "TERM", 3),
        )
        .short(),
        Fault::new(
            "agent::state_lost",
            "/var/lib/veer emptied on a node and its agent killed",
            Mode::Tunnel,
            state_lost,
        )
        .short(),
        Fault::new(
            "agent::killed",
            format!("SIGKILL to one agent after another, {kills} times"),
            Mode::Tunnel,
            move |scene| signalled(scene, "KILL", kills),
        ),
        Fault::new(
            "agent::killed_in_native_mode",
            format!("the same in mode Native, {kills} times"),
            Mode::Native,
            move |scene| signalled(scene, "KILL", kills),
        ),
        Fault::new(
            "agent::all_killed_at_once",
            "SIGKILL to all agents together",
            Mode::Tunnel,
            all_at_once,
        ),
        Fault::new(
            "agent::upgraded",
            format!("helm upgrade with another pod template, {upgrades} times"),
            Mode::Tunnel,
            move |scene| upgraded(scene, upgrades),
        ),
        Fault::new(
            "agent::other_map_layout",
            "helm upgrade to an agent whose maps have another layout, and helm rollback",
            Mode::Native,
            other_layout,
        )
        .short(),
    ]
}

/// The median of what `time` says of each.
fn median(all: &[Back], time: impl Fn(&Back) -> Duration) -> Duration {
    let mut times: Vec<Duration> = all.iter().map(time).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn figure(all: &[Back]) -> String {
    let worst = all.iter().map(|b| b.since_start).max();
    format!(
        "{} agents ready again {} ms after their start (median; {} ms at worst), with the \
         kubelet's part {} after the end",
        all.len(),
        median(all, |b| b.since_start).as_millis(),
        worst.unwrap_or_default().as_millis(),
        seconds(median(all, |b| b.since_end))
    )
}

fn signalled(scene: &Scene, signal: &str, times: usize) -> Result<Held> {
    let lab = &scene.lab;
    let nodes = lab.cluster.node_names();
    unchanged(
        scene,
        "all traffic; nodes as before; each ready again",
        || {
            let mut all = Vec::new();
            for node in nodes.iter().cycle().take(times) {
                all.push(agents::end(lab, node, signal)?);
            }
            Ok(all)
        },
        |all| figure(all),
    )
}

/// The records are rebuilt from the kernel, the runtime and the API.
fn state_lost(scene: &Scene) -> Result<Held> {
    const NODE: &str = "worker1";
    let lab = &scene.lab;
    unchanged(
        scene,
        "all traffic; every pod keeps its device, address and identity; nodes as before",
        || {
            let empty = "find /var/lib/veer -mindepth 1 -delete";
            lab.node(NODE)?.exec(&["sh", "-ec", empty])?;
            Ok(vec![agents::end(lab, NODE, "KILL")?])
        },
        |all| figure(all),
    )
}

fn all_at_once(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let nodes = lab.cluster.node_names();
    unchanged(
        scene,
        "all traffic; nodes as before",
        || {
            let mut old = Vec::new();
            for node in &nodes {
                old.push((node, agents::pid(lab, node)?));
            }
            for node in &nodes {
                agents::signal(lab, node, "KILL")?;
            }
            let ended = Instant::now();
            old.into_iter()
                .map(|(node, old)| agents::await_back(lab, node, old, ended))
                .collect::<Result<Vec<Back>>>()
        },
        |all| figure(all),
    )
}

/// The release with another value of one that only the agents' pods have.
fn upgrade(lab: &Lab, value: &str) -> Result<()> {
    let chart = repository().join("charts/veer");
    let chart = chart.to_string_lossy();
    lab.helm(&[
        "upgrade",
        RELEASE,
        &chart,
        "-n",
        NAMESPACE,
        "--reuse-values",
        "--set",
        value,
    ])?;
    Ok(lab.cluster.await_rollout(NAMESPACE, AGENT, ROLLOUT)?)
}

/// Upgrades by `act`, which says what it did, under load: nodes must be as before
/// and the ClusterNetwork untouched.
fn rolled_out(
    scene: &Scene,
    act: impl FnOnce(&Lab) -> Result<()>,
    figure: impl FnOnce(Duration) -> String,
) -> Result<Held> {
    let lab = &scene.lab;
    let resource = || -> Result<String> {
        let network = lab.kubectl().json(&["get", "clusternetwork", "default"])?;
        Ok(network["spec"].to_string())
    };
    let spec = resource()?;
    unchanged(
        scene,
        "all traffic; nodes as before; the ClusterNetwork untouched",
        || {
            let start = Instant::now();
            act(lab)?;
            ensure!(resource()? == spec, "the ClusterNetwork changed");
            Ok(start.elapsed())
        },
        |time| figure(*time),
    )
}

fn upgraded(scene: &Scene, times: usize) -> Result<Held> {
    rolled_out(
        scene,
        |lab| {
            (0..times).try_for_each(|number| {
                // Another text each time, the same meaning.
                let log = ["agent.log=info", "agent.log=info\\,kube=info"][number % 2];
                upgrade(lab, log)
            })
        },
        |time| format!("{times} rollouts of all agents in {}", seconds(time)),
    )
}

/// Layouts of maps that are pinned on the nodes.
fn layouts(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for name in lab.cluster.node_names() {
        let out = lab
            .node(&name)?
            .exec(&["sh", "-c", "cd /sys/fs/bpf/veer && ls -d maps-v*"])?;
        found.extend(out.stdout.lines().map(str::to_owned));
    }
    Ok(found)
}

fn other_layout(scene: &Scene) -> Result<Held> {
    let image = repository().join("build/images/veer-node-next.tar");
    ensure!(
        image.exists(),
        "{} is missing: run VEER_NEXT_LAYOUT=1 charts/build-images",
        image.display()
    );
    scene.lab.cluster.load_image(&image)?;
    let tag = format!("agent.image.tag={}-next", env!("CARGO_PKG_VERSION"));
    let pinned = |lab: &Lab, wanted: &str| {
        let what = format!("all nodes have {wanted} and nothing else");
        await_condition(&what, SETTLED, || {
            let found = layouts(lab).map_err(|e| format!("{e:#}"))?;
            if found.iter().eq([wanted]) {
                Ok(Some(()))
            } else {
                Err(format!("{found:?}"))
            }
        })
    };
    let before = layouts(&scene.lab)?;
    // With all that there is to hand over.
    let translators = Translators::hold(&scene.lab)?;
    translators.set(Translator::Full)?;
    let sockets = of_node(scene)?;
    let answered = || {
        let all = sockets.iter().try_for_each(ToOne::answered);
        all.context("a node's sockets to a Service")
    };
    let held = rolled_out(
        scene,
        |lab| {
            answered()?;
            upgrade(lab, &tag)?;
            pinned(lab, "maps-v6")?;
            answered()?;
            lab.helm(&["rollback", RELEASE, "-n", NAMESPACE])?;
            lab.cluster.await_rollout(NAMESPACE, AGENT, ROLLOUT)?;
            pinned(lab, "maps-v5")?;
            answered()
        },
        |time| {
            format!(
                "{before:?}, then maps-v6, then maps-v5 again, in {}",
                seconds(time)
            )
        },
    )?;
    translators.restored()?;
    Ok(held)
}

/// Datagram sockets of a node to a Service with a backend there, and to one with a backend
/// elsewhere, in all families.
fn of_node(scene: &Scene) -> Result<Vec<ToOne>> {
    const NODE: &str = "worker1";
    let lab = &scene.lab;
    let site = lab.node_site(NODE)?;
    let mut all = Vec::new();
    for node in [NODE, "worker2"] {
        let backend = scene.fixed_on(node)?;
        for family in lab.cluster.families().all() {
            let to = workloads::frontend(lab, *family, (FIXED, &backend.name), "udp")?;
            all.push(ToOne::open(&site, to, backend)?);
        }
    }
    Ok(all)
}
