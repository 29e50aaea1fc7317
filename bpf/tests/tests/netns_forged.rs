//! Forged sources, on the wire: ten thousand packets of each kind to each
//! destination, with the native form accepted and not. None gets through, and every
//! one is counted with its reason.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::too_many_lines,
    reason = "pods are named by letters; tables"
)]

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use veer_bpf_common::{
    identity::Identity,
    node::NodeId,
    outcome::{DropReason, Program, Verdict, outcome_name},
    tables::Remote,
};
use veer_bpf_tests::{
    family::Family,
    in_and_over_both_families, in_both_families,
    lab::{ETH0, Node, Pod, Underlay, address, gateway, id},
    netns::{Namespace, Raw},
    packet::{
        Packet, tagged,
        tags::{NESTED, PRIORITY, UNTAGGED, VLAN},
    },
    world::identity,
};

in_and_over_both_families! {
    no_forged_source_comes_out_of_the_tunnel,
}

in_both_families! {
    no_forged_source_passes_the_uplink,
    what_may_come_bare_does_so_with_and_without_a_priority_tag,
    no_forged_source_leaves_a_pod,
}

/// Packets of each kind to each destination.
const MANY: usize = 10_000;
/// Packets that show that something does get through.
const SOME: usize = 200;
/// Packets sent before they are counted: less than a CPU's queue holds.
const BURST: usize = 100;
/// How long a burst may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

const REMOTE_POD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 11);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 2222;

