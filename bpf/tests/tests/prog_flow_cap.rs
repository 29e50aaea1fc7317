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
    outcome::{Observation, Program, Verdict},
    tables::{FlowEntry, FlowKey, FlowSlots},
};
use veer_bpf_tests::{
    datapath::{Context, Datapath, flow_key},
    packet::{Packet, SYN},
    world::{self, *},
};

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
fn query(i: u16, source: Ipv4Addr, destination: Ipv4Addr) -> FlowKey {
    flow_key(17, (source, i), (destination, 53))
}

/// The stack delivers that many translated queries.
fn queries(
    node: &mut Datapath,
    program: Program,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    count: u16,
) -> Result<()> {
    for i in 0..count {
        let frame = Packet::udp((source, i), (destination, 53)).frame();
        node.run(program, &frame, Context::default())?;
    }
    Ok(())
}

/// How many of those have an entry now.
fn recorded(node: &mut Datapath, source: Ipv4Addr, destination: Ipv4Addr) -> Result<usize> {
    let mut count = 0;
    for i in 0..MANY {
        count += usize::from(node.flow(&query(i, source, destination))?.is_some());
    }
    Ok(count)
}

fn given_up(node: &mut Datapath, program: Program) -> Result<u64> {
    node.packets(program, Observation::NoteGivenUp as u32)
}

#[test]
fn a_pod_that_opens_very_many_flows_replaces_only_its_own_entries() -> Result<()> {
    let mut node = load()?;
    let others = 400;
    queries(&mut node, Program::OverlayEgress, B, C, others)?;
    queries(&mut node, Program::PodIngress, C, B, others)?;
    assert_eq!(given_up(&mut node, Program::PodIngress)?, 0);
    queries(&mut node, Program::PodIngress, A, B, MANY)?;

    assert_eq!(recorded(&mut node, B, C)?, usize::from(others));
    assert_eq!(recorded(&mut node, C, B)?, usize::from(others));
    let own = recorded(&mut node, A, B)?;
    assert!(
        (FlowSlots::PER_ENDPOINT * 9 / 10..=FlowSlots::PER_ENDPOINT).contains(&own),
        "{own} entries of one pod"
    );
    let counted = given_up(&mut node, Program::PodIngress)?;
    assert_eq!(counted, u64::from(MANY) - own as u64);
    // It goes on to work: what it opened last has an entry.
    assert!(node.flow(&query(MANY - 1, A, B))?.is_some());
    Ok(())
}

#[test]
fn a_client_on_another_node_uses_up_nothing_of_the_servers() -> Result<()> {
    let mut node = load()?;
    // By their addresses, of two shares.
    let client = Ipv4Addr::new(10, 0, 2, 21);
    assert_ne!(
        FlowSlots::foreign_share(C.octets()),
        FlowSlots::foreign_share(client.octets())
    );
    let own = 500;
    // Not more: where the kernel is emulated, entries would expire meanwhile.
    let many = 4 * u16::try_from(FlowSlots::PER_FOREIGN_SHARE)?;
    queries(&mut node, Program::OverlayEgress, B, D, own)?;
    queries(&mut node, Program::PodIngress, client, B, 300)?;
    queries(&mut node, Program::PodIngress, C, B, many)?;

    assert_eq!(recorded(&mut node, B, D)?, usize::from(own));
    assert_eq!(recorded(&mut node, client, B)?, 300);
    let stranger = recorded(&mut node, C, B)?;
    assert!(
        (FlowSlots::PER_FOREIGN_SHARE * 9 / 10..=FlowSlots::PER_FOREIGN_SHARE).contains(&stranger),
        "{stranger} entries of one client"
    );
    assert!(node.flow(&query(many - 1, C, B))?.is_some());
    // The server opens flows of its own as before.
    for i in own..2 * own {
        let frame = Packet::udp((B, i), (D, 53)).frame();
        node.run(Program::OverlayEgress, &frame, Context::default())?;
    }
    assert_eq!(recorded(&mut node, B, D)?, 2 * usize::from(own));
    assert_eq!(given_up(&mut node, Program::OverlayEgress)?, 0);
    Ok(())
}

#[test]
fn a_pod_that_has_half_of_what_it_may_gives_up_next_to_nothing() -> Result<()> {
    let mut node = load()?;
    let half = u16::try_from(FlowSlots::PER_ENDPOINT / 2)?;
    queries(&mut node, Program::PodIngress, A, B, half)?;
    let counted = given_up(&mut node, Program::PodIngress)?;
    assert!(counted <= u64::from(half) / 200, "{counted} of {half}");
    Ok(())
}

#[test]
fn an_answered_connection_outlives_its_own_pods_queries() -> Result<()> {
    let mut node = load()?;
    let connections = 0..50u16;
    for port in connections.clone() {
        let there = Packet::tcp((A, port), (B, 80), SYN).frame();
        node.run(Program::PodIngress, &there, Context::default())?;
        // As once the reply has come.
        let key = flow_key(6, (A, port), (B, 80));
        let five_days = 5 * 24 * 3600 * 1_000_000_000;
        let answered = FlowEntry {
            expires_at: now()? + five_days,
            state: FlowEntry::REPLIED,
            ..FlowEntry::default()
        };
        assert!(node.flow(&key)?.is_some(), "port {port}");
        node.set_flow(key, answered)?;
    }
    queries(&mut node, Program::PodIngress, A, B, MANY)?;
    for port in connections {
        let entry = node.flow(&flow_key(6, (A, port), (B, 80)))?;
        assert!(entry.is_some(), "port {port}");
    }
    Ok(())
}

#[test]
fn notes_that_ended_make_room_and_are_gone() -> Result<()> {
    let mut node = load()?;
    queries(&mut node, Program::PodIngress, A, B, MANY)?;
    let ended = FlowEntry {
        expires_at: 1,
        ..FlowEntry::default()
    };
    for i in 0..MANY {
        let key = query(i, A, B);
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
        let frame = Packet::udp((A, i), (B, 54)).frame();
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
