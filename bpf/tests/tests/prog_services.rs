//! What pods send to Services, by `BPF_PROG_TEST_RUN`: which packets `pod_egress`
//! translates, to which backend, and where they go then.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::Ipv4Addr;
use veer_bpf_common::{
    outcome::{DropReason, FlowState, Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, Share},
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{ACK, Complaint, FIN, Packet, RST, SYN},
    services::{
        BACKEND_PORT, CLIENT_PORT, VIP, VIP_PORT, ask, back, checksums_ok, egress, ends, front,
        frontend, packet, serve, socket, udp_from,
    },
    world::{self, *},
};

in_both_families! {
    a_packet_to_a_frontend_goes_where_its_backend_is,
    what_is_not_for_a_backend_goes_to_the_stack_as_it_was,
    a_translated_packet_is_the_one_that_the_pod_would_have_sent_to_the_backend,
    a_udp_checksum_stays_away_and_never_becomes_none,
    sctp_is_left_to_the_stack,
    what_the_stack_sends_from_a_frontend_stays_as_it_is,
    the_tunnel_port_is_closed_behind_a_frontend,
    all_fragments_of_a_datagram_go_to_one_backend,
}

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn a_packet_to_a_frontend_goes_where_its_backend_is(family: Family) -> Result<()> {
    let mut node = load()?;
    for (place, backend, form, verdict) in [
        ("a pod here", B, FORM_TUNNEL, Verdict::Deliver),
        ("a pod there", C, FORM_TUNNEL, Verdict::Overlay),
        ("a pod there, native", C, FORM_NATIVE, Verdict::Native),
        ("this node", NODE_1, FORM_TUNNEL, Verdict::ToStack),
        ("another node", NODE_2, FORM_TUNNEL, Verdict::Overlay),
        ("another node, native", NODE_2, FORM_NATIVE, Verdict::Native),
        ("the world", WORLD, FORM_TUNNEL, Verdict::ToStack),
    ] {
        node.set_remote(ID_2, remote(form))?;
        serve(&mut node, family, 1, &[backend])?;
        for (protocol, segments) in [(UDP, [0, 0]), (TCP, [SYN, ACK])] {
            node.clear_flows()?;
            for (flags, state) in segments
                .into_iter()
                .zip([FlowState::New, FlowState::Established])
            {
                let what = format!("{place}, protocol {protocol}, {state:?}");
                let ran = egress(&mut node, family, &ask(protocol, flags))?;
                assert_eq!(name(ran.decision.outcome), name(verdict as u32), "{what}");
                assert_eq!(
                    ends(&ran.packet),
                    [(family.of(A), CLIENT_PORT), socket(family, backend)],
                    "{what}"
                );
                assert!(checksums_ok(&ran.packet), "{what}");
                assert_eq!(ran.decision.flow, state as u16, "{what}");
                let hops = u8::from(matches!(verdict, Verdict::Deliver | Verdict::Native));
                let seen = headers(&ran.packet);
                assert_eq!(seen.ttl, 64 - hops, "{what}");
                if verdict == Verdict::Deliver {
                    assert_eq!(
                        (ran.code, ran.decision.ifindex, seen.destination_mac),
                        (REDIRECT, B_IFINDEX.get(), B_MAC),
                        "{what}"
                    );
                } else if verdict == Verdict::ToStack {
                    assert_eq!(ran.code, UNSPEC, "{what}");
                }
                let (one, other) = node
                    .pair(&front(family, protocol), &back(family, protocol, backend))
                    .context(what.clone())?;
                let share = Share::of_pod(1).number();
                assert_eq!((one.share(), other.share()), (share, share), "{what}");
                assert_eq!(node.flow_count()?, 2, "{what}");
            }
        }
    }
    Ok(())
}

