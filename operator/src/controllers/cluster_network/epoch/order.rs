//! The order of each node: the step after its last, up to the cluster's.
//!
//! Only a ready node gets the order to switch, only once every ready node accepts
//! both forms, canaries before the others, and only a limited number at a time.

use veer_crds::v1alpha1::{Epoch, FailedPairs, Phase, RolloutPolicy};

use super::view::EpochProgress;
use super::{Member, next};

/// Which nodes may get the order to switch now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Nobody,
    Canaries,
    All,
}

/// The orders, in the members' order.
pub(super) fn orders(rollout: &RolloutPolicy, view: &EpochProgress<'_>) -> Vec<(String, Epoch)> {
    let gate = gate(rollout, view);
    let mut slots = match usize::try_from(rollout.max_concurrent) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(most) => most.saturating_sub(view.switching()),
    };
    let mut orders: Vec<(&Member, Epoch)> = Vec::new();
    let (canaries, others): (Vec<_>, Vec<_>) = view.members.iter().partition(|m| m.canary);
    for member in canaries.into_iter().chain(others) {
        orders.push((member, order(view, gate, &mut slots, member)));
    }
    orders.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let named = |(member, order): (&Member, Epoch)| (member.name.clone(), order);
    orders.into_iter().map(named).collect()
}

fn gate(rollout: &RolloutPolicy, view: &EpochProgress<'_>) -> Gate {
    if !view.all_ready_done(Phase::Prepare) {
        return Gate::Nobody;
    }
    // Late ones, after the others.
    if view.epoch.phase != Phase::Switch {
        return Gate::All;
    }
    let failing = |m: &Member| view.is_told(m, Phase::Switch) && view.fails(m);
    let stops = rollout.failed_pairs == FailedPairs::Stop && view.ready().any(failing);
    if rollout.paused || stops {
        return Gate::Nobody;
    }
    if rollout.canary.is_none() {
        return Gate::All;
    }
    let mut canaries = view.ready().filter(|m| m.canary).peekable();
    if canaries.peek().is_some() && canaries.all(|m| view.done(m, Phase::Switch)) {
        Gate::All
    } else {
        Gate::Canaries
    }
}

/// Whether nodes wait for the order to switch and no canary is ready to go first.
pub(super) fn lacks_canary(rollout: &RolloutPolicy, view: &EpochProgress<'_>) -> bool {
    view.epoch.phase == Phase::Switch
        && rollout.canary.is_some()
        && !view.ready().any(|m| m.canary)
        && view.ready().any(|m| !view.is_told(m, Phase::Switch))
}

fn order(view: &EpochProgress<'_>, gate: Gate, slots: &mut usize, member: &Member) -> Epoch {
    let told = view.told(member);
    let mut phase = step(view, member);
    let enters = phase == Phase::Switch && !view.is_told(member, Phase::Switch);
    if enters {
        let open = match gate {
            Gate::Nobody => false,
            Gate::Canaries => member.canary,
            Gate::All => true,
        };
        if !(open && member.ready() && take(slots)) {
            phase = Phase::Prepare;
        }
    }
    let attempt = match told.filter(|told| told.phase == phase) {
        None => view.epoch.attempt,
        Some(told) => {
            let again = view.may_try_again(member, phase);
            if again && (phase != Phase::Switch || take(slots)) {
                view.epoch.attempt
            } else {
                told.attempt
            }
        }
    };
    Epoch {
        phase,
        attempt,
        ..view.epoch.clone()
    }
}

fn take(slots: &mut usize) -> bool {
    let free = *slots > 0;
    *slots = slots.saturating_sub(1);
    free
}

/// Whether a node that has done no step of this change is in the state that a
/// finished change leads to: it is new and has no traffic to lose, or it is there by
/// an earlier number.
pub(super) fn arrived(applied: Option<&Epoch>, epoch: &Epoch) -> bool {
    epoch.phase == Phase::Ready
        && applied.is_none_or(|a| a.mode == epoch.mode && a.phase == Phase::Ready)
}

fn step(view: &EpochProgress<'_>, member: &Member) -> Phase {
    let phase = match view.last_done(member) {
        Some(done) => next(done),
        None if arrived(member.applied.as_ref(), view.epoch) => Phase::Ready,
        None => Phase::Preflight,
    };
    // Never back within a number: an agent may acknowledge late.
    let told = view.told(member).map_or(Phase::Preflight, |t| t.phase);
    phase.min(view.epoch.phase).max(told)
}
