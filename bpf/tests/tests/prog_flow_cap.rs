//! How many entries of translated flows one pod may have, by
//! `BPF_PROG_TEST_RUN`: a pod beyond its share replaces only its own, and no established
//! one.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::net::Ipv4Addr;
use veer_bpf_common::{
    address::V6,
    outcome::{DropReason, Observation, Program, Verdict},
    tables::{FlowEntry, Share, Tuple},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath},
    family::Family,
    in_both_families,
    packet::{Packet, SYN},
    world::{self, *},
};

in_both_families! {
    a_pod_that_opens_very_many_flows_replaces_only_its_own_entries,
    a_client_on_another_node_uses_up_nothing_of_the_servers,
    a_pod_that_has_half_of_what_it_may_replaces_nothing,
    ten_thousand_established_connections_outlive_their_own_pods_flood,
    a_pod_with_established_connections_only_gets_no_more_until_they_are_idle,
    flows_that_ended_make_room_and_are_gone,
}

/// More flows than a pod may have entries.
const MANY: u16 = 40_000;

fn load() -> Result<Datapath> {
    world::load(&[
        Program::PodEgress,
        Program::PodIngress,
        Program::OverlayEgress,
    ])
}

/// Connection number `i` from `source` to `destination`.
fn connection(family: Family, i: u16, source: Ipv4Addr, destination: Ipv4Addr) -> Tuple {
    family.flow(6, (source, i), (destination, 80))
}

/// The stack delivers the first packets of these translated connections; how many of
/// them were dropped for want of a place.
fn opened(
    node: &mut Datapath,
    family: Family,
    program: Program,
    (source, destination): (Ipv4Addr, Ipv4Addr),
    which: std::ops::Range<u16>,
) -> Result<usize> {
    let mut dropped = 0;
    for i in which {
        let frame = Packet::tcp((source, i), (destination, 80), SYN).frame_of(family);
        let ran = node.run(program, &frame, Context::default())?;
        dropped += usize::from(ran.decision.outcome == DropReason::NoPlaceForFlow as u32);
    }
    Ok(dropped)
}

/// How many of the first `MANY` have an entry now.
fn recorded(
    node: &mut Datapath,
    family: Family,
    (source, destination): (Ipv4Addr, Ipv4Addr),
) -> Result<usize> {
    let mut count = 0;
    for i in 0..MANY {
        let tuple = connection(family, i, source, destination);
        count += usize::from(node.flow(&tuple)?.is_some());
    }
    Ok(count)
}

/// Makes those of A with B established that have an entry, until `firm_until`.
fn establish(
    node: &mut Datapath,
    family: Family,
    which: std::ops::Range<u16>,
    firm_until: u64,
) -> Result<usize> {
    let mut count = 0;
    for i in which {
        let tuple = connection(family, i, A, B);
        if node.flow(&tuple)?.is_some() {
            count += 1;
            node.set_flow(
                tuple,
                FlowEntry {
                    expires_at: firm_until + 4 * 24 * 3600 * SECOND,
                    firm_until,
                    state: FlowEntry::REPLIED | FlowEntry::CONFIRMED,
                    ..FlowEntry::default()
                },
            )?;
        }
    }
    Ok(count)
}

fn replaced(node: &mut Datapath, program: Program) -> Result<u64> {
    node.packets(program, Observation::FlowReplaced as u32)
}

/// The largest share of a pod.
const LARGEST: usize = Share::LARGEST as usize;

fn a_pod_that_opens_very_many_flows_replaces_only_its_own_entries(family: Family) -> Result<()> {
    let mut node = load()?;
    let others = 400;
    opened(&mut node, family, Program::OverlayEgress, (B, C), 0..others)?;
    opened(&mut node, family, Program::PodIngress, (D, B), 0..others)?;
    assert_eq!(replaced(&mut node, Program::PodIngress)?, 0);
    let dropped = opened(&mut node, family, Program::PodIngress, (A, B), 0..MANY)?;

    assert_eq!(dropped, 0);
    assert_eq!(recorded(&mut node, family, (B, C))?, usize::from(others));
    assert_eq!(recorded(&mut node, family, (D, B))?, usize::from(others));
    let own = recorded(&mut node, family, (A, B))?;
    assert!(
        (LARGEST * 9 / 10..=LARGEST).contains(&own),
        "{own} entries of one pod"
    );
    let counted = replaced(&mut node, Program::PodIngress)?;
    assert_eq!(counted, u64::from(MANY) - own as u64);
    // It goes on to work: what it opened last has an entry.
    let last = connection(family, MANY - 1, A, B);
    assert!(node.flow(&last)?.is_some());
    Ok(())
}

