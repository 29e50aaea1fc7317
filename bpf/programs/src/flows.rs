//! Notes of flows that the host's stack translated, and fragments' ports.
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
    mark,
    outcome::{DropReason, Observation, Verdict},
    tables::{FlowKey, FlowNote, FlowSlot, FragmentKey, FragmentPorts},
};
use veer_bpf_net::{
    bytes::Bytes,
    ethernet::{self, Ethernet},
    flow::{self, Flow, Fragments},
    ipv4::Ipv4,
    note,
};

use crate::{
    exit,
    lookup::{self, now},
    maps::{FLOW_SLOTS, FLOWS, FRAGMENTS},
    skb::Skb,
};

/// The IPv4 header of a packet that came down from the stack; `None`: the programs
/// sent it themselves, or it is something else. What has no such header the
/// stack made as it liked, and it is nobody's translated flow.
#[inline(always)]
pub(crate) fn from_stack(skb: &Skb) -> Option<Ipv4> {
    if matches!(skb.mark(), mark::REDIRECTED | mark::TO_STACK) {
        return None;
    }
    skb.pull_head();
    let frame = Ethernet::parse(skb).ok()?;
    if frame.ether_type != ethernet::IPV4 {
        return None;
    }
    Ipv4::parse(skb, ethernet::HEADER_LENGTH).ok()
}

/// The map of fragments.
struct Seen;

impl Fragments for Seen {
    #[inline(always)]
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: a copy of integers; a slot used again meanwhile gives another
        // datagram's ports, and the packet is then treated as that one's.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FragmentKey, ports: FragmentPorts) {
        match FRAGMENTS.get_ptr_mut(key) {
            // An update of an LRU map takes a new slot first, at another
            // entry's cost; so write in place.
            // SAFETY: four bytes of a live map value.
            Some(known) => unsafe { *known = ports },
            None => {
                // Full of entries in use on other CPUs: later fragments will
                // be dropped and counted, and the datagram is sent again.
                let _ = FRAGMENTS.insert(key, ports, 0);
            }
        }
    }
}

/// The flow of a packet.
#[inline(always)]
pub(crate) fn of(skb: &Skb, ip: &Ipv4) -> Result<Flow, DropReason> {
    flow::of(skb, ip, &Seen)
}

/// Whether the packet belongs to a flow that the stack translated: it answers
/// one, or is an ICMP error about one. Then it is marked as going to the stack
/// on purpose.
///
/// A connection that a pod opens directly on a noted tuple proves the note old,
/// and deletes it.
#[inline(always)]
pub(crate) fn to_stack(skb: &Skb, flow: &Flow) -> Option<Verdict> {
    if flow.opens() {
        // Absent is the rule, and as good.
        let _ = FLOWS.remove(flow.key);
    }
    let noted_as = if flow.is_error {
        flow.key
    } else {
        flow.key.reversed()
    };
    refresh(&noted_as, flow, true)?;
    skb.set_mark(mark::TO_STACK);
    Some(Verdict::ToStackNoted)
}

/// Whether the stack translates this flow.
#[inline(always)]
pub(crate) fn is_noted(key: &FlowKey) -> bool {
    // SAFETY: a copy of integers, as in `Seen::ports`.
    let note = unsafe { FLOWS.get(key) }.copied();
    note.is_some_and(|note| note::is_live(&note, now()))
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
            exit::observe(skb.program, skb.length(), Observation::NoteGivenUp);
        }
        // Fails only where every slot is being changed: the reply then takes
        // the direct way and the peer sends again.
        let _ = FLOWS.insert(flow.key, note::new(&flow, now), 0);
    }
    Verdict::PassNoted
}

/// To whom a new flow is charged: the local pod that opened it, or a share of those
/// elsewhere.
#[inline(always)]
fn opener(ip: &Ipv4) -> u16 {
    lookup::endpoint(ip.source)
        .map_or_else(|| note::foreign_share(ip.source), |pod| pod.endpoint_id)
}

/// Finds a place for a note of `key` among those of its opener. Whether a live note
/// had to be given up for it: the one of those looked at that would have ended
/// first, so rather a query than a connection.
///
/// Two CPUs may take the same place at once; then one note has none, which is
/// one more than the pod should have, until it ends.
#[inline(never)]
fn make_room(endpoint_id: u16, key: &FlowKey, now: u64) -> bool {
    let mut soonest = u64::MAX;
    let mut given_up = 0;
    let mut attempt = 0;
    while attempt < note::PLACES {
        let slot = note::place(endpoint_id, key, attempt);
        let Some(taken_by) = FLOW_SLOTS.get_ptr_mut(FlowSlot { endpoint_id, slot }) else {
            // Fails only where all memory for places is being changed; the note
            // then has none, as above.
            let _ = FLOW_SLOTS.insert(FlowSlot { endpoint_id, slot }, key, 0);
            return false;
        };
        // By reference: the kernel reads the key where it lies, and the stack of this
        // function and its callers has no room for copies (512 bytes for all).
        // SAFETY: integers of a live map value; where another CPU changes them
        // meanwhile, another note or none is found.
        let other: &FlowKey = unsafe { &*taken_by };
        // SAFETY: as above.
        let expires_at = match unsafe { FLOWS.get(other) } {
            Some(taken) if note::is_live(taken, now) => taken.expires_at,
            _ => 0,
        };
        if expires_at == 0 {
            take(taken_by, key);
            return false;
        }
        if expires_at < soonest {
            soonest = expires_at;
            given_up = slot;
        }
        attempt += 1;
    }
    let slot = given_up;
    if let Some(taken_by) = FLOW_SLOTS.get_ptr_mut(FlowSlot { endpoint_id, slot }) {
        take(taken_by, key);
    }
    true
}

/// Takes a place, and so ends the note that had it: an expired one too would
/// go on to use up room that is others'.
#[inline(always)]
fn take(place: *mut FlowKey, key: &FlowKey) {
    // SAFETY: as in `make_room`.
    let other: &FlowKey = unsafe { &*place };
    // It may have been deleted long ago.
    let _ = FLOWS.remove(other);
    // SAFETY: as in `make_room`.
    unsafe { *place = *key };
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
