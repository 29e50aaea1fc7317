//! Whether a program's main loop is alive, for its `/healthz`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long one iteration of a loop may take before the program counts as stuck.
/// Loops iterate every few seconds; the longest legitimate iteration, on a busy
/// machine with the largest maps, takes some tens of seconds.
pub const STUCK: Duration = Duration::from_mins(3);

/// When a loop last finished an iteration.
#[derive(Debug)]
pub struct Pulse {
    /// What `last` counts from. The clock stands still while the machine sleeps.
    born: Instant,
    /// Milliseconds from `born` to the last beat.
    last: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            born: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Pulse {
    /// The loop went round.
    pub fn beat(&self) {
        self.beat_after(self.born.elapsed());
    }

    fn beat_after(&self, age: Duration) {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.last.store(age, Ordering::Relaxed);
    }

    /// What `/healthz` answers: nothing is wrong, or the text of the failure.
    ///
    /// # Errors
    ///
    /// The loop, which `name` names, has been stuck for [`STUCK`].
    pub fn check(&self, name: &str) -> Result<(), String> {
        self.check_after(self.born.elapsed(), name)
    }

    fn check_after(&self, age: Duration, name: &str) -> Result<(), String> {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        let silence = age.saturating_sub(last);
        if silence < STUCK {
            return Ok(());
        }
        Err(format!(
            "{name} has not finished a round for {} s; the kubelet restarts what is stuck",
            silence.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_that_is_stuck_is_unhealthy_and_a_slow_one_is_not() {
        let pulse = Pulse::default();
        assert_eq!(pulse.check_after(STUCK / 2, "the loop"), Ok(()));
        let text = pulse.check_after(STUCK * 2, "the loop").unwrap_err();
        assert!(
            text.contains("the loop") && text.contains("360 s"),
            "{text}"
        );
    }

    #[test]
    fn loop_that_goes_on_is_healthy_again() {
        let pulse = Pulse::default();
        pulse.beat_after(STUCK * 2);
        assert_eq!(pulse.check_after(STUCK * 5 / 2, "the loop"), Ok(()));
        assert!(pulse.check_after(STUCK * 3, "the loop").is_err());
    }
}