fn a_client_on_another_node_uses_up_nothing_of_the_servers(family: Family) -> Result<()> {
    let mut node = load()?;
    // By their addresses, of two shares.
    let client = Ipv4Addr::new(10, 0, 2, 21);
    let share = |address: Ipv4Addr| {
        let v6 = V6::from_octets(octets_v6(address));
        family.pick(Share::of_address(address.octets()), Share::of_address(v6))
    };
    assert_ne!(share(C), share(client));
    let own = 500;
    opened(&mut node, family, Program::OverlayEgress, (B, D), 0..own)?;
    opened(&mut node, family, Program::PodIngress, (client, B), 0..300)?;
    opened(&mut node, family, Program::PodIngress, (C, B), 0..MANY)?;

    assert_eq!(recorded(&mut node, family, (B, D))?, usize::from(own));
    assert_eq!(recorded(&mut node, family, (client, B))?, 300);
    assert!(recorded(&mut node, family, (C, B))? <= LARGEST);
    assert!(node.flow(&connection(family, MANY - 1, C, B))?.is_some());
    // The server opens flows of its own as before.
    opened(
        &mut node,
        family,
        Program::OverlayEgress,
        (B, D),
        own..2 * own,
    )?;
    assert_eq!(recorded(&mut node, family, (B, D))?, 2 * usize::from(own));
    assert_eq!(replaced(&mut node, Program::OverlayEgress)?, 0);
    Ok(())
}

fn a_pod_that_has_half_of_what_it_may_replaces_nothing(family: Family) -> Result<()> {
    let mut node = load()?;
    let half = u16::try_from(LARGEST / 2)?;
    let dropped = opened(&mut node, family, Program::PodIngress, (A, B), 0..half)?;
    let counted = replaced(&mut node, Program::PodIngress)?;
    assert_eq!(dropped, 0);
    assert!(counted <= u64::from(half) / 200, "{counted} of {half}");
    Ok(())
}

fn ten_thousand_established_connections_outlive_their_own_pods_flood(family: Family) -> Result<()> {
    const CONNECTIONS: u16 = 10_000;
    let mut node = load()?;
    let (pods, firm_until) = ((A, B), now()? + 3600 * SECOND);
    // Each is established soon after it was opened.
    for first in (0..CONNECTIONS).step_by(100) {
        let some = first..first + 100;
        let dropped = opened(&mut node, family, Program::PodIngress, pods, some.clone())?;
        assert_eq!(dropped, 0);
        establish(&mut node, family, some, firm_until)?;
    }
    let dropped = opened(
        &mut node,
        family,
        Program::PodIngress,
        pods,
        CONNECTIONS..u16::MAX,
    )?;
    // Of twenty places at least one is hardly ever another thing than established.
    assert!(dropped < 50, "{dropped} new flows were dropped");
    for i in 0..CONNECTIONS {
        let entry = node.flow(&connection(family, i, A, B))?;
        assert!(
            entry.is_some_and(|e| e.firm_until == firm_until),
            "connection {i}: {entry:?}"
        );
    }
    Ok(())
}

fn a_pod_with_established_connections_only_gets_no_more_until_they_are_idle(
    family: Family,
) -> Result<()> {
    let mut node = load()?;
    let pods = (A, B);
    opened(&mut node, family, Program::PodIngress, pods, 0..MANY)?;
    let all = establish(&mut node, family, 0..MANY, now()? + 3600 * SECOND)?;
    let new = MANY..MANY + 1_000;
    let dropped = opened(&mut node, family, Program::PodIngress, pods, new.clone())?;
    assert!(dropped > 700, "{dropped} of 1000 with {all} established");
    // Another pod has places of its own.
    let other = opened(&mut node, family, Program::OverlayEgress, (B, C), 0..100)?;
    assert_eq!(other, 0);
    // An hour without a packet later.
    establish(&mut node, family, 0..MANY, now()? - SECOND)?;
    let dropped = opened(&mut node, family, Program::PodIngress, pods, new)?;
    assert_eq!(dropped, 0);
    Ok(())
}

fn flows_that_ended_make_room_and_are_gone(family: Family) -> Result<()> {
    let mut node = load()?;
    opened(&mut node, family, Program::PodIngress, (A, B), 0..MANY)?;
    for i in 0..MANY {
        let tuple = connection(family, i, A, B);
        if let Some(entry) = node.flow(&tuple)? {
            node.set_flow(
                tuple,
                FlowEntry {
                    expires_at: 1,
                    ..entry
                },
            )?;
        }
    }
    let before = (
        node.flow_count()?,
        replaced(&mut node, Program::PodIngress)?,
    );
    // Others than before, so that each needs a place.
    for i in 0..1000 {
        let frame = Packet::tcp((A, i), (B, 81), SYN).frame_of(family);
        let ran = node.run(Program::PodIngress, &frame, Context::default())?;
        assert_eq!(ran.decision.outcome, Verdict::PassNoted as u32);
    }
    let after = (
        node.flow_count()?,
        replaced(&mut node, Program::PodIngress)?,
    );
    // Some took a place that nobody ever had.
    assert!(after.0 < before.0 + 100, "{after:?} after {before:?}");
    assert_eq!(after.1, before.1);
    let last = family.flow(6, (A, 999), (B, 81));
    let entry = node.flow(&last)?.context("the last one's entry")?;
    assert_eq!(entry.share(), Share::of_pod(1).number());
    Ok(())
}