/// Where packets go: what it is called, address and port.
type Destination = (&'static str, IpAddr, u16);

/// Node 1 with pods A and B behind a Service, node 2 of which it only knows, and
/// somebody on the link between them.
struct World {
    one: Node,
    a: Pod,
    b: Pod,
    intruder: Namespace,
    link: Underlay,
}

impl World {
    fn new(family: Family, outer: Family) -> Result<Self> {
        let link = Underlay::new(family, outer)?;
        let mut one = Node::new(&link, 1)?;
        let a = one.add_pod(1, identity(1000))?;
        let b = one.add_pod(2, identity(2000))?;
        one.know(2)?;
        one.know(3)?;
        one.datapath
            .set_prefix(family.prefix((REMOTE_POD, 32)), identity(3000), id(2))?;
        // All pods' addresses of the cluster.
        let cluster = (Ipv4Addr::new(10, 0, 0, 0), 16);
        one.datapath
            .set_prefix(family.prefix(cluster), Identity::UNMANAGED, NodeId::NONE)?;
        let intruder = link.join(9, "intruder")?;
        // It answers nothing, whatever reaches it.
        intruder.sysctl("ipv4/ip_forward", "0")?;
        intruder.sysctl("ipv6/conf/all/forwarding", "0")?;
        let out = family.of(WORLD).to_string();
        let host = &one.namespace;
        host.ip(&["route", "add", &out, "via", &address(family, 9).to_string()])?;
        let to = format!("dnat to {}", SocketAddr::new(b.address, PORT));
        let ip = family.pick("ip", "ip6");
        let cluster_ip = family.of(CLUSTER_IP);
        let rules = format!(
            "table {ip} test {{
               chain in {{ type nat hook prerouting priority dstnat;
               {ip} daddr {cluster_ip} udp dport 80 {to};
               {ip} daddr {} udp dport {NODE_PORT} {to}; }}
             }}",
            address(family, 1)
        );
        host.command("nft", &[&rules])?;
        host.count_datagrams()?;
        b.namespace.count_datagrams()?;
        Ok(Self {
            one,
            a,
            b,
            intruder,
            link,
        })
    }

    fn accept_native(&mut self, accepted: bool) -> Result<()> {
        for node in [2, 3] {
            let entry = Remote {
                flags: if accepted { Remote::ACCEPT_NATIVE } else { 0 },
                ..self.one.remote(node)?
            };
            self.one.datapath.set_remote(id(node), entry)?;
        }
        Ok(())
    }

    fn destinations(&self) -> [Destination; 6] {
        let family = self.link.family;
        [
            ("a pod", self.b.address, PORT),
            ("the node", address(family, 1), 9),
            ("a ClusterIP", family.of(CLUSTER_IP), 80),
            ("a NodePort", address(family, 1), NODE_PORT),
            ("the world", family.of(WORLD), 9),
            ("a pod elsewhere", family.of(Ipv4Addr::new(10, 0, 3, 30)), 9),
        ]
    }

    /// Frames from the link to node 1.
    fn frames(
        &self,
        sources: &[IpAddr],
        to: Destination,
        tags: &[&[[u8; 4]]],
    ) -> Result<Vec<Vec<u8>>> {
        let macs = (self.intruder.mac(ETH0)?, self.one.namespace.mac(ETH0)?);
        Ok(combined(sources, to, tags, macs))
    }

    /// UDP packets that node 1's stack and pod B's have received.
    fn received(&self) -> Result<(u64, u64)> {
        let (node, pod) = (&self.one.namespace, &self.b.namespace);
        Ok((node.datagrams()?, pod.datagrams()?))
    }

    /// Sends frames from `wire` in turn, `count` in all, and waits until `program`
    /// has ended every one with `outcome`.
    fn send(
        &mut self,
        wire: &Raw,
        frames: &[Vec<u8>],
        count: usize,
        (program, outcome): (Program, u32),
    ) -> Result<()> {
        let before = self.one.datapath.packets(program, outcome)?;
        let mut sent = 0;
        while sent < count {
            let burst: Vec<&[u8]> = (sent..count.min(sent + BURST))
                .map(|i| frames[i % frames.len()].as_slice())
                .collect();
            wire.send_all(&burst)?;
            sent += burst.len();
            let deadline = Instant::now() + PATIENCE;
            loop {
                let counted = self.one.datapath.packets(program, outcome)? - before;
                if counted >= sent as u64 {
                    break;
                }
                if Instant::now() > deadline {
                    bail!(
                        "{counted} of {sent} counted as {} by {}: {:?}",
                        outcome_name(outcome).unwrap_or("?"),
                        program.name(),
                        self.one.datapath.counted(program)?
                    );
                }
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// As `send`, [`MANY`], and no stack gets anything but the `outside` of each.
    fn refused_by(
        &mut self,
        wire: &Raw,
        frames: &[Vec<u8>],
        by: (Program, u32),
        outside: u64,
    ) -> Result<()> {
        let before = self.received()?;
        self.send(wire, frames, MANY, by)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The stack has the last one a moment after the program; what got through stays.
            let after = self.received()?;
            let more = (after.0 - before.0, after.1 - before.1);
            if more == (outside * MANY as u64, 0) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "some of it got through: {more:?} of {MANY}"
            );
            std::thread::yield_now();
        }
    }

    /// The same from the link.
    fn refused(&mut self, frames: &[Vec<u8>], by: (Program, u32)) -> Result<()> {
        let wire = self.intruder.raw(ETH0)?;
        self.refused_by(&wire, frames, by, 0)
    }
}

/// Frames from these sources with these tags, all combinations.
fn combined(
    sources: &[IpAddr],
    to: Destination,
    tags: &[&[[u8; 4]]],
    (from, via): ([u8; 6], [u8; 6]),
) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for source in sources {
        for tag in tags {
            let packet = Packet::udp((*source, 1111), (to.1, to.2)).macs(from, via);
            frames.push(tagged(&packet.frame(), tag));
        }
    }
    frames
}

fn refused_by_uplink(reason: DropReason) -> (Program, u32) {
    (Program::UplinkIngress, reason as u32)
}

