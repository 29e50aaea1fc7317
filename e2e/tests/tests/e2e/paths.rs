//! The paths of pod traffic (REFERENCE A6 to A10), by captures on every device
//! and by netfilter's counters.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, Transport, attempt};
use veer_e2e_tests::{
    client,
    evidence::{Place, Plan, TUNNEL, Trace, UPLINK, Walk, at},
    lab::Mode,
    load::{self, Path},
    maps,
    pods::{Pod, links},
    workloads::{HTTP, UDP},
};

use crate::scene::{Scene, Test};

const PINGS: u32 = 5;
const ALL: usize = PINGS as usize;

/// Tests in tunnel mode.
pub(crate) const IN_TUNNEL: [(&str, Test); 8] = [
    (
        "same_node_ping_is_redirected_to_the_peer",
        Test::Each(same_node),
    ),
    (
        "other_node_ping_travels_in_vxlan_with_the_senders_identity",
        Test::Each(tunnel),
    ),
    (
        "tunnel_device_is_external_without_learning_or_address",
        Test::Each(device),
    ),
    (
        "oversize_packet_with_df_is_answered_with_the_inner_mtu",
        Test::Each(too_big),
    ),
    (
        "oversize_datagram_without_df_arrives",
        Test::Each(big_datagram),
    ),
    (
        "packet_whose_hops_are_used_up_is_answered_by_the_node",
        Test::Each(used_up),
    ),
    ("host_and_pod_reach_each_other", Test::Each(host_and_pod)),
    (
        "tcp_payload_survives_with_every_offload_on_and_off",
        Test::Each(offloads),
    ),
];

/// Tests in native mode.
pub(crate) const IN_NATIVE: [(&str, Test); 6] = [
    (
        "same_node_ping_is_redirected_to_the_peer",
        Test::Each(same_node),
    ),
    (
        "other_node_ping_is_bare_with_the_nics_macs",
        Test::Each(native),
    ),
    (
        "oversize_datagram_without_df_arrives",
        Test::Each(big_datagram),
    ),
    (
        "packet_whose_hops_are_used_up_is_answered_by_the_node",
        Test::Each(used_up),
    ),
    ("host_and_pod_reach_each_other", Test::Each(host_and_pod)),
    (
        "tcp_payload_survives_with_every_offload_on_and_off",
        Test::Each(offloads),
    ),
];

/// Tests of the change itself.
pub(crate) const SWITCH: [(&str, Test); 2] = [
    (
        "same_program_is_on_the_veth_in_both_modes",
        Test::Once(same_program),
    ),
    (
        "no_datagram_is_lost_and_no_connection_breaks_while_the_mode_changes",
        Test::Once(lossless),
    ),
];

fn same_node(scene: &Scene) -> Result<()> {
    let walk = Walk::ping(
        &scene.lab,
        scene.demo_on("worker1")?,
        scene.other_on("worker1")?,
        PINGS,
    )?;
    hand_over(&walk)?;
    ensure!(walk.pings.ttl == Some(63), "TTL {:?}", walk.pings.ttl);
    for label in [at::SOURCE_POD, at::TARGET_POD] {
        let seen = walk.echoes(label);
        ensure!(
            (seen.requests, seen.replies) == (ALL, ALL),
            "{label}: {seen:?}"
        );
    }
    for label in [at::SOURCE_UPLINK, at::SOURCE_TUNNEL] {
        ensure!(
            walk.echoes(label).none(),
            "{label} saw it\n{}",
            walk.trace.sight()
        );
    }
    Ok(())
}

/// What holds for a ping to another pod, wherever that is.
fn hand_over(walk: &Walk) -> Result<()> {
    let sight = || walk.trace.sight();
    ensure!(
        walk.pings.complete(),
        "pings were lost: {}\n{}",
        walk.pings.text,
        sight()
    );
    let (near, far) = (walk.echoes(at::SOURCE_VETH), walk.echoes(at::TARGET_VETH));
    ensure!(
        (near.requests, near.replies, far.requests, far.replies) == (ALL, 0, 0, ALL),
        "source's veth {near:?}, target's veth {far:?}\n{}",
        sight()
    );
    ensure!(
        walk.trace.hook_passes() == 0,
        "the stack saw it\n{}",
        sight()
    );
    Ok(())
}

