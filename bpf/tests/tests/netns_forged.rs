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
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use veer_bpf_common::{
    identity::Identity,
    node::NodeId,
    outcome::{DropReason, Program, Verdict, outcome_name},
    tables::Remote,
};
use veer_bpf_tests::{
    lab::{ETH0, Node, Pod, Underlay, address, gateway, id},
    netns::{Namespace, Raw},
    packet::{Packet, tagged},
    world::identity,
};

/// Packets of each kind to each destination.
const MANY: usize = 10_000;
/// Packets that show that something does get through.
const SOME: usize = 200;
/// Packets sent before they are counted: less than a CPU's queue holds.
const BURST: usize = 100;
/// How long a burst may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 2222;

/// Tags as they are on the wire: type and what follows it.
const PRIORITY: [&[[u8; 4]]; 3] = [
    &[[0x81, 0, 0, 0]],
    &[[0x81, 0, 0xe0, 0]],
    &[[0x88, 0xa8, 0, 0]],
];
/// A priority tag behind a priority tag.
const NESTED: [&[[u8; 4]]; 3] = [
    &[[0x81, 0, 0, 0], [0x81, 0, 0, 0]],
    &[[0x88, 0xa8, 0, 0], [0x81, 0, 0x20, 0]],
    &[[0x81, 0, 0, 0], [0x81, 0, 0, 0], [0x81, 0, 0, 0]],
];
/// Tags of a VLAN that no device here is of.
const VLAN: [&[[u8; 4]]; 2] = [&[[0x81, 0, 0, 5]], &[[0x81, 0, 0, 0], [0x81, 0, 0, 5]]];
const UNTAGGED: [&[[u8; 4]]; 1] = [&[]];

