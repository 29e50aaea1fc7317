//! Events by `BPF_PROG_TEST_RUN`: what those who listen are told of a decision, and
//! when nobody is.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    mark,
    outcome::{DropReason, FlowState, Observation, Program, Verdict},
    tables::{EVENT_BYTES, Event, Events, Listen, Record, Table},
};
use veer_bpf_net::ip::UDP;
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{Complaint, Packet, SYN},
    services::{self, BACKEND_PORT, CLIENT_PORT, answer, ask, back, egress, front, serve},
    world::{self, *},
};

in_both_families! {
    each_decision_is_told_with_its_packet_as_it_leaves,
    nobody_is_told_who_does_not_listen,
    only_wanted_decisions_are_told,
    the_flows_state_is_told,
    a_translated_packet_is_told_with_what_it_showed_before,
    a_packet_of_veers_own_is_told_once,
    what_passes_by_an_uplink_is_not_told,
    what_xdp_drops_is_told_and_what_it_passes_is_not,
    a_full_ring_loses_events_and_counts_them,
}

/// A listener for all decisions.
fn all() -> Result<Listen> {
    let mut listen = Listen {
        until: now()? + Listen::LASTS,
        ..Listen::default()
    };
    for verdict in Verdict::ALL {
        listen.add_verdict(*verdict);
    }
    for reason in DropReason::ALL {
        listen.add_reason(*reason);
    }
    Ok(listen)
}

fn listening(programs: &[Program]) -> Result<Datapath> {
    let mut node = world::load(programs)?;
    node.listen(all()?)?;
    Ok(node)
}

/// The only event there is, of a packet that was not translated.
fn only(node: &mut Datapath) -> Result<Event> {
    let record = only_record(node)?;
    anyhow::ensure!(record.before().is_none(), "{record:?}");
    Ok(record.event)
}

/// The only record there is.
fn only_record(node: &mut Datapath) -> Result<Record> {
    let records = node.records()?;
    anyhow::ensure!(records.len() == 1, "{records:?}");
    records.into_iter().next().context("none")
}

fn each_decision_is_told_with_its_packet_as_it_leaves(family: Family) -> Result<()> {
    let mut node = listening(&[Program::PodEgress])?;
    for (destination, verdict) in [
        (B, Verdict::Deliver),
        (C, Verdict::Overlay),
        (NODE_1, Verdict::ToStack),
        (WORLD, Verdict::ToStack),
    ] {
        let frame = a_to(destination).payload(vec![7; 300]).frame_of(family);
        let before = now()?;
        let ran = node.run(Program::PodEgress, &frame, Context::default())?;
        let event = only(&mut node).with_context(|| format!("to {destination}"))?;
        assert_eq!(event.decision, ran.decision);
        assert_eq!(event.decision.outcome, verdict as u32);
        assert_eq!(event.program, Program::PodEgress as u32);
        assert_eq!(
            (event.ifindex, event.length as usize),
            (A_IFINDEX.get(), frame.len())
        );
        assert_eq!(event.captured as usize, EVENT_BYTES);
        assert_eq!(event.frame(), &ran.packet[..EVENT_BYTES]);
        assert!((before..=now()?).contains(&event.at));
    }
    let short = a_to(B).payload(vec![]).frame_of(family);
    let ran = node.run(Program::PodEgress, &short, Context::default())?;
    assert_eq!(only(&mut node)?.frame(), ran.packet);
    Ok(())
}

fn nobody_is_told_who_does_not_listen(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let frame = a_to(B).frame_of(family);
    let once = all()?;
    for (what, listen) in [
        ("never asked", Listen::default()),
        ("ended", Listen { until: 0, ..once }),
        (
            "killed",
            Listen {
                until: now()? - 1,
                ..once
            },
        ),
    ] {
        node.listen(listen)?;
        node.run(Program::PodEgress, &frame, Context::default())?;
        assert_eq!(node.records()?, [], "{what}");
    }
    node.listen(once)?;
    node.run(Program::PodEgress, &frame, Context::default())?;
    only(&mut node)?;
    Ok(())
}

fn only_wanted_decisions_are_told(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let until = all()?.until;
    let delivered = a_to(B).frame_of(family);
    let spoofed = from_a(Packet::udp((C, 1), (B, 2))).frame_of(family);
    let mut drops = Listen {
        until,
        ..Listen::default()
    };
    drops.add_reason(DropReason::SpoofedAddress);
    let mut deliveries = Listen {
        until,
        ..Listen::default()
    };
    deliveries.add_verdict(Verdict::Deliver);
    for (listen, outcome) in [
        (drops, DropReason::SpoofedAddress as u32),
        (deliveries, Verdict::Deliver as u32),
    ] {
        node.listen(listen)?;
        for frame in [&delivered, &spoofed] {
            node.run(Program::PodEgress, frame, Context::default())?;
        }
        assert_eq!(only(&mut node)?.decision.outcome, outcome);
    }
    Ok(())
}

fn the_flows_state_is_told(family: Family) -> Result<()> {
    let mut node = listening(&[Program::PodEgress, Program::PodIngress])?;
    let (from_stack, reply) = (
        Packet::tcp((B, 5), (A, 6), SYN),
        from_a(Packet::tcp((A, 6), (B, 5), 0x12)),
    );
    for (what, program, packet, state) in [
        (
            "direct",
            Program::PodEgress,
            from_a(Packet::tcp((A, 7), (B, 8), SYN)),
            FlowState::NoEntry,
        ),
        (
            "to the world",
            Program::PodEgress,
            a_to(WORLD),
            FlowState::NotAsked,
        ),
        (
            "down from the stack",
            Program::PodIngress,
            from_stack.clone(),
            FlowState::New,
        ),
        (
            "and once more",
            Program::PodIngress,
            from_stack,
            FlowState::Established,
        ),
        ("its reply", Program::PodEgress, reply, FlowState::Reply),
    ] {
        node.run(program, &packet.frame_of(family), Context::default())?;
        assert_eq!(only(&mut node)?.decision.flow, state as u16, "{what}");
    }
    Ok(())
}

