//! `pod_egress` by `BPF_PROG_TEST_RUN`: what a pod sends in either family, and what
//! becomes of it.

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
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    family::Family,
    in_both_families,
    packet::{Packet, SYN, arp, shortened, tagged},
    world::{self, *},
};

in_both_families! {
    every_destination_takes_its_way,
    pods_here_are_found_outside_the_gateways_block_too,
    what_is_not_the_pods_own_is_dropped,
    a_device_without_an_interface_row_gets_nothing_through,
    unsupported_frames_are_dropped_for_what_they_are,
    a_truncated_packet_is_malformed_at_every_length,
    a_header_with_options_is_honoured,
    delivery_is_one_hop_with_the_macs_of_the_pods_link,
    a_packet_whose_ttl_ends_here_goes_to_the_stack,
    a_mark_that_the_packet_brings_is_taken_away,
    later_fragments_follow_their_first,
    the_packets_are_counted_with_their_bytes,
}

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

fn every_destination_takes_its_way(family: Family) -> Result<()> {
    check(&destinations(family))
}

fn pods_here_are_found_outside_the_gateways_block_too(family: Family) -> Result<()> {
    let mut node = load()?;
    for gateway in [Ipv4Addr::new(10, 0, 9, 1), Ipv4Addr::UNSPECIFIED] {
        node.set_config(with_gateway(world::config(), gateway, 24))?;
        check_on(&mut node, &destinations(family)).with_context(|| format!("gateway {gateway}"))?;
    }
    node.set_config(with_gateway(world::config(), GATEWAY, 0))?;
    check_on(&mut node, &destinations(family)).context("a block that is not known")
}

/// A packet to each kind of destination, and the verdict.
fn destinations(family: Family) -> Vec<(&'static str, Vec<u8>, u32)> {
    vec![
        (
            "pod here",
            a_to(B).frame_of(family),
            Verdict::Deliver as u32,
        ),
        (
            "pod there",
            a_to(C).frame_of(family),
            Verdict::Overlay as u32,
        ),
        (
            "pod there whose row has not come",
            a_to(Ipv4Addr::new(10, 0, 2, 99)).frame_of(family),
            Verdict::Overlay as u32,
        ),
        (
            "another node",
            a_to(NODE_2).frame_of(family),
            Verdict::Overlay as u32,
        ),
        (
            "own node",
            a_to(NODE_1).frame_of(family),
            Verdict::ToStack as u32,
        ),
        (
            "gateway",
            a_to(GATEWAY).frame_of(family),
            Verdict::ToStack as u32,
        ),
        (
            "world",
            a_to(WORLD).frame_of(family),
            Verdict::ToStack as u32,
        ),
        (
            "no such pod here",
            a_to(Ipv4Addr::new(10, 0, 1, 99)).frame_of(family),
            DropReason::NoSuchEndpoint as u32,
        ),
        (
            "node without a form",
            a_to(D).frame_of(family),
            DropReason::RemoteUnusable as u32,
        ),
        (
            "multicast",
            a_to(Ipv4Addr::new(224, 0, 0, 251)).frame_of(family),
            DropReason::UnsupportedDestination as u32,
        ),
        (
            "broadcast",
            a_to(Ipv4Addr::BROADCAST).frame_of(family),
            DropReason::UnsupportedDestination as u32,
        ),
        (
            "the node's loopback",
            a_to(Ipv4Addr::LOCALHOST).frame_of(family),
            DropReason::UnsupportedDestination as u32,
        ),
    ]
}

fn what_is_not_the_pods_own_is_dropped(family: Family) -> Result<()> {
    let udp = |source| Packet::udp((source, 1), (B, 2));
    check(&[
        (
            "another MAC",
            udp(A).macs(B_MAC, A_NODE_MAC).frame_of(family),
            DropReason::SpoofedMac as u32,
        ),
        (
            "a neighbour's address",
            from_a(udp(B)).frame_of(family),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a remote pod's address",
            from_a(udp(C)).frame_of(family),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "no address",
            from_a(udp(Ipv4Addr::UNSPECIFIED)).frame_of(family),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a forged tunnel packet to another node",
            from_a(Packet::vxlan(
                A,
                NODE_2,
                C_IDENTITY,
                &a_to(B).frame_of(family),
            ))
            .frame_of(family),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "a forged tunnel packet to the own node",
            from_a(Packet::vxlan(
                A,
                NODE_1,
                C_IDENTITY,
                &a_to(B).frame_of(family),
            ))
            .frame_of(family),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "the tunnel's port of a pod is a port like any other",
            from_a(Packet::udp((A, 1), (B, 8472))).frame_of(family),
            Verdict::Deliver as u32,
        ),
    ])
}