/// Where packets go: what it is called, address and port.
type Destination = (&'static str, Ipv4Addr, u16);

/// Node 1 with pods A and B behind a Service, node 2 of which it only knows, and
/// somebody on the link between them.
struct World {
    one: Node,
    a: Pod,
    b: Pod,
    intruder: Namespace,
    _link: Underlay,
}

impl World {
    fn new() -> Result<Self> {
        let link = Underlay::new()?;
        let mut one = Node::new(&link, 1)?;
        let a = one.add_pod(1, identity(1000))?;
        let b = one.add_pod(2, identity(2000))?;
        one.know(2)?;
        one.know(3)?;
        one.datapath
            .set_prefix((remote_pod(), 32), identity(3000), id(2))?;
        // All pods' addresses of the cluster.
        let cluster = (Ipv4Addr::new(10, 0, 0, 0), 16);
        one.datapath
            .set_prefix(cluster, Identity::UNMANAGED, NodeId::NONE)?;
        let intruder = link.join(9, "intruder")?;
        // It answers nothing, whatever reaches it.
        intruder.sysctl("ipv4/ip_forward", "0")?;
        let out = WORLD.to_string();
        let host = &one.namespace;
        host.ip(&["route", "add", &out, "via", &address(9).to_string()])?;
        let to = format!("dnat to {}:{PORT}", b.address);
        let rules = format!(
            "table ip test {{
               chain in {{ type nat hook prerouting priority dstnat;
               ip daddr {CLUSTER_IP} udp dport 80 {to};
               ip daddr {} udp dport {NODE_PORT} {to}; }}
             }}",
            address(1)
        );
        host.command("nft", &[&rules])?;
        count(host)?;
        count(&b.namespace)?;
        Ok(Self {
            one,
            a,
            b,
            intruder,
            _link: link,
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
        [
            ("a pod", self.b.address, PORT),
            ("the node", address(1), 9),
            ("a ClusterIP", CLUSTER_IP, 80),
            ("a NodePort", address(1), NODE_PORT),
            ("the world", WORLD, 9),
            ("a pod elsewhere", Ipv4Addr::new(10, 0, 3, 30), 9),
        ]
    }

    /// Frames to node 1 from these sources with these tags, all combinations.
    fn frames(
        &self,
        sources: &[Ipv4Addr],
        to: Destination,
        tags: &[&[[u8; 4]]],
    ) -> Result<Vec<Vec<u8>>> {
        let (from, node) = (self.intruder.mac(ETH0)?, self.one.namespace.mac(ETH0)?);
        let mut frames = Vec::new();
        for source in sources {
            for tag in tags {
                let packet = Packet::udp((*source, 1111), (to.1, to.2)).macs(from, node);
                frames.push(tagged(&packet.frame(), tag));
            }
        }
        Ok(frames)
    }

    /// UDP packets that node 1's stack and pod B's have received.
    fn received(&self) -> Result<(u64, u64)> {
        Ok((received(&self.one.namespace)?, received(&self.b.namespace)?))
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

fn remote_pod() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, 11)
}

/// Lets a stack count the UDP packets that it receives. All packets here are such; the
/// kernels also tell each other of which groups they are.
fn count(namespace: &Namespace) -> Result<()> {
    let rules = "table ip received {
       counter datagrams {}
       chain in { type filter hook prerouting priority raw;
       meta l4proto udp counter name \"datagrams\"; }
     }";
    namespace.command("nft", &[rules])?;
    Ok(())
}

/// How many it has received.
fn received(namespace: &Namespace) -> Result<u64> {
    let counter = namespace.command("nft", &["list counter ip received datagrams"])?;
    let mut words = counter.split_whitespace().skip_while(|w| *w != "packets");
    Ok(words.nth(1).context("no packets in a counter")?.parse()?)
}

fn refused_by_uplink(reason: DropReason) -> (Program, u32) {
    (Program::UplinkIngress, reason as u32)
}

#[test]
fn no_forged_source_passes_the_uplink() -> Result<()> {
    let mut world = World::new()?;
    let elsewhere = [
        remote_pod(),
        // In a node's block, but no pod's.
        Ipv4Addr::new(10, 0, 2, 200),
        gateway(2),
        Ipv4Addr::new(10, 0, 3, 1),
    ];
    // In no node's block.
    let nowhere = [Ipv4Addr::new(10, 0, 77, 7)];
    let own = [world.a.address, Ipv4Addr::new(10, 0, 1, 200), gateway(1)];
    let here = [address(1)];
    let nodes = [address(2), address(3)];
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
            let all = [&elsewhere[..], &nowhere, &own, &nodes, &[STRANGER]].concat();
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

#[test]
fn what_may_come_bare_does_so_with_and_without_a_priority_tag() -> Result<()> {
    let mut world = World::new()?;
    let (pass, deliver) = (Verdict::Pass as u32, Verdict::Deliver as u32);
    let pods = [remote_pod(), gateway(2)];
    let to = world.destinations();
    let (pod, node_port) = (to[0], to[3]);
    for (accepted, sources, to, outcome) in [
        (true, &pods[..], pod, deliver),
        (true, &pods[..1], node_port, pass),
        (true, &[address(2)], pod, deliver),
        (false, &[address(2)], node_port, pass),
        (false, &[STRANGER], node_port, pass),
        (true, &[STRANGER], node_port, pass),
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

#[test]
fn no_forged_source_leaves_a_pod() -> Result<()> {
    let mut world = World::new()?;
    let forged = [
        world.b.address,
        remote_pod(),
        Ipv4Addr::new(10, 0, 1, 200),
        Ipv4Addr::new(10, 0, 77, 7),
        gateway(1),
        gateway(2),
        address(1),
        address(2),
        STRANGER,
        Ipv4Addr::UNSPECIFIED,
    ];
    let wire = world.a.namespace.raw(ETH0)?;
    let (own, mac, node_mac) = (world.a.address, world.a.mac, world.a.node_mac);
    let frames = |sources: &[Ipv4Addr], to: Destination, tags: &[&[[u8; 4]]], mac| {
        let mut frames = Vec::new();
        for source in sources {
            for tag in tags {
                let packet = Packet::udp((*source, 1111), (to.1, to.2)).macs(mac, node_mac);
                frames.push(tagged(&packet.frame(), tag));
            }
        }
        frames
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

#[test]
fn no_forged_source_comes_out_of_the_tunnel() -> Result<()> {
    let mut world = World::new()?;
    let wire = world.intruder.raw(ETH0)?;
    let (from, node) = (world.intruder.mac(ETH0)?, world.one.namespace.mac(ETH0)?);
    let tunnel = |outer: Ipv4Addr, vni: Identity, inner: &[u8]| {
        Packet::vxlan(outer, address(1), vni, inner)
            .macs(from, node)
            .frame()
    };
    let elsewhere = [
        Ipv4Addr::new(10, 0, 3, 30),
        gateway(3),
        address(3),
        Ipv4Addr::new(10, 0, 77, 7),
        world.a.address,
        gateway(1),
        address(1),
        STRANGER,
    ];
    let not_there = DropReason::TunnelSourceNotOnNode;
    for to in world.destinations() {
        let inner = |source: Ipv4Addr, tag: &[[u8; 4]]| {
            let packet = Packet::udp((source, 1111), (to.1, to.2)).macs(from, node);
            tagged(&packet.frame(), tag)
        };
        let of_others: Vec<_> = elsewhere
            .iter()
            .map(|s| tunnel(address(2), identity(3000), &inner(*s, &[])))
            .collect();
        let tags = [&PRIORITY[..], &NESTED, &VLAN].concat();
        let inner_tags: Vec<_> = tags
            .iter()
            .map(|tag| tunnel(address(2), identity(3000), &inner(remote_pod(), tag)))
            .collect();
        let strangers = [
            tunnel(STRANGER, identity(3000), &inner(remote_pod(), &[])),
            tunnel(remote_pod(), identity(3000), &inner(remote_pod(), &[])),
        ];
        let reserved = [tunnel(
            address(2),
            Identity::HOST,
            &inner(remote_pod(), &[]),
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
