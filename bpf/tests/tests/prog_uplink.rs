//! The uplinks' programs by `BPF_PROG_TEST_RUN`: what arrives from outside.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::Ipv4Addr;
use veer_bpf_common::{
    identity::Identity,
    node::NodeId,
    outcome::{DropReason, Program, Verdict},
    tables::{Config, FORM_NATIVE, FORM_TUNNEL, FlowEntry},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{Packet, tagged},
    world::{self, *},
};

in_both_families! {
    tc_and_xdp_judge_the_tunnels_outer_side_alike,
    a_tunnel_packet_cut_off_at_any_byte_of_its_headers_is_dropped,
    bare_packets_are_delivered_only_from_those_who_may,
    a_probe_is_heard_before_the_native_form_is_accepted,
    a_tag_within_a_priority_tag_is_its_vlans_or_dropped,
    xdp_judges_a_priority_tagged_frame_as_an_untagged_one,
    bare_fragments_and_flow_entries_are_as_inside,
    nothing_from_a_denied_prefix_passes_the_uplink,
}

fn udp(source: Ipv4Addr, destination: Ipv4Addr) -> Packet {
    Packet::udp((source, 5), (destination, 6))
}

fn inner(family: Family) -> Vec<u8> {
    udp(C, B).frame_of(family)
}

/// A tunnel packet with the flag of the VNI taken away.
fn without_flag(family: Family) -> Vec<u8> {
    let mut frame = Packet::vxlan(NODE_2, NODE_1, C_IDENTITY, &inner(family)).frame_of(family);
    frame[14 + family.header_length() + 8] = 0;
    frame
}

/// A tunnel packet whose UDP length is `length`.
fn with_udp_length(family: Family, length: u16) -> Vec<u8> {
    let mut frame = Packet::vxlan(NODE_2, NODE_1, C_IDENTITY, &inner(family)).frame_of(family);
    let at = 14 + family.header_length() + 4;
    frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
    frame
}

fn tc_and_xdp_judge_the_tunnels_outer_side_alike(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress, Program::UplinkXdp])?;
    let pass = Verdict::Pass as u32;
    let malformed = DropReason::Malformed as u32;
    let tunnel =
        |source, destination| Packet::vxlan(source, destination, Identity::HOST, &inner(family));
    let mut later = tunnel(WORLD, NODE_1).last_fragment(1);
    later = later.payload(vec![0; 64]);
    let stranger = DropReason::TunnelSourceNotNode as u32;
    let rows = [
        ("from a node", tunnel(NODE_2, NODE_1).frame_of(family), pass),
        (
            "with options",
            tunnel(NODE_2, NODE_1).options(3).frame_of(family),
            pass,
        ),
        (
            "from outside",
            tunnel(WORLD, NODE_1).frame_of(family),
            stranger,
        ),
        (
            "from outside, with options",
            tunnel(WORLD, NODE_1).options(10).frame_of(family),
            stranger,
        ),
        ("from a pod", tunnel(C, NODE_1).frame_of(family), stranger),
        (
            "from ourselves",
            tunnel(NODE_1, NODE_1).frame_of(family),
            stranger,
        ),
        (
            "to someone else",
            tunnel(WORLD, WORLD).frame_of(family),
            pass,
        ),
        (
            "another port",
            Packet::udp((WORLD, 8472), (NODE_1, 4789)).frame_of(family),
            pass,
        ),
        ("a later fragment", later.frame_of(family), pass),
        ("no VNI flag", without_flag(family), malformed),
        (
            "UDP length short of a header",
            with_udp_length(family, 29),
            malformed,
        ),
        (
            "UDP length beyond the packet",
            with_udp_length(family, 1400),
            malformed,
        ),
        (
            "not IP",
            tunnel(WORLD, NODE_1).ether_type(0x0806).frame_of(family),
            pass,
        ),
    ];
    for (what, frame, expected) in rows {
        let tc = node
            .run(Program::UplinkIngress, &frame, Context::default())
            .context(what)?;
        let xdp = node.run_xdp(&frame).context(what)?;
        assert_eq!(name(tc.decision.outcome), name(expected), "{what}, tc");
        assert_eq!(name(xdp.decision.outcome), name(expected), "{what}, XDP");
        let codes = if expected == pass {
            (UNSPEC, 2)
        } else {
            (SHOT, 1)
        };
        assert_eq!((tc.code, xdp.code), codes, "{what}");
        assert_eq!(tc.packet, frame, "{what}");
    }
    Ok(())
}

