//! What is broken, and how: one thing of each kind that the agent looks after.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};
use veer_e2e_cluster::{Family, Machine};
use veer_e2e_tests::{lab::clsact, maps, scene::Scene};

use super::NODE;

/// One thing to break.
pub(super) struct Kind {
    /// What the test calls it.
    pub(super) name: String,
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
    name: impl Into<String>,
    script: impl Into<String>,
    counted: &'static str,
    told: impl Into<String>,
) -> Kind {
    Kind {
        name: name.into(),
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
    let families = scene.lab.cluster.families();
    let mut all = of_devices(scene)?;
    for family in families.all() {
        all.extend(of_the_stack(scene, *family)?);
    }
    all.extend(of_programs(scene)?);
    for family in families.all() {
        all.extend(of_addresses(scene, *family)?);
    }
    all.extend(of_maps(scene)?);
    all.extend(of_rules(scene)?);
    Ok(all)
}

/// Routes and neighbours of a family.
fn of_the_stack(scene: &Scene, family: Family) -> Result<Vec<Kind>> {
    let lab = &scene.lab;
    let pod = scene.demo_on(NODE)?;
    let address = pod.address_in(family)?.to_string();
    let veth = pod.wire()?.host_name;
    let block = lab.pod_cidr("worker2", family)?;
    let (far, own) = (lab.address("worker2", family)?, lab.address(NODE, family)?);
    let elsewhere = match family {
        Family::V4 => format!("via {far} src {own}"),
        // A global address, to which a route leads by another device, is refused.
        Family::V6 => "via fe80::ffff".to_owned(),
    };
    let replaced =
        format!("ip route replace {block} {elsewhere} dev veer_vxlan proto 118 onlink mtu 900");
    let named = |what: &str| format!("{what} ({family})");
    Ok(vec![
        kind(
            named("route removed"),
            format!("ip route del {block}"),
            "routes",
            &*block,
        ),
        kind(named("route changed"), replaced, "routes", &*block),
        kind(
            named("pod's route removed"),
            format!("ip route del {address}"),
            "routes",
            &*address,
        ),
        kind(
            named("all routes removed"),
            format!("ip {} route flush proto 118", family.flag()),
            "routes",
            &*block,
        ),
        kind(
            named("neighbour deleted"),
            format!("ip neigh del {address} dev {veth}"),
            "neighbours",
            &*address,
        ),
    ])
}

/// Devices.
fn of_devices(scene: &Scene) -> Result<Vec<Kind>> {
    let veth = scene.demo_on(NODE)?.wire()?.host_name;
    let remade = Kind {
        replaced: true,
        ..kind(
            "VXLAN device deleted",
            "ip link del veer_vxlan",
            "device",
            "veer_vxlan was removed",
        )
    };
    let set = |what: &str| format!("ip link set {what}");
    let device = "device";
    Ok(vec![
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

fn of_map(name: impl Into<String>, map: &str, script: String) -> Kind {
    kind(name, script, "map entries", map)
}

/// Entries of maps whose keys are addresses of a family.
fn of_addresses(scene: &Scene, family: Family) -> Result<Vec<Kind>> {
    let lab = &scene.lab;
    let node = lab.node(NODE)?;
    let pod = maps::key(scene.demo_on(NODE)?.address_in(family)?);
    let far = maps::key(lab.address("worker2", family)?);
    let nobody: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 244, 250, 9).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 0xfa, 0, 0, 0, 9).into(),
    };
    let endpoint = entry(&node, "ENDPOINTS", |key| key == pod)?;
    // A full prefix: the bits of the address and 32 before them.
    let bits = (32 + u32::from(family.bits())).to_ne_bytes();
    let row = entry(&node, "IPCACHE", |key| key == [&bits[..], &pod].concat())?;
    let strange = ([&bits[..], &maps::key(nobody)].concat(), row.1.clone());
    let other = entry(&node, "NODES", |key| key == far)?;
    let named = |what: &str| format!("{what} ({family})");
    Ok(vec![
        of_map(
            named("endpoint deleted"),
            "ENDPOINTS",
            deleted("ENDPOINTS", &endpoint.0),
        ),
        of_map(
            named("ipcache row deleted"),
            "IPCACHE",
            deleted("IPCACHE", &row.0),
        ),
        of_map(
            named("ipcache row changed"),
            "IPCACHE",
            changed("IPCACHE", &row, 0),
        ),
        of_map(
            named("ipcache row added"),
            "IPCACHE",
            changed("IPCACHE", &strange, 0),
        ),
        of_map(
            named("node deleted from its map"),
            "NODES",
            deleted("NODES", &other.0),
        ),
    ])
}

/// Entries of other maps.
fn of_maps(scene: &Scene) -> Result<Vec<Kind>> {
    let node = scene.lab.node(NODE)?;
    let index = scene.demo_on(NODE)?.wire()?.host_ifindex.to_ne_bytes();
    let interface = entry(&node, "INTERFACES", |key| key == index)?;
    let far = maps::key(scene.address("worker2")?);
    let other = entry(&node, "NODES", |key| key == far)?;
    let remote = entry(&node, "REMOTES", |key| key == other.1)?;
    let config = entry(&node, "CONFIG", |_| true)?;
    Ok(vec![
        of_map(
            "interface deleted",
            "INTERFACES",
            deleted("INTERFACES", &interface.0),
        ),
        of_map("remote changed", "REMOTES", changed("REMOTES", &remote, 8)),
        of_map(
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
    let families = scene.lab.cluster.families();
    let mut of_families: Vec<Kind> = Vec::new();
    if families.has(Family::V4) {
        of_families.push(nft("nft set emptied", "flush set inet veer nodes4"));
    }
    if families.has(Family::V6) {
        let key = "net.ipv6.conf.all.forwarding";
        let off = format!("sysctl -q -w {key}=0");
        of_families.extend([
            nft("nft set of IPv6 emptied", "flush set inet veer nodes6"),
            kind("forwarding of IPv6", off, "sysctls", key),
        ]);
    }
    let mut all = vec![
        nft("nft table deleted", "delete table inet veer"),
        nft("nft rules deleted", "flush chain inet veer postrouting"),
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
    ];
    all.extend(of_families);
    Ok(all)
}
