//! Neighbour messages and group reports that a pod sends, by `BPF_PROG_TEST_RUN`.

#![forbid(unsafe_code)]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::{Ipv4Addr, Ipv6Addr};
use veer_bpf_common::{
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::Config,
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    family::Family::V6,
    packet::{Extension, Packet, link_local, shortened},
    world::{self, *},
};

/// Router, solicited, override.
const ANSWER: u8 = 0xe0;
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const REPORTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);
const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

fn v6(address: Ipv4Addr) -> Ipv6Addr {
    octets_v6(address).into()
}

fn own() -> Ipv6Addr {
    v6(A)
}

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn run(node: &mut Datapath, packet: Packet) -> Result<Ran> {
    node.run(
        Program::PodEgress,
        &from_a(packet).frame(),
        Context::default(),
    )
}

/// A message of this type with room for everything that one may have.
fn message(kind: u8, source: Ipv6Addr, to: Ipv6Addr) -> Packet {
    Packet::icmp(source, to, (kind, 0), &[0; 40]).ttl(255)
}

/// A question for the gateway by unicast: whether it is there still.
fn unicast() -> Packet {
    let body = [&[0; 4][..], &octets_v6(GATEWAY)].concat();
    Packet::icmp(own(), v6(GATEWAY), (135, 0), &body).ttl(255)
}

#[test]
fn a_question_for_the_gateway_is_answered_with_a_whole_advertisement() -> Result<()> {
    let mut node = load()?;
    let local = link_local(A_MAC);
    let ask = |source| Packet::solicitation(source, v6(GATEWAY), A_MAC);
    let nonce = [
        &[0; 4][..],
        &octets_v6(GATEWAY),
        &[14, 1, 1, 2, 3, 4, 5, 6],
        &[0; 64],
    ]
    .concat();
    for (what, packet, to) in [
        ("by its address", ask(own()), own()),
        ("by its address on the link", ask(local), local),
        ("by unicast, without options", unicast(), own()),
        (
            "with more options",
            Packet::icmp(own(), v6(GATEWAY), (135, 0), &nonce).ttl(255),
            own(),
        ),
        (
            "behind options",
            ask(own()).behind(&[Extension::destination(1), Extension::hop_by_hop(3)]),
            own(),
        ),
        (
            "in an atomic fragment",
            ask(own()).behind(&[Extension::fragment(0, false, 1)]),
            own(),
        ),
    ] {
        let ran = run(&mut node, packet).context(what)?;
        assert_eq!(
            (name(ran.decision.outcome), ran.code, ran.mark),
            ("answer", REDIRECT, mark::REDIRECTED),
            "{what}"
        );
        assert_eq!(ran.decision.ifindex, A_IFINDEX.get(), "{what}");
        let gateway = v6(GATEWAY);
        let answer = Packet::advertisement(gateway, to, ANSWER, (gateway, A_NODE_MAC));
        assert_eq!(ran.packet, answer.macs(A_NODE_MAC, A_MAC).frame(), "{what}");
    }
    Ok(())
}

