//! `TRAFFIC`: who sends to whom.

use super::{Counter, MapKind, Table};
use crate::outcome::{Outcome, Program, Verdict};

/// [`Talked`] of each CPU, in one of [`Traffic::PROBES`] slots that follow from the
/// [`Talk`]. A hash of the kernel's would take three times as long for each packet. Where
/// others have all of them, the one with the fewest packets makes way and is forgotten.
#[derive(Debug)]
pub enum Traffic {}

impl Table for Traffic {
    type Key = u32;
    type Value = Talked;
    const NAME: &'static str = "TRAFFIC";
    const KIND: MapKind = MapKind::PerCpuArray;
    const CAPACITY: usize = 8_192;
}

impl Traffic {
    /// Slots that a talk may be in.
    pub const PROBES: u32 = 8;

    /// One of them, by its number.
    #[inline(always)]
    pub const fn slot(talk: &Talk, probe: u32) -> u32 {
        // Odd numbers with their bits well mixed; the high bits of a product depend on all
        // of a factor's.
        let what = (talk.program as u32) << 16 | talk.outcome as u32;
        let mut mixed = talk.source.wrapping_mul(0x9e37_79b1);
        mixed = (mixed ^ talk.destination).wrapping_mul(0x85eb_ca77);
        mixed = (mixed ^ what).wrapping_mul(0xc2b2_ae3d);
        ((mixed >> 16) ^ mixed).wrapping_add(probe) % Self::SPEC.max_entries
    }
}

/// Who sends to whom, and what becomes of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Talk {
    /// Identity of the sender; 0: not known.
    pub source: u32,
    /// Identity of the receiver; 0: not known.
    pub destination: u32,
    /// [`Program`] as a number.
    pub program: u16,
    /// [`Verdict`] or [`crate::outcome::DropReason`] as a number.
    pub outcome: u16,
}

impl Talk {
    /// Whether a program's decision is one on what somebody sends to somebody. What passes
    /// without a look, or ends here as nobody needs it, is none; nor is what the programs
    /// answer themselves.
    #[inline(always)]
    pub const fn counts(program: Program, outcome: Outcome) -> bool {
        match outcome {
            // What passes by other devices is the host's own.
            Ok(Verdict::Pass) => matches!(program, Program::PodIngress),
            Ok(Verdict::Answer | Verdict::Ignore | Verdict::Beyond) => false,
            Err(_)
            | Ok(
                Verdict::PassNoted
                | Verdict::ToStack
                | Verdict::ToStackNoted
                | Verdict::ToStackException
                | Verdict::Deliver
                | Verdict::Overlay
                | Verdict::Native,
            ) => true,
        }
    }
}

/// How often one CPU saw a talk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talked {
    /// The talk.
    pub talk: Talk,
    /// Zero.
    pub pad: u32,
    /// Its packets; none: the slot is free.
    pub counter: Counter,
}

plain!(Talk, 12);
plain!(Talked, 32);

const _: () = assert!(Traffic::CAPACITY.is_power_of_two());

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;

    #[test]
    fn talks_of_many_identities_find_room_for_nearly_all_of_them() {
        let mut slots = vec![None; Traffic::CAPACITY];
        let mut refused = 0;
        // Identities as they are allocated are anywhere in 24 bits; here they are not even.
        for source in 0..64_u32 {
            for destination in 0..64_u32 {
                let talk = Talk {
                    source: 40_000 + source,
                    destination: 40_000 + destination,
                    program: Program::PodEgress as u16,
                    outcome: Verdict::Deliver as u16,
                };
                let mut probes = (0..Traffic::PROBES).map(|p| Traffic::slot(&talk, p) as usize);
                match probes.find(|slot| slots[*slot].is_none()) {
                    Some(slot) => slots[slot] = Some(talk),
                    None => refused += 1,
                }
            }
        }
        // Half of the room is taken.
        assert!(refused < 40, "{refused} of 4096");
    }
}
