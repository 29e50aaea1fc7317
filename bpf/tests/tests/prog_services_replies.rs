//! What comes back from Services, by `BPF_PROG_TEST_RUN`: replies are the frontend's
//! wherever the backend is, and the two entries of a flow see the same of it.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    outcome::{FlowState, Program, Verdict},
    tables::FlowEntry,
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    family::Family,
    in_both_families,
    packet::{ACK, FIN, Packet, RST, SYN},
    services::{
        BACKEND_PORT, CLIENT_PORT, VIP, VIP_PORT, answer, answering, ask, back, checksums_ok,
        egress, ends, front, packet, serve, socket,
    },
    world::*,
};

in_both_families! {
    replies_come_from_the_frontend_wherever_the_backend_is,
    an_expired_pair_translates_nothing,
    an_answer_whose_flow_lost_its_other_entry_is_nobodys,
    a_pod_that_is_its_own_backend_hears_the_frontend,
    a_connection_that_the_backend_opens_is_its_own,
    both_entries_see_a_connection_begin_and_end,
    a_reset_closes_both_entries,
    fragments_of_a_reply_come_from_the_frontend,
}

/// Runs `pod_egress` on a packet of B.
fn from_b(node: &mut Datapath, family: Family, packet: &Packet) -> Result<Ran> {
    node.set_sender(B)?;
    let ran = egress(node, family, packet);
    node.set_sender(A)?;
    ran
}

fn replies_come_from_the_frontend_wherever_the_backend_is(family: Family) -> Result<()> {
    let mut node = answering()?;
    for (place, backend, program, verdict) in [
        ("a pod here", B, Program::PodEgress, Verdict::Deliver),
        ("a pod there", C, Program::UplinkIngress, Verdict::Deliver),
        (
            "another node",
            NODE_2,
            Program::UplinkIngress,
            Verdict::Deliver,
        ),
        ("this node", NODE_1, Program::PodIngress, Verdict::Pass),
        ("the world", WORLD, Program::PodIngress, Verdict::Pass),
    ] {
        serve(&mut node, family, 1, &[backend])?;
        for (protocol, asked, answered) in [(UDP, 0, 0), (TCP, SYN, SYN | ACK)] {
            let what = format!("{place}, protocol {protocol}");
            node.clear_flows()?;
            egress(&mut node, family, &ask(protocol, asked))?;
            let reply = packet(
                protocol,
                (backend, BACKEND_PORT),
                (A, CLIENT_PORT),
                answered,
            );
            let ran = if program == Program::PodEgress {
                from_b(&mut node, family, &reply.macs(B_MAC, B_NODE_MAC))?
            } else {
                node.run(program, &reply.frame_of(family), Context::default())?
            };
            assert_eq!(name(ran.decision.outcome), name(verdict as u32), "{what}");
            assert_eq!(
                ends(&ran.packet),
                [(family.of(VIP), VIP_PORT), (family.of(A), CLIENT_PORT)],
                "{what}"
            );
            assert!(checksums_ok(&ran.packet), "{what}");
            assert_eq!(ran.decision.flow, FlowState::Reply as u16, "{what}");
            let seen = headers(&ran.packet);
            if verdict == Verdict::Deliver {
                assert_eq!(
                    (ran.code, ran.decision.ifindex, seen.ttl),
                    (REDIRECT, A_IFINDEX.get(), 63),
                    "{what}"
                );
                assert_eq!(
                    (seen.source_mac, seen.destination_mac),
                    (A_NODE_MAC, A_MAC),
                    "{what}"
                );
            } else {
                assert_eq!((ran.code, seen.ttl), (UNSPEC, 64), "{what}");
            }
            let (one, other) = node
                .pair(&front(family, protocol), &back(family, protocol, backend))
                .context(what.clone())?;
            for entry in [one, other] {
                assert!(entry.state & FlowEntry::REPLIED != 0, "{what}: {entry:?}");
            }
        }
    }
    // Another port of the client has asked for nothing.
    serve(&mut node, family, 2, &[B])?;
    let other = Packet::udp((B, BACKEND_PORT), (A, CLIENT_PORT + 1)).macs(B_MAC, B_NODE_MAC);
    let ran = from_b(&mut node, family, &other)?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(ends(&ran.packet)[0], socket(family, B));
    Ok(())
}

fn an_expired_pair_translates_nothing(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    egress(&mut node, family, &ask(UDP, 0))?;
    let keys = (front(family, UDP), back(family, UDP, B));
    let (one, other) = node.pair(&keys.0, &keys.1)?;
    for (key, entry) in [(keys.0, one), (keys.1, other)] {
        let expires_at = now()? - 1;
        node.set_flow(
            key,
            FlowEntry {
                expires_at,
                ..entry
            },
        )?;
    }
    let ran = from_b(&mut node, family, &answer(UDP, 0))?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(ends(&ran.packet)[0], socket(family, B));
    // The next packet of the client begins anew.
    let ran = egress(&mut node, family, &ask(UDP, 0))?;
    assert_eq!(ran.decision.flow, FlowState::New as u16);
    node.pair(&keys.0, &keys.1)?;
    assert_eq!(node.flow_count()?, 2);
    let ran = from_b(&mut node, family, &answer(UDP, 0))?;
    assert_eq!(ends(&ran.packet)[0], (family.of(VIP), VIP_PORT));
    Ok(())
}

/// The place that it would be translated by may be another flow's by now.
fn an_answer_whose_flow_lost_its_other_entry_is_nobodys(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    for (protocol, asked, answered) in [(UDP, 0, 0), (TCP, SYN, SYN | ACK)] {
        egress(&mut node, family, &ask(protocol, asked))?;
        node.remove_flow(&front(family, protocol))?;
        let ran = from_b(&mut node, family, &answer(protocol, answered))?;
        assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
        assert_eq!(ran.decision.flow, FlowState::NoEntry as u16);
        assert_eq!(ends(&ran.packet)[0], socket(family, B));
    }
    Ok(())
}

