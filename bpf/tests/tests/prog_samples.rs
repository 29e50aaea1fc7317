//! Samples of drops by `BPF_PROG_TEST_RUN`: what is left of a dropped packet for
//! later readers.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    outcome::{DropReason, Program},
    tables::{EVENT_BYTES, Event, Samples},
};
use veer_bpf_net::bytes::HEAD_V6;
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{Packet, SYN, arp},
    world::{self, *},
};

in_both_families! {
    a_dropped_packet_leaves_its_beginning_and_what_was_found_out,
    a_multicast_packet_of_a_pod_is_shown_with_its_reason,
    short_frames_are_kept_as_far_as_their_headers_go,
    of_a_flood_one_packet_per_window_is_kept,
    packets_that_go_on_leave_nothing,
    what_xdp_drops_is_kept_too,
}

/// What a pod that calls itself otherwise sends.
fn spoofed(family: Family, payload: usize) -> Vec<u8> {
    let packet = Packet::udp((Ipv4Addr::new(10, 0, 1, 99), 1), (B, 2));
    from_a(packet.payload(vec![7; payload])).frame_of(family)
}

fn only(node: &mut Datapath, program: Program, reason: DropReason) -> Result<Event> {
    let samples = node.samples(program, reason)?;
    anyhow::ensure!(samples.len() == 1, "{samples:?}");
    samples.into_iter().next().context("none")
}

fn a_dropped_packet_leaves_its_beginning_and_what_was_found_out(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let frame = spoofed(family, 300);
    let before = now()?;
    let ran = node.run(Program::PodEgress, &frame, Context::default())?;
    let sample = only(&mut node, Program::PodEgress, DropReason::SpoofedAddress)?;
    assert_eq!(sample.decision, ran.decision);
    assert_eq!(sample.decision.source_identity, A_IDENTITY.get());
    assert_eq!(
        (sample.ifindex, sample.length as usize),
        (A_IFINDEX.get(), frame.len())
    );
    assert_eq!(sample.captured as usize, EVENT_BYTES);
    assert_eq!(sample.head[..], frame[..EVENT_BYTES]);
    assert!((before..=now()?).contains(&sample.at));
    Ok(())
}

fn a_multicast_packet_of_a_pod_is_shown_with_its_reason(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let frame = from_a(Packet::udp((A, 5353), (group, 5353))).frame_of(family);
    node.run(Program::PodEgress, &frame, Context::default())?;
    let reason = DropReason::UnsupportedDestination;
    let sample = only(&mut node, Program::PodEgress, reason)?;
    let (start, octets) = family.pick(
        (30, group.octets().to_vec()),
        (38, octets_v6(group).to_vec()),
    );
    assert_eq!(sample.head[start..start + octets.len()], octets);
    assert_eq!(node.packets(Program::PodEgress, reason as u32)?, 1);
    Ok(())
}

fn short_frames_are_kept_as_far_as_their_headers_go(family: Family) -> Result<()> {
    let ip = 14 + family.header_length();
    let cut = |length: usize| spoofed(family, 0)[..length].to_vec();
    let tcp = from_a(Packet::tcp((Ipv4Addr::new(10, 0, 1, 99), 1), (B, 2), SYN)).frame_of(family);
    for (what, frame, reason) in [
        ("an IP header alone", cut(ip), DropReason::Malformed),
        (
            "UDP without payload",
            cut(ip + 8),
            DropReason::SpoofedAddress,
        ),
        ("TCP without options", tcp, DropReason::SpoofedAddress),
        (
            "ARP",
            arp(1, (B_MAC, A), ([0; 6], GATEWAY)),
            DropReason::SpoofedMac,
        ),
    ] {
        let mut node = world::load(&[Program::PodEgress])?;
        node.run(Program::PodEgress, &frame, Context::default())?;
        let sample = only(&mut node, Program::PodEgress, reason).context(what)?;
        let headers = match what {
            "TCP without options" => family.pick(54, 74),
            _ => frame.len(),
        };
        assert_eq!(sample.frame(), &frame[..headers], "{what}");
        let rest = &sample.head[headers..];
        assert!(rest.iter().all(|b| *b == 0), "{what}");
    }
    Ok(())
}

fn of_a_flood_one_packet_per_window_is_kept(family: Family) -> Result<()> {
    const FLOOD: u32 = 100_000;
    let mut node = world::load(&[Program::PodEgress])?;
    let before = Samples::window(now()?);
    node.time(
        Program::PodEgress,
        &spoofed(family, 0),
        Context::default(),
        FLOOD,
    )?;
    let windows = Samples::window(now()?) - before + 1;
    let reason = DropReason::SpoofedAddress;
    let counted = node.packets(Program::PodEgress, reason as u32)?;
    assert_eq!(counted, u64::from(FLOOD));
    let samples = node.samples(Program::PodEgress, reason)?;
    assert!(
        samples.len() as u64 <= windows,
        "{windows} windows: {samples:?}"
    );
    assert!(!samples.is_empty());
    Ok(())
}

fn packets_that_go_on_leave_nothing(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    for to in [B, C, NODE_1, WORLD] {
        node.run(
            Program::PodEgress,
            &a_to(to).frame_of(family),
            Context::default(),
        )?;
    }
    for reason in DropReason::ALL {
        assert_eq!(node.samples(Program::PodEgress, *reason)?, []);
    }
    Ok(())
}

fn what_xdp_drops_is_kept_too(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkXdp])?;
    let inner = Packet::udp((C, 5), (B, 6)).frame_of(family);
    let frame = Packet::vxlan(WORLD, NODE_1, C_IDENTITY, &inner).frame_of(family);
    node.run_xdp(&frame)?;
    let sample = only(
        &mut node,
        Program::UplinkXdp,
        DropReason::TunnelSourceNotNode,
    )?;
    assert_eq!(sample.captured as usize, HEAD_V6);
    assert_eq!(sample.frame(), &frame[..HEAD_V6]);
    assert_eq!(sample.length as usize, frame.len());
    Ok(())
}
