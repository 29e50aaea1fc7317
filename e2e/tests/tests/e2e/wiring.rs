//! How a pod is wired, and what the maps say of it (REFERENCE A1 to A5, A11).

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::{Family, Mac, Packet, Transport, await_condition};
use veer_e2e_tests::{
    blocks, client,
    evidence::{Place, Plan},
    maps,
    pods::Pod,
    site::Site,
    workloads,
};

use crate::scene::{DEMO, Scene, Test, await_identity, identity_of};

/// Tests that each mode passes.
pub(crate) const EITHER: [(&str, Test); 3] = [
    (
        "pod_has_a_host_address_a_gateway_route_and_the_modes_mtu",
        Test::Each(addresses_and_routes),
    ),
    (
        "endpoint_map_has_the_peer_ifindex_macs_and_identity",
        Test::Each(endpoint_map),
    ),
    (
        "ipcache_has_every_pod_with_its_identity_and_node",
        Test::Each(ipcache_map),
    ),
];

/// All tests.
pub(crate) const TESTS: [(&str, Test); 10] = [
    EITHER[0],
    EITHER[1],
    EITHER[2],
    (
        "arp_for_the_gateway_is_answered_with_the_host_sides_mac",
        Test::Each(arp),
    ),
    (
        "arp_for_anything_else_is_not_answered",
        Test::Each(arp_for_others),
    ),
    (
        "program_on_the_host_side_veth_is_direct_action_and_jited",
        Test::Once(program),
    ),
    (
        "pods_of_one_label_set_share_an_identity_and_others_do_not",
        Test::Once(identities),
    ),
    (
        "identity_outlives_the_pod_and_its_address",
        Test::Once(identity_outlives_the_pod),
    ),
    ("command_prints_what_the_maps_hold", Test::Each(command)),
    ("status_says_host_routing_by_bpf", Test::Once(status)),
];

/// A pod's routes of the family that is looked at, without the one to its own address
/// that the kernel adds in IPv6.
fn routes(pod: &Pod) -> Result<Vec<Value>> {
    let flag = Family::of(pod.address).flag();
    let out = pod.site.exec(&["ip", "-j", flag, "route", "show"])?;
    let mut all: Vec<Value> = serde_json::from_str(&out.stdout).context("ip -j route")?;
    all.retain(|r| r["dst"] != pod.address.to_string());
    Ok(all)
}

