//! Events: the first bytes of a packet, with the program's decision record.
//!
//! Samples of drops are kept always. For each reason the first drop in each window of
//! time is kept and replaces an older one. This bounds the cost of a drop under a flood,
//! and frequent reasons do not push out rare ones. It needs no listener, and an agent
//! that starts later still finds the samples.
//!
//! Every decision goes to the ring of events while somebody listens.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use veer_bpf_common::{
    device::IfIndex,
    outcome::{DropReason, Observation, Outcome, Program},
    tables::{Decision, Event, Listen, Record, Samples},
};

use crate::{
    ctx::{captured::Captured, clock::now, direct},
    state::{
        counters,
        maps::{EVENTS, LISTEN, SAMPLES},
        translations,
    },
};

/// Who listens, if anybody does.
#[inline(always)]
pub(crate) fn listener() -> Option<&'static Listen> {
    let listen = LISTEN.get(0)?;
    (listen.until != 0).then_some(listen)
}

/// Tells those who listen of a decision, if they want it.
#[inline(always)]
pub(crate) fn tell<P: Captured>(
    listen: &Listen,
    program: Program,
    outcome: Outcome,
    packet: &P,
    ifindex: IfIndex,
    decision: &Decision,
) {
    let now = now();
    if !listen.wants(outcome) || now > listen.until {
        return;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<Record>(0) else {
        counters::observe(program, packet.length(), Observation::EventLost);
        return;
    };
    // SAFETY: as in `fill`.
    let record = unsafe { &mut *entry.as_mut_ptr() };
    // First: the lengths that a capture may have are as many ways for the verifier.
    if let Some(before) = translations::before() {
        direct::copy_to(before, &raw mut record.before);
    }
    fill(
        &raw mut record.event,
        now,
        program,
        packet,
        ifindex,
        decision,
    );
    // The agent looks often enough; waking it would cost more than the event.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

/// Keeps a sample of a dropped packet, unless its window already has one.
#[inline(always)]
pub(crate) fn keep<P: Captured>(
    program: Program,
    reason: DropReason,
    packet: &P,
    ifindex: IfIndex,
    decision: &Decision,
) {
    let now = now();
    let window = Samples::window(now);
    let Some(sample) = SAMPLES.get_ptr_mut(Samples::index(program, reason, window)) else {
        return;
    };
    // SAFETY: a slot of this CPU in a preallocated array, which no other program
    // uses; BPF programs do not migrate while they run.
    if Samples::window(unsafe { (*sample).at }) == window {
        return;
    }
    fill(sample, now, program, packet, ifindex, decision);
}

/// Writes an event where it belongs.
#[inline(always)]
fn fill<P: Captured>(
    event: *mut Event,
    now: u64,
    program: Program,
    packet: &P,
    ifindex: IfIndex,
    decision: &Decision,
) {
    // SAFETY: a slot of a preallocated array or of the ring that is this CPU's alone;
    // each field is written before it is read, and any bytes make integers.
    let event = unsafe { &mut *event };
    event.decision = *decision;
    event.ifindex = ifindex.get();
    event.length = packet.length();
    event.program = program as u32;
    event.pad = 0;
    event.captured = packet.capture(&mut event.head);
    event.at = now;
}
