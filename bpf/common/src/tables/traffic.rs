//! `TRAFFIC`: who sends to whom.

use super::{Counter, MapKind, Table};
use crate::outcome::{Outcome, Program, Verdict};

/// Packets and bytes by [`Talk`]. Where there is no room for another, the one that was not
/// heard of for longest is forgotten.
#[derive(Debug)]
pub enum Traffic {}

impl Table for Traffic {
    type Key = Talk;
    type Value = Counter;
    const NAME: &'static str = "TRAFFIC";
    const KIND: MapKind = MapKind::LruPerCpuHash;
    const CAPACITY: usize = 16_384;
}

/// Who sends to whom, and what becomes of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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

plain!(Talk, 12);
