//! Probes and health addresses by `BPF_PROG_TEST_RUN`: a probe takes the form it
//! asks for, and a health address is one of its node's stack only.

#![forbid(unsafe_code)]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use std::net::Ipv4Addr;
use veer_bpf_common::{
    DEFAULT_TUNNEL_PORT,
    identity::Identity,
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::{FORM_NATIVE, FORM_NONE, FORM_TUNNEL, Remote},
};
use veer_bpf_tests::{
    datapath::Context,
    family::Family,
    in_both_families,
    packet::Packet,
    world::{self, *},
};

in_both_families! {
    a_probe_takes_the_form_it_asks_for_whatever_the_entry_says,
    a_probe_without_a_path_in_its_form_is_dropped,
    a_health_address_is_one_of_its_nodes_stack,
    a_pods_mark_does_not_make_a_probe,
}

fn udp(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    Packet::udp((source, 5), (destination, 6))
}

fn marked(mark: u32) -> Context {
    Context {
        mark,
        ..Context::default()
    }
}

fn a_probe_takes_the_form_it_asks_for_whatever_the_entry_says(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::OverlayEgress])?;
    let frame = Packet::echo(GATEWAY, HEALTH_2, 1).frame_of(family);
    for (form, revert_at) in [
        (FORM_NONE, 0),
        (FORM_TUNNEL, 0),
        (FORM_NATIVE, 0),
        (FORM_TUNNEL, 1),
        (FORM_NATIVE, 1),
    ] {
        node.set_remote(
            ID_2,
            Remote {
                revert_at,
                ..remote(form)
            },
        )?;
        // The low half of a mark is others'.
        let ran = node.run(
            Program::OverlayEgress,
            &frame,
            marked(mark::PROBE_TUNNEL | 7),
        )?;
        assert_eq!(
            (name(ran.decision.outcome), ran.code, ran.decision.vni),
            (
                name(Verdict::Overlay as u32),
                UNSPEC,
                Identity::REMOTE_NODE.get()
            ),
            "by tunnel, form {form}"
        );
        let ran = node.run(
            Program::OverlayEgress,
            &frame,
            marked(mark::PROBE_NATIVE | 7),
        )?;
        assert_eq!(
            (name(ran.decision.outcome), ran.code, ran.decision.ifindex),
            (name(Verdict::Native as u32), REDIRECT, UPLINK.get()),
            "bare, form {form}"
        );
        assert_eq!(ran.mark, mark::REDIRECTED | 7);
        assert_eq!(ran.packet, frame);
    }
    Ok(())
}

fn a_probe_without_a_path_in_its_form_is_dropped(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::OverlayEgress])?;
    let frame = Packet::echo(GATEWAY, HEALTH_2, 1).frame_of(family);
    for (what, mark, entry) in [
        (
            "no next hop",
            mark::PROBE_NATIVE,
            without_next_hop(remote(FORM_TUNNEL)),
        ),
        (
            "no tunnel address",
            mark::PROBE_TUNNEL,
            Remote {
                tunnel_family: 0,
                ..remote(FORM_NATIVE)
            },
        ),
    ] {
        node.set_remote(ID_2, entry)?;
        let ran = node.run(Program::OverlayEgress, &frame, marked(mark))?;
        assert_eq!(
            name(ran.decision.outcome),
            name(DropReason::RemoteUnusable as u32),
            "{what}"
        );
    }
    Ok(())
}