/// The addresses of a family that a device has.
fn addresses(site: &Site, family: Family, device: &str) -> Result<Vec<Value>> {
    let words = ["ip", "-j", family.flag(), "address", "show", "dev", device];
    let devices: Value =
        serde_json::from_str(&site.exec(&words)?.stdout).context("ip -j address")?;
    Ok(devices[0]["addr_info"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

/// The gateway by the pod's own default route.
fn gateway(pod: &Pod) -> Result<IpAddr> {
    let routes = routes(pod)?;
    let default = routes.iter().find(|r| r["dst"] == "default");
    let gateway = default.and_then(|r| r["gateway"].as_str());
    let gateway = gateway.with_context(|| format!("{} has no default route", pod.name))?;
    Ok(gateway.parse()?)
}

fn addresses_and_routes(scene: &Scene) -> Result<()> {
    let mtu = scene.pod_mtu();
    // A running pod learns a new mode's MTU a moment after the mode is in force.
    await_condition(
        "every pod has the mode's MTU on its route",
        Duration::from_secs(20),
        || {
            for pod in scene.pods() {
                let routes = routes(pod).map_err(|e| format!("{e:#}"))?;
                let default = routes.iter().find(|r| r["dst"] == "default");
                if !default.is_some_and(|r| r["metrics"][0]["mtu"] == mtu) {
                    return Err(format!("{}: {default:?}, and {mtu} is wanted", pod.name));
                }
            }
            Ok(Some(()))
        },
    )?;
    for pod in scene.pods() {
        let mut info = addresses(&pod.site, scene.family, "eth0")?;
        // The kernel gives the link one of its own, by which pods solicit the gateway.
        info.retain(|address| address["scope"] != "link");
        let bits = scene.family.bits();
        // One that asks whether others have it does not count at once.
        let counts = match scene.family {
            Family::V4 => info.len() == 1,
            Family::V6 => info.len() == 1 && info[0]["nodad"] == true,
        };
        ensure!(
            counts && info[0]["local"] == pod.address.to_string() && info[0]["prefixlen"] == bits,
            "{} has {info:?}, not {}/{bits}",
            pod.name,
            pod.address
        );
        let host = pod.wire()?.host_name;
        let info = addresses(&scene.lab.node_site(&pod.node)?, scene.family, &host)?;
        ensure!(
            info.is_empty(),
            "the host side of {} has {info:?}",
            pod.name
        );
        let gateway = gateway(pod)?;
        let routes = routes(pod)?;
        let link = routes.iter().find(|r| r["dst"] == gateway.to_string());
        ensure!(
            link.is_some_and(|r| r["gateway"].is_null() && r["dev"] == "eth0"),
            "{} has no link route to its gateway {gateway}: {routes:?}",
            pod.name
        );
        // Besides the one of link-local addresses.
        let others = routes.iter().filter(|r| r["dst"] != "fe80::/64");
        ensure!(
            others.count() == 2,
            "{} has more routes than two: {routes:?}",
            pod.name
        );
        let cidr = scene.lab.pod_cidr(&pod.node, scene.family)?;
        let inside = blocks::within(&cidr, pod.address).and_then(|()| blocks::health(&cidr));
        let first = inside.with_context(|| format!("{} of {}", pod.name, pod.node))?;
        ensure!(gateway == first, "{} goes by {gateway}", pod.name);
    }
    Ok(())
}

/// tcpdump's filter for who asks for whose MAC, and who answers.
fn neighbours(family: Family) -> &'static str {
    match family {
        Family::V4 => "arp",
        Family::V6 => "icmp6 and (ip6[40] = 135 or ip6[40] = 136)",
    }
}

/// Who asks for a MAC (`false`) or tells it (`true`), and with which of their own.
fn neighbour(packet: &Packet) -> Option<(bool, IpAddr, Mac)> {
    let told = match packet.transport {
        Some(Transport::Icmp { kind: 135, .. }) => false,
        Some(Transport::Icmp { kind: 136, .. }) => true,
        _ => {
            let arp = packet.arp?;
            return Some((arp.operation == 2, arp.sender.into(), arp.sender_mac));
        }
    };
    Some((told, packet.source()?, packet.source_mac))
}

fn arp(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let target = scene.demo_on("worker2")?.address;
    let (gateway, wire) = (gateway(pod)?, pod.wire()?);
    let watch = Plan::new()
        .device("pod", Place::Pod(pod), neighbours(scene.family))
        .start(&scene.lab)?;
    let gateway_text = gateway.to_string();
    pod.site
        .exec_any(&["ip", "neigh", "del", &gateway_text, "dev", "eth0"])?;
    let pings = client::ping(&pod.site, target, 1)?;
    let trace = watch.stop()?;
    ensure!(
        pings.complete(),
        "no ping after the neighbour was forgotten: {}",
        pings.text
    );
    let answer = Some((true, gateway, wire.host_mac));
    ensure!(
        trace.of("pod").iter().any(|p| neighbour(p) == answer),
        "nobody answered for {gateway} with {}: {}",
        wire.host_mac,
        trace.sight()
    );
    Ok(())
}

fn arp_for_others(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    // A neighbour's address, as if it were on the pod's own link.
    let other = scene.other_on("worker1")?.address.to_string();
    let watch = Plan::new()
        .device("pod", Place::Pod(pod), neighbours(scene.family))
        .start(&scene.lab)?;
    pod.site
        .exec(&["ip", "route", "add", &other, "dev", "eth0", "scope", "link"])?;
    let pings = client::ping(&pod.site, other.parse()?, 2);
    let known = pod
        .site
        .exec(&["ip", "neigh", "show", "to", &other, "dev", "eth0"]);
    pod.site
        .exec(&["ip", "route", "del", &other, "dev", "eth0"])?;
    let trace = watch.stop()?;
    let own = pod.wire()?.pod_mac;
    let asked = Some((false, pod.address, own));
    ensure!(
        trace.of("pod").iter().any(|p| neighbour(p) == asked),
        "the pod did not ask: {}",
        trace.sight()
    );
    let known = known?.stdout;
    ensure!(
        !known.is_empty() && !known.contains("lladdr") && pings?.received == 0,
        "somebody answered for a neighbour, {known:?}: {}",
        trace.sight()
    );
    Ok(())
}

fn endpoint_map(scene: &Scene) -> Result<()> {
    for pod in scene.pods() {
        let wire = pod.wire()?;
        let rows = maps::endpoints(&scene.lab.node(&pod.node)?)?;
        let row = rows
            .iter()
            .find(|r| r.address == pod.address)
            .with_context(|| format!("{} is not in ENDPOINTS of {}", pod.name, pod.node))?;
        let identity = scene.identity(pod)?;
        ensure!(
            row.ifindex == wire.host_ifindex
                && row.mac == wire.pod_mac
                && row.node_mac == wire.host_mac
                && row.identity == identity
                && row.id > 0,
            "{}: the map has {row:?}, the kernel {wire:?}, the API identity {identity}",
            pod.name
        );
    }
    Ok(())
}

fn ipcache_map(scene: &Scene) -> Result<()> {
    for node in scene.lab.cluster.node_names() {
        let machine = scene.lab.node(&node)?;
        let rows = maps::ipcache(&machine)?;
        for pod in scene.pods() {
            let row = rows
                .iter()
                .find(|r| r.is_whole() && r.address == pod.address)
                .with_context(|| format!("{} is not in IPCACHE of {node}", pod.name))?;
            let identity = scene.identity(pod)?;
            ensure!(
                row.identity == identity,
                "{}: {node} has identity {}, the API {identity}",
                pod.name,
                row.identity
            );
            if pod.node == node {
                ensure!(
                    row.node_id == maps::LOCAL_NODE,
                    "{}: local, but {node} has {row:?}",
                    pod.name
                );
            } else {
                let remote = maps::remote(&machine, row.node_id)?;
                ensure!(
                    remote.tunnel_address == scene.tunnel_address(&pod.node)?,
                    "{} is on {}, but {node} sends to {remote:?}",
                    pod.name,
                    pod.node
                );
            }
        }
    }
    Ok(())
}

fn program(scene: &Scene) -> Result<()> {
    for pod in scene.pods() {
        let host = pod.wire()?.host_name;
        let program = maps::attached(&scene.lab.node(&pod.node)?, &host, "ingress")?;
        ensure!(
            program.name == "pod_egress" && program.jited && program.direct_action,
            "on the ingress of {host}: {program:?}"
        );
    }
    Ok(())
}

fn identities(scene: &Scene) -> Result<()> {
    let of = |pods: &[Pod]| -> Result<BTreeSet<u32>> {
        pods.iter().map(|p| scene.identity(p)).collect()
    };
    let (demo, other) = (of(&scene.demo)?, of(&scene.other)?);
    ensure!(
        demo.len() == 1 && other.len() == 1 && demo.is_disjoint(&other),
        "the DaemonSet's pods have {demo:?}, the Deployment's {other:?}"
    );
    let number = demo.first().copied().unwrap_or_default();
    let object = scene
        .lab
        .kubectl()
        .json(&["get", "securityidentity", &number.to_string()])?;
    let labels = &object["spec"]["labels"];
    ensure!(
        labels["app"] == "demo"
            && labels["io.kubernetes.pod.namespace"] == DEMO
            && labels["controller-revision-hash"].is_null()
            && labels["pod-template-generation"].is_null(),
        "identity {number} stands for {labels}"
    );
    Ok(())
}

fn identity_outlives_the_pod(scene: &Scene) -> Result<()> {
    let (lab, name) = (&scene.lab, "phoenix");
    let yaml = workloads::single(DEMO, name, "worker1", "{app: phoenix}");
    let start = || -> Result<Pod> {
        lab.kubectl().apply(&yaml)?;
        let pods =
            veer_e2e_tests::pods::await_ready(lab, DEMO, "app=phoenix", 1, workloads::STARTED)?;
        pods.into_iter().next().context("no phoenix")
    };
    let delete = ["-n", DEMO, "delete", "pod", name, "--wait=true"];
    let before = start()?;
    let number = await_identity(lab, &before, workloads::STARTED)?;
    lab.kubectl().run(&delete)?;
    let after = start()?;
    let again = identity_of(lab, &after)?;
    lab.kubectl().run(&delete)?;
    ensure!(before.uid != after.uid, "the pod is the same one");
    ensure!(
        before.address != after.address,
        "the address {} came back at once; the longest free one goes first",
        before.address
    );
    ensure!(number == again, "identity {number} became {again}");
    Ok(())
}

fn command(scene: &Scene) -> Result<()> {
    let node = scene.lab.node("worker1")?;
    let rows = scene.lab.veer_json("worker1", &["endpoint", "list"])?;
    let rows = rows
        .as_array()
        .context("veer endpoint list prints no list")?;
    for endpoint in maps::endpoints(&node)? {
        let row = rows
            .iter()
            .find(|r| r["address"] == endpoint.address.to_string());
        ensure!(
            row.is_some_and(|r| r["ifindex"] == endpoint.ifindex
                && r["identity"] == endpoint.identity
                && r["id"] == endpoint.id
                && r["mac"] == endpoint.mac.to_string()
                && r["node_mac"] == endpoint.node_mac.to_string()),
            "the map has {endpoint:?}, the command prints {row:?}"
        );
    }
    let rows = scene
        .lab
        .veer_json("worker1", &["bpf", "ipcache", "list"])?;
    let rows = rows
        .as_array()
        .context("veer bpf ipcache list prints no list")?;
    for entry in maps::ipcache(&node)? {
        let prefix = format!("{}/{}", entry.address, entry.prefix);
        let row = rows.iter().find(|r| r["prefix"] == prefix.as_str());
        ensure!(
            row.is_some_and(|r| r["identity"] == entry.identity && r["node_id"] == entry.node_id),
            "the map has {entry:?}, the command prints {row:?}"
        );
        let local = entry.node_id == maps::LOCAL_NODE;
        let unspecified = if entry.address.is_ipv4() {
            "0.0.0.0"
        } else {
            "::"
        };
        ensure!(
            !local || row.is_some_and(|r| r["tunnel_endpoint"] == unspecified),
            "{prefix} is local, the command prints {row:?}"
        );
    }
    let rows = scene.lab.veer_json("worker1", &["bpf", "tunnel", "list"])?;
    let text = rows.to_string();
    for name in scene.lab.cluster.node_names() {
        let cidr = scene.lab.pod_cidr(&name, scene.family)?;
        ensure!(
            text.contains(&cidr) && text.contains(&scene.tunnel_address(&name)?.to_string()),
            "{name} with {cidr} is not in the tunnel table: {text}"
        );
    }
    let rows = scene.lab.veer_json("worker1", &["identity", "list"])?;
    let rows = rows
        .as_array()
        .context("veer identity list prints no list")?;
    let names = [
        "host",
        "world",
        "unmanaged",
        "health",
        "init",
        "remote-node",
    ];
    for (number, name) in (1..).zip(names) {
        let row = rows.iter().find(|r| r["identity"] == json!(number));
        ensure!(
            row.is_some_and(|r| r["labels"]
                .to_string()
                .contains(&format!("reserved:{name}"))),
            "reserved identity {number} is printed as {row:?}"
        );
    }
    let own = scene.identity(scene.demo_on("worker1")?)?;
    let row = rows.iter().find(|r| r["identity"] == json!(own));
    ensure!(
        row.is_some_and(|r| r["labels"].to_string().contains("app=demo")),
        "identity {own} is printed as {row:?}"
    );
    Ok(())
}

fn status(scene: &Scene) -> Result<()> {
    for node in scene.lab.cluster.node_names() {
        let text = scene.lab.veer(&node, &["status"])?.stdout;
        let line = text
            .lines()
            .find(|l| l.contains("Host Routing"))
            .unwrap_or_default();
        ensure!(line.contains("BPF"), "veer status on {node}:\n{text}");
    }
    Ok(())
}
