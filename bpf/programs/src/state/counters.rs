//! Packets and bytes by program and outcome.

use veer_bpf_common::{
    outcome::{Observation, Program},
    tables::Counters,
};

use super::maps::COUNTERS;

/// Counts something seen on the way that is not the outcome.
#[inline(always)]
pub(crate) fn observe(program: Program, length: u32, what: Observation) {
    count(program, length, what as u32);
}

/// Counts a packet under the number of an outcome.
#[inline(always)]
pub(crate) fn count(program: Program, length: u32, number: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(Counters::index(program, number)) {
        // SAFETY: a slot of this CPU in a preallocated array, which no other program
        // uses; BPF programs do not migrate while they run.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(length);
        }
    }
}
