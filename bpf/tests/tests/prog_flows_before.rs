//! Flows that programs of layout 4 recorded while an upgrade replaced them, by
//! `BPF_PROG_TEST_RUN`.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use veer_bpf_common::{
    outcome::{Program, Verdict},
    tables::{FlowBefore, FlowsBefore},
};
use veer_bpf_tests::{
    family::Family,
    in_both_families,
    packet::{ACK, Packet, SYN},
    world::{self, *},
};

in_both_families! {
    a_direct_connection_forgets_what_programs_of_layout_4_recorded,
    a_flow_that_programs_of_layout_4_recorded_meanwhile_is_answered,
}

fn a_flow_that_programs_of_layout_4_recorded_meanwhile_is_answered(family: Family) -> Result<()> {
    let now = now()?;
    // The takeover was a second ago, or is long over.
    let (recent, over) = (now + FlowsBefore::FOR - SECOND, now - 1);
    for (what, until, left, expected) in [
        ("live", recent, 60, Verdict::ToStackNoted),
        ("expired", recent, 0, Verdict::Deliver),
        ("a day ago", over, 60, Verdict::Deliver),
        ("no upgrade", 0, 60, Verdict::Deliver),
    ] {
        let mut node = world::upgrading(until, &[Program::PodEgress, Program::PodIngress])?;
        let entry = FlowBefore {
            expires_at: now + left * SECOND,
            state: 0,
            began: 0,
        };
        for (key, packet) in [
            (family.flow(17, (B, 2222), (A, 1111)), a_to(B)),
            (
                family.flow(1, (B, 99), (A, 99)),
                from_a(Packet::echo(B, A, 99).reply()),
            ),
        ] {
            node.set_flow_before(key, entry)?;
            let got = outcome(&mut node, family, Program::PodEgress, &packet, 0)?;
            assert_eq!(name(got), name(expected as u32), "{what}");
        }
        // Its opener's next packet gives it an entry of this layout.
        let packet = Packet::udp((B, 2222), (A, 1111));
        outcome(&mut node, family, Program::PodIngress, &packet, 0)?;
        let got = outcome(&mut node, family, Program::PodEgress, &a_to(B), 0)?;
        assert_eq!(name(got), name(Verdict::ToStackNoted as u32), "{what}");
    }
    Ok(())
}

fn a_direct_connection_forgets_what_programs_of_layout_4_recorded(family: Family) -> Result<()> {
    let until = now()? + FlowsBefore::FOR - SECOND;
    let mut node = world::upgrading(until, &[Program::PodEgress])?;
    let key = family.flow(6, (B, 2), (A, 1));
    // A connection lasts there, although nobody refreshes it.
    let entry = FlowBefore {
        expires_at: 1,
        ..FlowBefore::default()
    };
    let answer = from_a(Packet::tcp((A, 1), (B, 2), ACK));
    node.set_flow_before(key, entry)?;
    let got = outcome(&mut node, family, Program::PodEgress, &answer, 0)?;
    assert_eq!(name(got), name(Verdict::ToStackNoted as u32));
    // With an entry of this layout beside it.
    let own = family.flow(6, (A, 1), (B, 2));
    node.set_flow_before(own, entry)?;
    live(&mut node, own)?;
    let syn = from_a(Packet::tcp((A, 1), (B, 2), SYN));
    let got = outcome(&mut node, family, Program::PodEgress, &syn, 0)?;
    assert_eq!(name(got), name(Verdict::Deliver as u32));
    assert!(node.flow(&own)?.is_none() && !node.has_flow_before(own)?);
    Ok(())
}