fn a_translated_packet_is_told_with_what_it_showed_before(family: Family) -> Result<()> {
    let mut node = services::answering()?;
    node.listen(all()?)?;
    serve(&mut node, family, 1, &[B])?;
    let refused = Packet::error(
        B,
        A,
        Complaint::Unreachable,
        &Packet::udp((A, CLIENT_PORT), (B, BACKEND_PORT)),
    )
    .macs(B_MAC, B_NODE_MAC);
    let asked = back(family, UDP, B);
    // Asked with an entry to be made, asked with one, answered, refused.
    for (from, packet, before, state) in [
        (A, ask(UDP, 0), front(family, UDP), FlowState::New),
        (A, ask(UDP, 0), front(family, UDP), FlowState::Established),
        (
            B,
            answer(UDP, 0),
            family.flow(UDP, (B, BACKEND_PORT), (A, CLIENT_PORT)),
            FlowState::Reply,
        ),
        (B, refused, asked, FlowState::Reply),
    ] {
        node.set_sender(from)?;
        let ran = egress(&mut node, family, &packet)?;
        let record = only_record(&mut node)?;
        assert_eq!(record.before(), Some(&before), "{state:?}");
        assert_eq!(record.event.decision, ran.decision);
        assert_eq!(ran.decision.flow, state as u16);
        assert_eq!(record.event.frame()[..40], ran.packet[..40], "{state:?}");
    }
    // What comes after them is what it is.
    node.set_sender(A)?;
    egress(&mut node, family, &a_to(B))?;
    only(&mut node)?;
    Ok(())
}

/// It comes by a second hook, where it passes without a look.
fn a_packet_of_veers_own_is_told_once(family: Family) -> Result<()> {
    let mut node = listening(&[Program::OverlayEgress, Program::UplinkEgress])?;
    let frame = Packet::udp((A, 1), (C, 2)).frame_of(family);
    let context = Context {
        mark: mark::REDIRECTED,
        ..Context::default()
    };
    for program in [Program::OverlayEgress, Program::UplinkEgress] {
        node.run(program, &frame, context)?;
        assert_eq!(node.records()?, []);
    }
    Ok(())
}

fn what_passes_by_an_uplink_is_not_told(family: Family) -> Result<()> {
    let mut node = listening(&[Program::UplinkIngress, Program::UplinkEgress])?;
    for (program, packet) in [
        (Program::UplinkIngress, Packet::udp((WORLD, 1), (NODE_1, 2))),
        (Program::UplinkEgress, Packet::udp((NODE_1, 2), (WORLD, 1))),
    ] {
        let ran = node.run(program, &packet.frame_of(family), Context::default())?;
        assert_eq!(ran.decision.outcome, Verdict::Pass as u32);
        assert_eq!(node.records()?, []);
    }
    // What it drops or delivers is.
    let stranger = Packet::udp((A, 1), (B, 2)).frame_of(family);
    node.run(Program::UplinkIngress, &stranger, Context::default())?;
    let outcome = only(&mut node)?.decision.outcome;
    assert_eq!(outcome, DropReason::OwnSourceFromOutside as u32);
    Ok(())
}

fn what_xdp_drops_is_told_and_what_it_passes_is_not(family: Family) -> Result<()> {
    let mut node = listening(&[Program::UplinkXdp])?;
    let inner = Packet::udp((C, 5), (B, 6)).frame_of(family);
    node.run_xdp(&Packet::vxlan(NODE_2, NODE_1, C_IDENTITY, &inner).frame_of(family))?;
    assert_eq!(node.records()?, []);
    let frame = Packet::vxlan(WORLD, NODE_1, C_IDENTITY, &inner).frame_of(family);
    node.run_xdp(&frame)?;
    let event = only(&mut node)?;
    assert_eq!(
        event.decision.outcome,
        DropReason::TunnelSourceNotNode as u32
    );
    assert_eq!(event.frame(), &frame[..event.captured as usize]);
    Ok(())
}

fn a_full_ring_loses_events_and_counts_them(family: Family) -> Result<()> {
    /// Bytes of the kernel's header of a record (`BPF_RINGBUF_HDR_SZ`).
    const HEADER: usize = 8;
    const SENT: u32 = 20_000;
    let mut node = listening(&[Program::PodEgress])?;
    let frame = from_a(Packet::udp((C, 1), (B, 2))).frame_of(family);
    node.time(Program::PodEgress, &frame, Context::default(), SENT)?;
    let told = node.records()?.len();
    // One record less: a full ring and an empty one must differ.
    let room = Events::CAPACITY / (Record::SIZE + HEADER);
    assert!((room - 1..=room).contains(&told), "{told} of {room}");
    let lost = node.packets(Program::PodEgress, Observation::EventLost as u32)?;
    assert_eq!(lost + told as u64, u64::from(SENT));
    // Read, it has room again.
    node.run(Program::PodEgress, &frame, Context::default())?;
    only(&mut node)?;
    Ok(())
}