fn tunnel(scene: &Scene) -> Result<()> {
    let (source, target) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let walk = Walk::ping(&scene.lab, source, target, PINGS)?;
    hand_over(&walk)?;
    ensure!(walk.pings.ttl == Some(63), "TTL {:?}", walk.pings.ttl);
    let (own, theirs) = (scene.identity(source)?, scene.identity(target)?);
    for label in [at::SOURCE_UPLINK, at::TARGET_UPLINK] {
        let wire = walk.echoes(label);
        ensure!(
            (wire.requests, wire.replies) == (0, 0)
                && (wire.wrapped_requests, wire.wrapped_replies) == (ALL, ALL),
            "{label}: {wire:?}\n{}",
            walk.trace.sight()
        );
        ensure!(
            wire.request_vnis == BTreeSet::from([own])
                && wire.reply_vnis == BTreeSet::from([theirs]),
            "{label}: VNIs {:?} and {:?}, identities {own} and {theirs}",
            wire.request_vnis,
            wire.reply_vnis
        );
        let macs = BTreeSet::from([(walk.source_wire.pod_mac, walk.source_wire.host_mac)]);
        ensure!(
            wire.inner_request_macs == macs,
            "{label}: inner MACs {:?}, and {macs:?} are wanted",
            wire.inner_request_macs
        );
    }
    Ok(())
}

fn native(scene: &Scene) -> Result<()> {
    let (source, target) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let walk = Walk::ping(&scene.lab, source, target, PINGS)?;
    hand_over(&walk)?;
    ensure!(walk.pings.ttl == Some(62), "TTL {:?}", walk.pings.ttl);
    let nic = |node: &str| -> Result<_> {
        let links = links(&scene.lab.node_site(node)?)?;
        let found = links.into_iter().find(|l| l.name == UPLINK);
        Ok(found
            .with_context(|| format!("{node} has no {UPLINK}"))?
            .mac)
    };
    let (near, far) = (nic("worker1")?, nic("worker2")?);
    let on_one_link =
        scene.lab.cluster.state().config.underlay == veer_e2e_cluster::Underlay::Bridge;
    for label in [at::SOURCE_UPLINK, at::TARGET_UPLINK] {
        let wire = walk.echoes(label);
        ensure!(
            (wire.requests, wire.replies) == (ALL, ALL)
                && (wire.wrapped_requests, wire.wrapped_replies) == (0, 0),
            "{label}: {wire:?}\n{}",
            walk.trace.sight()
        );
        ensure!(
            !on_one_link || wire.macs == BTreeSet::from([(near, far), (far, near)]),
            "{label}: MACs {:?}, the NICs have {near} and {far}",
            wire.macs
        );
    }
    for label in [at::SOURCE_TUNNEL, at::TARGET_TUNNEL] {
        ensure!(
            walk.echoes(label).none(),
            "{label} saw it\n{}",
            walk.trace.sight()
        );
    }
    Ok(())
}

fn device(scene: &Scene) -> Result<()> {
    let nodes = scene.lab.cluster.node_names();
    for name in &nodes {
        let site = scene.lab.node_site(name)?;
        let out = site.exec(&["ip", "-j", "-d", "link", "show", "type", "vxlan"])?;
        let devices: Value = serde_json::from_str(&out.stdout).context("ip -j -d link")?;
        let devices: Vec<&Value> = devices
            .as_array()
            .into_iter()
            .flatten()
            .filter(|d| d["ifname"].is_string())
            .collect();
        let [device] = devices[..] else {
            return Err(anyhow!(
                "{name} has {} VXLAN devices: {}",
                devices.len(),
                out.stdout
            ));
        };
        let data = &device["linkinfo"]["info_data"];
        ensure!(
            device["ifname"] == TUNNEL
                && data["external"] == true
                && data["learning"] == false
                && data["port"] == 8472
                && device["flags"].to_string().contains("NOARP")
                && device["flags"].to_string().contains("\"UP\""),
            "{name}: {device}"
        );
        let flag = scene.family.flag();
        let out = site.exec(&["ip", "-j", flag, "address", "show", "dev", TUNNEL])?;
        let shown: Value = serde_json::from_str(&out.stdout).context("ip -j address")?;
        let addresses = shown[0]["addr_info"].as_array().map_or(0, Vec::len);
        ensure!(
            addresses == 0,
            "{name}: {TUNNEL} has addresses: {}",
            out.stdout
        );
        for other in nodes.iter().filter(|n| *n != name) {
            let cidr = scene.lab.pod_cidr(other, scene.family)?;
            let route = site.exec(&["ip", flag, "route", "show", &cidr])?.stdout;
            let via = match scene.family {
                Family::V4 => format!("via {}", scene.address(other)?),
                // The kernel takes a global next hop only where no route leads to it
                // by another device.
                Family::V6 => "via fe80::".to_owned(),
            };
            ensure!(
                route.contains(&via) && route.contains(TUNNEL) && route.lines().count() == 1,
                "{name}: the route to {other}'s {cidr} is {route:?}"
            );
        }
    }
    Ok(())
}

