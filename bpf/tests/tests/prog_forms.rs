//! Packets to other nodes in either form, by `BPF_PROG_TEST_RUN`: those of pods
//! and those of the stack.

#![forbid(unsafe_code)]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use veer_bpf_common::{
    mark,
    outcome::{DropReason, Program, Verdict},
    tables::{FORM_NATIVE, FORM_NONE, FORM_TUNNEL, Remote},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    family::Family,
    in_both_families,
    packet::{ACK, Packet},
    world::{self, *},
};

in_both_families! {
    the_tunnel_takes_the_packet_as_it_is,
    the_native_form_is_one_hop_on_the_uplink,
    an_entry_falls_back_by_itself_once_its_time_is_over,
    what_is_too_big_for_its_form_goes_to_the_stack,
    the_mtu_of_a_pair_is_that_of_its_smaller_end,
}

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn run(node: &mut Datapath, frame: &[u8]) -> Result<Ran> {
    node.run(Program::PodEgress, frame, Context::default())
}

fn the_tunnel_takes_the_packet_as_it_is(family: Family) -> Result<()> {
    let mut node = load()?;
    let frame = a_to(C).frame_of(family);
    let ran = run(&mut node, &frame)?;
    assert_eq!(ran.packet, frame);
    assert_eq!(
        (
            ran.code,
            ran.mark,
            ran.decision.ifindex,
            ran.decision.vni,
            ran.decision.node_id,
            ran.decision.destination_identity
        ),
        (
            REDIRECT,
            mark::REDIRECTED,
            VXLAN.get(),
            A_IDENTITY.get(),
            ID_2.get(),
            C_IDENTITY.get()
        )
    );
    Ok(())
}

fn the_native_form_is_one_hop_on_the_uplink(family: Family) -> Result<()> {
    let mut node = load()?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    let ran = run(&mut node, &a_to(C).frame_of(family))?;
    assert_eq!(ran.decision.outcome, Verdict::Native as u32);
    assert_eq!(
        (ran.code, ran.mark, ran.decision.ifindex, ran.decision.vni),
        (REDIRECT, mark::REDIRECTED, UPLINK.get(), 0)
    );
    let seen = headers(&ran.packet);
    assert_eq!((seen.ttl, seen.checksum_ok), (63, true));
    let ran = run(&mut node, &a_to(C).ttl(1).frame_of(family))?;
    assert_eq!(ran.decision.outcome, Verdict::ToStackException as u32);
    Ok(())
}

fn an_entry_falls_back_by_itself_once_its_time_is_over(family: Family) -> Result<()> {
    let mut node = world::load(&[Program::PodEgress, Program::OverlayEgress])?;
    let tunnel = Verdict::Overlay as u32;
    let native = Verdict::Native as u32;
    let unusable = DropReason::RemoteUnusable as u32;
    let future = now()? + 3600 * 1_000_000_000;
    let just_now = now()?;
    let udp = |source, destination| Packet::udp((source, 5), (destination, 6));
    let packets = [
        ("pod to pod", Program::PodEgress, a_to(C)),
        ("pod to node", Program::PodEgress, a_to(NODE_2)),
        ("host to pod", Program::OverlayEgress, udp(NODE_1, C)),
        ("host to node", Program::OverlayEgress, udp(NODE_1, NODE_2)),
        ("translated pod", Program::OverlayEgress, udp(A, C)),
    ];
    for (form, previous_form, revert_at, expected) in [
        (FORM_NATIVE, FORM_TUNNEL, 0, native),
        (FORM_NATIVE, FORM_TUNNEL, future, native),
        (FORM_NATIVE, FORM_TUNNEL, just_now, tunnel),
        (FORM_NATIVE, FORM_TUNNEL, 1, tunnel),
        (FORM_TUNNEL, FORM_NATIVE, 0, tunnel),
        (FORM_TUNNEL, FORM_NATIVE, future, tunnel),
        (FORM_TUNNEL, FORM_NATIVE, just_now, native),
        (FORM_TUNNEL, FORM_NATIVE, u64::MAX, tunnel),
        // A remote that was new when it was switched.
        (FORM_NATIVE, FORM_NONE, 0, native),
        (FORM_NATIVE, FORM_NONE, future, native),
        (FORM_NATIVE, FORM_NONE, just_now, unusable),
        (FORM_NONE, FORM_TUNNEL, future, unusable),
    ] {
        node.set_remote(
            ID_2,
            Remote {
                form,
                previous_form,
                revert_at,
                ..remote(form)
            },
        )?;
        for (what, program, packet) in &packets {
            let ran = node.run(*program, &packet.frame_of(family), Context::default())?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected),
                "{what}: form {form}, before {previous_form}, until {revert_at}"
            );
        }
    }
    Ok(())
}

