//! Entries of flows that the stack translated, by `BPF_PROG_TEST_RUN`: who makes
//! them, who follows them, and when they end.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use std::net::Ipv4Addr;
use veer_bpf_common::{
    mark,
    outcome::{Program, Verdict},
    tables::FlowEntry,
};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{ACK, Complaint, FIN, Packet, SYN},
    world::{self, *},
};

in_both_families! {
    only_translated_flows_are_recorded_at_a_pods_veth,
    what_the_stack_sends_to_other_nodes_is_recorded_where_it_was_translated,
    replies_of_a_recorded_flow_go_up_the_stack,
    an_sctp_association_beside_a_translated_one_is_direct,
    all_fragments_of_a_recorded_flows_reply_go_up_the_stack,
    an_entry_of_one_direction_does_not_bind_the_other,
    an_expired_entry_does_not_count,
    a_direct_connection_on_the_tuple_deletes_the_entry,
    notes_expire_as_conntrack_entries_do,
    a_connection_opened_towards_the_opener_does_not_pass_for_a_reply,
    a_ping_with_the_identifier_of_another_ones_is_no_reply_to_it,
    an_icmp_error_keeps_no_flow_alive,
    flows_of_both_ends_between_the_same_ports_are_both_answered,
    a_connection_opened_back_through_the_stack_leaves_the_first_one_alone,
}

fn load() -> Result<Datapath> {
    world::load(&[
        Program::PodEgress,
        Program::PodIngress,
        Program::OverlayEgress,
        Program::UplinkEgress,
    ])
}

/// SCTP's common header with an INIT chunk, which is all that matters here.
fn sctp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Packet {
    let mut payload = source.1.to_be_bytes().to_vec();
    payload.extend(destination.1.to_be_bytes());
    payload.extend([0; 8]);
    payload.extend([1, 0, 0, 4]);
    Packet::raw(source.0, destination.0, 132).payload(payload)
}

fn only_translated_flows_are_recorded_at_a_pods_veth(family: Family) -> Result<()> {
    let mut node = load()?;
    let udp = |source| Packet::udp((source, 5), (B, 6));
    for (what, packet, mark, expected) in [
        ("own pod", udp(A), 0, Verdict::PassNoted),
        ("remote pod", udp(C), 0, Verdict::PassNoted),
        ("another node", udp(NODE_2), 0, Verdict::PassNoted),
        ("own node", udp(NODE_1), 0, Verdict::Pass),
        ("world", udp(WORLD), 0, Verdict::Pass),
        ("redirected", udp(A), mark::REDIRECTED, Verdict::Pass),
        (
            "gone up for an entry",
            udp(A),
            mark::TO_STACK,
            Verdict::Pass,
        ),
        ("kube-proxy's mark", udp(A), 0x4000, Verdict::PassNoted),
        (
            "a later fragment",
            udp(A).last_fragment(3),
            0,
            Verdict::Pass,
        ),
        (
            "an ICMP error",
            Packet::error(A, B, Complaint::Unreachable, &udp(A).reply()),
            0,
            Verdict::Pass,
        ),
        ("not IP", udp(A).ether_type(0x0806), 0, Verdict::Pass),
    ] {
        node.clear_flows()?;
        let got = outcome(&mut node, family, Program::PodIngress, &packet, mark)?;
        assert_eq!(name(got), name(expected as u32), "{what}");
        let source = if what == "remote pod" {
            C
        } else if what == "another node" {
            NODE_2
        } else {
            A
        };
        let noted = node.flow(&family.flow(17, (source, 5), (B, 6)))?.is_some();
        assert_eq!(noted, expected == Verdict::PassNoted, "{what}");
    }
    Ok(())
}

