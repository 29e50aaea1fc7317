//! Who sends to whom, by `BPF_PROG_TEST_RUN`: a packet is counted by each program that
//! decides on it, under what becomes of it.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use veer_bpf_common::{
    identity::Identity,
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::{Table, Traffic},
};
use veer_bpf_net::ip::UDP;
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::Packet,
    services::{self, answer, ask, egress, serve},
    world::{self, *},
};

in_both_families! {
    each_packet_is_counted_under_its_ends_and_what_became_of_it,
    a_translated_packet_is_counted_under_its_backend_and_its_answer_under_it,
    what_the_stack_delivers_is_counted_under_its_pod,
    what_passes_a_second_hook_is_not_counted_again,
    a_pair_without_room_takes_that_of_one_with_fewer_packets,
}

fn each_packet_is_counted_under_its_ends_and_what_became_of_it(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let mut bytes = 0;
    let to = |destination| a_to(destination).frame_of(family);
    let forged = from_a(Packet::udp((C, 1), (B, 2))).frame_of(family);
    for (frame, times) in [(to(B), 3), (to(C), 2), (to(WORLD), 1), (forged, 4)] {
        for _ in 0..times {
            node.run(Program::PodEgress, &frame, Context::default())?;
            bytes += frame.len() as u64;
        }
    }
    let by = Program::PodEgress as u16;
    let a = A_IDENTITY.get();
    let talks = node.talks()?;
    let packets: Vec<_> = talks.iter().map(|(talk, (n, _))| (*talk, *n)).collect();
    let expected = [
        ((a, 0, by, DropReason::SpoofedAddress.name()), 4),
        ((a, Identity::WORLD.get(), by, Verdict::ToStack.name()), 1),
        ((a, B_IDENTITY.get(), by, Verdict::Deliver.name()), 3),
        ((a, C_IDENTITY.get(), by, Verdict::Overlay.name()), 2),
    ];
    assert_eq!(packets, expected);
    assert_eq!(talks.values().map(|(_, b)| b).sum::<u64>(), bytes);
    Ok(())
}

fn a_translated_packet_is_counted_under_its_backend_and_its_answer_under_it(
    family: Family,
) -> Result<()> {
    let mut node = services::answering()?;
    serve(&mut node, family, 1, &[B])?;
    egress(&mut node, family, &ask(UDP, 0))?;
    node.set_sender(B)?;
    egress(&mut node, family, &answer(UDP, 0))?;
    let by = Program::PodEgress as u16;
    let (a, b) = (A_IDENTITY.get(), B_IDENTITY.get());
    let talks: Vec<_> = node.talks()?.into_keys().collect();
    let delivered = Verdict::Deliver.name();
    assert_eq!(talks, [(a, b, by, delivered), (b, a, by, delivered)]);
    Ok(())
}

fn what_the_stack_delivers_is_counted_under_its_pod(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodIngress])?;
    let (by, a) = (Program::PodIngress as u16, A_IDENTITY.get());
    for (source, identity, outcome) in [
        (WORLD, Identity::WORLD, Verdict::Pass),
        (NODE_1, Identity::HOST, Verdict::Pass),
        (B, B_IDENTITY, Verdict::PassNoted),
    ] {
        let frame = Packet::udp((source, 1), (A, 2)).frame_of(family);
        node.run(Program::PodIngress, &frame, Context::default())?;
        let talk = (identity.get(), a, by, outcome.name());
        let packets = node.talks()?.get(&talk).map(|(packets, _)| *packets);
        assert_eq!(packets, Some(1), "{:?}", node.talks()?);
    }
    Ok(())
}

fn what_passes_a_second_hook_is_not_counted_again(family: Family) -> Result<()> {
    let programs = [
        Program::PodIngress,
        Program::OverlayEgress,
        Program::UplinkEgress,
    ];
    let mut node = world::load(&programs)?;
    let frame = Packet::udp((A, 1), (C, 2)).frame_of(family);
    let context = Context {
        mark: mark::REDIRECTED,
        ..Context::default()
    };
    for program in programs {
        node.run(program, &frame, context)?;
    }
    // Nor is what the host says for itself.
    let own = Packet::udp((NODE_1, 1), (WORLD, 2)).frame_of(family);
    node.run(Program::UplinkEgress, &own, Context::default())?;
    assert!(node.talks()?.is_empty(), "{:?}", node.talks()?);
    Ok(())
}

fn a_pair_without_room_takes_that_of_one_with_fewer_packets(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let frame = a_to(B).frame_of(family);
    let send = |node: &mut Datapath, identity: u32| -> Result<()> {
        node.set_interface(
            A_IFINDEX,
            veer_bpf_common::tables::Interface {
                identity,
                ..interface()
            },
        )?;
        node.run(Program::PodEgress, &frame, Context::default())?;
        Ok(())
    };
    for _ in 0..100 {
        send(&mut node, 1)?;
    }
    let room = Traffic::SPEC.max_entries;
    let last = 10_000 + 2 * room;
    for identity in 10_000..=last {
        send(&mut node, identity)?;
    }
    let talks = node.talks()?;
    assert!(talks.len() <= room as usize, "{}", talks.len());
    let has = |identity| talks.keys().any(|(source, ..)| *source == identity);
    assert!(has(1) && has(last), "{} pairs", talks.len());
    Ok(())
}
