//! `SAMPLES`: events of packets that were dropped lately.

use super::{Event, MapKind, Table};
use crate::outcome::{DropReason, FIRST_REASON, Program, REASONS_PER_PROGRAM};

/// Samples of drops, by [`Samples::index`].
#[derive(Debug)]
pub enum Samples {}

impl Table for Samples {
    type Key = u32;
    type Value = Event;
    const NAME: &'static str = "SAMPLES";
    const KIND: MapKind = MapKind::PerCpuArray;
    const CAPACITY: usize =
        Program::ALL.len() * (REASONS_PER_PROGRAM * Samples::PER_REASON) as usize;
}

impl Samples {
    /// Samples that are kept per program, reason and CPU.
    pub const PER_REASON: u32 = 4;

    /// The window of time, some 134 ms long, in which `at` nanoseconds lie. At most
    /// one drop per program, reason and CPU is sampled in each.
    #[inline(always)]
    pub const fn window(at: u64) -> u64 {
        at >> 27
    }

    /// Index of the sample of a window's drop: windows take turns.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low bits tell windows apart"
    )]
    pub const fn index(program: Program, reason: DropReason, window: u64) -> u32 {
        let reason = program as u32 * REASONS_PER_PROGRAM + (reason as u32 - FIRST_REASON);
        reason * Self::PER_REASON + window as u32 % Self::PER_REASON
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::vec::Vec;

    #[test]
    fn samples_of_all_programs_reasons_and_windows_have_places_of_their_own() {
        let mut places = Vec::new();
        for program in Program::ALL {
            for reason in DropReason::ALL {
                for window in 9..9 + u64::from(Samples::PER_REASON) {
                    places.push(Samples::index(*program, *reason, window));
                }
            }
        }
        assert!(places.iter().all(|p| (*p as usize) < Samples::CAPACITY));
        let all = places.len();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), all);
    }
}
