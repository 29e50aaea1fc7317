//! Notes of flows that the host's stack translated, and fragments' ports.
//!
//! A packet that came down from the stack between two ends whose replies the
//! programs would redirect belongs to a flow that was translated there
//! (kube-proxy, portmap). It is noted; its replies go up the stack.

use veer_bpf_common::{
    key::{FlowKey, FragmentKey},
    mark,
    outcome::{DropReason, Verdict},
    value::{FlowNote, FragmentPorts},
};
use veer_bpf_net::{
    flow::{self, Flow, Fragments},
    ipv4::Ipv4,
    note,
};

use crate::{
    lookup::now,
    maps::{FLOWS, FRAGMENTS},
    skb::Skb,
};

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
        // Fails only where every slot is being changed: the reply then takes
        // the direct way and the peer sends again.
        let _ = FLOWS.insert(flow.key, note::new(&flow, now()), 0);
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