fn what_is_too_big_for_its_form_goes_to_the_stack(family: Family) -> Result<()> {
    let mut node = load()?;
    let whole = |df: bool, total| {
        let packet = a_to(C).total_length(total);
        if df { packet.dont_fragment() } else { packet }.frame_of(family)
    };
    // Segments with 20 bytes each of IPv4 and TCP header; IPv6 has 20 more.
    let more = family.pick(0, 20);
    let tcp = from_a(Packet::tcp((A, 1), (C, 2), ACK))
        .total_length(3000)
        .dont_fragment()
        .frame_of(family);
    let stack = Verdict::ToStackException;
    for (what, form, frame, gso_size, expected) in [
        (
            "tunnel, fits",
            FORM_TUNNEL,
            whole(true, 1450),
            0,
            Verdict::Overlay,
        ),
        ("tunnel, DF", FORM_TUNNEL, whole(true, 1451), 0, stack),
        (
            "tunnel, no DF",
            FORM_TUNNEL,
            whole(false, 1451),
            0,
            // The sender of IPv6 has to know.
            family.pick(Verdict::Overlay, stack),
        ),
        (
            "tunnel, segments fit",
            FORM_TUNNEL,
            tcp.clone(),
            1410 - more,
            Verdict::Overlay,
        ),
        (
            "tunnel, segments do not",
            FORM_TUNNEL,
            tcp.clone(),
            1411 - more,
            stack,
        ),
        (
            "native, fits",
            FORM_NATIVE,
            whole(true, 1500),
            0,
            Verdict::Native,
        ),
        ("native, DF", FORM_NATIVE, whole(true, 1501), 0, stack),
        ("native, no DF", FORM_NATIVE, whole(false, 1501), 0, stack),
        (
            "native, segments fit",
            FORM_NATIVE,
            tcp.clone(),
            1460 - more,
            Verdict::Native,
        ),
        (
            "native, segments do not",
            FORM_NATIVE,
            tcp,
            1461 - more,
            stack,
        ),
    ] {
        node.set_remote(ID_2, remote(form))?;
        let context = Context {
            gso_size,
            ..Context::default()
        };
        let ran = node.run(Program::PodEgress, &frame, context)?;
        assert_eq!(name(ran.decision.outcome), name(expected as u32), "{what}");
        let marked = if matches!(expected, Verdict::ToStackException) {
            mark::TO_STACK
        } else {
            mark::REDIRECTED
        };
        assert_eq!(ran.mark, marked, "{what}");
    }
    Ok(())
}

fn the_mtu_of_a_pair_is_that_of_its_smaller_end(family: Family) -> Result<()> {
    let mut node = load()?;
    let stack = Verdict::ToStackException;
    let (tunnel, native) = (Verdict::Overlay, Verdict::Native);
    for (form, path_mtu, total, df, expected) in [
        (FORM_TUNNEL, 0, 1450, true, tunnel),
        (FORM_TUNNEL, 1400, 1350, true, tunnel),
        (FORM_TUNNEL, 1400, 1350, false, tunnel),
        (FORM_TUNNEL, 1400, 1351, true, stack),
        // No router would fragment what the other end's link does not take.
        (FORM_TUNNEL, 1400, 1351, false, stack),
        (FORM_TUNNEL, 1500, 1450, true, tunnel),
        (FORM_TUNNEL, 1500, 1451, false, family.pick(tunnel, stack)),
        (FORM_TUNNEL, 9000, 1450, true, tunnel),
        (FORM_TUNNEL, 9000, 1451, true, stack),
        (FORM_NATIVE, 0, 1500, true, native),
        (FORM_NATIVE, 1400, 1400, true, native),
        (FORM_NATIVE, 1400, 1401, true, stack),
        (FORM_NATIVE, 1400, 1401, false, stack),
        (FORM_NATIVE, 9000, 1500, true, native),
        (FORM_NATIVE, 9000, 1501, true, stack),
        // A path that takes nothing is a mistake, and no reason to break.
        (FORM_TUNNEL, 1, 100, true, stack),
    ] {
        let entry = Remote {
            path_mtu,
            ..remote(form)
        };
        node.set_remote(ID_2, entry)?;
        let packet = a_to(C).total_length(total);
        let packet = if df { packet.dont_fragment() } else { packet };
        let what = format!("form {form}, path {path_mtu}, {total} bytes, DF {df}");
        let ran = run(&mut node, &packet.frame_of(family)).with_context(|| what.clone())?;
        assert_eq!(name(ran.decision.outcome), name(expected as u32), "{what}");
    }
    Ok(())
}
