//! Counting arrivals: numbers, gaps, and both over time.

use crate::report::{GAPS, MOMENT_MS, Moment, PAUSE_MS, Span};

/// A time line ends here; a run is never that long.
const LONGEST: usize = 36_000;

/// How the arrivals of one end of a flow came.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// When the run began, nanoseconds; 0 before.
    begin: u64,
    /// The last arrival, or the beginning.
    last: u64,
    /// The longest gaps, longest first.
    pub(crate) gaps: Vec<Span>,
    pub(crate) timeline: Vec<Moment>,
}

impl Tally {
    /// The run begins.
    pub(crate) fn begin(&mut self, at: u64) {
        (self.begin, self.last) = (at, at);
    }

    /// Something arrived. Before the run this says nothing.
    pub(crate) fn note(&mut self, at: u64, octets: usize) {
        if self.begin == 0 {
            return;
        }
        let span = Span {
            from: self.last,
            to: at,
        };
        let gap = span.length();
        self.last = self.last.max(at);
        self.keep(span);
        let index = at.saturating_sub(self.begin) / (MOMENT_MS * 1_000_000);
        let index = usize::try_from(index).unwrap_or(LONGEST).min(LONGEST);
        if self.timeline.len() <= index {
            self.timeline.resize(index + 1, Moment::default());
        }
        let moment = &mut self.timeline[index];
        let octets = u32::try_from(octets).unwrap_or(u32::MAX);
        moment.octets = moment.octets.saturating_add(octets);
        let gap_us = u32::try_from(gap / 1000).unwrap_or(u32::MAX);
        moment.gap_us = moment.gap_us.max(gap_us);
    }

    /// Keeps a gap that is one of the longest.
    fn keep(&mut self, gap: Span) {
        let length = gap.length();
        if self.gaps.len() == GAPS {
            if self.gaps.last().is_some_and(|g| g.length() >= length) {
                return;
            }
            self.gaps.pop();
        }
        let place = self.gaps.partition_point(|g| g.length() >= length);
        self.gaps.insert(place, gap);
    }

    /// Sending ended at `at`: what did not come until then is a gap too.
    pub(crate) fn close(&mut self, at: u64) {
        if self.begin != 0 && at > self.last {
            self.note(at, 0);
        }
    }
}

/// Which numbers have come.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    bits: Vec<u64>,
    highest: Option<u64>,
    pub(crate) distinct: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
}

impl Numbers {
    /// A number came.
    pub(crate) fn note(&mut self, number: u64) {
        let (Ok(word), bit) = (usize::try_from(number / 64), 1 << (number % 64)) else {
            return;
        };
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.bits[word] |= bit;
        self.distinct += 1;
        if self.highest.is_some_and(|h| number < h) {
            self.reordered += 1;
        }
        self.highest = self.highest.max(Some(number));
    }
}

/// When the process did not run.
#[derive(Debug, Default)]
pub(crate) struct Pauses {
    /// When the last tick began.
    last: u64,
    spans: Vec<Span>,
}

impl Pauses {
    /// A tick begins, of a run that began at `begin`.
    pub(crate) fn tick(&mut self, now: u64, begin: Option<u64>) {
        let since = Span {
            from: self.last,
            to: now,
        };
        self.last = now;
        if begin.is_some_and(|b| now > b) && since.length() > PAUSE_MS * 1_000_000 {
            self.spans.push(since);
        }
    }

    /// All of the run; they are forgotten.
    pub(crate) fn take(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }
}

/// When to send the next of a steady stream.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Nanoseconds between two.
    interval: u64,
    begin: u64,
    pub(crate) sent: u64,
}

impl Pace {
    pub(crate) fn new(rate: u32) -> Self {
        Self {
            interval: 1_000_000_000 / u64::from(rate.max(1)),
            begin: 0,
            sent: 0,
        }
    }

    /// The stream begins at `at`; until then nothing is due.
    pub(crate) fn begin(&mut self, at: u64) {
        self.begin = at;
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.begin != 0
    }

    /// How many are due at `now` that have not been sent.
    pub(crate) fn due(&self, now: u64) -> u64 {
        if self.begin == 0 || now < self.begin {
            return 0;
        }
        ((now - self.begin) / self.interval + 1).saturating_sub(self.sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn numbers_that_come_twice_or_late_are_counted_as_such() {
        let mut seen = Numbers::default();
        for number in [0, 1, 3, 2, 3, 200, 100] {
            seen.note(number);
        }
        assert_eq!((seen.distinct, seen.duplicated, seen.reordered), (6, 1, 2));
    }

    #[test]
    fn the_longest_gaps_are_told_with_their_times() {
        let mut tally = Tally::default();
        tally.note(5 * MS, 10);
        tally.begin(1000 * MS);
        for at in [1002, 1004, 1150, 1152] {
            tally.note(at * MS, 10);
        }
        assert_eq!(
            tally.gaps[0],
            Span {
                from: 1004 * MS,
                to: 1150 * MS
            }
        );
        let octets: Vec<u32> = tally.timeline.iter().map(|m| m.octets).collect();
        assert_eq!(octets, [20, 20]);
        assert_eq!(tally.timeline[1].gap_us, 146_000);
        for at in 1153..1300 {
            tally.note(at * MS, 10);
        }
        let lengths: Vec<u64> = tally.gaps.iter().map(|g| g.length() / MS).collect();
        assert_eq!(lengths[..5], [146, 2, 2, 2, 1]);
        assert_eq!(lengths.len(), GAPS);
    }

    #[test]
    fn a_flow_that_fell_silent_has_a_gap_to_the_end() {
        let mut tally = Tally::default();
        tally.begin(1000 * MS);
        tally.note(1001 * MS, 1);
        tally.close(2001 * MS);
        assert_eq!(tally.gaps[0].length(), 1000 * MS);
        let mut silent = Tally::default();
        silent.begin(1000 * MS);
        silent.close(1500 * MS);
        assert_eq!(silent.gaps[0].length(), 500 * MS);
    }

    #[test]
    fn ticks_too_far_apart_in_a_run_make_a_pause() {
        let mut pauses = Pauses::default();
        for (now, begin) in [
            (100, None),
            (200, Some(250)),
            (201, Some(200)),
            (206, Some(200)),
            (212, Some(200)),
            (213, Some(200)),
        ] {
            pauses.tick(now * MS, begin.map(|b| b * MS));
        }
        let pause = Span {
            from: 206 * MS,
            to: 212 * MS,
        };
        assert_eq!(pauses.take(), [pause]);
        assert_eq!(pauses.take(), []);
    }

    #[test]
    fn what_was_missed_is_due_at_once() {
        let mut pace = Pace::new(500);
        assert_eq!(pace.due(10), 0);
        pace.begin(1000 * MS);
        assert_eq!(pace.due(999 * MS), 0);
        assert_eq!(pace.due(1000 * MS), 1);
        pace.sent = 1;
        assert_eq!(pace.due(1001 * MS), 0);
        assert_eq!(pace.due(1020 * MS), 10);
    }
}
