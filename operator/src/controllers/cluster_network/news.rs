//! The events of a change: pure. They come from the difference between the previous
//! and the new status, so none is repeated.

use kube_runtime::events::EventType;
use veer_crds::v1alpha1::{ClusterNetworkStatus, Phase};

use super::epoch::Plan;
use super::rollout::{failing, remedy};

/// An event to be published.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct News {
    /// Normal or Warning.
    pub(super) type_: EventType,
    /// A fixed word.
    pub(super) reason: &'static str,
    /// A sentence.
    pub(super) note: String,
}

/// The events of a step from one status to the next.
pub(super) fn news(
    old: &ClusterNetworkStatus,
    new: &ClusterNetworkStatus,
    plan: &Plan,
) -> Vec<News> {
    let mut all = Vec::new();
    let Some(before) = &old.epoch else {
        return all;
    };
    let now = &plan.epoch;
    let (mode, number) = (now.mode, now.number);
    let mut tell = |type_, reason, note| {
        all.push(News {
            type_,
            reason,
            note,
        });
    };
    if before.number != number {
        let from = plan.active;
        let note = if from == mode {
            format!("changing to {mode:?} (epoch {number})")
        } else {
            format!("changing from {from:?} to {mode:?} (epoch {number})")
        };
        tell(EventType::Normal, "RoutingModeChanging", note);
    } else if before.phase != now.phase {
        let (done, count) = (before.phase, new.nodes.ready);
        let seconds = plan.since.as_second() - plan.began.as_second();
        let note = format!(
            "epoch {number}: phase {done:?} is done on {count} ready node(s), {seconds} s after \
             the change began"
        );
        tell(EventType::Normal, "RolloutPhaseDone", note);
        if let (Phase::Preflight, Some(pairs)) = (done, failing(plan)) {
            let note = format!("{pairs}; by spec.rollout.failedPairs they keep the other form");
            tell(EventType::Warning, "PairsFailed", note);
        }
        if now.phase == Phase::Ready {
            let note = format!("traffic moves by {mode:?} (epoch {number}), after {seconds} s");
            tell(EventType::Normal, "RoutingModeChanged", note);
        }
    }
    let stopped = ["PairsFailed", "NodesFellBack"];
    if let Some(pairs) = failing(plan).filter(|_| stopped.contains(&progressing(new))) {
        let note = format!("{pairs}; {}", remedy(plan));
        if !stopped.contains(&progressing(old)) {
            tell(EventType::Warning, "PairsFailed", note);
        }
    }
    let mut fell = new.failed_nodes.iter().filter(|node| {
        before.attempt != now.attempt || !old.failed_nodes.iter().any(|o| o.node == node.node)
    });
    if let Some(first) = fell.next() {
        let rest = match fell.count() {
            0 => String::new(),
            count => format!(" (and {count} more nodes fell back)"),
        };
        let note = format!(
            "epoch {number}, attempt {}: {} {}{rest}",
            now.attempt, first.node, first.reason
        );
        tell(EventType::Warning, "NodeFellBack", note);
    }
    match (progressing(old) == "Paused", progressing(new) == "Paused") {
        (false, true) => {
            let note = format!(
                "the change stays in phase {:?} of epoch {number}",
                now.phase
            );
            tell(EventType::Normal, "RolloutPaused", note);
        }
        (true, false) => {
            let note = format!(
                "the change goes on in phase {:?} of epoch {number}",
                now.phase
            );
            tell(EventType::Normal, "RolloutResumed", note);
        }
        (false, false) | (true, true) => {}
    }
    all
}

fn progressing(status: &ClusterNetworkStatus) -> &str {
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|c| c.type_ == "Progressing");
    found.map_or("", |c| c.reason.as_str())
}