fn a_health_address_is_one_of_its_nodes_stack(family: Family) -> Result<()> {
    let mut node = world::load(&[
        Program::PodEgress,
        Program::PodIngress,
        Program::OverlayEgress,
        Program::UplinkIngress,
    ])?;
    let to_tunnel_port = |to| from_a(Packet::udp((A, 5), (to, DEFAULT_TUNNEL_PORT)));
    let from_outside = |source, destination| udp(source, destination);
    let to_stack = Verdict::ToStack as u32;
    let pass = Verdict::Pass as u32;
    let overlay = Verdict::Overlay as u32;
    for (what, program, packet, expected) in [
        (
            "pod to its gateway",
            Program::PodEgress,
            a_to(GATEWAY),
            to_stack,
        ),
        (
            "ping from a pod to its gateway",
            Program::PodEgress,
            from_a(Packet::echo(A, GATEWAY, 1)),
            to_stack,
        ),
        (
            "the gateway's reply",
            Program::PodIngress,
            udp(GATEWAY, B),
            pass,
        ),
        (
            "pod to another's",
            Program::PodEgress,
            a_to(HEALTH_2),
            overlay,
        ),
        (
            "translated from another's",
            Program::PodIngress,
            udp(HEALTH_2, B),
            Verdict::PassNoted as u32,
        ),
        (
            "a pod in the gateway's name",
            Program::PodEgress,
            from_a(udp(GATEWAY, C)),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a pod in another node's name",
            Program::PodEgress,
            from_a(udp(HEALTH_2, C)),
            DropReason::SpoofedAddress as u32,
        ),
        (
            "a pod to the tunnel port by the gateway",
            Program::PodEgress,
            to_tunnel_port(GATEWAY),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "a pod to the tunnel port by another's",
            Program::PodEgress,
            to_tunnel_port(HEALTH_2),
            DropReason::TunnelPortFromPod as u32,
        ),
        (
            "from here to another's",
            Program::OverlayEgress,
            udp(GATEWAY, HEALTH_2),
            overlay,
        ),
        (
            "from another's, forwarded",
            Program::OverlayEgress,
            udp(HEALTH_2, C),
            DropReason::TunnelSourceNotOnNode as u32,
        ),
        (
            "a probe, bare",
            Program::UplinkIngress,
            Packet::echo(HEALTH_2, GATEWAY, 1),
            pass,
        ),
        (
            "another's to a pod, bare",
            Program::UplinkIngress,
            from_outside(HEALTH_2, B),
            DropReason::NativeNotAccepted as u32,
        ),
        (
            "our own from outside",
            Program::UplinkIngress,
            from_outside(GATEWAY, NODE_1),
            DropReason::OwnSourceFromOutside as u32,
        ),
        (
            "our own from outside to itself",
            Program::UplinkIngress,
            from_outside(GATEWAY, GATEWAY),
            DropReason::OwnSourceFromOutside as u32,
        ),
        (
            "our own from outside to a pod",
            Program::UplinkIngress,
            from_outside(GATEWAY, B),
            DropReason::OwnSourceFromOutside as u32,
        ),
        (
            "a stranger's tunnel packet",
            Program::UplinkIngress,
            Packet::vxlan(
                WORLD,
                GATEWAY,
                Identity::REMOTE_NODE,
                &udp(HEALTH_2, B).frame_of(family),
            ),
            DropReason::TunnelSourceNotNode as u32,
        ),
        (
            "a tunnel packet from a health address",
            Program::UplinkIngress,
            Packet::vxlan(
                HEALTH_2,
                NODE_1,
                Identity::REMOTE_NODE,
                &udp(HEALTH_2, B).frame_of(family),
            ),
            DropReason::TunnelSourceNotNode as u32,
        ),
    ] {
        let ran = node.run(program, &packet.frame_of(family), Context::default())?;
        assert_eq!(name(ran.decision.outcome), name(expected), "{what}");
    }
    let ran = node.run(
        Program::PodEgress,
        &a_to(HEALTH_2).frame_of(family),
        Context::default(),
    )?;
    assert_eq!(
        (ran.decision.vni, ran.decision.destination_identity),
        (A_IDENTITY.get(), Identity::REMOTE_NODE.get())
    );
    let replies = family.flow(17, (GATEWAY, 5), (B, 6));
    assert!(
        node.flow(&replies)?.is_none(),
        "the gateway's reply has an entry"
    );
    Ok(())
}

fn a_pods_mark_does_not_make_a_probe(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress])?;
    for mark in [mark::PROBE_NATIVE, mark::PROBE_TUNNEL] {
        node.set_remote(ID_2, remote(FORM_TUNNEL))?;
        let ran = node.run(Program::PodEgress, &a_to(C).frame_of(family), marked(mark))?;
        assert_eq!(
            (name(ran.decision.outcome), ran.mark),
            (name(Verdict::Overlay as u32), mark::REDIRECTED)
        );
        // Nor on the way by the stack.
        let ran = node.run(
            Program::PodEgress,
            &a_to(NODE_1).frame_of(family),
            marked(mark),
        )?;
        assert_eq!(
            (name(ran.decision.outcome), ran.mark),
            (name(Verdict::ToStack as u32), 0)
        );
    }
    Ok(())
}
