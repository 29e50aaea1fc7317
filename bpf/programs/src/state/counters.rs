//! Packets and bytes by program and outcome.

use veer_bpf_common::{
    outcome::{Observation, Outcome, Program},
    tables::{Counter, Counters, Decision, Talk, Traffic},
};

use super::maps::{COUNTERS, TRAFFIC};

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
        let what = (program as u32) << 16 | decision.outcome;
        count_talk(
            decision.source_identity,
            decision.destination_identity,
            what,
            length,
        );
    }
}

/// A *global* function: the verifier walks it once, and its callers have no room for what
/// it needs of the stack. `what`: the program's number, and below it the outcome's.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn count_talk(source: u32, destination: u32, what: u32, length: u32) -> u32 {
    let talk = Talk {
        source,
        destination,
        program: (what >> 16) as u16,
        outcome: what as u16,
    };
    let mut fewest = u64::MAX;
    let mut forgotten = Traffic::slot(&talk, 0);
    let mut probe = 0;
    while probe < Traffic::PROBES {
        let slot = Traffic::slot(&talk, probe);
        let Some(talked) = TRAFFIC.get_ptr_mut(slot) else {
            return 0;
        };
        // SAFETY: as of `add`.
        let talked = unsafe { &mut *talked };
        let packets = talked.counter.packets;
        if talked.talk == talk && packets != 0 {
            add(&raw mut talked.counter, length);
            return 1;
        }
        if packets < fewest {
            (fewest, forgotten) = (packets, slot);
        }
        if packets == 0 {
            break;
        }
        probe += 1;
    }
    let Some(talked) = TRAFFIC.get_ptr_mut(forgotten) else {
        return 0;
    };
    // SAFETY: as of `add`.
    let talked = unsafe { &mut *talked };
    talked.talk = talk;
    talked.counter.packets = 1;
    talked.counter.bytes = length.into();
    1
}
