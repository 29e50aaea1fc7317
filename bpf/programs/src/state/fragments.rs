//! Ports of datagrams that come in fragments.

use veer_bpf_common::tables::{FragmentKey, FragmentPorts};
use veer_bpf_net::fragments::Fragments;

use super::maps::FRAGMENTS;

/// The map of fragments.
pub(crate) struct FragmentMap;

impl Fragments for FragmentMap {
    #[inline(always)]
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: a copy of integers. A slot that is reused meanwhile gives another
        // datagram's ports, and the packet is treated as part of that one.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember(&self, key: &FragmentKey, ports: FragmentPorts) {
        match FRAGMENTS.get_ptr_mut(key) {
            // Written in place: an update of an LRU map takes a new slot first and
            // may evict another entry for it.
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