#[test]
fn a_pod_speaks_for_itself_alone() -> Result<()> {
    let mut node = load()?;
    let local = link_local(A_MAC);
    let (gateway, other, all) = (
        v6(GATEWAY),
        v6(B),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
    );
    let ask = |source, target| Packet::solicitation(source, target, A_MAC);
    let tell = |source, target| Packet::advertisement(source, gateway, 0x60, (target, A_MAC));
    let foreign = DropReason::ForeignNeighbour as u32;
    let spoofed = DropReason::SpoofedAddress as u32;
    let not_gateway = DropReason::NeighbourNotGateway as u32;
    let ignore = Verdict::Ignore as u32;
    let to_stack = Verdict::ToStack as u32;
    let advertised = DropReason::RouterAdvertisement as u32;
    let redirect = DropReason::Redirect as u32;
    let alert = [Extension {
        number: 0,
        bytes: vec![0, 0, 5, 2, 0, 0, 1, 0],
    }];
    let options = [Extension::hop_by_hop(1), Extension::destination(2)];
    let atomic = [Extension::fragment(0, false, 3)];
    let first = [Extension::fragment(0, true, 3)];
    for (what, packet, expected) in [
        ("asks for a pod here", ask(own(), other), not_gateway),
        ("asks for a pod there", ask(own(), v6(C)), not_gateway),
        ("asks for itself", ask(own(), own()), not_gateway),
        (
            "asks for a router's own address",
            ask(local, link_local(A_NODE_MAC)),
            not_gateway,
        ),
        ("asks as a pod here", ask(other, gateway), spoofed),
        ("asks as the gateway", ask(gateway, gateway), spoofed),
        ("asks as the world", ask(v6(WORLD), gateway), spoofed),
        (
            "asks from another link",
            ask(own(), gateway).ttl(254),
            foreign,
        ),
        ("detects its address", ask(NONE, own()), ignore),
        ("detects its address on the link", ask(NONE, local), ignore),
        ("detects another's", ask(NONE, other), foreign),
        ("detects the gateway's", ask(NONE, gateway), foreign),
        (
            "detects from another link",
            ask(NONE, own()).ttl(1),
            foreign,
        ),
        ("tells its MAC", tell(own(), own()), to_stack),
        ("tells its MAC on the link", tell(local, local), to_stack),
        ("tells a pod's MAC", tell(own(), other), foreign),
        ("tells the gateway's MAC", tell(own(), gateway), foreign),
        ("tells its own as another", tell(other, own()), spoofed),
        (
            "tells from another link",
            tell(own(), own()).ttl(64),
            foreign,
        ),
        ("tells all", message(136, other, all), foreign),
        ("asks for routers", message(133, own(), ROUTERS), ignore),
        (
            "asks for routers without an address",
            message(133, NONE, ROUTERS),
            ignore,
        ),
        ("advertises a router", message(134, local, all), advertised),
        (
            "advertises one to the gateway",
            message(134, own(), gateway),
            advertised,
        ),
        (
            "advertises one to a pod",
            message(134, own(), other),
            advertised,
        ),
        ("redirects", message(137, local, other), redirect),
        (
            "redirects as the gateway",
            message(137, gateway, other),
            redirect,
        ),
        (
            "listener query",
            message(130, local, all).ttl(1).behind(&alert),
            ignore,
        ),
        (
            "MLDv1 report",
            message(131, local, all).ttl(1).behind(&alert),
            ignore,
        ),
        (
            "MLDv1 done",
            message(132, local, ROUTERS).ttl(1).behind(&alert),
            ignore,
        ),
        (
            "MLDv2 report",
            message(143, local, REPORTS).ttl(1).behind(&alert),
            ignore,
        ),
        (
            "MLDv2 report, no address yet",
            message(143, NONE, REPORTS).ttl(1),
            ignore,
        ),
        (
            "a router behind options",
            message(134, own(), all).behind(&options),
            advertised,
        ),
        (
            "a redirect behind options",
            message(137, own(), other).behind(&options),
            redirect,
        ),
        (
            "another's MAC behind options",
            tell(own(), other).behind(&options),
            foreign,
        ),
        (
            "a router in an atomic fragment",
            message(134, own(), all).behind(&atomic),
            advertised,
        ),
        (
            "a router in a first fragment",
            message(134, own(), other).behind(&first),
            advertised,
        ),
        (
            "another's MAC in a first fragment",
            tell(own(), other).behind(&first),
            foreign,
        ),
        (
            "the rest of it to a group",
            message(136, own(), all).last_fragment(3),
            DropReason::UnsupportedDestination as u32,
        ),
        (
            "the rest of it to the gateway",
            message(136, own(), gateway).last_fragment(3),
            DropReason::FragmentWithoutFirst as u32,
        ),
        (
            "the rest of it to a pod",
            message(136, own(), other).last_fragment(3),
            DropReason::FragmentWithoutFirst as u32,
        ),
    ] {
        let ran = run(&mut node, packet).context(what)?;
        assert_eq!(name(ran.decision.outcome), name(expected), "{what}");
        let code = if expected == to_stack { UNSPEC } else { SHOT };
        assert_eq!(ran.code, code, "{what}");
    }
    Ok(())
}

#[test]
fn a_question_with_another_mac_or_cut_off_is_not_answered() -> Result<()> {
    let mut node = load()?;
    let frame = unicast().macs(B_MAC, A_NODE_MAC).frame();
    let ran = node.run(Program::PodEgress, &frame, Context::default())?;
    assert_eq!(name(ran.decision.outcome), "spoofed-mac");
    let frame = from_a(unicast()).frame();
    for by in 1..=24 {
        for cut in [
            shortened(V6, &frame, by),
            frame[..frame.len() - by].to_vec(),
        ] {
            let ran = node.run(Program::PodEgress, &cut, Context::default())?;
            assert_eq!(name(ran.decision.outcome), "malformed", "{by} bytes");
        }
    }
    Ok(())
}

#[test]
fn without_a_gateway_no_question_is_answered() -> Result<()> {
    let mut node = load()?;
    node.set_config(Config {
        gateway_v6: [0; 16],
        ..config()
    })?;
    for target in [v6(GATEWAY), NONE] {
        let packet = Packet::solicitation(own(), target, A_MAC);
        let ran = run(&mut node, packet)?;
        assert_eq!(name(ran.decision.outcome), "neighbour-not-gateway");
    }
    Ok(())
}
