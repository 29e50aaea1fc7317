//! What others change or remove comes back, is counted and told; what is others'
//! stays theirs.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Machine, await_condition};
use veer_e2e_tests::{
    foreign::Program,
    lab::{Lab, Mode, clsact},
    load::{self, Path, Report},
    maps,
    scene::Scene,
    snapshot::{self, Snapshot},
    told,
};

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

/// One thing to break.
struct Kind {
    name: &'static str,
    /// Shell text for the node.
    script: String,
    /// Under which name it is counted.
    counted: &'static str,
    /// What the event must say.
    told: String,
    /// Whether the thing is another one afterwards (a device made anew has
    /// another index and MAC).
    anew: bool,
}

fn kind(
    name: &'static str,
    script: impl Into<String>,
    counted: &'static str,
    told: impl Into<String>,
) -> Kind {
    Kind {
        name,
        script: script.into(),
        counted,
        told: told.into(),
        anew: false,
    }
}

/// Octets as bpftool takes them.
fn hex(octets: &[u8]) -> String {
    octets.iter().fold("hex".to_owned(), |mut text, octet| {
        let _infallible = write!(text, " {octet:02x}");
        text
    })
}

/// The entry of a map whose key `wanted` knows.
fn entry(node: &Machine, map: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<(Vec<u8>, Vec<u8>)> {
    let entries = maps::dump(node, map)?;
    let found = entries.into_iter().find(|(key, _)| wanted(key));
    found.with_context(|| format!("no such entry in {map}"))
}

fn deleted(map: &str, key: &[u8]) -> String {
    format!(
        "bpftool map delete pinned {}/{map} key {}",
        maps::PINS,
        hex(key)
    )
}

/// The entry with one octet of its value changed.
fn changed(map: &str, (key, value): &(Vec<u8>, Vec<u8>), at: usize) -> String {
    let mut value = value.clone();
    if let Some(octet) = value.get_mut(at) {
        *octet ^= 1;
    }
    format!(
        "bpftool map update pinned {}/{map} key {} value {}",
        maps::PINS,
        hex(key),
        hex(&value)
    )
}

fn kinds(scene: &Scene) -> Result<Vec<Kind>> {
    let mut all = of_the_stack(scene)?;
    all.extend(of_programs(scene)?);
    all.extend(of_maps(scene)?);
    all.extend(of_rules(scene)?);
    Ok(all)
}

/// Routes, devices, neighbours.
fn of_the_stack(scene: &Scene) -> Result<Vec<Kind>> {
    let lab = &scene.lab;
    let pod = scene.demo_on(NODE)?;
    let address = pod.address.to_string();
    let veth = pod.wire()?.host_name;
    let network = lab.kubectl().json(&["get", "nodenetwork", "worker2"])?;
    let block = network["spec"]["podCIDRs"][0].as_str();
    let block = block.context("worker2 has no block")?;
    let far = lab.cluster.address("worker2")?;
    let own = lab.cluster.address(NODE)?;
    let made_anew = Kind {
        anew: true,
        ..kind(
            "VXLAN device deleted",
            "ip link del veer_vxlan",
            "device",
            "veer_vxlan was removed",
        )
    };
    let replaced = format!(
        "ip route replace {block} via {far} dev veer_vxlan proto 118 src {own} onlink mtu 900"
    );
    let set = |what: &str| format!("ip link set {what}");
    let device = "device";
    Ok(vec![
        kind(
            "route removed",
            format!("ip route del {block}"),
            "routes",
            block,
        ),
        kind("route changed", replaced, "routes", block),
        kind(
            "pod's route removed",
            format!("ip route del {address}"),
            "routes",
            &*address,
        ),
        kind(
            "all routes removed",
            "ip route flush proto 118",
            "routes",
            block,
        ),
        made_anew,
        kind(
            "VXLAN device set down",
            set("veer_vxlan down"),
            device,
            "veer_vxlan was set down",
        ),
        kind(
            "VXLAN device's MTU",
            set("veer_vxlan mtu 1300"),
            device,
            "veer_vxlan had another MTU",
        ),
        kind(
            "VXLAN device's ARP",
            set("veer_vxlan arp on"),
            device,
            "veer_vxlan had arp on",
        ),
        kind(
            "pod's device set down",
            set(&format!("{veth} down")),
            device,
            format!("{veth} was set down"),
        ),
        kind(
            "neighbour deleted",
            format!("ip neigh del {address} dev {veth}"),
            "neighbours",
            &*address,
        ),
    ])
}

/// Programs and pins.
fn of_programs(scene: &Scene) -> Result<Vec<Kind>> {
    let veth = scene.demo_on(NODE)?.wire()?.host_name;
    let links = "/sys/fs/bpf/veer/links";
    let unlink = |pin: &str| format!("bpftool link detach pinned {links}/{pin}");
    let detach = |device: &str| {
        if clsact() {
            format!("tc filter del dev {device} ingress")
        } else {
            unlink(&format!("{device}-ingress"))
        }
    };
    let mut all = vec![
        kind("pod's program detached", detach(&veth), "programs", &*veth),
        kind(
            "uplink's program detached",
            detach("eth0"),
            "programs",
            "eth0",
        ),
        kind(
            "XDP program detached",
            unlink("eth0-xdp-generic"),
            "programs",
            "uplink_xdp on eth0",
        ),
        kind(
            "pin of a map removed",
            format!("rm {}/IPCACHE", maps::PINS),
            "pins",
            "IPCACHE",
        ),
    ];
    // A filter of clsact is no link and has no pin.
    if !clsact() {
        all.push(kind(
            "pin of a link removed",
            format!("rm {links}/{veth}-egress"),
            "programs",
            &*veth,
        ));
    }
    Ok(all)
}

/// Entries of maps.
fn of_maps(scene: &Scene) -> Result<Vec<Kind>> {
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let pod = scene.demo_on(NODE)?;
    let address = pod.address.octets();
    let far = lab.cluster.address("worker2")?.octets();
    let index = pod.wire()?.host_ifindex.to_ne_bytes();
    let endpoint = entry(&node, "ENDPOINTS", |key| key.get(4..8) == Some(&address))?;
    let interface = entry(&node, "INTERFACES", |key| key == index)?;
    // A full prefix: 32 bits of address and as many before it.
    let row = entry(&node, "IPCACHE", |key| {
        key.starts_with(&64_u32.to_ne_bytes()) && key.get(8..12) == Some(&address)
    })?;
    let mut strange = row.clone();
    let place = strange.0.get_mut(8..12).context("a short key")?;
    place.copy_from_slice(&[10, 244, 250, 9]);
    let other = entry(&node, "NODES", |key| key.get(4..8) == Some(&far))?;
    let remote = entry(&node, "REMOTES", |key| key == other.1)?;
    let config = entry(&node, "CONFIG", |_| true)?;
    let one = |name, map: &str, script| kind(name, script, "map entries", map);
    Ok(vec![
        one(
            "endpoint deleted",
            "ENDPOINTS",
            deleted("ENDPOINTS", &endpoint.0),
        ),
        one(
            "interface deleted",
            "INTERFACES",
            deleted("INTERFACES", &interface.0),
        ),
        one("ipcache row deleted", "IPCACHE", deleted("IPCACHE", &row.0)),
        one(
            "ipcache row changed",
            "IPCACHE",
            changed("IPCACHE", &row, 0),
        ),
        one(
            "ipcache row added",
            "IPCACHE",
            changed("IPCACHE", &strange, 0),
        ),
        one(
            "node deleted from its map",
            "NODES",
            deleted("NODES", &other.0),
        ),
        one("remote changed", "REMOTES", changed("REMOTES", &remote, 8)),
        one(
            "configuration changed",
            "CONFIG",
            changed("CONFIG", &config, 0),
        ),
    ])
}

/// The nftables table, sysctls, files of the container runtime and of the agent.
fn of_rules(scene: &Scene) -> Result<Vec<Kind>> {
    let table = "inet veer";
    let nft = |name, what: &str| kind(name, format!("nft {what}"), "nftables", table);
    let sysctl = |name, key: &str, value| {
        let script = format!("sysctl -q -w net.ipv4.{key}={value}");
        kind(name, script, "sysctls", key)
    };
    let veth = scene.demo_on(NODE)?.wire()?.host_name;
    Ok(vec![
        nft("nft table deleted", "delete table inet veer"),
        nft("nft rules deleted", "flush chain inet veer postrouting"),
        nft("nft set emptied", "flush set inet veer nodes4"),
        sysctl("rp_filter of an uplink", "conf.eth0.rp_filter", 1),
        sysctl(
            "rp_filter of the VXLAN device",
            "conf.veer_vxlan.rp_filter",
            1,
        ),
        sysctl(
            "rp_filter of a pod's device",
            &format!("conf.{veth}.rp_filter"),
            1,
        ),
        sysctl("forwarding", "ip_forward", 0),
        sysctl("forwarding of an uplink", "conf.eth0.forwarding", 0),
        sysctl(
            "forwarding of the VXLAN device",
            "conf.veer_vxlan.forwarding",
            0,
        ),
        sysctl(
            "forwarding of a pod's device",
            &format!("conf.{veth}.forwarding"),
            0,
        ),
        kind(
            "conflist removed",
            "rm /etc/cni/net.d/05-veer.conflist",
            "conflist",
            "05-veer.conflist",
        ),
        kind(
            "conflist's entry of veer damaged",
            r#"sed -i 's/"veer-cni"/"veer-cni", "root": "x"/' /etc/cni/net.d/05-veer.conflist"#,
            "conflist",
            "veer-cni",
        ),
        kind(
            "plugin removed",
            "rm /opt/cni/bin/veer-cni",
            "plugins",
            "veer-cni was removed",
        ),
        kind(
            "portmap removed",
            "rm /opt/cni/bin/portmap",
            "plugins",
            "portmap was removed",
        ),
        kind(
            "socket removed",
            "rm /run/veer/agent.sock",
            "socket",
            "agent.sock was removed",
        ),
        kind(
            "pods' records removed",
            "rm -r /var/lib/veer/endpoints",
            "records",
            "the record of pod",
        ),
    ])
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

/// Without what is another one when a device was made anew.
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
        let same = if kind.anew {
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
        let now = told::events(lab, "Node", NODE, Some("Repaired")).map_err(|e| format!("{e:#}"))?;
        let untold: Vec<_> = kinds.iter().filter(|k| !now.contains(&k.told)).collect();
        if untold.is_empty() {
            Ok(Some(()))
        } else {
            let names: Vec<_> = untold.iter().map(|k| k.name).collect();
            Err(format!("not of {names:?}: {now}"))
        }
    })?;
    Ok(())
}

/// Things of somebody else's on the node.
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
type Times = Vec<(&'static str, Duration)>;

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
                let took = broken(lab, kind).with_context(|| kind.name.to_owned());
                took.map(|took| (kind.name, took))
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
