//! `pod_egress` by `BPF_PROG_TEST_RUN`: what a pod sends, and what becomes of it.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::wildcard_imports,
    reason = "lengths of packets written here; tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::Ipv4Addr;
use veer_bpf_common::{
    identity::Identity,
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::Config,
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    packet::{Packet, SYN, arp, tagged},
    world::{self, *},
};

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn run(node: &mut Datapath, frame: &[u8]) -> Result<Ran> {
    node.run(Program::PodEgress, frame, Context::default())
}

/// Every row's packet ends as the row says, with the code that goes with it.
fn check(rows: &[(&str, Vec<u8>, u32)]) -> Result<()> {
    check_on(&mut load()?, rows)
}

fn check_on(node: &mut Datapath, rows: &[(&str, Vec<u8>, u32)]) -> Result<()> {
    for (what, frame, expected) in rows {
        let ran = run(node, frame).with_context(|| (*what).to_owned())?;
        assert_eq!(
            name(ran.decision.outcome),
            name(*expected),
            "{what}: {ran:?}"
        );
        let code = match *expected {
            128.. => SHOT,
            n if n == Verdict::Deliver as u32
                || n == Verdict::Overlay as u32
                || n == Verdict::Native as u32
                || n == Verdict::Answer as u32 =>
            {
                REDIRECT
            }
            _ => UNSPEC,
        };
        assert_eq!(ran.code, code, "{what}");
    }
    Ok(())
}

#[test]
fn every_destination_takes_its_way() -> Result<()> {
    check(&destinations())
}

#[test]
fn pods_here_are_found_outside_the_gateways_block_too() -> Result<()> {
    let mut node = load()?;
    for gateway in [Ipv4Addr::new(10, 0, 9, 1), Ipv4Addr::UNSPECIFIED] {
        node.set_config(Config {
            gateway_v4: gateway.octets(),
            ..world::config()
        })?;
        check_on(&mut node, &destinations()).with_context(|| format!("gateway {gateway}"))?;
    }
    node.set_config(Config {
        block_bits_v4: 0,
        ..world::config()
    })?;
    check_on(&mut node, &destinations()).context("a block that is not known")
}

/// A packet to each kind of destination, and the verdict.
fn destinations() -> Vec<(&'static str, Vec<u8>, u32)> {
    vec![
        ("pod here", a_to(B).frame(), Verdict::Deliver as u32),
        ("pod there", a_to(C).frame(), Verdict::Overlay as u32),
        (
            "pod there whose row has not come",
            a_to(Ipv4Addr::new(10, 0, 2, 99)).frame(),
            Verdict::Overlay as u32,
        ),
        (
            "another node",
            a_to(NODE_2).frame(),
            Verdict::Overlay as u32,
        ),
        ("own node", a_to(NODE_1).frame(), Verdict::ToStack as u32),
        ("gateway", a_to(GATEWAY).frame(), Verdict::ToStack as u32),
        ("world", a_to(WORLD).frame(), Verdict::ToStack as u32),
        (
            "no such pod here",
            a_to(Ipv4Addr::new(10, 0, 1, 99)).frame(),
            DropReason::NoSuchEndpoint as u32,
        ),
        (
            "node without a form",
            a_to(D).frame(),
            DropReason::RemoteUnusable as u32,
        ),
        (
            "multicast",
            a_to(Ipv4Addr::new(224, 0, 0, 251)).frame(),
            DropReason::UnsupportedDestination as u32,
        ),
        (
            "broadcast",
            a_to(Ipv4Addr::BROADCAST).frame(),
            DropReason::UnsupportedDestination as u32,
        ),
        (
            "the node's loopback",
            a_to(Ipv4Addr::LOCALHOST).frame(),
            DropReason::UnsupportedDestination as u32,
        ),
    ]
}

