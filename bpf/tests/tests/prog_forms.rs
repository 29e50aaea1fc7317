//! `pod_egress` by `BPF_PROG_TEST_RUN`: packets to other nodes in either form.

#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use veer_bpf_common::{
    mark,
    outcome::{Program, Verdict},
    value::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, Ran},
    packet::{ACK, Packet},
    world::{self, *},
};

fn load() -> Result<Datapath> {
    world::load(&[Program::PodEgress])
}

fn run(node: &mut Datapath, frame: &[u8]) -> Result<Ran> {
    node.run(Program::PodEgress, frame, Context::default())
}

#[test]
fn the_tunnel_takes_the_packet_as_it_is() -> Result<()> {
    let mut node = load()?;
    let frame = a_to(C).frame();
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
            VXLAN,
            A_IDENTITY,
            ID_2,
            C_IDENTITY
        )
    );
    Ok(())
}

#[test]
fn the_native_form_is_one_hop_on_the_uplink() -> Result<()> {
    let mut node = load()?;
    node.set_remote(ID_2, remote(FORM_NATIVE))?;
    let ran = run(&mut node, &a_to(C).frame())?;
    assert_eq!(ran.decision.outcome, Verdict::Native as u32);
    assert_eq!(
        (ran.code, ran.mark, ran.decision.ifindex, ran.decision.vni),
        (REDIRECT, mark::REDIRECTED, UPLINK, 0)
    );
    let seen = headers(&ran.packet);
    assert_eq!((seen.ttl, seen.checksum_ok), (63, true));
    let ran = run(&mut node, &a_to(C).ttl(1).frame())?;
    assert_eq!(ran.decision.outcome, Verdict::ToStackException as u32);
    Ok(())
}

#[test]
fn an_entry_falls_back_by_itself_once_its_time_is_over() -> Result<()> {
    let mut node = load()?;
    let minute = 60_000_000_000;
    for (what, revert_at, expected) in [
        ("never", 0, Verdict::Native),
        ("in a minute", now()? + minute, Verdict::Native),
        ("a while ago", 1, Verdict::Overlay),
    ] {
        node.set_remote(
            ID_2,
            Remote {
                revert_at,
                previous_form: FORM_TUNNEL,
                ..remote(FORM_NATIVE)
            },
        )?;
        let ran = run(&mut node, &a_to(C).frame())?;
        assert_eq!(ran.decision.outcome, expected as u32, "{what}");
    }
    Ok(())
}

#[test]
fn what_is_too_big_for_its_form_goes_to_the_stack() -> Result<()> {
    let mut node = load()?;
    let whole = |df: bool, total| {
        let packet = a_to(C).total_length(total);
        if df { packet.dont_fragment() } else { packet }.frame()
    };
    // Segments with 20 bytes each of IPv4 and TCP header.
    let tcp = from_a(Packet::tcp((A, 1), (C, 2), ACK))
        .total_length(3000)
        .dont_fragment()
        .frame();
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
            Verdict::Overlay,
        ),
        (
            "tunnel, segments fit",
            FORM_TUNNEL,
            tcp.clone(),
            1410,
            Verdict::Overlay,
        ),
        (
            "tunnel, segments do not",
            FORM_TUNNEL,
            tcp.clone(),
            1411,
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
            1460,
            Verdict::Native,
        ),
        ("native, segments do not", FORM_NATIVE, tcp, 1461, stack),
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
