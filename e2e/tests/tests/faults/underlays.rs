//! The modes on underlays of both kinds, what one packet size costs while they
//! change, and what a user sees of it.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use veer_e2e_tests::{
    client::{Steady, ping_during, ping_headers},
    lab::Mode,
    load::{self, Path},
    pods::Pod,
    rollout::{self, Follow, Phase, is_in, number},
    scene::Scene,
};

use crate::fault::{Fault, Held};

/// All of them.
pub(crate) fn faults() -> Vec<Fault> {
    vec![
        Fault::new(
            "underlays::hybrid_on_one_link_is_bare",
            "mode Hybrid and back, nodes on one bridge",
            Mode::Tunnel,
            |scene| hybrid(scene, Mode::Native),
        ),
        Fault::new(
            "underlays::packets_of_every_size_pass_or_are_answered",
            "pings with DF of 1450 and 1500 octets during two changes",
            Mode::Tunnel,
            sizes,
        ),
        Fault::new(
            "underlays::kubectl_get_w_shows_every_phase",
            "kubectl get clusternetwork -w during a change",
            Mode::Tunnel,
            shown,
        ),
        Fault::new(
            "underlays::router_hybrid_stays_in_the_tunnel",
            "mode Hybrid and back, a router between all nodes",
            Mode::Tunnel,
            |scene| hybrid(scene, Mode::Tunnel),
        ),
        Fault::new(
            "underlays::router_that_knows_no_pods_stops_native",
            "mode Native on a router without routes to pods, which then gets them",
            Mode::Tunnel,
            router,
        ),
    ]
}

const PAIRS: [(&str, &str); 3] = [
    ("worker1", "worker2"),
    ("worker2", "control"),
    ("control", "worker1"),
];

fn hybrid(scene: &Scene, form: Mode) -> Result<Held> {
    let lab = &scene.lab;
    let ((), report) = load::under(lab, &Path::ALL, || {
        lab.set_mode(Mode::Hybrid)?;
        for (a, b) in PAIRS {
            let path = scene.path(a, b)?;
            ensure!(path == form, "{a} sends to {b} by {path:?} in Hybrid");
        }
        lab.set_mode(Mode::Tunnel)
    })?;
    report.unharmed()?;
    let what = match form {
        Mode::Tunnel => "all pairs in the tunnel, on the wire",
        Mode::Native | Mode::Hybrid => "all pairs bare, on the wire",
    };
    Ok(Held::new(what, report.figure()))
}

/// Pings of `size` octets on the wire, without fragmentation, until `change` is
/// done.
fn pings_of(
    source: &Pod,
    target: &Pod,
    size: u32,
    change: impl FnOnce() -> Result<()>,
) -> Result<Steady> {
    let ((), pings) = ping_during(
        &source.site,
        target.address,
        size - ping_headers(target.address),
        change,
    )?;
    Ok(pings)
}

fn sizes(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let (source, target) = (scene.demo_on("worker1")?, scene.demo_on("worker2")?);
    let uplink = u32::from(lab.cluster.state().config.mtu);
    let fits = uplink - scene.tunnel_overhead();
    let mut small = None;
    let (large, report) = load::under(lab, &Path::ALL, || {
        let there_and_back = || {
            lab.set_mode(Mode::Native)?;
            scene.pings_for("worker1", "worker2", Duration::from_secs(1))?;
            lab.set_mode(Mode::Tunnel)
        };
        pings_of(source, target, uplink, || {
            small = Some(pings_of(source, target, fits, there_and_back)?);
            Ok(())
        })
    })?;
    report.unharmed()?;
    let small = small.context("no pings of the smaller size")?;
    ensure!(
        small.sent == small.answered && small.sent > 0,
        "{} of {} pings that fit the tunnel were answered",
        small.answered,
        small.sent
    );
    let silent = large.sent.saturating_sub(large.answered + large.errors);
    ensure!(
        silent == 0 && large.answered > 0 && large.errors > 0,
        "of {} pings as large as the uplink {} were answered, {} refused",
        large.sent,
        large.answered,
        large.errors
    );
    Ok(Held::new(
        "no size vanished silently; bulk TCP went on",
        format!(
            "{fits} octets: {} of {} answered; {uplink} octets: {} answered, {} refused with the \
             smaller MTU, 0 vanished; {}",
            small.answered,
            small.sent,
            large.answered,
            large.errors,
            report.figure()
        ),
    ))
}

fn shown(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let child = lab
        .kubectl()
        .command(&["get", "clusternetwork", "default", "-w"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start kubectl")?;
    let changed = lab.set_mode(Mode::Native);
    Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .context("end kubectl")?;
    let out = child.wait_with_output().context("wait for kubectl")?;
    changed?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut rest = text.as_str();
    for phase in Phase::CHANGE.into_iter().chain([Phase::Ready]) {
        let Some(at) = rest.find(phase.name()) else {
            bail!("{} is not shown in its place:\n{text}", phase.name());
        };
        rest = &rest[at..];
    }
    ensure!(text.contains("3/3"), "no progress is shown:\n{text}");
    eprintln!("\n{text}");
    Ok(Held::new(
        "every phase and its progress shown, in order",
        format!("{} lines", text.lines().count()),
    ))
}

fn router(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let switch = lab.cluster.switch();
    let mut routes = Vec::new();
    for node in lab.cluster.node_names() {
        for family in lab.cluster.families().all() {
            let via = lab.address(&node, *family)?.to_string();
            routes.push((lab.pod_cidr(&node, *family)?, via));
        }
    }
    let (count, report) = load::under(lab, &Path::ALL, || {
        let before = number(&rollout::network(lab)?);
        let mut follow = Follow::network(lab)?;
        rollout::ask(lab, Mode::Native)?;
        let named = follow.until("all pairs are named", |n| {
            n["status"]["failedPairCount"].as_u64() == Some(6)
        })?;
        ensure!(
            is_in(&named, before, Phase::Preflight),
            "the change did not stop: {}",
            named["status"]
        );
        for (cidr, via) in &routes {
            switch.exec(&["ip", "route", "replace", cidr, "via", via])?;
        }
        lab.await_mode(Mode::Native)?;
        for (a, b) in PAIRS {
            let path = scene.path(a, b)?;
            ensure!(path == Mode::Native, "{a} sends to {b} by {path:?}");
        }
        Ok(named["status"]["failedPairCount"].to_string())
    })?;
    lab.set_mode(Mode::Tunnel)?;
    for (cidr, _) in &routes {
        switch.exec(&["ip", "route", "del", cidr])?;
    }
    report.unharmed()?;
    Ok(Held::new(
        "all pairs named, all in the tunnel; with routes, Native by the router",
        format!("{count} pairs named; {}", report.figure()),
    ))
}
