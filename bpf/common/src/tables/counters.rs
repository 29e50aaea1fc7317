//! `COUNTERS`: packets and bytes by program and outcome.

use super::{MapKind, Table};
use crate::outcome::{OUTCOMES_PER_PROGRAM, Program};

/// Counters, by [`Counters::index`].
#[derive(Debug)]
pub enum Counters {}

impl Table for Counters {
    type Key = u32;
    type Value = Counter;
    const NAME: &'static str = "COUNTERS";
    const KIND: MapKind = MapKind::PerCpuArray;
    const CAPACITY: usize = Program::ALL.len() * OUTCOMES_PER_PROGRAM as usize;
}

impl Counters {
    /// Index of the counter of a program and an outcome's number.
    #[inline(always)]
    pub const fn index(program: Program, outcome: u32) -> u32 {
        program as u32 * OUTCOMES_PER_PROGRAM + outcome
    }
}

/// Packets and bytes of one program with one outcome, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// How many packets.
    pub packets: u64,
    /// Their `skb->len` (or XDP frame length) together.
    pub bytes: u64,
}

impl core::ops::AddAssign for Counter {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl core::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

plain!(Counter, 16);
