//! Entries of flows that the host's stack translated.
//!
//! A packet that came down from the stack between two ends whose replies the
//! programs would redirect belongs to a flow that was translated there
//! (kube-proxy, hostPorts). It gets a flow entry; its replies go up the stack.
//!
//! Entries are in one LRU map for the node: one lookup finds them, and the map never
//! stays full. A pod that opens very many translated flows must not evict others'
//! entries, so every entry has a *place* among the [`FlowSlots::PER_ENDPOINT`] of the
//! pod that opened the flow. A new entry that finds no free place replaces another
//! entry of the same pod. A client elsewhere has places in a share by its address, and
//! never those of the pod that it talks to. Only the first packet of a translated flow
//! pays for that. There is no counter to be kept in step with entries that expire or
//! are evicted, and nothing to reset: it works without an agent.
//!
//! [`FlowSlots::PER_ENDPOINT`]: veer_bpf_common::tables::FlowSlots::PER_ENDPOINT

use veer_bpf_common::{
    outcome::{DropReason, FlowState, Observation, Verdict},
    tables::{FlowEntry, FlowKey},
};
use veer_bpf_net::{
    bytes::Bytes,
    conntrack,
    flow::{self, Flow},
    ip::Ip,
};

use super::{
    counters,
    flow_slots::{make_room, opener},
    fragments::FragmentMap,
    maps::FLOWS,
};
use crate::ctx::{clock::now, skb::Skb};

/// The flow of a packet.
#[inline(always)]
pub(crate) fn of<I: Ip>(skb: &Skb, ip: &I) -> Result<Flow, DropReason> {
    flow::of(skb, ip, &FragmentMap)
}

/// Whether the flow has a live entry: the stack translates it.
#[inline(always)]
pub(crate) fn is_recorded(key: &FlowKey) -> bool {
    // SAFETY: a copy of integers, as in `FragmentMap::ports`.
    let entry = unsafe { FLOWS.get(key) }.copied();
    entry.is_some_and(|entry| conntrack::is_live(&entry, now()))
}

/// Whether the packet belongs to a flow that the stack translated: it answers
/// one, or is an ICMP error about one.
///
/// A connection that a pod opens directly on a recorded tuple proves the entry
/// outdated, and deletes it.
#[inline(always)]
pub(crate) fn answers(skb: &mut Skb, flow: &Flow) -> bool {
    if flow.opens() {
        // Usually there is none.
        let _ = FLOWS.remove(flow.key);
    }
    let recorded_as = if flow.is_error {
        flow.key
    } else {
        flow.key.reversed()
    };
    let found = refresh(&recorded_as, flow, true).is_some();
    skb.decision.flow = if found {
        FlowState::Reply
    } else {
        FlowState::NoEntry
    } as u32;
    found
}

/// Records the flow of a packet that came down from the stack.
///
/// Later fragments are ignored: the first one recorded the flow, or was lost.
#[inline(always)]
pub(crate) fn record<I: Ip>(skb: &mut Skb, ip: &I) -> Verdict {
    if ip.is_later_fragment() {
        return Verdict::Pass;
    }
    let Ok(flow) = of(skb, ip) else {
        // The stack sent it; a broken packet has no answer to redirect.
        return Verdict::Pass;
    };
    // An error travels within the flow it is about, which has its own entry.
    if flow.is_error {
        return Verdict::Pass;
    }
    if refresh(&flow.key, &flow, false).is_some() {
        skb.decision.flow = FlowState::Established as u32;
    } else {
        skb.decision.flow = FlowState::New as u32;
        let now = now();
        if make_room(opener(ip), &flow.key, now) {
            counters::observe(skb.program, skb.length(), Observation::NoteGivenUp);
        }
        // Fails only where every slot is being changed: the reply is then delivered
        // directly, and the peer retransmits.
        let _ = FLOWS.insert(flow.key, conntrack::new(&flow, now), 0);
    }
    Verdict::PassNoted
}

/// Updates a live entry with a packet of its flow; `None` where there is none.
#[inline(always)]
fn refresh(key: &FlowKey, flow: &Flow, reply: bool) -> Option<()> {
    let known: *mut FlowEntry = FLOWS.get_ptr_mut(key)?;
    let now = now();
    // SAFETY: a live map value of integers; another CPU may write it too, and
    // either result is right.
    let old = unsafe { *known };
    if !conntrack::is_live(&old, now) {
        if reply {
            return None;
        }
        // SAFETY: as above.
        unsafe { *known = conntrack::new(flow, now) };
        return Some(());
    }
    if let Some(new) = conntrack::refreshed(&old, flow, reply, now) {
        // SAFETY: as above.
        unsafe { *known = new };
    }
    Some(())
}
