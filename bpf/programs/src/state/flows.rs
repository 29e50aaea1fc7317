//! Notes of flows that the host's stack translated.
//!
//! A packet that came down from the stack between two ends whose replies the
//! programs would redirect belongs to a flow that was translated there
//! (kube-proxy, hostPorts). It is noted; its replies go up the stack.
//!
//! Notes are in one LRU map for the node, so that a look-up is one, and so that
//! it never fills up for good. A pod that opens very many translated flows must
//! not push out others' notes: every note has a *place* among the
//! [`NOTES_PER_ENDPOINT`] of the pod that opened the flow, and a new note that
//! finds no free one takes the place, and so the life, of another of the same
//! pod. Who opens flows from elsewhere has places in a share by its address, and
//! never those of the pod that it talks to. Only the first packet of a translated
//! flow pays for that. There is no
//! counter, which would have to hear of every note that expires or is pushed
//! out, and nothing to reset: it works without an agent.
//!
//! [`NOTES_PER_ENDPOINT`]: veer_bpf_common::tables::FlowSlots::PER_ENDPOINT

use veer_bpf_common::{
    outcome::{DropReason, Observation, Verdict},
    tables::{FlowKey, FlowNote},
};
use veer_bpf_net::{
    bytes::Bytes,
    flow::{self, Flow},
    ipv4::Ipv4,
    note,
};

use super::{
    counters,
    flow_slots::{make_room, opener},
    fragments::Seen,
    maps::FLOWS,
};
use crate::ctx::{clock::now, skb::Skb};

/// The flow of a packet.
#[inline(always)]
pub(crate) fn of(skb: &Skb, ip: &Ipv4) -> Result<Flow, DropReason> {
    flow::of(skb, ip, &Seen)
}

/// Whether the stack translates this flow.
#[inline(always)]
pub(crate) fn is_noted(key: &FlowKey) -> bool {
    // SAFETY: a copy of integers, as in `Seen::ports`.
    let note = unsafe { FLOWS.get(key) }.copied();
    note.is_some_and(|note| note::is_live(&note, now()))
}

/// Whether the packet belongs to a flow that the stack translated: it answers
/// one, or is an ICMP error about one.
///
/// A connection that a pod opens directly on a noted tuple proves the note old,
/// and deletes it.
#[inline(always)]
pub(crate) fn answers(flow: &Flow) -> bool {
    if flow.opens() {
        // Absent is the rule, and as good.
        let _ = FLOWS.remove(flow.key);
    }
    let noted_as = if flow.is_error {
        flow.key
    } else {
        flow.key.reversed()
    };
    refresh(&noted_as, flow, true).is_some()
}

/// Notes the flow of a packet that came down from the stack.
///
/// Later fragments are not looked at: the first noted the flow, or was lost.
#[inline(always)]
pub(crate) fn note(skb: &Skb, ip: &Ipv4) -> Verdict {
    if ip.is_later_fragment() {
        return Verdict::Pass;
    }
    let Ok(flow) = of(skb, ip) else {
        // The stack sent it; a broken packet has no answer to redirect.
        return Verdict::Pass;
    };
    // An error travels within the flow it is about, which has its own note.
    if flow.is_error {
        return Verdict::Pass;
    }
    if refresh(&flow.key, &flow, false).is_none() {
        let now = now();
        if make_room(opener(ip), &flow.key, now) {
            counters::observe(skb.program, skb.length(), Observation::NoteGivenUp);
        }
        // Fails only where every slot is being changed: the reply then takes
        // the direct way and the peer sends again.
        let _ = FLOWS.insert(flow.key, note::new(&flow, now), 0);
    }
    Verdict::PassNoted
}

/// Brings a live note up to date with a packet of its flow; `None` where there
/// is none.
#[inline(always)]
fn refresh(key: &FlowKey, flow: &Flow, reply: bool) -> Option<()> {
    let known: *mut FlowNote = FLOWS.get_ptr_mut(key)?;
    let now = now();
    // SAFETY: a live map value of integers; another CPU may write it too, and
    // either result is right.
    let old = unsafe { *known };
    if !note::is_live(&old, now) {
        if reply {
            return None;
        }
        // SAFETY: as above.
        unsafe { *known = note::new(flow, now) };
        return Some(());
    }
    if let Some(new) = note::refreshed(&old, flow, reply, now) {
        // SAFETY: as above.
        unsafe { *known = new };
    }
    Some(())
}
