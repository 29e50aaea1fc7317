//! IPv6 headers (RFC 8200) and the extension headers behind them.

use super::{Ip, Start};
use crate::{
    bytes::{Bytes, HEAD_V6},
    ethernet, icmp,
};
use veer_bpf_common::{
    address::{Address, FAMILY_V6, IpKey, V6},
    outcome::DropReason,
    tables::FragmentKey,
};

/// Bytes of a header without extension headers.
pub const HEADER_LENGTH: usize = 40;
/// Extension headers of one packet that are read at most.
pub const MAX_EXTENSIONS: usize = 8;

/// Next header: routing (RFC 8200, section 4.4).
const ROUTING: u8 = 43;
/// Next header: fragment (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;
/// Next header: authentication (RFC 4302).
const AUTHENTICATION: u8 = 51;

/// Whether a next header is an extension header with another behind it: hop-by-hop
/// options, routing, fragment, authentication, destination options, mobility, HIP and
/// Shim6 (IANA, "IPv6 Extension Header Types"). What ESP hides cannot be read.
const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        0 | ROUTING | FRAGMENT | AUTHENTICATION | 60 | 135 | 139 | 140
    )
}

/// What veer needs of an IPv6 header and its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// The first eight bytes as memory words, for rewriting in one piece.
    start: [u32; 2],
    source: V6,
    destination: V6,
    /// Bytes of the whole packet.
    total_length: u32,
    chain: Chain,
}

/// Extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chain {
    /// Bytes of the extension headers.
    length: usize,
    /// What follows them.
    protocol: u8,
    routed: bool,
    /// Offset in units of eight bytes times eight, and the bit "more fragments"; 0: the
    /// packet is whole, or an atomic fragment (RFC 6946).
    fragment: u16,
    identification: [u8; 4],
}

impl Chain {
    /// Reads the extension headers of which the first, a `next`, is at `offset`, within
    /// `available` bytes.
    #[inline(always)]
    fn read<P: Bytes>(
        packet: &P,
        offset: usize,
        next: u8,
        available: usize,
    ) -> Result<Self, DropReason> {
        let mut chain = Self {
            length: 0,
            protocol: next,
            routed: false,
            fragment: 0,
            identification: [0; 4],
        };
        let mut count = 0;
        while is_extension(chain.protocol) {
            if count == MAX_EXTENSIONS {
                return Err(DropReason::TooManyHeaders);
            }
            count += 1;
            let h = packet
                .anywhere::<8>(offset + chain.length)
                .ok_or(DropReason::Malformed)?;
            let this = chain.protocol;
            chain.length += match this {
                FRAGMENT => 8,
                AUTHENTICATION => (h[1] as usize + 2) * 4,
                _ => (h[1] as usize + 1) * 8,
            };
            if chain.length > available {
                return Err(DropReason::Malformed);
            }
            chain.protocol = h[0];
            chain.routed |= this == ROUTING;
            if this == FRAGMENT {
                if chain.fragment != 0 {
                    return Err(DropReason::Malformed);
                }
                chain.fragment = u16::from_be_bytes([h[2], h[3]]) & (OFFSET | MORE_FRAGMENTS);
                chain.identification = [h[4], h[5], h[6], h[7]];
                if chain.fragment & OFFSET != 0 {
                    break;
                }
            }
        }
        Ok(chain)
    }
}

/// Bits of a fragment header's offset.
const OFFSET: u16 = 0xfff8;
/// The bit "more fragments" there.
const MORE_FRAGMENTS: u16 = 1;

impl Ipv6 {
    /// The header of these words, whose extension headers are at `offset` behind it;
    /// `available`: bytes of the packet that may be there.
    #[inline(always)]
    fn read<P: Bytes>(
        packet: &P,
        w: &[u32; 10],
        offset: usize,
        available: u32,
    ) -> Result<Self, DropReason> {
        let second = w[1].to_ne_bytes();
        let next = second[2];
        let payload = match u32::from(u16::from_be_bytes([second[0], second[1]])) {
            // A segment of more than 64 KiB that is cut up later (BIG TCP; kernel commit
            // 0fe79f28bf98). On the wire this would be a jumbogram (RFC 2675).
            0 if available > u32::from(u16::MAX) => available.wrapping_sub(HEADER_LENGTH as u32),
            n => n,
        };
        let total_length = payload.wrapping_add(HEADER_LENGTH as u32);
        if w[0].to_ne_bytes()[0] >> 4 != 6 || total_length > available {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            start: [w[0], w[1]],
            source: V6([w[2], w[3], w[4], w[5]]),
            destination: V6([w[6], w[7], w[8], w[9]]),
            total_length,
            chain: Chain::read(packet, offset, next, payload as usize)?,
        })
    }
}