/// Both programs of an uplink find the frame malformed.
fn assert_malformed(node: &mut Datapath, frame: &[u8], what: &str) -> Result<()> {
    for ran in [
        node.run(Program::UplinkIngress, frame, Context::default())?,
        node.run_xdp(frame)?,
    ] {
        let malformed = DropReason::Malformed as u32;
        assert_eq!(name(ran.decision.outcome), name(malformed), "{what}");
    }
    Ok(())
}

fn a_tunnel_packet_cut_off_at_any_byte_of_its_headers_is_dropped(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress, Program::UplinkXdp])?;
    for options in [0, 2, 10] {
        // The packet says how long it is; what is in it ends too early.
        for n in 4..8 + 14 {
            let mut packet = Packet::udp((NODE_2, 1), (NODE_1, 8472)).options(options);
            packet = packet.payload([vec![8], vec![0; n - 1]].concat());
            let frame = packet.frame_of(family);
            let what = format!("{n} bytes behind UDP, {options} words of options");
            assert_malformed(&mut node, &frame, &what)?;
        }
        // The frame ends before the packet does.
        let frame = Packet::vxlan(NODE_2, NODE_1, Identity::HOST, &inner(family))
            .options(options)
            .frame_of(family);
        for n in 14 + family.header_length()..frame.len() {
            let what = format!("{n} of {} bytes", frame.len());
            assert_malformed(&mut node, &frame[..n], &what)?;
        }
    }
    Ok(())
}

fn bare_packets_are_delivered_only_from_those_who_may(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress])?;
    let refused = DropReason::NativeNotAccepted as u32;
    let deliver = Verdict::Deliver as u32;
    let pass = Verdict::Pass as u32;
    let own = DropReason::OwnSourceFromOutside as u32;
    let no_pod = DropReason::NoSuchEndpoint as u32;
    let vacant = Ipv4Addr::new(10, 0, 1, 99);
    let vacant_there = Ipv4Addr::new(10, 0, 2, 99);
    let of_no_node = Ipv4Addr::new(10, 0, 99, 9);
    let cluster = (Ipv4Addr::new(10, 0, 0, 0), 16);
    node.set_prefix(family.prefix(cluster), Identity::UNMANAGED, NodeId::NONE)?;
    for (what, source, destination, in_tunnel, in_native) in [
        ("pod to pod", C, B, refused, deliver),
        ("node to pod", NODE_2, B, refused, deliver),
        ("pod to no pod", C, vacant, refused, no_pod),
        ("pod of a node never told", D, B, refused, refused),
        ("pod to node", C, NODE_1, refused, pass),
        ("pod to a pod elsewhere", C, D, refused, pass),
        ("pod to its own node", C, NODE_2, refused, pass),
        ("pod to the world", C, WORLD, refused, pass),
        ("vacant there, to node", vacant_there, NODE_1, refused, pass),
        ("health to node", HEALTH_2, NODE_1, refused, pass),
        ("health to pod", HEALTH_2, B, refused, deliver),
        ("health to health", HEALTH_2, GATEWAY, refused, pass),
        (
            "an address of no node",
            of_no_node,
            NODE_1,
            refused,
            refused,
        ),
        (
            "an address of no node to pod",
            of_no_node,
            B,
            refused,
            refused,
        ),
        (
            "an address of no node to the world",
            of_no_node,
            WORLD,
            refused,
            refused,
        ),
        ("node to node", NODE_2, NODE_1, pass, pass),
        ("node to the world", NODE_2, WORLD, pass, pass),
        ("world to pod", WORLD, B, pass, pass),
        ("world to node", WORLD, NODE_1, pass, pass),
        ("own pod's address", A, B, own, own),
        ("own pod's address to the node", A, NODE_1, own, own),
        ("own vacant address", vacant, NODE_1, own, own),
        ("own pod's address to the world", A, WORLD, own, own),
        ("own health address", GATEWAY, NODE_1, own, own),
        ("own node's address to pod", NODE_1, B, own, own),
        ("own node's address to the node", NODE_1, NODE_1, pass, pass),
    ] {
        for (form, expected) in [(FORM_TUNNEL, in_tunnel), (FORM_NATIVE, in_native)] {
            node.set_remote(ID_2, remote(form))?;
            let frame = udp(source, destination).frame_of(family);
            let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected),
                "{what}, form {form}"
            );
            if expected == deliver {
                let seen = headers(&ran.packet);
                assert_eq!((seen.ttl, seen.checksum_ok), (63, true), "{what}");
                assert_eq!((seen.source_mac, seen.destination_mac), (B_NODE_MAC, B_MAC));
                assert_eq!(
                    (ran.code, ran.decision.ifindex),
                    (REDIRECT, B_IFINDEX.get())
                );
            } else {
                assert_eq!(ran.packet, frame, "{what}");
            }
        }
    }
    Ok(())
}

