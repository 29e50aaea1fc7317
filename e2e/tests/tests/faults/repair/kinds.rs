//! What is broken, and how: one thing of each kind that the agent looks after.

use std::fmt::Write;

use anyhow::{Context, Result};
use veer_e2e_cluster::Machine;
use veer_e2e_tests::{lab::clsact, maps, scene::Scene};

use super::NODE;

/// One thing to break.
pub(super) struct Kind {
    /// What the test calls it.
    pub(super) name: &'static str,
    /// Shell text for the node.
    pub(super) script: String,
    /// Under which name it is counted.
    pub(super) counted: &'static str,
    /// What the event must say.
    pub(super) told: String,
    /// Whether the repair makes a new one (a new device has another index and MAC).
    pub(super) replaced: bool,
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
        replaced: false,
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

/// All of them.
pub(super) fn kinds(scene: &Scene) -> Result<Vec<Kind>> {
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
    let remade = Kind {
        replaced: true,
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
        remade,
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