#[test]
fn what_is_not_the_pods_own_is_dropped() -> Result<()> {
    let udp = |source| Packet::udp((source, 1), (B, 2));
    check(&[
        (
            "another MAC",
            udp(A).macs(B_MAC, A_NODE_MAC).frame(),
            DropReason::SpoofedMac as u32,
        ),
        (
            "a neighbour's address",
            from_a(udp(B)).frame(),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a remote pod's address",
            from_a(udp(C)).frame(),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "no address",
            from_a(udp(Ipv4Addr::UNSPECIFIED)).frame(),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a forged tunnel packet to another node",
            from_a(Packet::vxlan(A, NODE_2, C_IDENTITY, &a_to(B).frame())).frame(),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "a forged tunnel packet to the own node",
            from_a(Packet::vxlan(A, NODE_1, C_IDENTITY, &a_to(B).frame())).frame(),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "the tunnel's port of a pod is a port like any other",
            from_a(Packet::udp((A, 1), (B, 8472))).frame(),
            Verdict::Deliver as u32,
        ),
    ])
}

#[test]
fn a_device_without_an_interface_row_gets_nothing_through() -> Result<()> {
    let mut node = Datapath::load(&[Program::PodEgress])?;
    let ran = run(&mut node, &a_to(B).frame())?;
    assert_eq!(ran.decision.outcome, DropReason::UnknownInterface as u32);
    assert_eq!(ran.code, SHOT);
    Ok(())
}

#[test]
fn unsupported_frames_are_dropped_for_what_they_are() -> Result<()> {
    check(&[
        (
            "802.3 length",
            a_to(B).ether_type(0x05ff).frame(),
            DropReason::UnsupportedL2 as u32,
        ),
        (
            "IPv6",
            a_to(B).ether_type(0x86dd).total_length(60).frame(),
            DropReason::UnsupportedL3 as u32,
        ),
        (
            "a VLAN tag",
            a_to(B).ether_type(0x8100).frame(),
            DropReason::UnsupportedL3 as u32,
        ),
        (
            "a priority tag",
            tagged(&a_to(B).frame(), &[[0x81, 0, 0, 0]]),
            DropReason::UnsupportedL3 as u32,
        ),
        (
            "a provider's tag",
            tagged(&a_to(B).frame(), &[[0x88, 0xa8, 0, 0]]),
            DropReason::UnsupportedL3 as u32,
        ),
    ])
}

#[test]
fn a_truncated_packet_is_malformed_at_every_length() -> Result<()> {
    let mut node = load()?;
    for packet in [
        a_to(B),
        from_a(Packet::tcp((A, 1), (B, 2), SYN)),
        from_a(Packet::echo(A, B, 3)),
    ] {
        let frame = packet.payload(Vec::new()).frame();
        // BPF_PROG_TEST_RUN takes no IPv4 frame without 20 bytes of header; a raw
        // socket does (netns_delivery), and so do the host tests of bpf/net.
        for n in 34..frame.len() {
            let ran = run(&mut node, &frame[..n]).with_context(|| format!("{n} bytes"))?;
            assert_eq!(
                name(ran.decision.outcome),
                name(DropReason::Malformed as u32),
                "{n} of {} bytes",
                frame.len()
            );
        }
        assert_eq!(
            run(&mut node, &frame)?.decision.outcome,
            Verdict::Deliver as u32
        );
    }
    Ok(())
}

#[test]
fn a_header_with_options_is_honoured() -> Result<()> {
    let vxlan = |words| {
        let packet = Packet::vxlan(A, NODE_2, Identity::HOST, &a_to(B).frame());
        from_a(packet).options(words).frame()
    };
    let mut cut = a_to(B).options(10).payload(Vec::new()).frame();
    cut.pop();
    let length = (cut.len() - 14) as u16;
    cut[16..18].copy_from_slice(&length.to_be_bytes());
    check(&[
        (
            "delivered",
            a_to(B).options(10).frame(),
            Verdict::Deliver as u32,
        ),
        (
            "the port behind one word",
            vxlan(1),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "the port behind ten words",
            vxlan(10),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "a UDP header short of a byte behind ten words",
            cut,
            DropReason::Malformed as u32,
        ),
    ])
}

#[test]
fn delivery_is_one_hop_with_the_macs_of_the_pods_link() -> Result<()> {
    let mut node = load()?;
    let ran = run(&mut node, &a_to(B).frame())?;
    let seen = headers(&ran.packet);
    assert_eq!(seen.ttl, 63);
    assert!(seen.checksum_ok);
    assert_eq!((seen.source_mac, seen.destination_mac), (B_NODE_MAC, B_MAC));
    assert_eq!(
        (
            ran.decision.ifindex,
            ran.decision.source_identity,
            ran.decision.destination_identity
        ),
        (B_IFINDEX.get(), A_IDENTITY.get(), B_IDENTITY.get())
    );
    Ok(())
}