fn no_forged_source_passes_the_uplink(family: Family) -> Result<()> {
    let mut world = World::new(family, Family::V4)?;
    let elsewhere = [
        family.of(REMOTE_POD),
        // In a node's block, but no pod's.
        family.of(Ipv4Addr::new(10, 0, 2, 200)),
        gateway(family, 2),
        family.of(Ipv4Addr::new(10, 0, 3, 1)),
    ];
    // In no node's block.
    let nowhere = [family.of(Ipv4Addr::new(10, 0, 77, 7))];
    let own = [
        world.a.address,
        family.of(Ipv4Addr::new(10, 0, 1, 200)),
        gateway(family, 1),
    ];
    let here = [address(family, 1)];
    let nodes = [address(family, 2), address(family, 3)];
    let refused = DropReason::NativeNotAccepted;
    let from_outside = DropReason::OwnSourceFromOutside;
    let like_untagged = [
        ("untagged", &UNTAGGED[..]),
        ("priority-tagged", &PRIORITY[..]),
    ];
    for accepted in [false, true] {
        world.accept_native(accepted)?;
        for to in world.destinations() {
            let to_pod = to.0 == "a pod";
            let mut rows = vec![
                ("an address of no node", &nowhere[..], refused),
                ("an own pod's address", &own[..], from_outside),
            ];
            if !accepted {
                rows.push(("a pod's address", &elsewhere[..], refused));
            }
            if to_pod {
                rows.push(("this node's address", &here[..], from_outside));
                if !accepted {
                    rows.push(("a node's address", &nodes[..], refused));
                }
            }
            for (source, addresses, reason) in rows {
                for (how, tags) in like_untagged {
                    let frames = world.frames(addresses, to, tags)?;
                    world
                        .refused(&frames, refused_by_uplink(reason))
                        .with_context(|| {
                            format!("{source}, {how}, to {}, native {accepted}", to.0)
                        })?;
                }
            }
            // Whatever the source, the kernel would go on to what is behind two tags.
            let all = [
                &elsewhere[..],
                &nowhere,
                &own,
                &nodes,
                &[family.of(STRANGER)],
            ]
            .concat();
            for (how, tags, outcome) in [
                ("nested", &NESTED[..], DropReason::UnsupportedL3 as u32),
                // No device is of that VLAN: the stack does not take them.
                ("of a VLAN", &VLAN[..], Verdict::Pass as u32),
            ] {
                let frames = world.frames(&all, to, tags)?;
                world
                    .refused(&frames, (Program::UplinkIngress, outcome))
                    .with_context(|| format!("{how}, to {}, native {accepted}", to.0))?;
            }
        }
    }
    Ok(())
}

