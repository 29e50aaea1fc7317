//! Whether packets come in a flood that XDP would end earlier: when one begins,
//! when it is over. A pure function of time and a counter.

use std::time::{Duration, Instant};

/// Packets a second that make a flood: enough that what generic mode spares is
/// more than what it costs all other traffic.
const FLOOD: u64 = 50_000;
/// For how long they must come before it is one.
const BEGUN: Duration = Duration::from_secs(6);
/// Packets a second below which it is calm.
const CALM: u64 = FLOOD / 10;
/// For how long it must be calm before the flood is over.
const OVER: Duration = Duration::from_mins(5);
/// Rounds that come sooner after each other are one.
const SAMPLE: Duration = Duration::from_secs(1);

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A flood has begun, of so many packets a second.
    Began(u64),
    /// It is over.
    Ended,
}

#[derive(Debug, Default)]
pub(super) struct Flood {
    /// When the counter was looked at last, and what it was.
    last: Option<(Instant, u64)>,
    under_way: bool,
    /// Since when the rate has spoken for the other state.
    since: Option<Instant>,
}

impl Flood {
    /// One that began before this agent did.
    pub(super) fn found() -> Self {
        Self {
            under_way: true,
            ..Self::default()
        }
    }

    /// Whether there is one now.
    pub(super) fn under_way(&self) -> bool {
        self.under_way
    }

    /// Whether the counter was ever looked at.
    pub(super) fn is_watched(&self) -> bool {
        self.last.is_some()
    }

    /// Takes in the counter of such packets.
    pub(super) fn observe(&mut self, now: Instant, packets: u64) -> Option<Change> {
        let Some((then, before)) = self.last else {
            self.last = Some((now, packets));
            return None;
        };
        let passed = now.duration_since(then);
        if passed < SAMPLE {
            return None;
        }
        self.last = Some((now, packets));
        // A counter of new maps starts at zero.
        let came = packets.saturating_sub(before).saturating_mul(1000);
        let rate = came / u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let (turns, wait) = if self.under_way {
            (rate < CALM, OVER)
        } else {
            (rate >= FLOOD, BEGUN)
        };
        if !turns {
            self.since = None;
            return None;
        }
        if now.duration_since(*self.since.get_or_insert(then)) < wait {
            return None;
        }
        self.since = None;
        self.under_way = !self.under_way;
        Some(if self.under_way {
            Change::Began(rate)
        } else {
            Change::Ended
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: Duration = Duration::from_secs(2);

    /// Rounds with these packets a second each; what changed, by second.
    fn play(flood: &mut Flood, rates: &[u64]) -> Vec<(u64, Change)> {
        let begun = Instant::now();
        let mut packets = 7_000_000;
        flood.observe(begun, packets);
        let mut changes = Vec::new();
        for (i, rate) in (1..).zip(rates) {
            packets += rate * ROUND.as_secs();
            if let Some(change) = flood.observe(begun + ROUND * i, packets) {
                changes.push((ROUND.as_secs() * u64::from(i), change));
            }
        }
        changes
    }

    fn rounds(seconds: u64, rate: u64) -> Vec<u64> {
        let count = usize::try_from(seconds / ROUND.as_secs()).unwrap();
        vec![rate; count]
    }

    #[test]
    fn a_flood_begins_after_seconds_and_ends_after_minutes_of_calm() {
        let rates = [rounds(10, 0), rounds(20, 60_000), rounds(400, 100)].concat();
        assert_eq!(
            play(&mut Flood::default(), &rates),
            [(16, Change::Began(60_000)), (330, Change::Ended)]
        );
    }

    #[test]
    fn a_short_burst_is_none() {
        let rates = [rounds(4, 900_000), rounds(2, 0)].concat().repeat(50);
        assert!(play(&mut Flood::default(), &rates).is_empty());
    }

    #[test]
    fn between_the_two_bounds_everything_stays_as_it_is() {
        assert!(play(&mut Flood::default(), &rounds(900, FLOOD - 1)).is_empty());
        assert!(play(&mut Flood::found(), &rounds(900, CALM)).is_empty());
    }

    #[test]
    fn calm_that_is_broken_begins_again() {
        let rates = [rounds(298, 0), rounds(2, CALM)].concat().repeat(3);
        assert!(play(&mut Flood::found(), &rates).is_empty());
        let calm = rounds(300, 0);
        assert_eq!(play(&mut Flood::found(), &calm), [(300, Change::Ended)]);
    }

    #[test]
    fn rounds_in_quick_succession_and_a_new_counter_are_no_flood() {
        let mut flood = Flood::default();
        let begun = Instant::now();
        for i in 0..500 {
            let now = begun + Duration::from_millis(100) * i;
            // 10,000 a second, and half-way the maps are made anew.
            let packets = u64::from(if i < 250 { i } else { i - 250 }) * 1000;
            assert_eq!(flood.observe(now, packets), None, "round {i}");
        }
    }
}