fn what_the_stack_sends_to_other_nodes_is_recorded_where_it_was_translated(
    family: Family,
) -> Result<()> {
    let mut node = load()?;
    let udp = |source, destination| Packet::udp((source, 5), (destination, 6));
    for (what, program, source, destination, mark, noted) in [
        (
            "pod by tunnel device",
            Program::OverlayEgress,
            A,
            C,
            0,
            true,
        ),
        ("pod to node", Program::OverlayEgress, A, NODE_2, 0, true),
        ("own node", Program::OverlayEgress, NODE_1, C, 0, false),
        (
            "too big",
            Program::OverlayEgress,
            A,
            C,
            mark::TO_STACK,
            false,
        ),
        (
            "direct",
            Program::OverlayEgress,
            A,
            C,
            mark::REDIRECTED,
            false,
        ),
        ("pod by uplink", Program::UplinkEgress, A, NODE_2, 0, true),
        ("pod to pod by uplink", Program::UplinkEgress, A, C, 0, true),
        ("pod to world", Program::UplinkEgress, A, WORLD, 0, false),
        (
            "node to node",
            Program::UplinkEgress,
            NODE_1,
            NODE_2,
            0,
            false,
        ),
        (
            "direct by uplink",
            Program::UplinkEgress,
            A,
            C,
            mark::REDIRECTED,
            false,
        ),
        (
            "up and down again",
            Program::UplinkEgress,
            A,
            C,
            mark::TO_STACK,
            false,
        ),
    ] {
        node.clear_flows()?;
        outcome(&mut node, family, program, &udp(source, destination), mark)?;
        let key = family.flow(17, (source, 5), (destination, 6));
        assert_eq!(node.flow(&key)?.is_some(), noted, "{what}");
    }
    Ok(())
}

fn replies_of_a_recorded_flow_go_up_the_stack(family: Family) -> Result<()> {
    let mut node = load()?;
    let about = Packet::udp((B, 2222), (A, 1111));
    for (what, key, packet) in [
        ("UDP", family.flow(17, (B, 2222), (A, 1111)), a_to(B)),
        (
            "UDP of a remote pod",
            family.flow(17, (C, 2222), (A, 1111)),
            a_to(C),
        ),
        (
            "UDP of another node",
            family.flow(17, (NODE_2, 2222), (A, 1111)),
            a_to(NODE_2),
        ),
        (
            "TCP",
            family.flow(6, (B, 2), (A, 1)),
            from_a(Packet::tcp((A, 1), (B, 2), SYN | ACK)),
        ),
        (
            "echo",
            family.flow(1, (B, 99), (A, 99)),
            from_a(Packet::echo(B, A, 99).reply()),
        ),
        (
            "an ICMP error about it",
            family.flow(17, (B, 2222), (A, 1111)),
            from_a(Packet::error(A, B, Complaint::Unreachable, &about)),
        ),
        (
            "SCTP",
            family.flow(132, (B, 2222), (A, 1111)),
            from_a(sctp((A, 1111), (B, 2222))),
        ),
        (
            "a protocol without ports",
            family.flow(47, (B, 0), (A, 0)),
            from_a(Packet::raw(A, B, 47)),
        ),
    ] {
        node.clear_flows()?;
        let direct = node.run(
            Program::PodEgress,
            &packet.frame_of(family),
            Context::default(),
        )?;
        assert_eq!(direct.code, REDIRECT, "{what}, without an entry");
        live(&mut node, key)?;
        let ran = node.run(
            Program::PodEgress,
            &packet.frame_of(family),
            Context::default(),
        )?;
        assert_eq!(
            name(ran.decision.outcome),
            name(Verdict::ToStackNoted as u32),
            "{what}"
        );
        assert_eq!((ran.code, ran.mark), (UNSPEC, mark::TO_STACK), "{what}");
        assert_eq!(
            ran.packet,
            packet.frame_of(family),
            "{what}: the stack gets it as it was"
        );
        let entry = node.flow(&key)?;
        let is_error = what == "an ICMP error about it";
        assert!(
            entry.is_some_and(|n| (n.state & FlowEntry::REPLIED != 0) != is_error),
            "{what}: {entry:?}"
        );
    }
    Ok(())
}

fn an_sctp_association_beside_a_translated_one_is_direct(family: Family) -> Result<()> {
    let mut node = load()?;
    let translated = sctp((B, 2222), (A, 1111));
    let got = outcome(&mut node, family, Program::PodIngress, &translated, 0)?;
    assert_eq!(name(got), name(Verdict::PassNoted as u32));
    for (to, expected) in [(2222, Verdict::ToStackNoted), (3333, Verdict::Deliver)] {
        let packet = from_a(sctp((A, 1111), (B, to)));
        let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
        assert_eq!(name(got), name(expected as u32), "to port {to}");
    }
    Ok(())
}