fn too_big(scene: &Scene) -> Result<()> {
    let (source, target) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let mtu = u16::try_from(scene.pod_mtu())?;
    let flag = scene.family.flag();
    let route = source
        .site
        .exec(&["ip", flag, "route", "show", "default"])?
        .stdout;
    let words: Vec<&str> = route.split_whitespace().collect();
    let change = |mtu: &str| -> Result<()> {
        let mut command = vec!["ip", flag, "route", "replace"];
        command.extend(words.iter().take_while(|w| **w != "mtu"));
        command.extend(["mtu", mtu]);
        source.site.exec(&command)?;
        source.site.exec(&["ip", flag, "route", "flush", "cache"])?;
        Ok(())
    };
    let watch = Plan::new()
        .device("pod", Place::Pod(source), scene.family.icmp_filter())
        .start(&scene.lab)?;
    // Without the headers, IP's and the echo's; type and code of the answer.
    let (size, told) = match scene.family {
        Family::V4 => ("1472", (3, 4)),
        Family::V6 => ("1452", (2, 0)),
    };
    // A pod that does not know better sends what its device takes.
    change("1500")?;
    let options = ["-M", "do", "-s", size];
    let pings = client::ping_with(&source.site, target.address, 3, &options);
    change(&mtu.to_string())?;
    let trace = watch.stop()?;
    let pings = pings?;
    ensure!(
        pings.received == 0,
        "1500 octets passed a tunnel of {mtu}: {}",
        pings.text
    );
    is_told(&trace, told, Some(mtu)).context(pings.text)
}

/// Whether the pod got an error of a type and code, with an MTU where that has one.
fn is_told(trace: &Trace, (kind, code): (u8, u8), mtu: Option<u16>) -> Result<()> {
    let told = trace.of("pod").iter().any(|p| {
        matches!(p.transport, Some(Transport::Icmp { kind: k, code: c, sequence, .. })
            if (k, c) == (kind, code) && mtu.is_none_or(|mtu| mtu == sequence))
    });
    ensure!(told, "no {kind}/{code} with {mtu:?}: {}", trace.sight());
    Ok(())
}

fn used_up(scene: &Scene) -> Result<()> {
    let source = scene.demo_on("worker1")?;
    // Type and code of "time exceeded".
    let told = match scene.family {
        Family::V4 => (11, 0),
        Family::V6 => (3, 0),
    };
    for target in [scene.other_on("worker1")?, scene.other_on("worker2")?] {
        let watch = Plan::new()
            .device("pod", Place::Pod(source), scene.family.icmp_filter())
            .start(&scene.lab)?;
        let pings = client::ping_with(&source.site, target.address, 2, &["-t", "1"]);
        let trace = watch.stop()?;
        let pings = pings?;
        ensure!(
            pings.received == 0,
            "{} was reached with one hop: {}",
            target.name,
            pings.text
        );
        is_told(&trace, told, None).context(pings.text)?;
    }
    Ok(())
}

fn big_datagram(scene: &Scene) -> Result<()> {
    let source = scene.demo_on("worker1")?;
    let text = "x".repeat(1990);
    for target in [scene.other_on("worker1")?, scene.other_on("worker2")?] {
        let to = SocketAddr::from((target.address, UDP));
        let answer = client::udp_ask(&source.site, to, &format!("echo {text}"))?;
        ensure!(answer.trim() == text, "{to} echoed {} octets", answer.len());
    }
    Ok(())
}

