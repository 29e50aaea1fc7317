//! `INTERFACES`: what may come in from a pod.

use super::{MapKind, Table};
use crate::identity::Identity;

/// Veths of local pods, by the interface index of their host side.
#[derive(Debug)]
pub enum Interfaces {}

impl Table for Interfaces {
    type Key = u32;
    type Value = Interface;
    const NAME: &'static str = "INTERFACES";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 4096;
}

/// What may come in from a pod's veth, by the interface index of its host side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The pod's security identity.
    pub identity: u32,
    /// As in [`super::Endpoint`].
    pub endpoint_id: u16,
    /// Zero.
    pub flags: u16,
    /// The only source MAC it may use.
    pub mac: [u8; 6],
    /// MAC of the host side.
    pub node_mac: [u8; 6],
    /// The only IPv4 source it may use; zeros: none.
    pub v4: [u8; 4],
    /// The only global IPv6 source it may use; zeros: none.
    pub v6: [u8; 16],
}

impl Interface {
    /// The pod's security identity.
    #[inline(always)]
    pub const fn identity(&self) -> Identity {
        Identity::stored(self.identity)
    }
}

plain!(Interface, 40);