fn all_fragments_of_a_recorded_flows_reply_go_up_the_stack(family: Family) -> Result<()> {
    let mut node = load()?;
    live(&mut node, family.flow(17, (B, 2222), (A, 1111)))?;
    for packet in [a_to(B).first_fragment(4), a_to(B).last_fragment(4)] {
        let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
        assert_eq!(name(got), name(Verdict::ToStackNoted as u32));
    }
    Ok(())
}

fn an_entry_of_one_direction_does_not_bind_the_other(family: Family) -> Result<()> {
    let mut node = load()?;
    live(&mut node, family.flow(17, (A, 1111), (B, 2222)))?;
    let got = outcome(&mut node, family, Program::PodEgress, &a_to(B), 0)?;
    assert_eq!(name(got), name(Verdict::Deliver as u32));
    Ok(())
}

fn an_expired_entry_does_not_count(family: Family) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(17, (B, 2222), (A, 1111));
    node.set_flow(
        key,
        FlowEntry {
            expires_at: now()? - 1,
            ..FlowEntry::default()
        },
    )?;
    let got = outcome(&mut node, family, Program::PodEgress, &a_to(B), 0)?;
    assert_eq!(name(got), name(Verdict::Deliver as u32));
    // The next translated packet makes it count again.
    let packet = Packet::udp((B, 2222), (A, 1111));
    outcome(&mut node, family, Program::PodIngress, &packet, 0)?;
    let got = outcome(&mut node, family, Program::PodEgress, &a_to(B), 0)?;
    assert_eq!(name(got), name(Verdict::ToStackNoted as u32));
    Ok(())
}

fn a_direct_connection_on_the_tuple_deletes_the_entry(family: Family) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(6, (A, 1), (B, 2));
    for (flags, kept) in [(SYN | ACK, true), (ACK, true), (SYN, false)] {
        live(&mut node, key)?;
        let packet = from_a(Packet::tcp((A, 1), (B, 2), flags));
        let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
        assert_eq!(name(got), name(Verdict::Deliver as u32), "flags {flags:#x}");
        assert_eq!(node.flow(&key)?.is_some(), kept, "flags {flags:#x}");
    }
    Ok(())
}

fn notes_expire_as_conntrack_entries_do(family: Family) -> Result<()> {
    let mut node = load()?;
    let tcp = |flags| Packet::tcp((B, 2), (A, 1), flags);
    let answer = |flags| from_a(Packet::tcp((A, 1), (B, 2), flags));
    let key = family.flow(6, (B, 2), (A, 1));
    let days = 5 * 24 * 3600;
    let open = FlowEntry::REPLIED | FlowEntry::CONFIRMED;
    for (what, program, packet, seconds, state) in [
        ("SYN", Program::PodIngress, tcp(SYN), 120, 0),
        (
            "SYN-ACK",
            Program::PodEgress,
            answer(SYN | ACK),
            60,
            FlowEntry::REPLIED,
        ),
        ("ACK", Program::PodIngress, tcp(ACK), days, open),
        (
            "FIN",
            Program::PodIngress,
            tcp(FIN | ACK),
            3600,
            open | FlowEntry::FIN_THERE,
        ),
        (
            "half-closed",
            Program::PodEgress,
            answer(ACK),
            3600,
            open | FlowEntry::FIN_THERE,
        ),
        (
            "FIN of the other end",
            Program::PodEgress,
            answer(FIN | ACK),
            120,
            open | FlowEntry::FIN_THERE | FlowEntry::FIN_BACK | FlowEntry::CLOSING,
        ),
        ("SYN again", Program::PodIngress, tcp(SYN), 120, 0),
    ] {
        let before = now()?;
        outcome(&mut node, family, program, &packet, 0)?;
        let Some(entry) = node.flow(&key)? else {
            anyhow::bail!("{what}: no entry");
        };
        assert_eq!(entry.state, state, "{what}");
        let left = entry.expires_at - before;
        assert!(
            left + SECOND > seconds * SECOND && left < (seconds + 5) * SECOND,
            "{what}: {left} ns left, {seconds} s expected"
        );
    }
    for (protocol, packet, seconds) in [
        (17, Packet::udp((B, 7), (A, 8)), 30),
        (47, Packet::raw(B, A, 47), 600),
    ] {
        let before = now()?;
        outcome(&mut node, family, Program::PodIngress, &packet, 0)?;
        let ports = if protocol == 17 { (7, 8) } else { (0, 0) };
        let Some(entry) = node.flow(&family.flow(protocol, (B, ports.0), (A, ports.1)))? else {
            anyhow::bail!("protocol {protocol}: no entry");
        };
        let left = entry.expires_at - before;
        assert!(left >= seconds * SECOND && left < (seconds + 5) * SECOND);
    }
    Ok(())
}