fn a_device_without_an_interface_row_gets_nothing_through(family: Family) -> Result<()> {
    let mut node = Datapath::load(&[Program::PodEgress])?;
    let ran = run(&mut node, &a_to(B).frame_of(family))?;
    assert_eq!(ran.decision.outcome, DropReason::UnknownInterface as u32);
    assert_eq!(ran.code, SHOT);
    Ok(())
}

fn unsupported_frames_are_dropped_for_what_they_are(family: Family) -> Result<()> {
    check(&[
        (
            "802.3 length",
            a_to(B).ether_type(0x05ff).frame_of(family),
            DropReason::UnsupportedL2 as u32,
        ),
        (
            "the other family by its type",
            a_to(B)
                .ether_type(family.pick(0x86dd, 0x0800))
                .total_length(60)
                .frame_of(family),
            DropReason::Malformed as u32,
        ),
        (
            "a VLAN tag",
            a_to(B).ether_type(0x8100).frame_of(family),
            DropReason::UnsupportedL3 as u32,
        ),
        (
            "a priority tag",
            tagged(&a_to(B).frame_of(family), &[[0x81, 0, 0, 0]]),
            DropReason::UnsupportedL3 as u32,
        ),
        (
            "a provider's tag",
            tagged(&a_to(B).frame_of(family), &[[0x88, 0xa8, 0, 0]]),
            DropReason::UnsupportedL3 as u32,
        ),
    ])
}

fn a_truncated_packet_is_malformed_at_every_length(family: Family) -> Result<()> {
    let mut node = load()?;
    for packet in [
        a_to(B),
        from_a(Packet::tcp((A, 1), (B, 2), SYN)),
        from_a(Packet::echo(A, B, 3)),
    ] {
        let frame = packet.payload(Vec::new()).frame_of(family);
        // BPF_PROG_TEST_RUN takes no IP frame without a whole header; a raw
        // socket does (netns_delivery), and so do the host tests of bpf/net.
        for n in 14 + family.header_length()..frame.len() {
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

fn a_header_with_options_is_honoured(family: Family) -> Result<()> {
    let vxlan = |words| {
        let packet = Packet::vxlan(A, NODE_2, Identity::HOST, &a_to(B).frame_of(family));
        from_a(packet).options(words).frame_of(family)
    };
    let whole = a_to(B).options(10).payload(Vec::new()).frame_of(family);
    let cut = shortened(family, &whole, 1);
    check(&[
        (
            "delivered",
            a_to(B).options(10).frame_of(family),
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

fn delivery_is_one_hop_with_the_macs_of_the_pods_link(family: Family) -> Result<()> {
    let mut node = load()?;
    let ran = run(&mut node, &a_to(B).frame_of(family))?;
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

fn a_packet_whose_ttl_ends_here_goes_to_the_stack(family: Family) -> Result<()> {
    let mut node = load()?;
    for ttl in [0, 1] {
        let frame = a_to(B).ttl(ttl).frame_of(family);
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

fn a_mark_that_the_packet_brings_is_taken_away(family: Family) -> Result<()> {
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
        let ran = node.run(Program::PodEgress, &a_to(WORLD).frame_of(family), context)?;
        assert_eq!(ran.mark, left, "brought {brought:#x}");
    }
    Ok(())
}

fn later_fragments_follow_their_first(family: Family) -> Result<()> {
    let first = || a_to(B).first_fragment(9);
    let last = || a_to(B).last_fragment(9);
    check(&[
        (
            "a last one alone",
            last().frame_of(family),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "the first",
            first().frame_of(family),
            Verdict::Deliver as u32,
        ),
        ("the last", last().frame_of(family), Verdict::Deliver as u32),
        (
            "of another datagram",
            a_to(B).last_fragment(10).frame_of(family),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "of another destination",
            a_to(C).last_fragment(9).frame_of(family),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "a first one to the tunnel",
            from_a(Packet::udp((A, 1), (NODE_2, 8472)))
                .first_fragment(11)
                .frame_of(family),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "and the rest of it",
            a_to(NODE_2).last_fragment(11).frame_of(family),
            DropReason::TunnelPortFromPod as u32,
        ),
    ])
}

fn the_packets_are_counted_with_their_bytes(family: Family) -> Result<()> {
    let mut node = load()?;
    for _ in 0..3 {
        run(&mut node, &a_to(B).frame_of(family))?;
    }
    run(&mut node, &a_to(WORLD).frame_of(family))?;
    assert_eq!(
        node.counted(Program::PodEgress)?,
        [("to-stack", 1), ("deliver", 3)]
    );
    let outcome = Verdict::Deliver as u32;
    let bytes = node.bytes(Program::PodEgress, outcome)?;
    assert_eq!(bytes, 3 * a_to(B).frame_of(family).len() as u64);
    Ok(())
}
