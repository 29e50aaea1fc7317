//! `CONFIG`: what every program needs to know of its node.

use super::{MapKind, Table};
use crate::device::IfIndex;

/// The one [`Config`], at index 0.
#[derive(Debug)]
pub enum Configuration {}

impl Table for Configuration {
    type Key = u32;
    type Value = Config;
    const NAME: &'static str = "CONFIG";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = 1;
}

/// What every program needs to know of its node. One entry, index 0. Fields are
/// independent of each other, so a reader may see one new and one old.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interface index of the VXLAN device; 0: not known.
    pub vxlan_ifindex: u32,
    /// Largest inner IP packet, in bytes, for a path through the tunnel.
    pub tunnel_mtu: u32,
    /// Largest IP packet, in bytes, for a natively routed path.
    pub native_mtu: u32,
    /// Bits: [`Config::DENIES`].
    pub flags: u32,
    /// The gateway address pods have as next hop, network byte order; zeros: none.
    pub gateway_v4: [u8; 4],
    /// As [`Config::gateway_v4`] for IPv6.
    pub gateway_v6: [u8; 16],
    /// UDP port of the tunnel, network byte order.
    pub tunnel_port: [u8; 2],
    /// Prefix length of the pod CIDR that [`Config::gateway_v4`] is in; 0: not known.
    pub block_bits_v4: u8,
    /// The same of [`Config::gateway_v6`].
    pub block_bits_v6: u8,
    /// Zero.
    pub pad: [u8; CONFIG_PAD],
}

/// Bytes of [`Config::pad`]; more in the layout that exists for tests.
pub const CONFIG_PAD: usize = if cfg!(feature = "next-layout") { 8 } else { 0 };

impl Config {
    /// [`Config::flags`]: there are denied prefixes, so XDP has to look sources up.
    pub const DENIES: u32 = 1;

    /// The VXLAN device.
    #[inline(always)]
    pub const fn vxlan(&self) -> Option<IfIndex> {
        IfIndex::new(self.vxlan_ifindex)
    }

    /// Whether there are denied prefixes.
    #[inline(always)]
    pub const fn denies(&self) -> bool {
        self.flags & Self::DENIES != 0
    }
}

plain!(Config, 40 + CONFIG_PAD);
