//! The ClusterNetwork's status: pure.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use veer_crds::condition::Judgement;
use veer_crds::v1alpha1::{
    ClusterNetwork, ClusterNetworkStatus, PodCidrEntry, PodCidrState, PodCidrStatus,
};

use super::build::ClusterObjects;
use super::epoch::Plan;
use super::rollout::{self, LISTED};
use crate::controllers::node::allocate::capacity;
use crate::controllers::node::held::is_share;

/// How many names a message lists.
const NAMES: usize = 5;

/// Builds it.
pub(crate) fn build(
    network: &ClusterNetwork,
    seen: &ClusterObjects,
    plan: &Plan,
    problems: &[String],
    now: Timestamp,
) -> ClusterNetworkStatus {
    let generation = network.metadata.generation;
    let old = network.status.as_ref();
    let waited = old.map(|s| s.slowest.as_slice()).unwrap_or_default();
    let old = old.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let pod_cidrs: Vec<PodCidrStatus> = network
        .spec
        .pod_cidrs
        .iter()
        .map(|entry| block(entry, seen))
        .collect();
    let reports = [
        rollout::ready(plan, problems),
        rollout::progressing(network, plan),
        available(network, seen, &pod_cidrs),
        draining(network, seen, &pod_cidrs),
        degraded(plan, seen, problems),
    ];
    ClusterNetworkStatus {
        active_mode: Some(plan.active),
        target_mode: Some(plan.epoch.mode),
        phase: Some(plan.epoch.phase),
        epoch: Some(plan.epoch.clone()),
        nodes: plan.counts,
        progress: rollout::progress(plan),
        since: Some(Time(plan.since)),
        began: Some(Time(plan.began)),
        slowest: rollout::slowest(waited, plan, now),
        failed_nodes: plan.fell_back.iter().take(LISTED).cloned().collect(),
        excluded_nodes: plan.excluded.iter().take(LISTED).cloned().collect(),
        failed_pairs: plan.failed.clone(),
        failed_pair_count: i32::try_from(plan.failed_count).unwrap_or(i32::MAX),
        pod_cidrs,
        conditions: reports
            .into_iter()
            .map(|r| r.over(old, generation))
            .collect(),
        observed_generation: generation.unwrap_or_default(),
    }
}

/// The condition of an object that cannot be read.
pub(crate) fn unreadable(why: &str, generation: Option<i64>) -> Condition {
    let message = format!(
        "the spec cannot be read ({why}): correct that field; until then nodes keep what they have"
    );
    Judgement {
        type_: "Ready",
        status: false,
        reason: "Unreadable",
        message,
    }
    .over(&[], generation)
}

fn block(entry: &PodCidrEntry, seen: &ClusterObjects) -> PodCidrStatus {
    let claimed = seen
        .claims
        .iter()
        .filter(|c| entry.cidr.contains(&c.spec.cidr))
        .count();
    // A block that a node holds without a claim is in use all the same.
    let held = seen.networks.values().any(|network| {
        let mut held = network.status.iter().flat_map(|s| &s.held_pod_cidrs);
        held.any(|b| is_share(entry, b))
            || network
                .spec
                .pod_cidrs
                .iter()
                .any(|b| entry.cidr.contains(b))
    });
    let prefix = u8::try_from(entry.node_mask_size).unwrap_or(u8::MAX);
    PodCidrStatus {
        cidr: entry.cidr,
        capacity: capacity(&entry.cidr, prefix),
        claimed: i64::try_from(claimed).unwrap_or(i64::MAX),
        drained: entry.state == PodCidrState::Draining && claimed == 0 && !held,
    }
}

/// The first of these names.
pub(super) fn names(list: &[String]) -> String {
    let text = list
        .iter()
        .take(NAMES)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if list.len() > NAMES {
        format!("{text} and {} more", list.len() - NAMES)
    } else {
        text
    }
}

/// A condition to be reported.
pub(super) fn report(
    type_: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
) -> Judgement {
    Judgement {
        type_,
        status,
        reason,
        message,
    }
}

