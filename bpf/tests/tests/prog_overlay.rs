//! The tunnel device's programs by `BPF_PROG_TEST_RUN`. A test run has no
//! tunnel key, so what `overlay_ingress` does with one is in `netns_overlay`.

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
    address::{FAMILY_V4, FAMILY_V6},
    identity::Identity,
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_bpf_tests::{
    datapath::Context,
    family::Family,
    in_both_families,
    packet::Packet,
    world::{self, *},
};

in_both_families! {
    a_packet_without_a_tunnel_key_is_refused,
    the_stacks_packets_take_the_form_of_the_remote,
    pod_egress_own_packets_pass_the_tunnel_device,
    an_entry_without_addresses_is_unusable_and_the_outside_may_be_of_either_family,
}

fn udp(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    Packet::udp((source, 5), (destination, 6))
}

fn a_packet_without_a_tunnel_key_is_refused(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::OverlayIngress])?;
    let ran = node.run(
        Program::OverlayIngress,
        &udp(C, B).frame_of(family),
        Context::default(),
    )?;
    assert_eq!(
        name(ran.decision.outcome),
        name(DropReason::TunnelSourceNotNode as u32)
    );
    assert_eq!(ran.code, SHOT);
    Ok(())
}

fn the_stacks_packets_take_the_form_of_the_remote(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::OverlayEgress])?;
    let tunnel = (Verdict::Overlay as u32, UNSPEC);
    let native = (Verdict::Native as u32, REDIRECT);
    for (what, packet, form, (outcome, code), vni) in [
        (
            "host to pod",
            udp(NODE_1, C),
            FORM_TUNNEL,
            tunnel,
            Identity::REMOTE_NODE.get(),
        ),
        (
            "host to node",
            udp(NODE_1, NODE_2),
            FORM_TUNNEL,
            tunnel,
            Identity::REMOTE_NODE.get(),
        ),
        (
            "translated pod",
            udp(A, C),
            FORM_TUNNEL,
            tunnel,
            A_IDENTITY.get(),
        ),
        ("host to pod", udp(NODE_1, C), FORM_NATIVE, native, 0),
        ("translated pod", udp(A, NODE_2), FORM_NATIVE, native, 0),
        (
            "forwarded from outside",
            udp(WORLD, C),
            FORM_NATIVE,
            native,
            0,
        ),
        (
            "forwarded from outside",
            udp(WORLD, C),
            FORM_TUNNEL,
            (DropReason::TunnelSourceNotOnNode as u32, SHOT),
            0,
        ),
        (
            "to a group",
            udp(NODE_1, Ipv4Addr::new(224, 0, 0, 251)),
            FORM_TUNNEL,
            (Verdict::Ignore as u32, SHOT),
            0,
        ),
        (
            "to a pod here",
            udp(NODE_1, B),
            FORM_TUNNEL,
            (DropReason::RemoteUnusable as u32, SHOT),
            0,
        ),
        (
            "to the world",
            udp(NODE_1, WORLD),
            FORM_TUNNEL,
            (DropReason::RemoteUnusable as u32, SHOT),
            0,
        ),
        (
            "to a node without a form",
            udp(NODE_1, D),
            FORM_TUNNEL,
            (DropReason::RemoteUnusable as u32, SHOT),
            0,
        ),
        (
            "not IP",
            udp(NODE_1, C).ether_type(0x0806),
            FORM_TUNNEL,
            (DropReason::UnsupportedL3 as u32, SHOT),
            0,
        ),
    ] {
        node.set_remote(ID_2, remote(form))?;
        let frame = packet.frame_of(family);
        let ran = node.run(Program::OverlayEgress, &frame, Context::default())?;
        assert_eq!(name(ran.decision.outcome), name(outcome), "{what}");
        assert_eq!((ran.code, ran.decision.vni), (code, vni), "{what}");
        assert_eq!(ran.packet, frame, "{what}: the stack has counted the hop");
        if code == REDIRECT {
            assert_eq!(
                (ran.mark, ran.decision.ifindex),
                (mark::REDIRECTED, UPLINK.get()),
                "{what}"
            );
        }
    }
    Ok(())
}

fn pod_egress_own_packets_pass_the_tunnel_device(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::OverlayEgress])?;
    let context = Context {
        mark: mark::REDIRECTED,
        ..Context::default()
    };
    let frame = udp(A, C).frame_of(family);
    let ran = node.run(Program::OverlayEgress, &frame, context)?;
    assert_eq!(
        (ran.code, ran.decision.outcome, ran.decision.vni),
        (UNSPEC, Verdict::Pass as u32, 0)
    );
    Ok(())
}

fn an_entry_without_addresses_is_unusable_and_the_outside_may_be_of_either_family(
    family: Family,
) -> Result<()> {
    let mut node = world::load(&[Program::OverlayEgress])?;
    let unusable = DropReason::RemoteUnusable as u32;
    let tunnel = Verdict::Overlay as u32;
    for (form, tunnel_family, expected) in [
        (FORM_TUNNEL, 0, unusable),
        (FORM_TUNNEL, FAMILY_V4, tunnel),
        (FORM_TUNNEL, FAMILY_V6, tunnel),
        (FORM_NATIVE, FAMILY_V4, unusable),
        (0, FAMILY_V4, unusable),
        (9, FAMILY_V6, unusable),
    ] {
        let entry = without_next_hop(Remote {
            tunnel_family,
            ..remote(form)
        });
        node.set_remote(ID_2, entry)?;
        let frame = udp(NODE_1, C).frame_of(family);
        let ran = node.run(Program::OverlayEgress, &frame, Context::default())?;
        let what = format!("form {form}, family {tunnel_family}");
        assert_eq!(name(ran.decision.outcome), name(expected), "{what}");
    }
    Ok(())
}