fn what_is_not_for_a_backend_goes_to_the_stack_as_it_was(family: Family) -> Result<()> {
    const EMPTY: u16 = 99;
    let mut node = load()?;
    serve(&mut node, family, 1, &[B])?;
    for protocol in [UDP, TCP] {
        node.set_service((family.of(VIP), EMPTY, protocol), 70, 1, &[], 0)?;
    }
    // As of a local DNS cache that has the cluster DNS' address.
    let own = (family.of(NODE_1), VIP_PORT, UDP);
    node.set_service(own, 71, 1, &[socket(family, B)], 0)?;
    let tcp = |flags| Packet::tcp((A, CLIENT_PORT), (VIP, VIP_PORT), flags);
    let to = |destination: (Ipv4Addr, u16)| Packet::udp((A, CLIENT_PORT), destination);
    let about = Packet::udp((VIP, VIP_PORT), (A, CLIENT_PORT));
    for (what, packet) in [
        ("an ACK of no flow", tcp(ACK)),
        ("a SYN-ACK of no flow", tcp(SYN | ACK)),
        ("a FIN of no flow", tcp(FIN | ACK)),
        ("a RST of no flow", tcp(RST)),
        ("a ping", Packet::echo(A, VIP, 9)),
        (
            "an ICMP error",
            Packet::error(A, VIP, Complaint::Unreachable, &about),
        ),
        ("another port", to((VIP, VIP_PORT + 1))),
        (
            "another address",
            to((Ipv4Addr::new(10, 96, 0, 11), VIP_PORT)),
        ),
        ("another protocol", Packet::raw(A, VIP, 47)),
        ("an own address of the node", to((NODE_1, VIP_PORT))),
        ("UDP, no backends", to((VIP, EMPTY))),
        (
            "TCP, no backends",
            Packet::tcp((A, CLIENT_PORT), (VIP, EMPTY), SYN),
        ),
    ] {
        let packet = from_a(packet);
        for _ in 0..2 {
            let ran = egress(&mut node, family, &packet)?;
            assert_eq!(
                name(ran.decision.outcome),
                name(Verdict::ToStack as u32),
                "{what}"
            );
            assert_eq!((ran.code, ran.mark), (UNSPEC, 0), "{what}");
            assert_eq!(ran.packet, packet.frame_of(family), "{what}");
            assert_eq!(node.flow_count()?, 0, "{what}");
        }
    }
    Ok(())
}

/// In the tunnel nothing else of the frame changes.
fn a_translated_packet_is_the_one_that_the_pod_would_have_sent_to_the_backend(
    family: Family,
) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[C])?;
    let sizes = [0, 1, 2, 3, 7, 64, 65, 1000, 1301];
    for protocol in [UDP, TCP] {
        for (nth, size) in (0_u16..).zip(sizes) {
            for options in [0, 2, 4] {
                let shaped = |destination: (Ipv4Addr, u16)| {
                    let source = (A, 2000 + nth);
                    from_a(packet(protocol, source, destination, SYN))
                        .payload(vec![0xa5; size])
                        .options(options)
                };
                let ran = egress(&mut node, family, &shaped((VIP, VIP_PORT)))?;
                let what = format!("protocol {protocol}, {size} bytes, {options} words");
                let outcome = ran.decision.outcome;
                assert_eq!(name(outcome), name(Verdict::Overlay as u32), "{what}");
                let expected = shaped((C, BACKEND_PORT)).frame_of(family);
                assert_eq!(ran.packet, expected, "{what}");
                assert!(checksums_ok(&ran.packet), "{what}");
            }
        }
    }
    Ok(())
}

fn a_udp_checksum_stays_away_and_never_becomes_none(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[C])?;
    let at = 14 + family.header_length() + 6;
    let checksum = |frame: &[u8]| [frame[at], frame[at + 1]];
    if family == Family::V4 {
        let mut frame = ask(UDP, 0).frame_of(family);
        frame[at..at + 2].fill(0);
        let ran = node.run(Program::PodEgress, &frame, Context::default())?;
        assert_eq!(ends(&ran.packet)[1], socket(family, C));
        assert_eq!(checksum(&ran.packet), [0, 0]);
    }
    // With its own checksum as the payload, a packet's checksum is 0.
    let to_backend = |payload: [u8; 2]| {
        from_a(packet(UDP, (A, CLIENT_PORT), (C, BACKEND_PORT), 0)).payload(payload.to_vec())
    };
    let payload = checksum(&to_backend([0, 0]).frame_of(family));
    assert_eq!(checksum(&to_backend(payload).frame_of(family)), [0, 0]);
    let ran = egress(&mut node, family, &ask(UDP, 0).payload(payload.to_vec()))?;
    assert_eq!(ends(&ran.packet)[1], socket(family, C));
    assert_eq!(checksum(&ran.packet), [0xff, 0xff]);
    Ok(())
}