/// With its server port as source a pod opens a connection to the peer that has opened
/// one to it: under cover of that entry it would go up the stack.
fn a_connection_opened_towards_the_opener_does_not_pass_for_a_reply(family: Family) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(6, (B, 2), (A, 1));
    live(&mut node, key)?;
    for (flags, expected) in [
        (SYN | ACK, Verdict::ToStackNoted),
        (SYN, Verdict::Deliver),
        (ACK, Verdict::ToStackNoted),
    ] {
        let packet = from_a(Packet::tcp((A, 1), (B, 2), flags));
        let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
        assert_eq!(name(got), name(expected as u32), "flags {flags:#x}");
        assert!(node.flow(&key)?.is_some(), "the entry stays");
    }
    Ok(())
}

fn a_ping_with_the_identifier_of_another_ones_is_no_reply_to_it(family: Family) -> Result<()> {
    let mut node = load()?;
    live(&mut node, family.flow(1, (B, 99), (A, 99)))?;
    for (packet, expected) in [
        (Packet::echo(A, B, 99), Verdict::Deliver),
        (Packet::echo(B, A, 99).reply(), Verdict::ToStackNoted),
    ] {
        let got = outcome(&mut node, family, Program::PodEgress, &from_a(packet), 0)?;
        assert_eq!(name(got), name(expected as u32));
    }
    Ok(())
}

/// Each speaks to the other's Service from the port that it serves (SIP, VPNs), and
/// the stack translates both.
fn flows_of_both_ends_between_the_same_ports_are_both_answered(family: Family) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(17, (A, 1111), (B, 2222));
    let about = Packet::udp((B, 2222), (A, 1111));
    let error = from_a(Packet::error(A, B, Complaint::Unreachable, &about));
    for (opener, expected) in [
        // A's own answers nothing; and then B's Service has been asked, too.
        (Packet::udp((A, 1111), (B, 2222)), Verdict::Deliver),
        (Packet::udp((B, 2222), (A, 1111)), Verdict::ToStackNoted),
    ] {
        outcome(&mut node, family, Program::PodIngress, &opener, 0)?;
        for packet in [a_to(B), error.clone()] {
            let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
            assert_eq!(name(got), name(expected as u32), "{:?}", node.flow(&key)?);
        }
    }
    Ok(())
}

fn a_connection_opened_back_through_the_stack_leaves_the_first_one_alone(
    family: Family,
) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(6, (A, 1), (B, 2));
    let open = FlowEntry::REPLIED | FlowEntry::CONFIRMED;
    for (state, is_kept) in [(open, true), (0, false), (open | FlowEntry::CLOSING, false)] {
        node.clear_flows()?;
        let entry = FlowEntry {
            expires_at: now()? + 60 * SECOND,
            state,
            ..FlowEntry::default()
        };
        node.set_flow(key, entry)?;
        let back = Packet::tcp((B, 2), (A, 1), SYN);
        outcome(&mut node, family, Program::PodIngress, &back, 0)?;
        let first = node.flow(&key)?;
        assert_eq!(first.is_some(), is_kept, "state {state:#x}: {first:?}");
        // What A sends answers B's in any case.
        let answer = from_a(Packet::tcp((A, 1), (B, 2), SYN | ACK));
        let got = outcome(&mut node, family, Program::PodEgress, &answer, 0)?;
        assert_eq!(name(got), name(Verdict::ToStackNoted as u32));
    }
    Ok(())
}

fn an_icmp_error_keeps_no_flow_alive(family: Family) -> Result<()> {
    let mut node = load()?;
    let key = family.flow(17, (B, 2222), (A, 1111));
    live(&mut node, key)?;
    let before = node.flow(&key)?;
    let about = Packet::udp((B, 2222), (A, 1111));
    let error = from_a(Packet::error(A, B, Complaint::Unreachable, &about));
    let got = outcome(&mut node, family, Program::PodEgress, &error, 0)?;
    assert_eq!(name(got), name(Verdict::ToStackNoted as u32));
    assert_eq!(node.flow(&key)?, before);
    Ok(())
}
