//! What the tunnel's receiving side believes, with tunnel packets written by
//! hand: sent from the address of a node and from a stranger's on the same link.

#![forbid(unsafe_code)]
#![allow(clippy::too_many_lines, reason = "tables")]

use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use veer_bpf_common::{
    DEFAULT_TUNNEL_PORT,
    identity::{Identity, Vni},
    outcome::{DropReason, Observation, Program, Verdict},
    tables::FlowEntry,
};
use veer_bpf_tests::{
    family::Family,
    in_and_over_both_families,
    lab::{ETH0, Node, Pod, SILENCE, Underlay, address, any, gateway, id},
    netns::{DEADLINE, Namespace, await_condition},
    packet::{Extension, Headers, Packet, SYN, arp, vxlan_payload},
    world::{identity, name},
};

in_and_over_both_families! {
    what_only_ipv6_has_is_refused_out_of_the_tunnel,
    only_what_a_node_can_have_sent_is_believed,
    the_tunnel_device_refuses_a_stranger_by_itself,
    a_vni_grants_nothing_and_a_wrong_one_is_counted,
    what_is_refused_does_not_arrive,
    delivery_from_the_tunnel_is_one_hop_and_for_this_host,
    a_recorded_flow_goes_up_and_a_new_connection_ends_its_entry,
    xdp_drops_the_stranger_before_tc_sees_it,
}

/// The pod on node 1, as [`Lab::b`].
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 12);
/// A pod that exists only as a row: on node 2.
const C: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 20);
const C_IDENTITY: Identity = identity(3000);
/// A vacant address of node 2.
const VACANT: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 99);
/// A pod's address on node 3.
const D: Ipv4Addr = Ipv4Addr::new(10, 0, 3, 30);
const WORLD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Node 1 with pod B; node 2 is a namespace without programs, whose tunnel
/// packets the tests write; the stranger is no node.
struct Lab {
    link: Underlay,
    node: Node,
    b: Pod,
    two: Namespace,
    stranger: Namespace,
}

impl Lab {
    fn new(family: Family, outer: Family) -> Result<Self> {
        Self::with(family, outer, Node::new)
    }

    fn with(
        family: Family,
        outer: Family,
        node: impl FnOnce(&Underlay, u8) -> Result<Node>,
    ) -> Result<Self> {
        let link = Underlay::new(family, outer)?;
        let mut node = node(&link, 1)?;
        let b = node.add_pod(2, identity(2000))?;
        let two = link.join(2, "two")?;
        let stranger = link.join(66, "stranger")?;
        node.know(2)?;
        node.know(3)?;
        node.datapath
            .set_prefix(family.prefix((C, 32)), C_IDENTITY, id(2))?;
        Ok(Self {
            link,
            node,
            b,
            two,
            stranger,
        })
    }

    fn udp(&self, source: impl Into<IpAddr>) -> Packet {
        Packet::udp((source, 5), (self.b.address, 6))
    }

    /// Sends one and waits until `program` counted one more with `outcome`.
    fn expect(
        &mut self,
        what: &str,
        from: &str,
        vni: impl Into<Vni>,
        inner: &[u8],
        (program, outcome): (Program, u32),
    ) -> Result<()> {
        let before = self.node.datapath.packets(program, outcome)?;
        let from = if from == "node" {
            &self.two
        } else {
            &self.stranger
        };
        send(from, self.link.outer, vni, inner)?;
        let data = &mut self.node.datapath;
        let counted = await_condition(
            what,
            || Ok((data.packets(program, outcome)? > before).then_some(())),
            || format!("{} expected of {}", name(outcome), program.name()),
        );
        counted.with_context(|| {
            let all = [Program::UplinkIngress, Program::OverlayIngress];
            format!("{:?}", all.map(|p| data.counted(p)))
        })
    }
}