fn host_and_pod(scene: &Scene) -> Result<()> {
    for node in scene.lab.cluster.node_names() {
        let site = scene.lab.node_site(&node)?;
        for pod in &scene.fixed {
            client::reaches(&site, pod.address, 2)?;
            let name = client::http_get(&site, (pod.address, HTTP).into(), "/hostname")?;
            ensure!(name == pod.name, "{node} → {}: {name} answered", pod.name);
            client::reaches(&pod.site, scene.address(&node)?, 2)?;
        }
    }
    Ok(())
}

/// Sends 8 MiB from pod to pod and compares; the receiver is a thread in the
/// pod's network.
fn transfer(source: &Pod, target: &Pod) -> Result<()> {
    const SIZE: usize = 8 << 20;
    let sum = |sum: u64, bytes: &[u8]| {
        bytes
            .iter()
            .fold(sum, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(*b)))
    };
    let patience = attempt();
    let listener = target
        .site
        .within(|| Ok(TcpListener::bind((target.address, 0))?))?;
    let to = listener.local_addr()?;
    thread::scope(|scope| {
        let receiver = scope.spawn(move || -> Result<(usize, u64)> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(patience))?;
            let (mut total, mut digest) = (0, 0);
            let mut part = vec![0; 1 << 16];
            loop {
                let read = stream.read(&mut part).context("receive")?;
                if read == 0 {
                    return Ok((total, digest));
                }
                total += read;
                digest = sum(digest, &part[..read]);
            }
        });
        let sent = source.site.within(|| {
            let mut stream = TcpStream::connect_timeout(&to, patience)?;
            stream.set_write_timeout(Some(patience))?;
            let (mut state, mut digest) = (1_u64, 0);
            for _ in 0..SIZE / 4096 {
                let mut part = Vec::with_capacity(4096);
                while part.len() < 4096 {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    part.extend_from_slice(&state.to_be_bytes());
                }
                digest = sum(digest, &part);
                stream.write_all(&part).context("send")?;
            }
            Ok(digest)
        });
        let sent = sent.with_context(|| format!("{} → {to}", source.name))?;
        let got = receiver
            .join()
            .map_err(|_| anyhow!("the receiver panicked"))??;
        ensure!(
            got == (SIZE, sent),
            "{} octets arrived, sums {} and {sent}",
            got.0,
            got.1
        );
        Ok(())
    })
}

fn offloads(scene: &Scene) -> Result<()> {
    let (source, target) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let names = ["rx", "tx", "tso", "gso", "gro", "sg"];
    let set = |value: &str| -> Result<()> {
        for pod in [source, target] {
            let node = scene.lab.node_site(&pod.node)?;
            let host = pod.wire()?.host_name;
            let places = [
                (&pod.site, "eth0"),
                (&node, host.as_str()),
                (&node, UPLINK),
                (&node, TUNNEL),
            ];
            for (site, device) in places {
                let mut words = vec!["ethtool", "-K", device];
                for name in names {
                    words.extend([name, value]);
                }
                // A device that cannot change one of them says so and does the rest.
                site.exec_any(&words)?;
            }
        }
        Ok(())
    };
    let both = || transfer(source, target).and_then(|()| transfer(target, source));
    let with = both().context("offloads on");
    set("off")?;
    let without = both().context("offloads off");
    set("on")?;
    with.and(without)
}

/// The numbers of the programs on a pod's host side.
fn program_ids(scene: &Scene, pod: &Pod) -> Result<[u64; 2]> {
    let node = scene.lab.node(&pod.node)?;
    let host = pod.wire()?.host_name;
    let id = |direction| maps::attached(&node, &host, direction).map(|a| a.id);
    Ok([id("ingress")?, id("egress")?])
}

fn same_program(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let native = program_ids(scene, pod)?;
    scene.lab.set_mode(Mode::Tunnel)?;
    let tunnel = program_ids(scene, pod);
    scene.lab.set_mode(Mode::Native)?;
    let tunnel = tunnel?;
    ensure!(
        native == tunnel,
        "programs {native:?} by Native, {tunnel:?} by Tunnel"
    );
    Ok(())
}

fn lossless(scene: &Scene) -> Result<()> {
    let ((), report) = load::under(&scene.lab, &Path::ALL, || {
        [Mode::Tunnel, Mode::Native]
            .into_iter()
            .try_for_each(|mode| scene.lab.set_mode(mode))
    })?;
    report.unharmed()
}
