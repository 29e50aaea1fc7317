//! The flows that programs of layout 4 recorded while an upgrade replaced them, one
//! device after the other. What was recorded before that was copied.
//!
//! The programs that ask are replaced before those that record, so each flow is in the
//! flow table or here, and with the next packet of its opener in the table.

use aya_ebpf::Global;
use veer_bpf_common::tables::Tuple;
use veer_bpf_net::{flow::Flow, ip::TCP};

use super::maps::FLOWS;
use crate::ctx::clock::now;

/// [`veer_bpf_common::tables::FlowsBefore::UNTIL`].
#[unsafe(no_mangle)]
static FLOWS_BEFORE_UNTIL: Global<u64> = Global::new(0);

/// As [`super::flows::is_recorded`].
#[inline(always)]
pub(crate) fn is_recorded(tuple: &Tuple) -> bool {
    let until = FLOWS_BEFORE_UNTIL.load();
    if until == 0 {
        return false;
    }
    let now = now();
    if now >= until {
        return false;
    }
    let key = tuple.asked_by(0);
    // SAFETY: a copy of integers. A slot that is reused meanwhile gives another flow's
    // times, for one packet.
    let Some(entry) = unsafe { FLOWS.get(key) }.copied() else {
        return false;
    };
    // Nobody refreshes it there any more, and a connection lasts. One that ended is not
    // taken for another on its tuple: that begins with a SYN.
    entry.expires_at > now || tuple.protocol == TCP
}

/// A direct connection takes the tuple over.
#[inline(always)]
pub(crate) fn forget(tuple: &Tuple) {
    if FLOWS_BEFORE_UNTIL.load() != 0 {
        // There hardly ever is one.
        let _ = FLOWS.remove(tuple);
    }
}

/// As [`super::flows::answers`].
#[inline(always)]
pub(crate) fn is_answer(flow: &Flow) -> bool {
    if flow.is_error {
        return is_recorded(&flow.tuple);
    }
    // Its keys do not say who asks.
    if flow.opens() || flow.tuple.asker == Tuple::SOURCE_ASKS {
        return false;
    }
    is_recorded(&flow.tuple.reversed())
}
