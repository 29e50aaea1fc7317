//! How many entries of translated flows one pod may have, by
//! `BPF_PROG_TEST_RUN`: a pod beyond its share replaces only its own.

#![forbid(unsafe_code)]
#![allow(
    clippy::similar_names,
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::Result;
use std::net::Ipv4Addr;
use veer_bpf_common::{
    address::V6,
    outcome::{Observation, Program, Verdict},
    tables::{FlowEntry, FlowKey, FlowSlots},
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
    a_pod_that_has_half_of_what_it_may_gives_up_next_to_nothing,
    an_answered_connection_outlives_its_own_pods_queries,
    notes_that_ended_make_room_and_are_gone,
}

/// Several times as many flows as a pod may have entries.
const MANY: u16 = 20_000;

fn load() -> Result<Datapath> {
    world::load(&[
        Program::PodEgress,
        Program::PodIngress,
        Program::OverlayEgress,
    ])
}

/// The key of query number `i` from `source` to `destination`.
fn query(family: Family, i: u16, source: Ipv4Addr, destination: Ipv4Addr) -> FlowKey {
    family.flow(17, (source, i), (destination, 53))
}

/// The stack delivers that many translated queries.
fn queries(
    node: &mut Datapath,
    family: Family,
    program: Program,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    count: u16,
) -> Result<()> {
    for i in 0..count {
        let frame = Packet::udp((source, i), (destination, 53)).frame_of(family);
        node.run(program, &frame, Context::default())?;
    }
    Ok(())
}

/// How many of those have an entry now.
fn recorded(
    node: &mut Datapath,
    family: Family,
    source: Ipv4Addr,
    destination: Ipv4Addr,
) -> Result<usize> {
    let mut count = 0;
    for i in 0..MANY {
        count += usize::from(node.flow(&query(family, i, source, destination))?.is_some());
    }
    Ok(count)
}

fn given_up(node: &mut Datapath, program: Program) -> Result<u64> {
    node.packets(program, Observation::NoteGivenUp as u32)
}

fn a_pod_that_opens_very_many_flows_replaces_only_its_own_entries(family: Family) -> Result<()> {
    let mut node = load()?;
    let others = 400;
    queries(&mut node, family, Program::OverlayEgress, B, C, others)?;
    queries(&mut node, family, Program::PodIngress, C, B, others)?;
    assert_eq!(given_up(&mut node, Program::PodIngress)?, 0);
    queries(&mut node, family, Program::PodIngress, A, B, MANY)?;

    assert_eq!(recorded(&mut node, family, B, C)?, usize::from(others));
    assert_eq!(recorded(&mut node, family, C, B)?, usize::from(others));
    let own = recorded(&mut node, family, A, B)?;
    assert!(
        (FlowSlots::PER_ENDPOINT * 9 / 10..=FlowSlots::PER_ENDPOINT).contains(&own),
        "{own} entries of one pod"
    );
    let counted = given_up(&mut node, Program::PodIngress)?;
    assert_eq!(counted, u64::from(MANY) - own as u64);
    // It goes on to work: what it opened last has an entry.
    assert!(node.flow(&query(family, MANY - 1, A, B))?.is_some());
    Ok(())
}

fn a_client_on_another_node_uses_up_nothing_of_the_servers(family: Family) -> Result<()> {
    let mut node = load()?;
    // By their addresses, of two shares.
    let client = Ipv4Addr::new(10, 0, 2, 21);
    let share = |address: Ipv4Addr| {
        let v6 = V6::from_octets(octets_v6(address));
        family.pick(
            FlowSlots::foreign_share(address.octets()),
            FlowSlots::foreign_share(v6),
        )
    };
    assert_ne!(share(C), share(client));
    let own = 500;
    // Not more: where the kernel is emulated, entries would expire meanwhile.
    let many = 4 * u16::try_from(FlowSlots::PER_FOREIGN_SHARE)?;
    queries(&mut node, family, Program::OverlayEgress, B, D, own)?;
    queries(&mut node, family, Program::PodIngress, client, B, 300)?;
    queries(&mut node, family, Program::PodIngress, C, B, many)?;

    assert_eq!(recorded(&mut node, family, B, D)?, usize::from(own));
    assert_eq!(recorded(&mut node, family, client, B)?, 300);
    let stranger = recorded(&mut node, family, C, B)?;
    assert!(
        (FlowSlots::PER_FOREIGN_SHARE * 9 / 10..=FlowSlots::PER_FOREIGN_SHARE).contains(&stranger),
        "{stranger} entries of one client"
    );
    assert!(node.flow(&query(family, many - 1, C, B))?.is_some());
    // The server opens flows of its own as before.
    for i in own..2 * own {
        let frame = Packet::udp((B, i), (D, 53)).frame_of(family);
        node.run(Program::OverlayEgress, &frame, Context::default())?;
    }
    assert_eq!(recorded(&mut node, family, B, D)?, 2 * usize::from(own));
    assert_eq!(given_up(&mut node, Program::OverlayEgress)?, 0);
    Ok(())
}

fn a_pod_that_has_half_of_what_it_may_gives_up_next_to_nothing(family: Family) -> Result<()> {
    let mut node = load()?;
    let half = u16::try_from(FlowSlots::PER_ENDPOINT / 2)?;
    queries(&mut node, family, Program::PodIngress, A, B, half)?;
    let counted = given_up(&mut node, Program::PodIngress)?;
    assert!(counted <= u64::from(half) / 200, "{counted} of {half}");
    Ok(())
}

fn an_answered_connection_outlives_its_own_pods_queries(family: Family) -> Result<()> {
    let mut node = load()?;
    let connections = 0..50u16;
    for port in connections.clone() {
        let there = Packet::tcp((A, port), (B, 80), SYN).frame_of(family);
        node.run(Program::PodIngress, &there, Context::default())?;
        // As once the reply has come.
        let key = family.flow(6, (A, port), (B, 80));
        let five_days = 5 * 24 * 3600 * 1_000_000_000;
        let answered = FlowEntry {
            expires_at: now()? + five_days,
            state: FlowEntry::REPLIED,
            ..FlowEntry::default()
        };
        assert!(node.flow(&key)?.is_some(), "port {port}");
        node.set_flow(key, answered)?;
    }
    queries(&mut node, family, Program::PodIngress, A, B, MANY)?;
    for port in connections {
        let entry = node.flow(&family.flow(6, (A, port), (B, 80)))?;
        assert!(entry.is_some(), "port {port}");
    }
    Ok(())
}

fn notes_that_ended_make_room_and_are_gone(family: Family) -> Result<()> {
    let mut node = load()?;
    queries(&mut node, family, Program::PodIngress, A, B, MANY)?;
    let ended = FlowEntry {
        expires_at: 1,
        ..FlowEntry::default()
    };
    for i in 0..MANY {
        let key = query(family, i, A, B);
        if node.flow(&key)?.is_some() {
            node.set_flow(key, ended)?;
        }
    }
    let before = (
        node.flow_count()?,
        given_up(&mut node, Program::PodIngress)?,
    );
    // Others than before, so that each needs a place.
    for i in 0..1000 {
        let frame = Packet::udp((A, i), (B, 54)).frame_of(family);
        let ran = node.run(Program::PodIngress, &frame, Context::default())?;
        assert_eq!(ran.decision.outcome, Verdict::PassNoted as u32);
    }
    let after = (
        node.flow_count()?,
        given_up(&mut node, Program::PodIngress)?,
    );
    assert!(after.0 <= before.0, "{after:?} after {before:?}");
    assert_eq!(after.1, before.1);
    Ok(())
}