#[test]
fn a_packet_whose_ttl_ends_here_goes_to_the_stack() -> Result<()> {
    let mut node = load()?;
    for ttl in [0, 1] {
        let frame = a_to(B).ttl(ttl).frame();
        let ran = run(&mut node, &frame)?;
        assert_eq!(ran.decision.outcome, Verdict::ToStackException as u32);
        assert_eq!((ran.code, ran.mark), (UNSPEC, mark::TO_STACK));
        assert_eq!(ran.packet, frame);
    }
    Ok(())
}

#[test]
fn arp_for_the_gateway_is_answered_and_nothing_else() -> Result<()> {
    let mut node = load()?;
    let ask = |sender, target| arp(1, sender, ([0; 6], target));
    let ran = run(&mut node, &ask((A_MAC, A), GATEWAY))?;
    assert_eq!(ran.decision.outcome, Verdict::Answer as u32);
    assert_eq!(
        (ran.code, ran.decision.ifindex, ran.mark),
        (REDIRECT, A_IFINDEX.get(), mark::REDIRECTED)
    );
    assert_eq!(ran.packet, arp(2, (A_NODE_MAC, GATEWAY), (A_MAC, A)));
    let mut cut = ask((A_MAC, A), GATEWAY);
    cut.pop();
    let mut forged = ask((B_MAC, A), GATEWAY);
    forged[6..12].copy_from_slice(&A_MAC);
    check(&[
        (
            "for a pod",
            ask((A_MAC, A), B),
            DropReason::NeighbourNotGateway as u32,
        ),
        (
            "an answer",
            arp(2, (A_MAC, A), (A_NODE_MAC, GATEWAY)),
            DropReason::NeighbourNotGateway as u32,
        ),
        (
            "from another's address",
            ask((A_MAC, B), GATEWAY),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "with another's MAC inside",
            forged,
            DropReason::SpoofedMac as u32,
        ),
        ("short of a byte", cut, DropReason::Malformed as u32),
    ])
}

#[test]
fn a_mark_that_the_packet_brings_is_taken_away() -> Result<()> {
    let mut node = load()?;
    for (brought, left) in [
        (mark::REDIRECTED, 0),
        (mark::TO_STACK | 0x4000, 0x4000),
        (0x4000, 0x4000),
    ] {
        let context = Context {
            mark: brought,
            ..Context::default()
        };
        let ran = node.run(Program::PodEgress, &a_to(WORLD).frame(), context)?;
        assert_eq!(ran.mark, left, "brought {brought:#x}");
    }
    Ok(())
}

#[test]
fn later_fragments_follow_their_first() -> Result<()> {
    let first = || a_to(B).first_fragment(9);
    let last = || a_to(B).last_fragment(9);
    check(&[
        (
            "a last one alone",
            last().frame(),
            DropReason::FragmentWithoutFirst as u32,
        ),
        ("the first", first().frame(), Verdict::Deliver as u32),
        ("the last", last().frame(), Verdict::Deliver as u32),
        (
            "of another datagram",
            a_to(B).last_fragment(10).frame(),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "of another destination",
            a_to(C).last_fragment(9).frame(),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "a first one to the tunnel",
            from_a(Packet::udp((A, 1), (NODE_2, 8472)))
                .first_fragment(11)
                .frame(),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "and the rest of it",
            a_to(NODE_2).last_fragment(11).frame(),
            DropReason::TunnelPortFromPod as u32,
        ),
    ])
}

#[test]
fn the_packets_are_counted_with_their_bytes() -> Result<()> {
    let mut node = load()?;
    for _ in 0..3 {
        run(&mut node, &a_to(B).frame())?;
    }
    run(&mut node, &a_to(WORLD).frame())?;
    assert_eq!(
        node.counted(Program::PodEgress)?,
        [("to-stack", 1), ("deliver", 3)]
    );
    let outcome = Verdict::Deliver as u32;
    let bytes = node.bytes(Program::PodEgress, outcome)?;
    assert_eq!(bytes, 3 * a_to(B).frame().len() as u64);
    Ok(())
}
