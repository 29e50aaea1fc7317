//! Places of flow entries: whom a flow is charged to, and which entry is replaced where
//! all places of its opener are taken.

use veer_bpf_common::tables::{FlowKey, FlowSlot, FlowSlots};
use veer_bpf_net::{conntrack, ip::Ip};

use super::{
    lookup,
    maps::{FLOW_SLOTS, FLOWS},
};

/// To whom a new flow is charged: the local pod that opened it, or a share of those
/// elsewhere.
#[inline(always)]
pub(crate) fn opener<I: Ip>(ip: &I) -> u16 {
    lookup::endpoint(ip.source()).map_or_else(
        || FlowSlots::foreign_share(ip.source()),
        |pod| pod.endpoint_id,
    )
}

/// Finds a place for the entry of `key` among those of its opener. Returns whether a
/// live entry was replaced: of those tried, the one that would have expired first, so
/// rather a query than a connection.
///
/// Two CPUs may take the same place at once. One entry then has none, and the pod has
/// one entry more than it should until that one expires.
#[inline(never)]
pub(crate) fn make_room(endpoint_id: u16, key: &FlowKey, now: u64) -> bool {
    let mut soonest = u64::MAX;
    let mut given_up = 0;
    let mut attempt = 0;
    while attempt < FlowSlots::ATTEMPTS {
        let slot = FlowSlots::place(endpoint_id, key, attempt);
        let Some(taken_by) = FLOW_SLOTS.get_ptr_mut(FlowSlot { endpoint_id, slot }) else {
            // Fails only where all memory for places is being changed; the entry
            // then has none, as above.
            let _ = FLOW_SLOTS.insert(FlowSlot { endpoint_id, slot }, key, 0);
            return false;
        };
        // By reference: the kernel reads the key where it lies, and the stack of this
        // function and its callers has no room for copies (512 bytes for all).
        // SAFETY: integers of a live map value; where another CPU changes them
        // meanwhile, another entry or none is found.
        let other: &FlowKey = unsafe { &*taken_by };
        // SAFETY: as above.
        let expires_at = match unsafe { FLOWS.get(other) } {
            Some(taken) if conntrack::is_live(taken, now) => taken.expires_at,
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

/// Takes a place and deletes the entry that had it. An expired one would go on to use
/// room that others need.
#[inline(always)]
fn take(place: *mut FlowKey, key: &FlowKey) {
    // SAFETY: as in `make_room`.
    let other: &FlowKey = unsafe { &*place };
    // It may be deleted already.
    let _ = FLOWS.remove(other);
    // SAFETY: as in `make_room`.
    unsafe { *place = *key };
}
