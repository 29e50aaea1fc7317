//! How many entries of flows to Services one pod may have, by `BPF_PROG_TEST_RUN`: a flow
//! has two, and neither is ever there without the other.

#![forbid(unsafe_code)]
#![allow(
    clippy::wildcard_imports,
    reason = "tables speak of the world by its names"
)]

use anyhow::{Context as _, Result};
use std::{net::Ipv4Addr, ops::Range};
use veer_bpf_common::{
    outcome::{Observation, Program, Verdict},
    tables::{FlowEntry, Share, Tuple},
};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::Datapath,
    family::Family,
    in_both_families,
    packet::{ACK, SYN},
    services::{BACKEND_PORT, VIP, VIP_PORT, egress, packet, serve},
    world::{self, *},
};

in_both_families! {
    a_pod_that_opens_very_many_flows_to_a_service_replaces_only_its_own,
    established_connections_to_a_service_outlive_their_own_pods_flood,
    a_pair_whose_places_were_taken_begins_anew,
}

/// More flows than a pod may have entries.
const MANY: Range<u16> = 10_000..45_000;

/// The largest share of a pod.
const LARGEST: usize = Share::LARGEST as usize;

fn load(family: Family, backend: Ipv4Addr) -> Result<Datapath> {
    let mut node = world::load(&[Program::PodEgress])?;
    serve(&mut node, family, 1, &[backend])?;
    Ok(node)
}

/// The entries' tuples of a pod's flow from this port.
fn tuples(family: Family, protocol: u8, from: (Ipv4Addr, u16), backend: Ipv4Addr) -> [Tuple; 2] {
    [(VIP, VIP_PORT), (backend, BACKEND_PORT)].map(|to| family.flow(protocol, from, to))
}

/// The pod sends one packet to the frontend from each of these ports; how many were not
/// translated, for want of a place.
fn send(
    node: &mut Datapath,
    family: Family,
    pod: Ipv4Addr,
    (protocol, flags): (u8, u8),
    ports: impl IntoIterator<Item = u16>,
) -> Result<usize> {
    let macs = if pod == B {
        (B_MAC, B_NODE_MAC)
    } else {
        (A_MAC, A_NODE_MAC)
    };
    node.set_sender(pod)?;
    let mut left = 0;
    for port in ports {
        let asked = packet(protocol, (pod, port), (VIP, VIP_PORT), flags).macs(macs.0, macs.1);
        let ran = egress(node, family, &asked)?;
        let outcome = ran.decision.outcome;
        let is_sent = outcome == Verdict::Deliver as u32 || outcome == Verdict::Overlay as u32;
        left += usize::from(!is_sent);
    }
    Ok(left)
}

/// How many entries are of this share.
fn entries_of(node: &mut Datapath, share: Share) -> Result<usize> {
    let flows = node.flows()?;
    let own = flows.iter().filter(|(_, e)| e.share() == share.number());
    Ok(own.count())
}

fn replaced(node: &mut Datapath) -> Result<u64> {
    node.packets(Program::PodEgress, Observation::FlowReplaced as u32)
}

fn a_pod_that_opens_very_many_flows_to_a_service_replaces_only_its_own(
    family: Family,
) -> Result<()> {
    let mut node = load(family, C)?;
    let others = 1000_u16..1400;
    let left = send(&mut node, family, B, (UDP, 0), others.clone())?;
    assert_eq!((left, replaced(&mut node)?), (0, 0));

    // 10,000 flows fit.
    let some = MANY.start..MANY.start + 10_000;
    assert_eq!(send(&mut node, family, A, (UDP, 0), some)?, 0);
    node.check_partners()?;
    let own = entries_of(&mut node, Share::of_pod(1))?;
    assert!((19_000..=20_000).contains(&own), "{own} entries of A");

    assert_eq!(send(&mut node, family, A, (UDP, 0), MANY)?, 0);
    node.check_partners()?;
    let own = entries_of(&mut node, Share::of_pod(1))?;
    assert!(
        (LARGEST / 2..=LARGEST).contains(&own),
        "{own} entries of one pod"
    );
    assert!(replaced(&mut node)? > 0);
    for port in others {
        let [front, back] = tuples(family, UDP, (B, port), C);
        node.pair(&front, &back)
            .with_context(|| format!("port {port} of B"))?;
    }
    // It goes on to work: what it opened last has its entries.
    let [front, back] = tuples(family, UDP, (A, MANY.end - 1), C);
    node.pair(&front, &back)?;
    Ok(())
}

fn established_connections_to_a_service_outlive_their_own_pods_flood(family: Family) -> Result<()> {
    let mut node = load(family, B)?;
    let ports = 1000_u16..2000;
    assert_eq!(send(&mut node, family, A, (TCP, SYN), ports.clone())?, 0);
    node.set_sender(B)?;
    for port in ports.clone() {
        let answer = packet(TCP, (B, BACKEND_PORT), (A, port), SYN | ACK);
        egress(&mut node, family, &answer.macs(B_MAC, B_NODE_MAC))?;
    }
    assert_eq!(send(&mut node, family, A, (TCP, ACK), ports.clone())?, 0);
    let left = send(&mut node, family, A, (UDP, 0), MANY)?;
    assert!(left < 50, "{left} new flows were not translated");
    for port in ports {
        let [front, back] = tuples(family, TCP, (A, port), B);
        let (one, other) = node
            .pair(&front, &back)
            .with_context(|| format!("connection from port {port}"))?;
        for entry in [one, other] {
            assert!(entry.state & FlowEntry::CONFIRMED != 0, "{entry:?}");
        }
    }
    node.check_partners()
}

/// What was replaced is found by neither end, and its next datagram makes two entries again.
fn a_pair_whose_places_were_taken_begins_anew(family: Family) -> Result<()> {
    let mut node = load(family, C)?;
    send(&mut node, family, A, (UDP, 0), MANY)?;
    let mut gone = Vec::new();
    for port in MANY {
        let [front, back] = tuples(family, UDP, (A, port), C);
        let (one, other) = (node.flow(&front)?, node.flow(&back)?);
        assert_eq!(one.is_some(), other.is_some(), "port {port}");
        if one.is_none() {
            gone.push(port);
        }
    }
    assert!(gone.len() > 1000, "{} were replaced", gone.len());
    for port in gone.into_iter().take(100) {
        assert_eq!(send(&mut node, family, A, (UDP, 0), [port])?, 0);
        let [front, back] = tuples(family, UDP, (A, port), C);
        node.pair(&front, &back)
            .with_context(|| format!("port {port}"))?;
    }
    node.check_partners()
}
