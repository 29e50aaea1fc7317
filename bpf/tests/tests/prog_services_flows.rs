//! Flows to Services in time, by `BPF_PROG_TEST_RUN`: which backend a flow has while its
//! Service changes, and when it gets another.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use veer_bpf_common::{
    outcome::{FlowState, Program, Verdict},
    tables::{FlowEntry, Members},
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::Datapath,
    family::Family,
    in_both_families,
    packet::{ACK, FIN, Packet, SYN},
    services::{
        BACKEND_PORT, CLIENT_PORT, Socket, VIP, VIP_PORT, answer, ask, back, checksums_ok, egress,
        ends, front, frontend, packet, sent_to, serve, socket, udp_from,
    },
    world::{self, *},
};

in_both_families! {
    flows_are_spread_over_all_backends_and_each_keeps_its_own,
    a_datagram_leaves_a_backend_that_is_none_any_more,
    a_connection_stays_with_its_backend_and_a_new_one_does_not,
    a_flow_outlives_the_rows_of_its_service_while_it_is_answered,
    a_second_frontend_does_not_mix_its_answers_with_the_firsts,
    a_flow_that_the_stack_translates_stays_its_own,
    a_datagram_stays_with_a_backend_that_still_serves,
    a_flow_whose_other_entry_is_gone_begins_anew,
    a_new_connection_does_not_follow_the_entry_of_a_gone_service,
    a_client_with_affinity_keeps_its_backend_as_long_as_it_is_one,
    a_client_is_forgotten_once_it_was_silent_for_as_long_as_its_affinity_lasts,
}

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn flows_are_spread_over_all_backends_and_each_keeps_its_own(family: Family) -> Result<()> {
    let mut node = load()?;
    let backends = [B, C, NODE_1, WORLD];
    serve(&mut node, family, 1, &backends)?;
    let ports = 1000_u16..1400;
    let mut chosen = BTreeMap::new();
    for port in ports.clone() {
        chosen.insert(port, sent_to(&mut node, family, &udp_from(port))?);
    }
    for backend in backends {
        let count = chosen.values().filter(|to| **to == socket(family, backend));
        let count = count.count();
        // A hundred of each, give or take six standard deviations.
        assert!((48..=152).contains(&count), "{count} to {backend}");
    }
    // Another version with the same backends in another order, and more of them.
    serve(&mut node, family, 2, &[WORLD, NODE_2, NODE_1, C, B])?;
    for port in ports {
        let to = sent_to(&mut node, family, &udp_from(port))?;
        assert_eq!(chosen.get(&port), Some(&to), "port {port}");
    }
    node.check_partners()
}

fn a_datagram_leaves_a_backend_that_is_none_any_more(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    let to = sent_to(&mut node, family, &ask(UDP, 0))?;
    assert_eq!(to, socket(family, B));
    // The frontend leads elsewhere, but the backend still serves.
    serve(&mut node, family, 2, &[C])?;
    let to = sent_to(&mut node, family, &ask(UDP, 0))?;
    assert_eq!(to, socket(family, B));
    node.remove_member(UDP.into(), socket(family, B))?;
    for _ in 0..2 {
        let ran = egress(&mut node, family, &ask(UDP, 0))?;
        assert_eq!(
            name(ran.decision.outcome),
            name(Verdict::Overlay as u32),
            "the next packet goes to another"
        );
        assert_eq!(ends(&ran.packet)[1], socket(family, C));
        assert!(checksums_ok(&ran.packet));
        node.pair(&front(family, UDP), &back(family, UDP, C))?;
        assert!(node.flow(&back(family, UDP, B))?.is_none());
        assert_eq!(node.flow_count()?, 2);
    }
    Ok(())
}

fn a_connection_stays_with_its_backend_and_a_new_one_does_not(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    let sent = |node: &mut Datapath, flags| sent_to(node, family, &ask(TCP, flags));
    assert_eq!(sent(&mut node, SYN)?, socket(family, B));
    serve(&mut node, family, 2, &[C])?;
    assert_eq!(sent(&mut node, SYN)?, socket(family, B), "it still serves");
    assert_eq!(sent(&mut node, ACK)?, socket(family, B));
    node.remove_member(TCP.into(), socket(family, B))?;
    for flags in [ACK, FIN | ACK, ACK] {
        assert_eq!(sent(&mut node, flags)?, socket(family, B), "{flags:#x}");
    }
    node.pair(&front(family, TCP), &back(family, TCP, B))?;
    // The same ports again.
    for flags in [SYN, SYN, ACK] {
        assert_eq!(sent(&mut node, flags)?, socket(family, C), "{flags:#x}");
    }
    node.pair(&front(family, TCP), &back(family, TCP, C))?;
    assert_eq!(node.flow_count()?, 2);
    Ok(())
}

