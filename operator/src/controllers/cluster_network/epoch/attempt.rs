//! When pairs that fail are tried again.
//!
//! The attempt counts up within a change and is never reset, so that a late report
//! differs from a new one. Times come from the status: an operator that was away, or
//! another one with another clock, at worst tries once early.

use k8s_openapi::jiff::Timestamp;
use veer_crds::v1alpha1::{Phase, RolloutPolicy};

use super::view::EpochProgress;

/// The first wait, in seconds; it doubles with every attempt.
const FIRST: i64 = 15;
/// The longest.
const LONGEST: i64 = 300;

/// When the next attempt is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing fails, or the current attempt has no result yet.
    None,
    /// Then.
    At(Timestamp),
    /// Now.
    Now,
}

/// Computes it. `since` is when the phase or the attempt began.
pub(super) fn next(
    rollout: &RolloutPolicy,
    view: &EpochProgress<'_>,
    since: Timestamp,
    now: Timestamp,
) -> Next {
    let phase = view.epoch.phase;
    let confirm = match phase {
        Phase::Preflight => 0,
        // A switched pair may need all of this time before it falls back.
        Phase::Switch => i64::from(rollout.confirm_timeout_seconds),
        Phase::Prepare | Phase::Finalize | Phase::Ready => return Next::None,
    };
    let asked = || view.ready().filter(|m| view.is_told(m, phase));
    let answered = match phase {
        Phase::Preflight => view.all_ready_done(phase),
        Phase::Prepare | Phase::Switch | Phase::Finalize | Phase::Ready => {
            asked().all(|m| view.done(m, phase))
        }
    };
    let fails = asked().any(|m| view.fails(m));
    if !answered || !fails || asked().any(|m| view.may_try_again(m, phase)) {
        return Next::None;
    }
    let due = since.as_second() + wait(view.epoch.attempt) + confirm;
    // A time in the future comes from another clock.
    if now >= since && now.as_second() < due {
        Next::At(Timestamp::from_second(due).unwrap_or(now))
    } else {
        Next::Now
    }
}

/// Seconds from an attempt to the next.
fn wait(attempt: i32) -> i64 {
    let doublings = attempt.clamp(0, 8);
    (FIRST << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_wait_doubles_up_to_five_minutes() {
        let waits: Vec<i64> = (0..7).map(super::wait).collect();
        assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300]);
        assert_eq!(super::wait(i32::MAX), 300);
    }
}
