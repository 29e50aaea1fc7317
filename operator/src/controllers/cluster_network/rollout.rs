//! The rollout in the status: pure. Nothing in it changes with time alone, so that a
//! reconciliation of an unchanged cluster writes nothing.

use k8s_openapi::jiff::Timestamp;
use veer_crds::condition::Judgement;
use veer_crds::v1alpha1::{ClusterNetwork, FailedPairs, NodeReason, Phase};

use super::epoch::{Awaited, Plan};
use super::status::{names, report};

/// How many nodes the status lists of each sort.
pub(super) const LISTED: usize = 16;

/// `2/3`: how many nodes have done the present phase.
pub(super) fn progress(plan: &Plan) -> String {
    format!("{}/{}", plan.done, plan.counts.total)
}

/// The nodes that the phase waits for, those with the oldest order first. `old` is
/// the current status: a node that is in it keeps its time.
pub(super) fn slowest(old: &[NodeReason], plan: &Plan, now: Timestamp) -> Vec<NodeReason> {
    let mut rows: Vec<(bool, String, NodeReason)> = plan
        .awaited
        .iter()
        .map(|awaited| {
            let what = situation(plan, awaited);
            let before = old.iter().filter(|o| o.node == awaited.node);
            let since = before
                .filter_map(|o| o.reason.rsplit_once(SINCE))
                .find_map(|(text, since)| (text == what).then(|| since.to_owned()))
                .unwrap_or_else(|| now.to_string());
            let row = NodeReason {
                node: awaited.node.clone(),
                reason: format!("{what}{SINCE}{since}"),
            };
            (awaited.owes.is_none(), since, row)
        })
        .collect();
    rows.sort_by(|a, b| (a.0, &a.1, &a.2.node).cmp(&(b.0, &b.1, &b.2.node)));
    rows.into_iter()
        .map(|(_, _, row)| row)
        .take(LISTED)
        .collect()
}

const SINCE: &str = ", since ";

fn situation(plan: &Plan, awaited: &Awaited) -> String {
    let number = plan.epoch.number;
    let done = awaited.done.map_or_else(
        || format!("nothing of epoch {number} acknowledged"),
        |done| format!("last acknowledged {done:?} of epoch {number}"),
    );
    match &awaited.owes {
        None => format!("not told {:?} yet, {done}", plan.epoch.phase),
        Some(told) if told.attempt == 0 => format!("told {:?}, {done}", told.phase),
        Some(told) => format!("told {:?} (attempt {}), {done}", told.phase, told.attempt),
    }
}

/// `2 of 6 pairs fail in Native, e.g. a → b: why`; none: no pair fails.
pub(super) fn failing(plan: &Plan) -> Option<String> {
    let first = plan.failed.first()?;
    Some(format!(
        "{} of {} pairs fail in {:?}, e.g. {} → {}: {}",
        plan.failed_count, plan.pairs, plan.epoch.mode, first.from, first.to, first.reason
    ))
}

/// What a user can do about pairs that stop a change.
pub(super) fn remedy(plan: &Plan) -> String {
    let keep = "mend it, set spec.rollout.failedPairs to Keep";
    if plan.active == plan.epoch.mode {
        return format!("{keep} to leave them as they are");
    }
    format!("{keep}, or set spec.routing.mode back to {:?}", plan.active)
}

/// The condition `Ready`.
pub(super) fn ready(plan: &Plan, problems: &[String]) -> Judgement {
    let report = |status, reason, message| report("Ready", status, reason, message);
    let mode = plan.epoch.mode;
    if let Some(problem) = problems.first() {
        return report(false, "Invalid", problem.clone());
    }
    if plan.epoch.phase != Phase::Ready {
        let message = format!("changing to {mode:?}, phase {:?}", plan.epoch.phase);
        return report(false, "Changing", message);
    }
    if !plan.awaited.is_empty() {
        let message = format!("not in force yet on {}", awaited(plan, |_| true));
        return report(false, "Awaiting", message);
    }
    let message = match failing(plan) {
        None => format!("{mode:?} is in force on every ready node"),
        Some(pairs) => format!(
            "{mode:?} is in force on every ready node, except that {pairs}; these pairs keep the \
             other form and are probed again"
        ),
    };
    report(true, "InForce", message)
}