/// As when something else begins to translate: what is under way goes on, and where
/// nobody tells of a backend that is gone, only its answers keep a flow.
fn a_flow_outlives_the_rows_of_its_service_while_it_is_answered(family: Family) -> Result<()> {
    const SOON: u64 = 12_000_000_000;
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    for protocol in [TCP, UDP] {
        let to = sent_to(&mut node, family, &ask(protocol, SYN))?;
        assert_eq!(to, socket(family, B));
        node.remove_service(frontend(family, protocol))?;
        node.remove_member(protocol.into(), socket(family, B))?;
        let other = from_a(packet(protocol, (A, CLIENT_PORT + 1), (VIP, VIP_PORT), SYN));
        let ran = egress(&mut node, family, &other)?;
        assert_eq!(name(ran.decision.outcome), name(Verdict::ToStack as u32));
        assert_eq!(ran.packet, other.frame_of(family));
    }
    assert_eq!(
        sent_to(&mut node, family, &ask(TCP, ACK))?,
        socket(family, B)
    );
    let keys = (front(family, UDP), back(family, UDP, B));
    let (one, other) = node.pair(&keys.0, &keys.1)?;
    let expires_at = now()? + SOON;
    for (key, entry) in [(keys.0, one), (keys.1, other)] {
        node.set_flow(
            key,
            FlowEntry {
                expires_at,
                ..entry
            },
        )?;
    }
    assert_eq!(sent_to(&mut node, family, &ask(UDP, 0))?, socket(family, B));
    let (one, other) = node.pair(&keys.0, &keys.1)?;
    assert_eq!((one.expires_at, other.expires_at), (expires_at, expires_at));
    node.set_sender(B)?;
    egress(&mut node, family, &answer(UDP, 0))?;
    node.set_sender(A)?;
    let (one, other) = node.pair(&keys.0, &keys.1)?;
    assert!(one.expires_at.min(other.expires_at) > expires_at + SOON);
    Ok(())
}

/// From one port to two frontends of one backend: what it answers could be of either, so
/// the second flow gets another source port.
fn a_second_frontend_does_not_mix_its_answers_with_the_firsts(family: Family) -> Result<()> {
    const SECOND: u16 = 54;
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    let to = |port| (family.of(VIP), port, UDP);
    node.set_service(to(SECOND), 71, 1, &[socket(family, B)], 0)?;
    let mut sources = BTreeSet::new();
    for port in [VIP_PORT, SECOND, VIP_PORT, SECOND] {
        let packet = from_a(Packet::udp((A, CLIENT_PORT), (VIP, port)));
        let ran = egress(&mut node, family, &packet)?;
        let [source, destination] = ends(&ran.packet);
        assert_eq!((source.0, destination), (family.of(A), socket(family, B)));
        assert!(checksums_ok(&ran.packet));
        sources.insert((port, source.1));
        // What the backend answers there comes from the frontend that was asked.
        node.set_sender(B)?;
        let answer = Packet::udp((B, BACKEND_PORT), (A, source.1)).macs(B_MAC, B_NODE_MAC);
        let ran = egress(&mut node, family, &answer)?;
        node.set_sender(A)?;
        assert_eq!(
            ends(&ran.packet),
            [(family.of(VIP), port), (family.of(A), CLIENT_PORT)]
        );
        assert!(checksums_ok(&ran.packet));
    }
    assert_eq!(sources.len(), 2, "each keeps its own: {sources:?}");
    assert!(sources.contains(&(VIP_PORT, CLIENT_PORT)));
    node.check_partners()?;
    assert_eq!(node.flow_count()?, 4);
    Ok(())
}

/// As of one that it translated before the programs did: its answers go up.
fn a_flow_that_the_stack_translates_stays_its_own(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[C])?;
    let entry = FlowEntry {
        expires_at: u64::MAX,
        ..FlowEntry::default()
    };
    node.set_flow(back(family, UDP, C), entry)?;
    let ran = egress(&mut node, family, &ask(UDP, 0))?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::ToStack as u32));
    assert_eq!(ran.packet, ask(UDP, 0).frame_of(family));
    assert_eq!(node.flow_count()?, 1);
    Ok(())
}