/// Which nodes keep a block from being drained, and what to do.
fn draining(
    network: &ClusterNetwork,
    seen: &ClusterObjects,
    blocks: &[PodCidrStatus],
) -> Judgement {
    let report = |status, reason, message| report("Draining", status, reason, message);
    let entries = network.spec.pod_cidrs.iter().zip(blocks);
    let open: Vec<&IpNet> = entries
        .filter(|(entry, block)| entry.state == PodCidrState::Draining && !block.drained)
        .map(|(entry, _)| &entry.cidr)
        .collect();
    if open.is_empty() {
        let message = "no block drains, or what drained is free".to_owned();
        return report(false, "NothingToDrain", message);
    }
    let in_use = |blocks: &[&IpNet]| {
        let claims = seen.claims.iter().map(|claim| &claim.spec);
        let mut nodes: Vec<String> = claims
            .filter(|claim| blocks.iter().any(|block| block.contains(&claim.cidr)))
            .map(|claim| claim.node_name.clone())
            .collect();
        nodes.sort();
        nodes.dedup();
        let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let (blocks, count, nodes) = (blocks.join(", "), nodes.len(), names(&nodes));
        format!("{blocks} is in use on {count} node(s): {nodes}")
    };
    let (given_up, open): (Vec<&IpNet>, Vec<&IpNet>) = open
        .into_iter()
        .partition(|block| network.spec.gives_up(block.addr().is_ipv4()));
    let mut messages = Vec::new();
    if !open.is_empty() {
        messages.push(format!(
            "{}; move their pods away (kubectl drain NODE, then kubectl uncordon NODE): a node \
             without pods takes a part of an Active block by itself, and one that is deleted gives \
             its part back after the quarantine",
            in_use(&open)
        ));
    }
    if !given_up.is_empty() {
        messages.push(format!(
            "{}; new pods get no address of it: recreate those that have one (kubectl rollout \
             restart), and each part is free with its last pod",
            in_use(&given_up)
        ));
    }
    report(true, "InUse", messages.join(". "))
}

fn available(
    network: &ClusterNetwork,
    seen: &ClusterObjects,
    blocks: &[PodCidrStatus],
) -> Judgement {
    let report = |status, reason, message| report("CIDRsAvailable", status, reason, message);
    if !seen.unheard.is_empty() {
        let message = format!(
            "no block is given out before the agents of these ready nodes have reported what they \
             hold: {}; see why their agents do not run",
            names(&seen.unheard)
        );
        return report(false, "WaitingForAgents", message);
    }
    let figures: Vec<String> = blocks
        .iter()
        .map(|b| format!("{} of {} of {}", b.claimed, b.capacity, b.cidr))
        .collect();
    let figures = figures.join(", ");
    let waiting: Vec<String> = seen
        .reports
        .iter()
        .filter(|(_, report)| {
            let mut conditions = report.status.conditions.iter();
            conditions.any(|c| c.type_ == "CIDRAllocated" && c.reason == "Exhausted")
        })
        .map(|(name, _)| name.clone())
        .collect();
    if !waiting.is_empty() {
        let message = format!(
            "{} node(s) wait for a block ({}): {figures} parts are claimed; add a block to \
             spec.podCIDRs, or delete Nodes that are gone for good",
            waiting.len(),
            names(&waiting)
        );
        return report(false, "Exhausted", message);
    }
    let room = |v4: bool| {
        let mut of = network.spec.pod_cidrs.iter().zip(blocks);
        let family = |e: &PodCidrEntry| e.cidr.addr().is_ipv4() == v4;
        let any = network.spec.pod_cidrs.iter().any(family);
        !any || of
            .any(|(e, b)| family(e) && e.state == PodCidrState::Active && b.claimed < b.capacity)
    };
    if room(true) && room(false) {
        report(true, "Room", format!("{figures} parts are claimed"))
    } else {
        let message = format!(
            "the next node will get no block: {figures} parts are claimed; add a block to \
             spec.podCIDRs"
        );
        report(false, "Full", message)
    }
}

fn degraded(plan: &Plan, seen: &ClusterObjects, problems: &[String]) -> Judgement {
    let report = |status, reason, message| report("Degraded", status, reason, message);
    if !problems.is_empty() {
        return report(true, "Invalid", problems.join("; "));
    }
    let down: Vec<String> = absent(seen);
    let mut faults = Vec::new();
    if !down.is_empty() {
        faults.push(format!(
            "not ready: {}; see their NodeReports and their agents' logs",
            names(&down)
        ));
    }
    faults.extend(rollout::failing(plan));
    if faults.is_empty() {
        let message = format!("{} node(s) are ready", plan.counts.ready);
        return report(false, "AllReady", message);
    }
    let reason = if down.is_empty() {
        "PairsFailed"
    } else {
        "NodesNotReady"
    };
    report(true, reason, faults.join("; "))
}

fn absent(seen: &ClusterObjects) -> Vec<String> {
    let absent = seen.nodes.iter().filter(|n| seen.absent(n).is_some());
    let mut names: Vec<String> = absent.map(|n| n.name().to_owned()).collect();
    names.sort();
    names
}
