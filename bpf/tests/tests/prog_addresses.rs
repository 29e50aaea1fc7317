//! Addresses that are special, families that a pod does not have, and other outer
//! families, by `BPF_PROG_TEST_RUN`.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use veer_bpf_common::{
    address::FAMILY_V6,
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::{FORM_TUNNEL, Interface, Remote},
};
use veer_bpf_tests::{
    datapath::Context,
    family::Family,
    in_both_families,
    packet::{Packet, arp},
    world::{self, *},
};

in_both_families! {
    nothing_of_a_family_that_the_pod_does_not_have_passes,
    what_is_too_big_for_an_ipv6_tunnel_goes_to_the_stack_with_and_without_df,
}

/// Addresses that are no other host's, or count on one link alone.
fn special() -> [(&'static str, Ipv6Addr); 12] {
    let v4 = |head: u16| Ipv6Addr::new(0, 0, 0, 0, 0, head, 0x0a00, 0x010b);
    [
        ("unspecified", Ipv6Addr::UNSPECIFIED),
        ("loopback", Ipv6Addr::LOCALHOST),
        ("a pod's IPv4 address, mapped", v4(0xffff)),
        (
            "loopback of IPv4, mapped",
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1),
        ),
        ("link-local", Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
        (
            "the last link-local",
            Ipv6Addr::new(0xfebf, 0xffff, 0, 0, 0, 0, 0, 1),
        ),
        ("of a device", Ipv6Addr::new(0xff01, 0, 0, 0, 0, 0, 0, 1)),
        ("all nodes", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        ("all routers", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2)),
        ("mDNS", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
        ("a site's group", Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 2)),
        (
            "a group of all",
            Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x101),
        ),
    ]
}

#[test]
fn special_addresses_are_neither_source_nor_destination_of_a_pod() -> Result<()> {
    let mut node = world::load(&[Program::PodEgress, Program::OverlayEgress])?;
    let a = Family::V6.of(A);
    for (what, address) in special() {
        let address = IpAddr::from(address);
        for packet in [
            Packet::udp((a, 1), (address, 2)),
            Packet::tcp((a, 1), (address, 2), 2),
            Packet::echo(a, address, 3),
        ] {
            let frame = from_a(packet).frame();
            let ran = node.run(Program::PodEgress, &frame, Context::default())?;
            let refused = name(DropReason::UnsupportedDestination as u32);
            assert_eq!(name(ran.decision.outcome), refused, "to {what}");
            assert_eq!(ran.code, SHOT, "to {what}");
        }
        for to in [B, C, NODE_1, GATEWAY, WORLD] {
            let frame = from_a(Packet::udp((address, 1), (to, 2))).frame();
            let ran = node.run(Program::PodEgress, &frame, Context::default())?;
            let refused = name(DropReason::SpoofedAddress as u32);
            assert_eq!(name(ran.decision.outcome), refused, "{what} to {to}");
        }
        let frame = Packet::udp((address, 1), (C, 2)).frame();
        let ran = node.run(Program::OverlayEgress, &frame, Context::default())?;
        let refused = name(DropReason::TunnelSourceNotOnNode as u32);
        assert_eq!(name(ran.decision.outcome), refused, "tunnelled from {what}");
    }
    // Beside them is the world.
    for beside in [
        [0xfec0, 1],
        [0xfe7f, 1],
        [0xfdff, 1],
        [0x2001, 0xdb8],
        [0, 0xffff],
    ] {
        let to = Ipv6Addr::new(beside[0], beside[1], 0, 0, 0, 0, 0, 1);
        let frame = from_a(Packet::udp((a, 1), (to, 2))).frame();
        let ran = node.run(Program::PodEgress, &frame, Context::default())?;
        assert_eq!(name(ran.decision.outcome), Verdict::ToStack.name(), "{to}");
    }
    Ok(())
}