/// As one that terminates and still serves while others are ready.
fn a_datagram_stays_with_a_backend_that_still_serves(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    for protocol in [UDP, TCP] {
        assert_eq!(
            sent_to(&mut node, family, &ask(protocol, SYN))?,
            socket(family, B)
        );
    }
    serve(&mut node, family, 2, &[C])?;
    for protocol in [UDP, TCP] {
        node.set_member(protocol.into(), socket(family, B), Members::SERVING)?;
    }
    assert_eq!(sent_to(&mut node, family, &ask(UDP, 0))?, socket(family, B));
    assert_eq!(
        sent_to(&mut node, family, &ask(TCP, ACK))?,
        socket(family, B)
    );
    assert_eq!(
        sent_to(&mut node, family, &ask(TCP, SYN))?,
        socket(family, C)
    );
    Ok(())
}

/// Where two entries came apart, the answers would not be translated.
fn a_flow_whose_other_entry_is_gone_begins_anew(family: Family) -> Result<()> {
    for protocol in [UDP, TCP] {
        let mut node = load()?;
        serve(&mut node, family, 1, &[C])?;
        egress(&mut node, family, &ask(protocol, SYN))?;
        node.remove_flow(&back(family, protocol, C))?;
        let ran = egress(&mut node, family, &ask(protocol, SYN))?;
        assert_eq!(ran.decision.flow, FlowState::New as u16);
        node.pair(&front(family, protocol), &back(family, protocol, C))?;
        assert_eq!(node.flow_count()?, 2);
    }
    Ok(())
}

/// What the client opens on the ports of a connection of before does not follow it to where
/// it was once something else is to translate.
fn a_new_connection_does_not_follow_the_entry_of_a_gone_service(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[C])?;
    egress(&mut node, family, &ask(TCP, SYN))?;
    node.remove_service(frontend(family, TCP))?;
    let ran = egress(&mut node, family, &ask(TCP, SYN))?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::ToStack as u32));
    assert_eq!(node.flow_count()?, 0);
    Ok(())
}

fn a_client_with_affinity_keeps_its_backend_as_long_as_it_is_one(family: Family) -> Result<()> {
    let mut node = load()?;
    let (to, id) = (frontend(family, UDP), UDP.into());
    let backends = [B, C, NODE_1, WORLD].map(|b| socket(family, b));
    let all_of = |node: &mut Datapath, ports: std::ops::Range<u16>| {
        ports
            .map(|port| sent_to(node, family, &udp_from(port)))
            .collect::<Result<BTreeSet<Socket>>>()
    };
    node.set_service(to, id, 1, &backends, 0)?;
    let without = all_of(&mut node, 1000..1100)?;
    assert_eq!(without.len(), backends.len(), "{without:?}");

    node.set_service(to, id, 2, &backends, 3600)?;
    let first = all_of(&mut node, 2000..2100)?;
    assert_eq!(first.len(), 1, "{first:?}");
    // A version with the backend in another slot.
    let mut turned = backends;
    turned.rotate_left(1);
    node.set_service(to, id, 3, &turned, 3600)?;
    assert_eq!(all_of(&mut node, 3000..3100)?, first);

    let gone = *first.first().context("a backend")?;
    let left: Vec<Socket> = backends.into_iter().filter(|b| *b != gone).collect();
    node.set_service(to, id, 4, &left, 3600)?;
    node.remove_member(id, gone)?;
    let second = all_of(&mut node, 4000..4100)?;
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second.iter().all(|b| left.contains(b)), "{second:?}");
    // Those that were there before follow.
    assert_eq!(all_of(&mut node, 2000..2100)?, second);
    node.check_partners()
}

fn a_client_is_forgotten_once_it_was_silent_for_as_long_as_its_affinity_lasts(
    family: Family,
) -> Result<()> {
    const LASTS: u32 = 3600;
    let mut node = load()?;
    let backends = [B, C, NODE_1, WORLD].map(|b| socket(family, b));
    node.set_service(frontend(family, UDP), UDP.into(), 1, &backends, LASTS)?;
    let mut after = |silent: u32, ports: std::ops::Range<u16>| {
        ports
            .map(|port| {
                let to = sent_to(&mut node, family, &udp_from(port))?;
                node.age_affinities(silent)?;
                Ok(to)
            })
            .collect::<Result<BTreeSet<Socket>>>()
    };
    let kept = after(LASTS - 5, 1000..1100)?;
    assert_eq!(kept.len(), 1, "{kept:?}");
    let forgotten = after(LASTS, 2000..2100)?;
    assert_eq!(forgotten.len(), backends.len(), "{forgotten:?}");
    Ok(())
}