/// Its checksum is of the ports and not of the addresses: the ports are the same here.
/// Its checksum covers the ports, and who has an association is not to be seen of a packet
/// in its midst.
fn sctp_is_left_to_the_stack(family: Family) -> Result<()> {
    const SCTP: u8 = 132;
    let mut node = load()?;
    node.set_service(frontend(family, SCTP), 3, 1, &[socket(family, C)], 0)?;
    let mut payload = CLIENT_PORT.to_be_bytes().to_vec();
    payload.extend(VIP_PORT.to_be_bytes());
    payload.extend([0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 4]);
    let init = from_a(Packet::raw(A, VIP, SCTP)).payload(payload);
    let ran = egress(&mut node, family, &init)?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::ToStack as u32));
    assert_eq!(ran.packet, init.frame_of(family));
    Ok(())
}

/// The stack answers from the Service's own address, where it translates a flow on the same
/// ports: none of the programs' business.
fn what_the_stack_sends_from_a_frontend_stays_as_it_is(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress, Program::PodIngress])?;
    serve(&mut node, family, 1, &[C])?;
    egress(&mut node, family, &ask(UDP, 0))?;
    let answer = ask(UDP, 0).reply();
    let error = Packet::error(NODE_1, A, Complaint::Unreachable, &ask(UDP, 0));
    for packet in [answer, error] {
        let frame = packet.frame_of(family);
        let ran = node.run(Program::PodIngress, &frame, Context::default())?;
        assert_eq!(name(ran.decision.outcome), name(Verdict::Pass as u32));
        assert_eq!(ran.packet, frame);
    }
    Ok(())
}

fn the_tunnel_port_is_closed_behind_a_frontend(family: Family) -> Result<()> {
    const TUNNEL: u16 = 8472;
    let mut node = load()?;
    let dropped = DropReason::TunnelPortFromPod as u32;
    for (what, backend, protocol, expected) in [
        ("UDP, another node", NODE_2, UDP, dropped),
        ("UDP, this node", NODE_1, UDP, dropped),
        ("UDP, a pod", C, UDP, Verdict::Overlay as u32),
        ("TCP, another node", NODE_2, TCP, Verdict::Overlay as u32),
        ("TCP, this node", NODE_1, TCP, Verdict::ToStack as u32),
    ] {
        node.clear_flows()?;
        let backends = [(family.of(backend), TUNNEL)];
        node.set_service(frontend(family, protocol), 9, 1, &backends, 0)?;
        // The second one might have an entry.
        for _ in 0..2 {
            let ran = egress(&mut node, family, &ask(protocol, SYN))?;
            assert_eq!(name(ran.decision.outcome), name(expected), "{what}");
            assert_eq!(ran.code == SHOT, expected == dropped, "{what}");
        }
    }
    Ok(())
}

fn all_fragments_of_a_datagram_go_to_one_backend(family: Family) -> Result<()> {
    let mut node = load()?;
    serve(&mut node, family, 1, &[B, C])?;
    for port in 1000..1030 {
        let first = udp_from(port).first_fragment(port);
        let ran = egress(&mut node, family, &first)?;
        let [from, to] = ends(&ran.packet);
        assert_eq!(from, (family.of(A), port));
        assert_eq!(to.1, BACKEND_PORT, "the first one has ports");
        assert!([B, C].map(|b| socket(family, b)).contains(&to), "{to:?}");
        assert!(checksums_ok(&ran.packet));
        for later in [
            udp_from(port).later_fragment(port, 8, true),
            udp_from(port).last_fragment(port),
        ] {
            let frame = later.frame_of(family);
            let ran = egress(&mut node, family, &later)?;
            let seen = headers(&ran.packet);
            assert_eq!((seen.source, seen.destination), (family.of(A), to.0));
            assert!(seen.checksum_ok);
            let at = seen.transport_at;
            assert_eq!(ran.packet[at..], frame[at..], "what it carries");
        }
    }
    node.check_partners()
}