/// The condition `Progressing`: what the change waits for, and what to do.
pub(super) fn progressing(network: &ClusterNetwork, plan: &Plan) -> Judgement {
    let report = |status, reason, message| report("Progressing", status, reason, message);
    let (phase, number) = (plan.epoch.phase, plan.epoch.number);
    let (policy, target) = (&network.spec.rollout, network.spec.routing.mode);
    let stage = format!("phase {phase:?} is done on {}", progress(plan));
    if policy.paused && plan.epoch.mode != target {
        let message = format!(
            "paused in phase {phase:?}, and the change to {target:?} has not begun: set \
             spec.rollout.paused to false to go on"
        );
        return report(false, "Paused", message);
    }
    if phase == Phase::Ready {
        return report(false, "Done", format!("epoch {number} is complete"));
    }
    if policy.paused {
        let message = format!("paused, {stage}: set spec.rollout.paused to false to go on");
        return report(false, "Paused", message);
    }
    let stops = policy.failed_pairs == FailedPairs::Stop;
    if let (true, Some(time), Some(pairs)) = (stops, plan.retry_at, failing(plan)) {
        let (reason, fell) = match plan.fell_back.first() {
            Some(node) => {
                let nodes: Vec<String> = plan.fell_back.iter().map(|n| n.node.clone()).collect();
                let text = format!("{} fell back, {}; ", names(&nodes), short(&node.reason));
                ("NodesFellBack", text)
            }
            None => ("PairsFailed", String::new()),
        };
        let message = format!(
            "phase {phase:?} goes no further: {fell}{pairs}; {}. They are tried again at {time}",
            remedy(plan)
        );
        return report(true, reason, message);
    }
    let told = awaited(plan, |a| a.owes.is_some());
    if plan.lacks_canary && told.is_empty() {
        let message = format!(
            "{stage}; it waits for a canary, and no ready node has the labels of \
             spec.rollout.canary: label one, bring it back, or remove the selector"
        );
        return report(true, "AwaitingCanary", message);
    }
    if !plan.awaited.is_empty() {
        let rest = plan.awaited.iter().filter(|a| a.owes.is_none()).count();
        let message = match (told.is_empty(), rest) {
            (false, 0) => format!("{stage}; awaits {told}"),
            (false, rest) => format!("{stage}; awaits {told}, then {rest} more"),
            (true, _) => format!("{stage}; awaits {}", awaited(plan, |_| true)),
        };
        return report(true, "AwaitingNodes", message);
    }
    if !plan.excluded.is_empty() {
        let absent: Vec<String> = plan.excluded.iter().map(|n| n.node.clone()).collect();
        let message = format!(
            "phase {phase:?} is complete on all ready nodes; the next awaits {}: bring them back, \
             or delete the Nodes that are gone for good",
            names(&absent)
        );
        return report(true, "NodesExcluded", message);
    }
    report(true, "Advancing", format!("{stage}; it is complete"))
}

fn awaited(plan: &Plan, keep: impl Fn(&Awaited) -> bool) -> String {
    let kept = plan.awaited.iter().filter(|a| keep(a));
    names(&kept.map(|a| a.node.clone()).collect::<Vec<_>>())
}

/// A reason without its details.
fn short(reason: &str) -> &str {
    let text = reason.split(':').next().unwrap_or(reason);
    text.strip_prefix("fell back ").unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use veer_crds::v1alpha1::{Epoch, RolloutPolicy, RoutingMode};

    use super::super::epoch::{Member, Wish, plan};
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    /// The plan in Preflight, for nodes of which these were told it.
    fn preflight(told: &[&str]) -> Plan {
        let epoch = Epoch {
            cluster_network_uid: "uid".into(),
            number: 2,
            mode: RoutingMode::Native,
            phase: Phase::Preflight,
            attempt: 0,
        };
        let member = |name: &str| Member {
            name: name.into(),
            told: told.contains(&name).then(|| epoch.clone()),
            ..Member::default()
        };
        let wish = Wish {
            uid: "uid",
            mode: RoutingMode::Native,
            rollout: &RolloutPolicy::default(),
            current: Some(&epoch),
            active: Some(RoutingMode::Tunnel),
            since: Some(at(0)),
            began: Some(at(0)),
        };
        plan(&wish, &["a", "b"].map(member), at(0))
    }

    #[test]
    fn who_is_awaited_keeps_the_time_since_when_and_comes_first() {
        let first = slowest(&[], &preflight(&["b"]), at(10));
        let said: Vec<_> = first
            .iter()
            .map(|n| (n.node.as_str(), n.reason.as_str()))
            .collect();
        let since = "nothing of epoch 2 acknowledged, since 1970-01-01T00:00:10Z";
        assert_eq!(
            said,
            [
                ("b", format!("told Preflight, {since}").as_str()),
                ("a", format!("not told Preflight yet, {since}").as_str()),
            ]
        );
        // Time alone changes nothing.
        assert_eq!(slowest(&first, &preflight(&["b"]), at(99)), first);
        let later = slowest(&first, &preflight(&["a", "b"]), at(99));
        assert_eq!(later[0], first[0]);
        assert!(later[1].reason.ends_with("since 1970-01-01T00:01:39Z"));
    }
}
