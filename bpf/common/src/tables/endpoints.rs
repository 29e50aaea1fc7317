//! `ENDPOINTS`: local pods.

use super::{MapKind, Table};
use crate::{address::IpKey, device::IfIndex, identity::Identity};

/// Local pods on one node, per address.
#[derive(Debug)]
pub enum Endpoints {}

impl Table for Endpoints {
    type Key = IpKey;
    type Value = Endpoint;
    const NAME: &'static str = "ENDPOINTS";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 8192;
}

/// A local pod by one of its addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host side of its veth (in the host's namespace).
    pub ifindex: u32,
    /// Its security identity.
    pub identity: u32,
    /// Its number on this node, for people and counters.
    pub endpoint_id: u16,
    /// Zero.
    pub flags: u16,
    /// MAC of its eth0.
    pub mac: [u8; 6],
    /// MAC of the host side of its veth.
    pub node_mac: [u8; 6],
}

impl Endpoint {
    /// The host side of its veth.
    #[inline(always)]
    pub const fn ifindex(&self) -> IfIndex {
        IfIndex::stored(self.ifindex)
    }

    /// Its security identity.
    #[inline(always)]
    pub const fn identity(&self) -> Identity {
        Identity::stored(self.identity)
    }
}

plain!(Endpoint, 24);