#[test]
fn special_sources_are_the_worlds_on_an_uplink_and_reach_no_pod() -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress, Program::UplinkXdp])?;
    for (what, address) in special() {
        for to in [B, NODE_1, WORLD] {
            let frame = Packet::udp((address, 1), (to, 2)).frame();
            let tc = node.run(Program::UplinkIngress, &frame, Context::default())?;
            let xdp = node.run_xdp(&frame)?;
            for ran in [tc, xdp] {
                let pass = Verdict::Pass.name();
                assert_eq!(name(ran.decision.outcome), pass, "{what} to {to}");
                assert_eq!(ran.packet, frame, "{what} to {to}");
            }
        }
    }
    Ok(())
}

fn nothing_of_a_family_that_the_pod_does_not_have_passes(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let without = match family {
        Family::V4 => Interface {
            v4: [0; 4],
            ..interface()
        },
        Family::V6 => Interface {
            v6: [0; 16],
            ..interface()
        },
    };
    node.set_interface(A_IFINDEX, without)?;
    for source in [A, B, C, Ipv4Addr::UNSPECIFIED] {
        for to in [B, C, NODE_1, GATEWAY, WORLD] {
            for packet in [
                Packet::udp((source, 1), (to, 2)),
                Packet::udp((source, 1), (to, 2)).last_fragment(4),
                Packet::echo(source, to, 1),
            ] {
                let frame = from_a(packet).frame_of(family);
                let ran = node.run(Program::PodEgress, &frame, Context::default())?;
                let refused = family.pick(DropReason::SpoofedAddress, DropReason::UnsupportedL3);
                assert_eq!(
                    name(ran.decision.outcome),
                    refused.name(),
                    "{source} to {to}"
                );
                // The other one works as before.
                let other = family.pick(Family::V6, Family::V4);
                let frame = a_to(B).frame_of(other);
                let ran = node.run(Program::PodEgress, &frame, Context::default())?;
                assert_eq!(name(ran.decision.outcome), Verdict::Deliver.name());
            }
        }
    }
    let local = veer_bpf_tests::packet::link_local(A_MAC);
    let gateway = octets_v6(GATEWAY).into();
    let (question, refused) = family.pick(
        (
            arp(1, (A_MAC, A), ([0; 6], GATEWAY)),
            DropReason::SpoofedAddress,
        ),
        (
            from_a(Packet::solicitation(local, gateway, A_MAC)).frame(),
            DropReason::UnsupportedL3,
        ),
    );
    let ran = node.run(Program::PodEgress, &question, Context::default())?;
    assert_eq!(name(ran.decision.outcome), refused.name());
    Ok(())
}

fn what_is_too_big_for_an_ipv6_tunnel_goes_to_the_stack_with_and_without_df(
    family: Family,
) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    let mut config = config();
    config.tunnel_mtu = 1430;
    node.set_config(config)?;
    let entry = Remote {
        tunnel_family: FAMILY_V6,
        tunnel_address: octets_v6(NODE_2),
        ..remote(FORM_TUNNEL)
    };
    for (path_mtu, total, fits) in [
        (0, 1430, true),
        (0, 1431, false),
        (1400, 1330, true),
        (1400, 1331, false),
        (9000, 1430, true),
        (9000, 1431, false),
    ] {
        node.set_remote(ID_2, Remote { path_mtu, ..entry })?;
        for df in [false, true] {
            let packet = a_to(C).total_length(total);
            let packet = if df { packet.dont_fragment() } else { packet };
            let frame = packet.frame_of(family);
            let ran = node.run(Program::PodEgress, &frame, Context::default())?;
            let (expected, marked) = if fits {
                (Verdict::Overlay, mark::REDIRECTED)
            } else {
                // The kernel fragments no outer packet of IPv6.
                (Verdict::ToStackException, mark::TO_STACK)
            };
            let what = format!("path {path_mtu}, {total} bytes, DF {df}");
            assert_eq!(name(ran.decision.outcome), expected.name(), "{what}");
            assert_eq!(ran.mark, marked, "{what}");
        }
    }
    Ok(())
}
