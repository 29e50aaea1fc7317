//! `FRAGMENTS`: ports of datagrams that come in fragments.

use super::{MapKind, PairWords, Table};
use crate::address::Address;

/// Datagrams in fragments under way.
#[derive(Debug)]
pub enum Fragments {}

impl Table for Fragments {
    type Key = FragmentKey;
    type Value = FragmentPorts;
    const NAME: &'static str = "FRAGMENTS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 8192;
}

/// All fragments of one datagram share it (RFC 791, section 3.2; RFC 8200,
/// section 4.5, without the protocol there).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// As in [`crate::address::IpKey`].
    pub source: [u8; 16],
    /// As in [`crate::address::IpKey`].
    pub destination: [u8; 16],
    /// Network byte order; the 16 bits of IPv4 are the last two bytes.
    pub identification: [u8; 4],
    /// IP protocol number; 0 for IPv6, whose identifications do not depend on it.
    pub protocol: u8,
    /// [`crate::address::FAMILY_V4`] or [`crate::address::FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl FragmentKey {
    /// The key of a datagram; all in network byte order.
    #[inline(always)]
    pub fn new<A: Address>(
        source: A,
        destination: A,
        identification: [u8; 4],
        protocol: u8,
    ) -> Self {
        let ([a, b], [c, d]) = (source.words(), destination.words());
        let words = PairWords {
            addresses: [a, b, c, d],
            middle: u32::from_ne_bytes(identification),
            end: u32::from_ne_bytes([protocol, A::FAMILY, 0, 0]),
        };
        // SAFETY: as many bytes, and all fields are integers. In words for the same
        // reason as in [`crate::address::IpKey`].
        unsafe { core::mem::transmute::<PairWords, Self>(words) }
    }
}

/// What the first fragment of a datagram has and the others lack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// As in [`super::Tuple`].
    pub source_port: [u8; 2],
    /// As in [`super::Tuple`].
    pub destination_port: [u8; 2],
    /// IP protocol number: behind an IPv6 fragment header extension headers may come
    /// first, which only the first fragment holds.
    pub protocol: u8,
    /// As in [`super::Tuple`].
    pub asker: u8,
    /// Zero.
    pub pad: [u8; 2],
}

plain!(FragmentKey, 40);
plain!(FragmentPorts, 8);