/// Sends a tunnel packet to node 1 from an ordinary socket.
fn send(from: &Namespace, outer: Family, vni: impl Into<Vni>, inner: &[u8]) -> Result<()> {
    let to = (address(outer, 1), DEFAULT_TUNNEL_PORT);
    let socket = from.run(|| Ok(UdpSocket::bind((any(to.0), 0))?))?;
    socket.send_to(&vxlan_payload(vni, inner), to)?;
    Ok(())
}

fn only_what_a_node_can_have_sent_is_believed(family: Family, outer: Family) -> Result<()> {
    let mut lab = Lab::new(family, outer)?;
    let overlay = |reason: DropReason| (Program::OverlayIngress, reason as u32);
    let uplink = |reason: DropReason| (Program::UplinkIngress, reason as u32);
    let deliver = (Program::OverlayIngress, Verdict::Deliver as u32);
    let to_stack = (Program::OverlayIngress, Verdict::ToStack as u32);
    let b = lab.b.address;
    let good = lab.udp(C).frame();
    let to = |destination| Packet::udp((family.of(C), 5), (destination, 6)).frame();
    let mut cut = lab.udp(C).frame();
    cut.truncate(14 + family.header_length() + 7);
    let node_2 = lab.udp(address(family, 2)).frame();
    for (what, from, vni, inner, expected) in [
        (
            "a pod of the node",
            "node",
            Vni::from(C_IDENTITY),
            good.clone(),
            deliver,
        ),
        (
            "a pod whose row has not come",
            "node",
            Vni::from(Identity::INIT),
            lab.udp(VACANT).frame(),
            deliver,
        ),
        (
            "the node itself",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            node_2.clone(),
            deliver,
        ),
        (
            "a probe",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            Packet::echo(gateway(family, 2), gateway(family, 1), 1).frame(),
            to_stack,
        ),
        (
            "a probe to a pod",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            lab.udp(gateway(family, 2)).frame(),
            deliver,
        ),
        (
            "the health address of another node",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            Packet::echo(gateway(family, 3), gateway(family, 1), 1).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "our own health address",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            Packet::echo(gateway(family, 1), gateway(family, 1), 1).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "a health address as a pod",
            "node",
            Vni::from(C_IDENTITY),
            Packet::echo(gateway(family, 2), gateway(family, 1), 1).frame(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "a pod as a health address",
            "node",
            Vni::from(Identity::HEALTH),
            good.clone(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "with options",
            "node",
            Vni::from(C_IDENTITY),
            lab.udp(C).options(3).frame(),
            deliver,
        ),
        (
            "to the node",
            "node",
            Vni::from(C_IDENTITY),
            to(address(family, 1)),
            to_stack,
        ),
        (
            "to the gateway",
            "node",
            Vni::from(C_IDENTITY),
            to(gateway(family, 1)),
            to_stack,
        ),
        (
            "to an address of no pod",
            "node",
            Vni::from(C_IDENTITY),
            to(family.of(Ipv4Addr::new(10, 0, 1, 99))),
            overlay(DropReason::NoSuchEndpoint),
        ),
        (
            "outer source no node",
            "stranger",
            Vni::from(C_IDENTITY),
            good.clone(),
            uplink(DropReason::TunnelSourceNotNode),
        ),
        (
            "a pod of another node",
            "node",
            Vni::from(C_IDENTITY),
            lab.udp(D).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "another node",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            lab.udp(address(family, 3)).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "one of our own pods",
            "node",
            Vni::from(identity(2000)),
            lab.udp(b).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "ourselves",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            lab.udp(address(family, 1)).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "the world",
            "node",
            Vni::from(Identity::WORLD),
            lab.udp(WORLD).frame(),
            overlay(DropReason::TunnelSourceNotOnNode),
        ),
        (
            "VNI 0",
            "node",
            Vni::ZERO,
            good.clone(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "VNI of the host",
            "node",
            Vni::from(Identity::HOST),
            good.clone(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "VNI of the world",
            "node",
            Vni::from(Identity::WORLD),
            good.clone(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "VNI never given out",
            "node",
            Vni::from(identity(7)),
            good.clone(),
            overlay(DropReason::ReservedVni),
        ),
        (
            "a pod as a node",
            "node",
            Vni::from(Identity::REMOTE_NODE),
            good,
            overlay(DropReason::ReservedVni),
        ),
        (
            "a node as a pod",
            "node",
            Vni::from(C_IDENTITY),
            node_2,
            overlay(DropReason::ReservedVni),
        ),
        (
            "a lone later fragment",
            "node",
            Vni::from(C_IDENTITY),
            lab.udp(C).last_fragment(8).frame(),
            overlay(DropReason::FragmentWithoutFirst),
        ),
        (
            "an inner packet cut off",
            "node",
            Vni::from(C_IDENTITY),
            cut,
            overlay(DropReason::Malformed),
        ),
        (
            "ARP",
            "node",
            Vni::from(C_IDENTITY),
            arp(1, ([2; 6], C), ([0; 6], B)),
            overlay(DropReason::UnsupportedL3),
        ),
    ] {
        lab.expect(what, from, vni, &inner, expected)?;
    }
    Ok(())
}

fn what_only_ipv6_has_is_refused_out_of_the_tunnel(family: Family, outer: Family) -> Result<()> {
    let mut lab = Lab::new(family, outer)?;
    let frame = |chain: &[Extension]| lab.udp(C).behind(chain).frame_of(Family::V6);
    let from = |source: [u16; 2]| {
        let source = Ipv6Addr::new(source[0], 0, 0, 0, 0, source[1], 0x0a00, 0x0214);
        lab.udp(source).frame_of(Family::V6)
    };
    let rows = if family == Family::V4 {
        // That of IPv4 is an option, by which the kernel forwards nothing.
        vec![(
            "options",
            lab.udp(C).options(3).frame(),
            Verdict::Deliver as u32,
        )]
    } else {
        let not_there = DropReason::TunnelSourceNotOnNode as u32;
        vec![
            (
                "a routing header",
                frame(&[Extension::routing(4, 1)]),
                DropReason::RoutingHeader as u32,
            ),
            (
                "too many headers",
                frame(&vec![Extension::hop_by_hop(1); 9]),
                DropReason::TooManyHeaders as u32,
            ),
            ("a mapped source", from([0, 0xffff]), not_there),
            ("a source of the link", from([0xfe80, 0]), not_there),
            ("a group as source", from([0xff02, 0]), not_there),
        ]
    };
    for (what, inner, outcome) in rows {
        let expected = (Program::OverlayIngress, outcome);
        lab.expect(what, "node", C_IDENTITY, &inner, expected)?;
    }
    Ok(())
}

fn the_tunnel_device_refuses_a_stranger_by_itself(family: Family, outer: Family) -> Result<()> {
    // As on an uplink where the program is not attached yet.
    let mut lab = Lab::with(family, outer, Node::with_bare_uplink)?;
    let inner = lab.udp(C).frame();
    let expected = (
        Program::OverlayIngress,
        DropReason::TunnelSourceNotNode as u32,
    );
    lab.expect("a stranger", "stranger", C_IDENTITY, &inner, expected)
}

fn a_vni_grants_nothing_and_a_wrong_one_is_counted(family: Family, outer: Family) -> Result<()> {
    let mut lab = Lab::new(family, outer)?;
    let mismatch = (
        Program::OverlayIngress,
        Observation::IdentityMismatch as u32,
    );
    let server = lab.b.udp(6)?;
    let frame = lab.udp(C).frame();
    lab.expect(
        "another pod's identity",
        "node",
        Vni::from(identity(4000)),
        &frame,
        mismatch,
    )?;
    assert_eq!(server.recv(&mut [0; 64])?, 4);
    let counted = lab.node.datapath.packets(mismatch.0, mismatch.1)?;
    let deliver = (Program::OverlayIngress, Verdict::Deliver as u32);
    lab.expect("its own", "node", C_IDENTITY, &frame, deliver)?;
    assert_eq!(lab.node.datapath.packets(mismatch.0, mismatch.1)?, counted);
    Ok(())
}

fn what_is_refused_does_not_arrive(family: Family, outer: Family) -> Result<()> {
    let lab = Lab::new(family, outer)?;
    let server = lab.b.udp(6)?;
    server.set_read_timeout(Some(SILENCE))?;
    send(&lab.stranger, outer, C_IDENTITY, &lab.udp(C).frame())?;
    send(&lab.two, outer, C_IDENTITY, &lab.udp(D).frame())?;
    send(&lab.two, outer, Identity::HOST, &lab.udp(C).frame())?;
    assert!(server.recv(&mut [0; 64]).is_err());
    server.set_read_timeout(Some(DEADLINE))?;
    send(&lab.two, outer, C_IDENTITY, &lab.udp(C).frame())?;
    assert_eq!(server.recv(&mut [0; 64])?, 4);
    Ok(())
}

fn delivery_from_the_tunnel_is_one_hop_and_for_this_host(
    family: Family,
    outer: Family,
) -> Result<()> {
    let lab = Lab::new(family, outer)?;
    let mut at_b = lab.b.namespace.capture(ETH0)?;
    let server = lab.b.udp(6)?;
    // An inner MAC of no device: the stack would take it for another host's.
    let packet = lab.udp(C).macs([2, 2, 2, 2, 2, 2], [4, 4, 4, 4, 4, 4]);
    send(&lab.two, outer, C_IDENTITY, &packet.frame())?;
    assert_eq!(server.recv(&mut [0; 64])?, 4);
    let seen = at_b.wait(|f| Headers::of(f).filter(|s| s.source == family.of(C)))?;
    assert_eq!((seen.ttl, seen.checksum_ok), (63, true));
    assert_eq!(
        (seen.source_mac, seen.destination_mac),
        (lab.b.node_mac, lab.b.mac)
    );
    Ok(())
}

fn a_recorded_flow_goes_up_and_a_new_connection_ends_its_entry(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = Lab::new(family, outer)?;
    let b = lab.b.address;
    let live = FlowEntry {
        expires_at: u64::MAX,
        ..FlowEntry::default()
    };
    lab.node
        .datapath
        .set_flow(family.flow(17, (b, 6), (family.of(C), 5)), live)?;
    let noted = (Program::OverlayIngress, Verdict::ToStackNoted as u32);
    let frame = lab.udp(C).frame();
    lab.expect("a reply", "node", C_IDENTITY, &frame, noted)?;

    let stale = family.flow(6, (family.of(C), 5), (b, 6));
    lab.node.datapath.set_flow(stale, live)?;
    let syn = Packet::tcp((family.of(C), 5), (b, 6), SYN).frame();
    let deliver = (Program::OverlayIngress, Verdict::Deliver as u32);
    lab.expect("a SYN", "node", C_IDENTITY, &syn, deliver)?;
    assert!(lab.node.datapath.flow(&stale)?.is_none());
    Ok(())
}

fn xdp_drops_the_stranger_before_tc_sees_it(family: Family, outer: Family) -> Result<()> {
    let mut lab = Lab::new(family, outer)?;
    let node = &mut lab.node;
    node.namespace.run(|| node.datapath.attach_xdp(ETH0))?;
    let frame = lab.udp(C).frame();
    let refused = (Program::UplinkXdp, DropReason::TunnelSourceNotNode as u32);
    lab.expect("a stranger", "stranger", C_IDENTITY, &frame, refused)?;
    let tc = (
        Program::UplinkIngress,
        DropReason::TunnelSourceNotNode as u32,
    );
    assert_eq!(lab.node.datapath.packets(tc.0, tc.1)?, 0);
    let deliver = (Program::OverlayIngress, Verdict::Deliver as u32);
    lab.expect("a node", "node", C_IDENTITY, &frame, deliver)?;
    Ok(())
}
