//! Packets and bytes by program and outcome.

use veer_bpf_common::{
    outcome::{Observation, Outcome, Program},
    tables::{Counter, Counters, Decision, Talk},
};

use super::{
    flows::CREATE,
    maps::{COUNTERS, TRAFFIC},
};

/// Counts something seen on the way that is not the outcome.
#[inline(always)]
pub(crate) fn observe(program: Program, length: u32, what: Observation) {
    count(program, length, what as u32);
}

/// Counts a packet under the number of an outcome.
#[inline(always)]
pub(crate) fn count(program: Program, length: u32, number: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(Counters::index(program, number)) {
        add(counter, length);
    }
}

/// Adds a packet to a counter of this CPU.
#[inline(always)]
fn add(counter: *mut Counter, length: u32) {
    // SAFETY: a slot of this CPU in a preallocated map, which no other program uses; BPF
    // programs do not migrate while they run.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(length);
    }
}

/// Counts a packet by who sends it to whom.
#[inline(always)]
pub(crate) fn talk(program: Program, length: u32, outcome: Outcome, decision: &Decision) {
    if Talk::counts(program, outcome) {
        count_talk(decision, program as u32, length);
    }
}

/// A function of its own: its callers have no room for the key on their stack.
#[inline(never)]
fn count_talk(decision: &Decision, program: u32, length: u32) -> u32 {
    let talk = Talk {
        source: decision.source_identity,
        destination: decision.destination_identity,
        program: program as u16,
        outcome: decision.outcome as u16,
    };
    if let Some(counter) = TRAFFIC.get_ptr_mut(&talk) {
        add(counter, length);
        return 1;
    }
    let first = Counter {
        packets: 1,
        bytes: length.into(),
    };
    u32::from(TRAFFIC.insert(&talk, &first, CREATE).is_ok())
}