/// Whether an address counts on its link alone (RFC 4291, section 2.5.6).
#[inline(always)]
pub const fn is_link_local(address: V6) -> bool {
    u32::from_be(address.0[0]) >> 22 == 0xfe80 >> 6
}

impl Ip for Ipv6 {
    type Address = V6;
    /// Ethernet, and the header up to the hop limit.
    type Start = Start<22>;
    const ETHER_TYPE: u16 = ethernet::IPV6;
    const HEADER_LENGTH: usize = HEADER_LENGTH;
    const HEAD: usize = HEAD_V6;
    const ICMP: u8 = super::ICMP_V6;

    #[inline(always)]
    fn parse<P: Bytes>(packet: &P, offset: usize) -> Result<Self, DropReason> {
        let w = packet.words::<10>(offset).ok_or(DropReason::Malformed)?;
        let available = packet.length().wrapping_sub(offset as u32);
        Self::read(packet, &w, offset + HEADER_LENGTH, available)
    }

    #[inline(always)]
    fn parse_carried<P: Bytes>(packet: &P, offset: usize) -> Option<Self> {
        let h = packet.anywhere::<HEADER_LENGTH>(offset)?;
        let mut w = [0; 10];
        let mut at = 0;
        while at < w.len() {
            w[at] = u32::from_ne_bytes([h[4 * at], h[4 * at + 1], h[4 * at + 2], h[4 * at + 3]]);
            at += 1;
        }
        Self::read(packet, &w, offset + HEADER_LENGTH, u32::MAX).ok()
    }

    #[inline(always)]
    fn source(&self) -> V6 {
        self.source
    }

    #[inline(always)]
    fn destination(&self) -> V6 {
        self.destination
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.chain.protocol
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.start[1].to_ne_bytes()[3]
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        HEADER_LENGTH + self.chain.length
    }

    #[inline(always)]
    fn total_length(&self) -> u32 {
        self.total_length
    }

    /// No router fragments IPv6 (RFC 8200, section 5).
    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        true
    }

    #[inline(always)]
    fn is_first_fragment(&self) -> bool {
        self.chain.fragment == MORE_FRAGMENTS
    }

    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.chain.fragment & OFFSET != 0
    }

    /// Not multicast, unspecified, loopback, link-local or IPv4-mapped (RFC 4291,
    /// section 2.4).
    #[inline(always)]
    fn is_unicast(&self) -> bool {
        let [a, b, c, d] = self.destination.0.map(u32::from_be);
        let embedded = a == 0 && b == 0 && (c == 0xffff || (c == 0 && d <= 1));
        a >> 24 != 0xff && !is_link_local(self.destination) && !embedded
    }

    #[inline(always)]
    fn is_source_routed(&self) -> bool {
        self.chain.routed
    }

    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: *IpKey::of(self.source).addr(),
            destination: *IpKey::of(self.destination).addr(),
            identification: self.chain.identification,
            protocol: 0,
            family: FAMILY_V6,
            pad: [0; 2],
        }
    }

    #[inline(always)]
    fn hop(&self, destination: [u8; 6], source: [u8; 6]) -> Start<22> {
        let (d, s) = (destination, source);
        let (i, j) = (self.start[0].to_ne_bytes(), self.start[1].to_ne_bytes());
        Start([
            d[0],
            d[1],
            d[2],
            d[3],
            d[4],
            d[5],
            s[0],
            s[1],
            s[2],
            s[3],
            s[4],
            s[5],
            0x86,
            0xdd, //
            i[0],
            i[1],
            i[2],
            i[3],
            j[0],
            j[1],
            j[2],
            j[3].wrapping_sub(1),
        ])
    }

    #[inline(always)]
    fn icmp_has_identifier(icmp_type: u8) -> bool {
        icmp::v6::has_identifier(icmp_type)
    }

    #[inline(always)]
    fn icmp_is_error(icmp_type: u8) -> bool {
        icmp::v6::is_error(icmp_type)
    }

    #[inline(always)]
    fn icmp_is_undeliverable(icmp_type: u8) -> bool {
        icmp::v6::is_undeliverable(icmp_type)
    }
}

const _: () = assert!(size_of::<V6>() == <V6 as Address>::BITS as usize / 8);

#[cfg(test)]
mod tests;