fn what_may_come_bare_does_so_with_and_without_a_priority_tag(family: Family) -> Result<()> {
    let mut world = World::new(family, Family::V4)?;
    let (pass, deliver) = (Verdict::Pass as u32, Verdict::Deliver as u32);
    let pods = [family.of(REMOTE_POD), gateway(family, 2)];
    let to = world.destinations();
    let (pod, node_port) = (to[0], to[3]);
    for (accepted, sources, to, outcome) in [
        (true, &pods[..], pod, deliver),
        (true, &pods[..1], node_port, pass),
        (true, &[address(family, 2)], pod, deliver),
        (false, &[address(family, 2)], node_port, pass),
        (false, &[family.of(STRANGER)], node_port, pass),
        (true, &[family.of(STRANGER)], node_port, pass),
    ] {
        world.accept_native(accepted)?;
        for tags in [&UNTAGGED[..], &PRIORITY[..]] {
            let frames = world.frames(sources, to, tags)?;
            let before = world.received()?.1;
            let wire = world.intruder.raw(ETH0)?;
            world
                .send(&wire, &frames, SOME, (Program::UplinkIngress, outcome))
                .with_context(|| format!("{sources:?} to {}", to.0))?;
            let deadline = Instant::now() + PATIENCE;
            while world.received()?.1 < before + SOME as u64 {
                ensure!(
                    Instant::now() < deadline,
                    "{sources:?} to {}, tags {tags:?}: the pod received {} of {SOME}",
                    to.0,
                    world.received()?.1 - before
                );
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

fn no_forged_source_leaves_a_pod(family: Family) -> Result<()> {
    let mut world = World::new(family, Family::V4)?;
    let forged = [
        world.b.address,
        family.of(REMOTE_POD),
        family.of(Ipv4Addr::new(10, 0, 1, 200)),
        family.of(Ipv4Addr::new(10, 0, 77, 7)),
        gateway(family, 1),
        gateway(family, 2),
        address(family, 1),
        address(family, 2),
        family.of(STRANGER),
        family.of(Ipv4Addr::UNSPECIFIED),
    ];
    let wire = world.a.namespace.raw(ETH0)?;
    let (own, mac, node_mac) = (world.a.address, world.a.mac, world.a.node_mac);
    let frames = |sources: &[IpAddr], to, tags: &[&[[u8; 4]]], mac| {
        combined(sources, to, tags, (mac, node_mac))
    };
    for to in world.destinations() {
        let tags = [&PRIORITY[..], &NESTED, &VLAN].concat();
        for (what, frames, reason) in [
            (
                "another's address",
                frames(&forged, to, &UNTAGGED, mac),
                DropReason::SpoofedAddress,
            ),
            (
                "another's MAC",
                frames(&[own], to, &UNTAGGED, world.b.mac),
                DropReason::SpoofedMac,
            ),
            (
                "tagged",
                frames(&[own, world.b.address], to, &tags, mac),
                DropReason::UnsupportedL3,
            ),
        ] {
            world
                .refused_by(&wire, &frames, (Program::PodEgress, reason as u32), 0)
                .with_context(|| format!("{what}, to {}", to.0))?;
        }
    }
    Ok(())
}

fn no_forged_source_comes_out_of_the_tunnel(family: Family, outer: Family) -> Result<()> {
    let mut world = World::new(family, outer)?;
    let wire = world.intruder.raw(ETH0)?;
    let (from, node) = (world.intruder.mac(ETH0)?, world.one.namespace.mac(ETH0)?);
    let tunnel = |from_outside: IpAddr, vni: Identity, inner: &[u8]| {
        Packet::vxlan(from_outside, address(outer, 1), vni, inner)
            .macs(from, node)
            .frame()
    };
    let elsewhere = [
        family.of(Ipv4Addr::new(10, 0, 3, 30)),
        gateway(family, 3),
        address(family, 3),
        family.of(Ipv4Addr::new(10, 0, 77, 7)),
        world.a.address,
        gateway(family, 1),
        address(family, 1),
        family.of(STRANGER),
    ];
    let not_there = DropReason::TunnelSourceNotOnNode;
    for to in world.destinations() {
        let inner = |source: IpAddr, tag: &[[u8; 4]]| {
            let packet = Packet::udp((source, 1111), (to.1, to.2)).macs(from, node);
            tagged(&packet.frame(), tag)
        };
        let of_others: Vec<_> = elsewhere
            .iter()
            .map(|s| tunnel(address(outer, 2), identity(3000), &inner(*s, &[])))
            .collect();
        let tags = [&PRIORITY[..], &NESTED, &VLAN].concat();
        let inner_tags: Vec<_> = tags
            .iter()
            .map(|tag| {
                tunnel(
                    address(outer, 2),
                    identity(3000),
                    &inner(family.of(REMOTE_POD), tag),
                )
            })
            .collect();
        let strangers = [
            tunnel(
                outer.of(STRANGER),
                identity(3000),
                &inner(family.of(REMOTE_POD), &[]),
            ),
            tunnel(
                outer.of(REMOTE_POD),
                identity(3000),
                &inner(family.of(REMOTE_POD), &[]),
            ),
        ];
        let reserved = [tunnel(
            address(outer, 2),
            Identity::HOST,
            &inner(family.of(REMOTE_POD), &[]),
        )];
        for (what, frames, program, reason) in [
            (
                "another node's",
                &of_others[..],
                Program::OverlayIngress,
                not_there,
            ),
            (
                "tagged",
                &inner_tags,
                Program::OverlayIngress,
                DropReason::UnsupportedL3,
            ),
            (
                "a reserved VNI",
                &reserved,
                Program::OverlayIngress,
                DropReason::ReservedVni,
            ),
            (
                "from no node",
                &strangers,
                Program::UplinkIngress,
                DropReason::TunnelSourceNotNode,
            ),
        ] {
            // The stack unpacks what goes into the tunnel.
            let outside = u64::from(program == Program::OverlayIngress);
            world
                .refused_by(&wire, frames, (program, reason as u32), outside)
                .with_context(|| format!("{what}, to {}", to.0))?;
        }
    }
    Ok(())
}
