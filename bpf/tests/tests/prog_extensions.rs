//! IPv6 extension headers, fragments and jumbograms by `BPF_PROG_TEST_RUN`, which IPv4
//! has no counterpart of.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    outcome::{DropReason, Program, Verdict},
    tables::FORM_NATIVE,
};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    packet::{Extension, Packet, shortened},
    world::{self, *},
};

const V6: Family = Family::V6;

fn load() -> Result<Datapath> {
    world::load(&[
        Program::PodEgress,
        Program::UplinkIngress,
        Program::UplinkXdp,
    ])
}

/// What a program makes of a frame.
fn outcome(node: &mut Datapath, program: Program, frame: &[u8]) -> Result<&'static str> {
    let ran = if program == Program::UplinkXdp {
        node.run_xdp(frame)?
    } else {
        node.run(program, frame, Context::default())?
    };
    Ok(name(ran.decision.outcome))
}

/// The same of what pod A sends.
fn sent(node: &mut Datapath, packet: &Packet) -> Result<&'static str> {
    outcome(node, Program::PodEgress, &packet.frame_of(V6))
}

/// What no pod may send: to the tunnel port of a node, which is behind the headers.
fn forbidden() -> Packet {
    from_a(Packet::udp((A, 1), (NODE_2, 8472)))
}

#[test]
fn the_port_is_found_behind_up_to_eight_headers_of_every_kind() -> Result<()> {
    let mut node = load()?;
    for (what, extension) in Extension::all() {
        let routing = what == "routing";
        for count in 1..=9 {
            let chain = vec![extension.clone(); count];
            let (to_tunnel, to_pod) = match count {
                9 => ("too-many-headers", "too-many-headers"),
                _ if routing => ("routing-header", "routing-header"),
                _ => ("tunnel-port-from-pod", "deliver"),
            };
            let what = format!("{count} of {what}");
            let got = sent(&mut node, &forbidden().behind(&chain))?;
            assert_eq!(got, to_tunnel, "{what}");
            let got = sent(&mut node, &a_to(B).behind(&chain))?;
            assert_eq!(got, to_pod, "{what}");
        }
    }
    Ok(())
}

#[test]
fn different_headers_in_a_row_count_together() -> Result<()> {
    let mut node = load()?;
    let mut chain: Vec<_> = Extension::all().into_iter().map(|(_, e)| e).collect();
    // All but the routing header, and one more.
    chain.remove(1);
    chain.push(Extension::destination(1));
    let got = sent(&mut node, &forbidden().behind(&chain))?;
    assert_eq!(got, DropReason::TunnelPortFromPod.name());
    chain.push(Extension::destination(1));
    let got = sent(&mut node, &forbidden().behind(&chain))?;
    assert_eq!(got, DropReason::TooManyHeaders.name());
    Ok(())
}

