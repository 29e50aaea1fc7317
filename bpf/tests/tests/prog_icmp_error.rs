//! ICMP errors that routers send about direct flows, by `BPF_PROG_TEST_RUN`.

#![forbid(unsafe_code)]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use std::net::Ipv4Addr;

use anyhow::Result;
use veer_bpf_common::{
    outcome::{Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, FlowEntry},
};
use veer_bpf_tests::{
    datapath::Context,
    family::Family,
    in_both_families,
    packet::{ACK, Complaint, Packet},
    world::{self, *},
};

in_both_families! {
    a_routers_error_about_a_direct_flow_is_delivered_past_the_stack,
}

fn a_routers_error_about_a_direct_flow_is_delivered_past_the_stack(family: Family) -> Result<()> {
    use Complaint::{Parameter, Redirect, TimeExceeded, TooBig, Unreachable};
    let mut node = world::load(&[Program::UplinkIngress])?;
    let (pass, deliver) = (Verdict::Pass as u32, Verdict::Deliver as u32);
    let about = |source, destination| Packet::udp((source, 1111), (destination, 2222));
    let error = |kind, to, about: &Packet| Packet::error(WORLD, to, kind, about);
    let tcp = Packet::tcp((B, 1111), (C, 2222), ACK);
    let direct = about(B, C);
    node.set_flow(
        family.flow(17, (B, 1111), (Ipv4Addr::new(10, 0, 2, 21), 2222)),
        FlowEntry {
            expires_at: u64::MAX,
            ..FlowEntry::default()
        },
    )?;
    let translated = about(B, Ipv4Addr::new(10, 0, 2, 21));
    for (what, packet, in_native) in [
        ("unreachable", error(Unreachable, B, &direct), deliver),
        ("a parameter", error(Parameter, B, &direct), deliver),
        ("too big", error(TooBig, B, &direct), deliver),
        ("too big, TCP", error(TooBig, B, &tcp), deliver),
        (
            "with options",
            error(Unreachable, B, &direct).options(2),
            deliver,
        ),
        ("TTL over", error(TimeExceeded, B, &direct), deliver),
        (
            "to another node",
            error(Unreachable, B, &about(B, NODE_2)),
            deliver,
        ),
        ("a redirect", error(Redirect, B, &direct), pass),
        (
            "about a translated flow",
            error(Unreachable, B, &translated),
            pass,
        ),
        (
            "about another pod's flow",
            error(Unreachable, B, &about(A, C)),
            pass,
        ),
        (
            "about a flow to the world",
            error(Unreachable, B, &about(B, WORLD)),
            pass,
        ),
        (
            "about a flow on this node",
            error(Unreachable, B, &about(B, A)),
            pass,
        ),
        (
            "about what never leaves bare",
            error(Unreachable, B, &about(B, D)),
            pass,
        ),
        (
            "to no pod",
            error(Unreachable, Ipv4Addr::new(10, 0, 1, 99), &direct),
            pass,
        ),
        (
            "to the node",
            error(Unreachable, NODE_1, &about(NODE_1, C)),
            pass,
        ),
        ("an echo", Packet::echo(WORLD, B, 9), pass),
        (
            "cut off",
            error(Unreachable, B, &direct).payload(vec![0x45; 20]),
            pass,
        ),
        (
            "a later fragment",
            error(Unreachable, B, &direct).last_fragment(4),
            pass,
        ),
    ] {
        for (form, expected) in [(FORM_TUNNEL, pass), (FORM_NATIVE, in_native)] {
            node.set_remote(ID_2, remote(form))?;
            let frame = packet.frame_of(family);
            let ran = node.run(Program::UplinkIngress, &frame, Context::default())?;
            assert_eq!(
                name(ran.decision.outcome),
                name(expected),
                "{what}, form {form}"
            );
            if expected == deliver {
                assert_eq!(
                    (ran.code, ran.decision.ifindex),
                    (REDIRECT, B_IFINDEX.get())
                );
                let seen = headers(&ran.packet);
                assert_eq!((seen.ttl, seen.checksum_ok), (63, true), "{what}");
            }
        }
    }
    Ok(())
}
