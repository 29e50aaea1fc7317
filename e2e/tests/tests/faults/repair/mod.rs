//! What others change or remove is restored, counted and reported; what belongs to
//! others is left alone.

mod kinds;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    foreign::Program,
    lab::{Lab, Mode},
    load::{self, Path, Report},
    scene::Scene,
    snapshot::{self, Snapshot},
    told,
};

use self::kinds::{Kind, kinds};
use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, seconds},
};

/// The node whose things are broken: the load's pods there talk to each other
/// all the time.
const NODE: &str = "worker1";
/// How long status and events may take to say it.
const TOLD: Duration = Duration::from_mins(1);

/// All faults of this kind.
pub(crate) fn faults() -> Vec<Fault> {
    vec![
        Fault::new(
            "repair::of_all_kinds",
            "things of veer changed or removed behind its back, one after another",
            Mode::Tunnel,
            all,
        )
        .short(),
    ]
}

/// How often something was put back, by kind.
type Counts = BTreeMap<String, i64>;

/// What the agent says that it put back.
fn counts(lab: &Lab) -> Result<Counts> {
    let report = lab.kubectl().json(&["get", "nodereport", NODE])?;
    let repairs = report["status"]["repairs"].as_object();
    let each = repairs.into_iter().flatten();
    Ok(each
        .map(|(name, times)| (name.clone(), times.as_i64().unwrap_or(0)))
        .collect())
}

/// The lines that stay the same when a device is created again.
fn apart_from_device(all: &Snapshot) -> Snapshot {
    let own =
        |line: &&String| !line.starts_with("CONFIG") && !line.starts_with("device veer_vxlan");
    all.iter().filter(own).cloned().collect()
}

/// Breaks one thing; returns how long it was broken.
fn broken(lab: &Lab, kind: &Kind) -> Result<Duration> {
    let before = snapshot::node(lab, NODE)?;
    let node = lab.node(NODE)?;
    node.exec(&["sh", "-ec", &kind.script])?;
    let start = Instant::now();
    await_condition("it is back", SETTLED, || {
        let after = snapshot::node(lab, NODE).map_err(|e| format!("{e:#}"))?;
        let same = if kind.replaced {
            snapshot::same(&apart_from_device(&before), &apart_from_device(&after))
        } else {
            snapshot::same(&before, &after)
        };
        same.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    Ok(start.elapsed())
}

/// Waits until status and Events of the node say of all that was broken that it was
/// put back. At the end, since reports are written every few seconds only.
fn await_told(lab: &Lab, before: &Counts, kinds: &[Kind]) -> Result<()> {
    let mut wanted = before.clone();
    for kind in kinds {
        *wanted.entry(kind.counted.to_owned()).or_default() += 1;
    }
    await_condition("the agent counts all that it put back", TOLD, || {
        let now = counts(lab).map_err(|e| format!("{e:#}"))?;
        let few = |(name, least): &(&String, &i64)| now.get(*name).unwrap_or(&0) < *least;
        let missing: Vec<_> = wanted.iter().filter(few).collect();
        if missing.is_empty() {
            Ok(Some(()))
        } else {
            Err(format!("{now:?}, at least {missing:?} wanted"))
        }
    })?;
    await_condition("events name all that was put back", TOLD, || {
        let now =
            told::events(lab, "Node", NODE, Some("Repaired")).map_err(|e| format!("{e:#}"))?;
        let untold: Vec<_> = kinds.iter().filter(|k| !now.contains(&k.told)).collect();
        if untold.is_empty() {
            Ok(Some(()))
        } else {
            let names: Vec<_> = untold.iter().map(|k| &k.name).collect();
            Err(format!("not of {names:?}: {now}"))
        }
    })?;
    Ok(())
}

/// Things on the node that belong to others.
const FOREIGN: [(&str, &str, &str); 4] = [
    (
        "route",
        "ip route add 203.0.113.0/24 dev eth0 proto static; \
         ip route add 10.244.251.0/24 dev eth0 proto static",
        "ip route | grep -c -e 203.0.113.0/24 -e 10.244.251.0/24 | grep -qx 2",
    ),
    (
        "device",
        "ip link add foreign type bridge; ip link set foreign up",
        "ip -o link show foreign | grep -q ',UP'",
    ),
    (
        "nftables table",
        "nft add table inet foreign; \
         nft add chain inet foreign c '{ type filter hook forward priority 5; }'",
        "nft list chain inet foreign c | grep -q 'hook forward'",
    ),
    (
        "neighbour",
        "ip neigh add 203.0.113.9 dev eth0 lladdr 02:00:00:00:00:09 nud permanent",
        "ip neigh show nud permanent | grep -q 203.0.113.9",
    ),
];

/// How long each kind was broken, by its name.
type Times = Vec<(String, Duration)>;

/// Breaks one thing after another. Pods of one node need nothing of them.
fn all_broken(scene: &Scene) -> Result<(Times, Report)> {
    let lab = &scene.lab;
    // What a node had of portmap before veer stays until it is gone, and veer puts
    // its own there: from here on it is that.
    let node = lab.node(NODE)?;
    node.exec(&["rm", "-f", "/opt/cni/bin/portmap"])?;
    await_condition("portmap is veer's", SETTLED, || {
        let there = node.exec_any(&["test", "-x", "/opt/cni/bin/portmap"]);
        let there = there.map_err(|e| e.to_string())?;
        Ok((there.code == 0).then_some(()))
    })?;
    await_condition("the uplink has XDP", SETTLED, || {
        let seen = snapshot::node(lab, NODE).map_err(|e| format!("{e:#}"))?;
        let xdp = |line: &String| line.starts_with("xdp eth0");
        Ok(seen.iter().any(xdp).then_some(()))
    })?;
    load::under(lab, &[Path::SameNode], || {
        let before = counts(lab)?;
        let kinds = kinds(scene)?;
        let times: Result<Times> = kinds
            .iter()
            .map(|kind| {
                let took = broken(lab, kind).with_context(|| kind.name.clone());
                took.map(|took| (kind.name.clone(), took))
            })
            .collect();
        let times = times?;
        await_told(lab, &before, &kinds)?;
        Ok(times)
    })
}

fn all(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    load::limit(lab)?;
    let node = lab.node(NODE)?;
    let program = Program::attach(&lab.node_site(NODE)?, "eth0")?;
    for (_, make, _) in FOREIGN {
        node.exec(&["sh", "-ec", make])?;
    }
    lab.patch_network(r#"{"spec": {"xdp": "Generic"}}"#)?;
    let outcome = all_broken(scene);
    lab.patch_network(r#"{"spec": {"xdp": "Auto"}}"#)?;
    let (times, report) = outcome?;
    let lines: Vec<String> = times
        .iter()
        .map(|(name, took)| format!("{name} {}", seconds(*took)))
        .collect();
    report.unharmed().with_context(|| lines.join(", "))?;
    for (what, _, check) in FOREIGN {
        let out = node.exec_any(&["sh", "-c", check])?;
        ensure!(out.code == 0, "the foreign {what} is not as it was made");
    }
    ensure!(program.is_attached()?, "the foreign program was detached");
    node.exec(&[
        "sh",
        "-ec",
        "ip route del 203.0.113.0/24; ip route del 10.244.251.0/24; ip link del foreign; \
         nft delete table inet foreign; ip neigh del 203.0.113.9 dev eth0",
    ])?;
    Ok(Held::new(
        "each back, counted and told; foreign program, route, device, table and \
         neighbour untouched",
        format!(
            "{} kinds: {}; {}",
            times.len(),
            lines.join(", "),
            report.figure()
        ),
    ))
}