#[test]
fn a_packet_cut_off_at_any_byte_of_its_headers_is_malformed() -> Result<()> {
    let mut node = load()?;
    for (what, extension) in Extension::all() {
        if what == "routing" {
            continue;
        }
        for count in [1, 2, 8] {
            let chain = vec![extension.clone(); count];
            let to_pod = a_to(B).behind(&chain).payload(Vec::new()).frame_of(V6);
            let tunnel = Packet::udp((NODE_2, 1), (NODE_1, 8472));
            let tunnel = tunnel.behind(&chain).payload(Vec::new()).frame_of(V6);
            for (program, frame, whole) in [
                (Program::PodEgress, &to_pod, Verdict::Deliver.name()),
                (Program::UplinkIngress, &tunnel, "malformed"),
                (Program::UplinkXdp, &tunnel, "malformed"),
            ] {
                assert_eq!(outcome(&mut node, program, frame)?, whole, "{what}");
                for by in 1..=frame.len() - 14 - 40 {
                    let what = format!("{}, {count} of {what}, {by} bytes", program.name());
                    // Bytes are missing, and the packet says so or does not.
                    let cut = &frame[..frame.len() - by];
                    let got = outcome(&mut node, program, cut).context(what.clone())?;
                    assert_eq!(got, "malformed", "{what}");
                    let cut = shortened(V6, frame, by);
                    let got = outcome(&mut node, program, &cut).context(what.clone())?;
                    // Without four bytes of UDP there is no port; the kernel drops it.
                    let portless = program != Program::PodEgress && (5..=8).contains(&by);
                    let expected = if portless { "pass" } else { "malformed" };
                    assert_eq!(got, expected, "{what}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_header_that_is_longer_than_its_packet_is_malformed() -> Result<()> {
    let mut node = load()?;
    for (what, mut extension) in Extension::all() {
        // A fragment header has no length.
        if what == "fragment" {
            continue;
        }
        extension.bytes[1] = 255;
        let got = sent(&mut node, &a_to(B).behind(&[extension]))?;
        assert_eq!(got, "malformed", "{what}");
    }
    Ok(())
}

#[test]
fn fragments_follow_their_first_in_any_order_once_it_was_seen() -> Result<()> {
    let mut node = load()?;
    let lost = DropReason::FragmentWithoutFirst.name();
    let deliver = Verdict::Deliver.name();
    let tunnel = DropReason::TunnelPortFromPod.name();
    let part = |offset, more| Extension::fragment(offset, more, 9);
    // Behind a fragment header, what is between it and UDP is in the first alone; the
    // others name what follows there.
    let hidden = |to, offset| {
        from_a(Packet::raw(A, to, 60))
            .behind(&[part(offset, false)])
            .payload(vec![0; 32])
    };
    let first = |to, port| {
        from_a(Packet::udp((A, 1), (to, port))).behind(&[part(0, true), Extension::destination(1)])
    };
    for (what, packet, expected) in [
        (
            "a later one alone",
            a_to(B).later_fragment(8, 1, true),
            lost,
        ),
        ("the last alone", a_to(B).last_fragment(8), lost),
        ("their first", a_to(B).first_fragment(8), deliver),
        ("the last", a_to(B).last_fragment(8), deliver),
        ("the middle", a_to(B).later_fragment(8, 1, true), deliver),
        ("the first again", a_to(B).first_fragment(8), deliver),
        (
            "an atomic one",
            a_to(B).behind(&[Extension::fragment(0, false, 7)]),
            deliver,
        ),
        ("which is no first", a_to(B).last_fragment(7), lost),
        ("hidden options alone", hidden(B, 16), lost),
        ("a first with options behind", first(B, 2222), deliver),
        ("what follows", hidden(B, 16), deliver),
        ("of another destination", hidden(C, 16), lost),
        ("a first to the tunnel", first(NODE_2, 8472), tunnel),
        ("and what follows", hidden(NODE_2, 16), tunnel),
        (
            "a first that ends before its ports",
            from_a(Packet::raw(A, B, 17))
                .behind(&[part(0, true)])
                .payload(vec![]),
            "malformed",
        ),
        (
            "a fragment of a fragment",
            a_to(B).behind(&[part(0, true), part(0, true)]),
            "malformed",
        ),
    ] {
        assert_eq!(sent(&mut node, &packet)?, expected, "{what}");
    }
    Ok(())
}

#[test]
fn no_routing_header_comes_from_a_pod_or_bare_to_one() -> Result<()> {
    let mut node = load()?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    let refused = DropReason::RoutingHeader.name();
    let pass = Verdict::Pass.name();
    let udp = |source, destination| Packet::udp((source, 5), (destination, 6));
    for kind in [0, 2, 3, 4, 254] {
        for left in [0, 1, 255] {
            let routed = [Extension::routing(kind, left)];
            let behind = [Extension::hop_by_hop(1), Extension::routing(kind, left)];
            let what = format!("type {kind}, {left} segments left");
            for chain in [&routed[..], &behind] {
                for to in [B, C, NODE_1, NODE_2, WORLD, GATEWAY] {
                    let got = sent(&mut node, &a_to(to).behind(chain))?;
                    assert_eq!(got, refused, "{what}, to {to}");
                }
                for (source, to, expected) in [
                    (C, B, refused),
                    (C, NODE_1, refused),
                    (NODE_2, B, refused),
                    (HEALTH_2, GATEWAY, refused),
                    // The underlay's own affair, and the kernel's.
                    (NODE_2, NODE_1, pass),
                    (WORLD, NODE_1, pass),
                ] {
                    let frame = udp(source, to).behind(chain).frame_of(V6);
                    let got = outcome(&mut node, Program::UplinkIngress, &frame)?;
                    assert_eq!(got, expected, "{what}, {source} to {to}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_jumbogram_is_malformed_and_its_option_changes_no_length() -> Result<()> {
    let mut node = load()?;
    // RFC 2675: option 194 has the length in four bytes, that of the header is 0.
    let jumbo = |length: u32| Extension {
        number: 0,
        bytes: [&[0, 0, 194, 4][..], &length.to_be_bytes()].concat(),
    };
    let packet = a_to(B).behind(&[jumbo(100_000)]);
    let got = sent(&mut node, &packet)?;
    assert_eq!(
        got,
        Verdict::Deliver.name(),
        "the receiver judges the option"
    );
    let mut frame = packet.frame_of(V6);
    frame[14 + 4..14 + 6].fill(0);
    for program in [
        Program::PodEgress,
        Program::UplinkIngress,
        Program::UplinkXdp,
    ] {
        let got = outcome(&mut node, program, &frame)?;
        assert_eq!(got, "malformed", "{}", program.name());
    }
    Ok(())
}
