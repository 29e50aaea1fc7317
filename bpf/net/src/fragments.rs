//! Fragments, of which only the first has the transport header.

use veer_bpf_common::tables::{FragmentKey, FragmentPorts};

/// Ports by datagram, so that later fragments find those of the first.
pub trait Fragments {
    /// What the first fragment had.
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// The first fragment has these.
    fn remember(&self, key: &FragmentKey, ports: FragmentPorts);
}