fn a_probe_is_heard_before_the_native_form_is_accepted(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress])?;
    let refused = DropReason::NativeNotAccepted as u32;
    let pass = Verdict::Pass as u32;
    let asked = Packet::echo(HEALTH_2, GATEWAY, 7);
    let answered = Packet::echo(GATEWAY, HEALTH_2, 7).reply();
    for (what, packet, expected) in [
        ("a probe", asked, pass),
        ("an answer", answered, pass),
        ("to a pod", Packet::echo(HEALTH_2, B, 7), refused),
        ("to the node", Packet::echo(HEALTH_2, NODE_1, 7), refused),
        ("from a pod", Packet::echo(C, GATEWAY, 7), refused),
        (
            "from no pod",
            Packet::echo(Ipv4Addr::new(10, 0, 2, 9), GATEWAY, 7),
            refused,
        ),
    ] {
        let ran = node.run(
            Program::UplinkIngress,
            &packet.frame_of(family),
            Context::default(),
        )?;
        assert_eq!(name(ran.decision.outcome), name(expected), "{what}");
    }
    Ok(())
}

fn a_tag_within_a_priority_tag_is_its_vlans_or_dropped(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress])?;
    let unsupported = DropReason::UnsupportedL3 as u32;
    // A test run's frame has no tag that the kernel has taken off; so the first tag
    // in it is the second one.
    for (tag, expected) in [
        ([0x81, 0, 0, 0], unsupported),
        ([0x81, 0, 0xe0, 0], unsupported),
        ([0x88, 0xa8, 0, 0], unsupported),
        ([0x81, 0, 0, 5], Verdict::Pass as u32),
        ([0x88, 0xa8, 0xe0, 5], Verdict::Pass as u32),
    ] {
        for source in [WORLD, C, A, NODE_2] {
            let frame = tagged(&udp(source, NODE_1).frame_of(family), &[tag]);
            let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected),
                "{tag:x?} from {source}"
            );
        }
    }
    Ok(())
}

fn xdp_judges_a_priority_tagged_frame_as_an_untagged_one(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkXdp])?;
    let denied = Ipv4Addr::new(203, 0, 113, 9);
    node.set_prefix(family.prefix((denied, 32)), Identity::WORLD, NodeId::DENIED)?;
    node.set_config(Config {
        flags: Config::DENIES,
        ..config()
    })?;
    let tunnel =
        |source| Packet::vxlan(source, NODE_1, Identity::HOST, &inner(family)).frame_of(family);
    for (what, frame) in [
        ("from a node", tunnel(NODE_2)),
        ("from a stranger", tunnel(WORLD)),
        ("a tunnel packet that lies", without_flag(family)),
        ("denied", udp(denied, NODE_1).frame_of(family)),
        (
            "with options",
            udp(denied, NODE_1).options(10).frame_of(family),
        ),
        ("from the world", udp(WORLD, NODE_1).frame_of(family)),
    ] {
        let expected = node.run_xdp(&frame)?.decision.outcome;
        for (tags, expected) in [
            (&[[0x81, 0, 0, 0]][..], expected),
            (&[[0x88, 0xa8, 0xe0, 0]], expected),
            (&[[0x81, 0, 0, 5]], Verdict::Pass as u32),
            // The second tag is for the program behind.
            (&[[0x81, 0, 0, 0], [0x81, 0, 0, 0]], Verdict::Pass as u32),
        ] {
            let ran = node.run_xdp(&tagged(&frame, tags))?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected),
                "{what}, {tags:x?}"
            );
        }
    }
    Ok(())
}

