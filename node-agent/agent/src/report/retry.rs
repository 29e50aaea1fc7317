//! When to try again what failed.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

/// A time between a shortest and a longest, another one each time: what many
/// agents do at once is not done by all at once again.
pub(crate) fn between((shortest, longest): (Duration, Duration)) -> Duration {
    let random = RandomState::new().hash_one(Instant::now());
    let share = u32::from(random.to_ne_bytes()[0]);
    shortest + longest.saturating_sub(shortest) * share / 255
}

/// How long to wait after an error when there were `failures` before it: what the
/// server asks for, else longer each time, from the first wait to the longest.
pub(crate) fn after(
    error: &kube::Error,
    failures: u32,
    (first, longest): (Duration, Duration),
) -> Duration {
    let whole = first.saturating_mul(1 << failures.min(16)).min(longest);
    let wait = between((whole / 2, whole));
    if let kube::Error::Api(status) = error
        && let Some(details) = &status.details
    {
        return wait.max(Duration::from_secs(details.retry_after_seconds.into()));
    }
    wait
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn waits_grow_up_to_a_bound_and_the_server_may_ask_for_more() {
        let bounds = (Duration::from_millis(500), Duration::from_secs(15));
        let plain = kube::Error::Api(Box::<Status>::default());
        for (failures, whole) in [(0, 500), (2, 2_000), (60, 15_000)] {
            let wait = after(&plain, failures, bounds).as_millis();
            assert!(
                (whole / 2..=whole).contains(&wait),
                "{wait} after {failures}"
            );
        }
        let busy = serde_json::json!({"code": 429, "details": {"retryAfterSeconds": 40}});
        let busy = kube::Error::Api(serde_json::from_value(busy).unwrap());
        assert_eq!(after(&busy, 0, bounds), Duration::from_secs(40));
    }
}
