//! `LISTEN`: whether somebody listens to the programs' decisions, and to which.

use super::{MapKind, Table};
use crate::outcome::{DropReason, FIRST_REASON, Outcome, REASONS_PER_PROGRAM, Verdict};

/// The one [`Listen`], at index 0.
#[derive(Debug)]
pub enum Listening {}

impl Table for Listening {
    type Key = u32;
    type Value = Listen;
    const NAME: &'static str = "LISTEN";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = 1;
}

/// Which decisions are wanted. Fields are independent of each other, so a program may
/// see one new and one old.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listen {
    /// Nanoseconds as `bpf_ktime_get_ns` counts, after which nobody listens; 0: nobody
    /// does. The agent moves it on while it has listeners, so the programs become silent
    /// by themselves when it is killed.
    pub until: u64,
    /// The wanted [`Verdict`]s: bit n is number n.
    pub verdicts: u64,
    /// The wanted [`DropReason`]s: bit n is number [`FIRST_REASON`] + n.
    pub reasons: u32,
    /// Zero.
    pub pad: u32,
}

impl Listen {
    /// Nanoseconds that the agent moves [`Listen::until`] on by.
    pub const LASTS: u64 = 5_000_000_000;

    /// Whether a decision is wanted, by its outcome.
    #[inline(always)]
    pub const fn wants(&self, outcome: Outcome) -> bool {
        match outcome {
            Ok(verdict) => self.verdicts >> (verdict as u32 & 63) & 1 != 0,
            Err(reason) => self.reasons >> ((reason as u32 - FIRST_REASON) & 31) & 1 != 0,
        }
    }

    /// The same of an outcome's number; one that this version does not know is wanted.
    pub fn wants_number(&self, outcome: u32) -> bool {
        match (Verdict::of(outcome), DropReason::of(outcome)) {
            (Some(verdict), _) => self.wants(Ok(verdict)),
            (None, Some(reason)) => self.wants(Err(reason)),
            (None, None) => true,
        }
    }

    /// Wants this verdict too.
    pub const fn add_verdict(&mut self, verdict: Verdict) {
        self.verdicts |= 1 << verdict as u32;
    }

    /// Wants drops for this reason too.
    pub const fn add_reason(&mut self, reason: DropReason) {
        self.reasons |= 1 << (reason as u32 - FIRST_REASON);
    }

    /// Wants what the other wants, too.
    pub const fn join(&mut self, other: &Self) {
        self.verdicts |= other.verdicts;
        self.reasons |= other.reasons;
    }
}

plain!(Listen, 24);

const _: () = assert!(REASONS_PER_PROGRAM <= u32::BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decision_is_wanted_by_its_own_bit() {
        for wanted in Verdict::ALL {
            let mut listen = Listen::default();
            listen.add_verdict(*wanted);
            for verdict in Verdict::ALL {
                assert_eq!(listen.wants(Ok(*verdict)), verdict == wanted);
                assert_eq!(listen.wants_number(*verdict as u32), verdict == wanted);
            }
            assert!(DropReason::ALL.iter().all(|r| !listen.wants(Err(*r))));
        }
        for wanted in DropReason::ALL {
            let mut listen = Listen::default();
            listen.add_reason(*wanted);
            for reason in DropReason::ALL {
                assert_eq!(listen.wants(Err(*reason)), reason == wanted);
                assert_eq!(listen.wants_number(*reason as u32), reason == wanted);
            }
            assert!(Verdict::ALL.iter().all(|v| !listen.wants(Ok(*v))));
        }
    }
}