fn bare_fragments_and_flow_entries_are_as_inside(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::UplinkIngress])?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    let mut outcome = |packet: Packet| -> Result<u32> {
        let ran = node.run(
            Program::UplinkIngress,
            &packet.frame_of(family),
            Context::default(),
        )?;
        Ok(ran.decision.outcome)
    };
    let lost = DropReason::FragmentWithoutFirst as u32;
    assert_eq!(outcome(udp(C, B).last_fragment(5))?, lost);
    for packet in [udp(C, B).first_fragment(5), udp(C, B).last_fragment(5)] {
        assert_eq!(outcome(packet)?, Verdict::Deliver as u32);
    }
    node.set_flow(
        family.flow(17, (B, 6), (C, 5)),
        FlowEntry {
            expires_at: u64::MAX,
            ..FlowEntry::default()
        },
    )?;
    let ran = node.run(
        Program::UplinkIngress,
        &udp(C, B).frame_of(family),
        Context::default(),
    )?;
    assert_eq!(
        name(ran.decision.outcome),
        name(Verdict::ToStackNoted as u32)
    );
    Ok(())
}

fn nothing_from_a_denied_prefix_passes_the_uplink(family: Family) -> Result<()> {
    let mut node = world::load(&[
        Program::UplinkIngress,
        Program::UplinkXdp,
        Program::PodEgress,
    ])?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    let inside = Ipv4Addr::new(198, 51, 100, 200);
    let allowed = Ipv4Addr::new(198, 51, 101, 7);
    let pass = Verdict::Pass as u32;
    let deliver = Verdict::Deliver as u32;
    let denied = DropReason::DeniedPrefix as u32;
    let stranger = DropReason::TunnelSourceNotNode as u32;
    let own = DropReason::OwnSourceFromOutside as u32;
    let tunnel = |source| Packet::vxlan(source, NODE_1, C_IDENTITY, &inner(family));
    let deny = |node: &mut Datapath, prefix| {
        node.set_prefix(family.prefix(prefix), Identity::WORLD, NodeId::DENIED)
    };
    let rows = [
        ("to the node", udp(WORLD, NODE_1), denied, denied),
        ("to a pod", udp(inside, B), denied, denied),
        ("passing through", udp(inside, allowed), denied, denied),
        (
            "a later fragment",
            udp(inside, NODE_1).last_fragment(3),
            denied,
            denied,
        ),
        ("a tunnel packet", tunnel(WORLD), stranger, stranger),
        ("from beside it", udp(allowed, NODE_1), pass, pass),
        ("to it", udp(allowed, inside), pass, pass),
        ("a node", udp(NODE_2, NODE_1), pass, pass),
        ("a node's tunnel packet", tunnel(NODE_2), pass, pass),
        ("a pod", udp(C, B), deliver, pass),
        ("in a pod's name", udp(A, NODE_1), own, pass),
    ];
    let judge = |node: &mut Datapath, all_pass: bool| -> Result<()> {
        for (what, packet, tc, xdp) in &rows {
            let frame = packet.frame_of(family);
            let expected = |outcome: u32| {
                if all_pass && outcome == denied {
                    pass
                } else {
                    outcome
                }
            };
            let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected(*tc)),
                "{what}, tc"
            );
            let ran = node.run_xdp(&frame)?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected(*xdp)),
                "{what}, XDP"
            );
        }
        Ok(())
    };
    judge(&mut node, true)?;
    // A longer prefix, that of nodes and pods, is stronger.
    deny(&mut node, (Ipv4Addr::new(198, 51, 100, 0), 24))?;
    deny(&mut node, (Ipv4Addr::new(192, 0, 2, 0), 24))?;
    deny(&mut node, (Ipv4Addr::new(10, 0, 0, 0), 8))?;
    node.set_config(Config {
        flags: Config::DENIES,
        ..config()
    })?;
    judge(&mut node, false)?;
    // What a pod sends there is the world's.
    let ran = node.run(
        Program::PodEgress,
        &a_to(inside).frame_of(family),
        Context::default(),
    )?;
    assert_eq!(name(ran.decision.outcome), name(Verdict::ToStack as u32));
    Ok(())
}