/// Its own address as source would be one that its stack takes from nobody.
fn a_pod_that_is_its_own_backend_hears_the_frontend(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[A])?;
    for (protocol, asked, answered) in [(UDP, 0, 0), (TCP, SYN, SYN | ACK)] {
        node.clear_flows()?;
        for flags in [asked, if protocol == TCP { ACK } else { 0 }] {
            let ran = egress(&mut node, family, &ask(protocol, flags))?;
            assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
            let [from, to] = ends(&ran.packet);
            assert_eq!((from.0, to), (family.of(GATEWAY), socket(family, A)));
            assert!(checksums_ok(&ran.packet));
            let seen = headers(&ran.packet);
            assert_eq!(
                (ran.code, ran.decision.ifindex, seen.destination_mac),
                (REDIRECT, A_IFINDEX.get(), A_MAC)
            );

            let reply = packet(protocol, to, from, answered).macs(A_MAC, A_NODE_MAC);
            let ran = egress(&mut node, family, &reply)?;
            assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
            assert_eq!(
                ends(&ran.packet),
                [(family.of(VIP), VIP_PORT), (family.of(A), CLIENT_PORT)]
            );
            assert!(checksums_ok(&ran.packet));
            assert_eq!(ran.decision.flow, FlowState::Reply as u16);
            let seen = headers(&ran.packet);
            assert_eq!(
                (ran.code, ran.decision.ifindex, seen.destination_mac),
                (REDIRECT, A_IFINDEX.get(), A_MAC)
            );
        }
        assert_eq!(node.flow_count()?, 2);
        node.check_partners()?;
    }
    Ok(())
}

fn a_connection_that_the_backend_opens_is_its_own(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    egress(&mut node, family, &ask(TCP, SYN))?;
    let ran = from_b(&mut node, family, &answer(TCP, SYN))?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(
        ends(&ran.packet),
        [socket(family, B), (family.of(A), CLIENT_PORT)]
    );
    // What A sends to the backend itself stays as it is, too.
    let direct = a_to(B);
    egress(&mut node, family, &ask(UDP, 0))?;
    let ran = egress(&mut node, family, &direct)?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(
        ends(&ran.packet),
        [(family.of(A), CLIENT_PORT), socket(family, B)]
    );
    node.check_partners()
}

/// What both entries say of a connection with B but how they were made.
fn states(node: &mut Datapath, family: Family) -> Result<(FlowEntry, FlowEntry)> {
    let (one, other) = node.pair(&front(family, TCP), &back(family, TCP, B))?;
    let seen = |entry: FlowEntry| FlowEntry {
        state: entry.state & !FlowEntry::MADE_WITH,
        ..entry
    };
    Ok((seen(one), seen(other)))
}

fn both_entries_see_a_connection_begin_and_end(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    let open = FlowEntry::REPLIED | FlowEntry::CONFIRMED;
    for (what, by_client, flags, expected) in [
        ("SYN", true, SYN, 0),
        ("SYN-ACK", false, SYN | ACK, FlowEntry::REPLIED),
        ("ACK", true, ACK, open),
        (
            "FIN of the backend",
            false,
            FIN | ACK,
            open | FlowEntry::FIN_BACK,
        ),
        (
            "FIN of the client",
            true,
            FIN | ACK,
            open | FlowEntry::FIN_BACK | FlowEntry::FIN_THERE | FlowEntry::CLOSING,
        ),
        ("SYN again", true, SYN, 0),
    ] {
        let before = now()?;
        if by_client {
            egress(&mut node, family, &ask(TCP, flags))?;
        } else {
            from_b(&mut node, family, &answer(TCP, flags))?;
        }
        let (one, other) = states(&mut node, family).context(what)?;
        assert_eq!((one.state, other.state), (expected, expected), "{what}");
        if expected == open {
            // Neither is replaced while the other is established.
            assert!(
                one.firm_until > before && other.firm_until > before,
                "{what}"
            );
        }
    }
    Ok(())
}

fn a_reset_closes_both_entries(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    for by_client in [true, false] {
        node.clear_flows()?;
        egress(&mut node, family, &ask(TCP, SYN))?;
        from_b(&mut node, family, &answer(TCP, SYN | ACK))?;
        if by_client {
            egress(&mut node, family, &ask(TCP, RST))?;
        } else {
            from_b(&mut node, family, &answer(TCP, RST))?;
        }
        let (one, other) = states(&mut node, family)?;
        for entry in [one, other] {
            assert!(entry.state & FlowEntry::CLOSING != 0, "{entry:?}");
        }
    }
    Ok(())
}

fn fragments_of_a_reply_come_from_the_frontend(family: Family) -> Result<()> {
    let mut node = answering()?;
    serve(&mut node, family, 1, &[B])?;
    egress(&mut node, family, &ask(UDP, 0))?;
    let ran = from_b(&mut node, family, &answer(UDP, 0).first_fragment(4))?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    assert_eq!(
        ends(&ran.packet),
        [(family.of(VIP), VIP_PORT), (family.of(A), CLIENT_PORT)]
    );
    assert!(checksums_ok(&ran.packet));
    let later = answer(UDP, 0).last_fragment(4);
    let ran = from_b(&mut node, family, &later)?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::Deliver as u32));
    let seen = headers(&ran.packet);
    assert_eq!(
        (seen.source, seen.destination, seen.checksum_ok),
        (family.of(VIP), family.of(A), true)
    );
    let at = seen.transport_at;
    assert_eq!(ran.packet[at..], later.frame_of(family)[at..]);
    Ok(())
}
