//! IPv6 headers (RFC 8200) and the extension headers behind them.

use super::{Ip, Start, TCP, UDP};
use crate::{
    bytes::{Bytes, HEAD_V6},
    ethernet,
    icmp::v6::IcmpV6,
};
use veer_bpf_common::{
    address::{Address, V6},
    outcome::DropReason,
    tables::FragmentKey,
};

/// Bytes of a header without extension headers.
pub const HEADER_LENGTH: usize = 40;
/// Extension headers of one packet that are read at most.
pub const MAX_EXTENSIONS: usize = 8;

/// Offset of the number of what follows the header.
const NEXT_HEADER: usize = 6;
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
    /// The first eight bytes as a memory word, for rewriting in one piece.
    start: u64,
    source: V6,
    destination: V6,
    /// Bytes of the whole packet.
    total_length: u32,
    chain: Chain,
}

/// Extension headers, in one register: as a function of its own can return them, so
/// that the verifier walks them once and not anew for every way that they can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain(u64);

impl Chain {
    /// Bits of the length in bytes.
    const LENGTH: u64 = 0xffff;
    /// Place of the protocol.
    const PROTOCOL: u32 = 16;
    /// Bit: there is a routing header.
    const ROUTED: u64 = 1 << 24;
    /// Bit: it is the first fragment of several.
    const FIRST: u64 = 1 << 25;
    /// Bit: it is a later fragment.
    const LATER: u64 = 1 << 26;
    /// Bit: a length lies, or the packet ends within.
    const MALFORMED: u64 = 1 << 27;
    /// Bit: there are more than [`MAX_EXTENSIONS`].
    const TOO_MANY: u64 = 1 << 28;
    /// Place of a fragment's identification, which is in network byte order.
    const IDENTIFICATION: u32 = 32;

    /// No extension headers, and this protocol.
    #[inline(always)]
    const fn none(protocol: u8) -> Self {
        Self((protocol as u64) << Self::PROTOCOL)
    }

    /// Reads the extension headers of which the first, a `next`, is at `offset`, within
    /// `available` bytes. An atomic fragment (RFC 6946) is a whole packet.
    #[inline(always)]
    pub fn read<P: Bytes>(packet: &P, offset: u32, next: u8, available: u32) -> Self {
        let (mut protocol, mut length, mut rest) = (next, 0_u32, 0_u64);
        let mut count = 0;
        while is_extension(protocol) {
            if count == MAX_EXTENSIONS {
                return Self(Self::TOO_MANY);
            }
            count += 1;
            let Some(h) = packet.anywhere::<8>((offset + length) as usize) else {
                return Self(Self::MALFORMED);
            };
            length += match protocol {
                FRAGMENT => 8,
                AUTHENTICATION => (u32::from(h[1]) + 2) * 4,
                _ => (u32::from(h[1]) + 1) * 8,
            };
            if length > available {
                return Self(Self::MALFORMED);
            }
            if protocol == ROUTING {
                rest |= Self::ROUTED;
            }
            if protocol == FRAGMENT {
                if rest & Self::FIRST != 0 {
                    return Self(Self::MALFORMED);
                }
                let word = u16::from_be_bytes([h[2], h[3]]);
                let identification = u32::from_ne_bytes([h[4], h[5], h[6], h[7]]);
                rest |= u64::from(identification) << Self::IDENTIFICATION;
                if word & OFFSET != 0 {
                    rest |= Self::LATER;
                } else if word & MORE_FRAGMENTS != 0 {
                    rest |= Self::FIRST;
                }
            }
            protocol = h[0];
            if rest & Self::LATER != 0 {
                break;
            }
        }
        Self(Self::none(protocol).0 | u64::from(length) | rest)
    }

    /// The same as its number, and of it.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// See [`Self::bits`].
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Whether there was a reason to stop.
    #[inline(always)]
    const fn check(self) -> Result<Self, DropReason> {
        if self.has(Self::TOO_MANY) {
            Err(DropReason::TooManyHeaders)
        } else if self.has(Self::MALFORMED) {
            Err(DropReason::Malformed)
        } else {
            Ok(self)
        }
    }

    #[inline(always)]
    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    #[inline(always)]
    const fn length(self) -> usize {
        (self.0 & Self::LENGTH) as usize
    }

    #[inline(always)]
    const fn protocol(self) -> u8 {
        (self.0 >> Self::PROTOCOL) as u8
    }

    #[inline(always)]
    const fn identification(self) -> [u8; 4] {
        ((self.0 >> Self::IDENTIFICATION) as u32).to_ne_bytes()
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
        w: &[u64; 5],
        offset: usize,
        available: u32,
    ) -> Result<Self, DropReason> {
        let start = w[0].to_ne_bytes();
        let next = start[6];
        let payload = match u32::from(u16::from_be_bytes([start[4], start[5]])) {
            // A segment of more than 64 KiB that is cut up later (BIG TCP; kernel commit
            // 0fe79f28bf98). On the wire this would be a jumbogram (RFC 2675).
            0 if available > u32::from(u16::MAX) => available.wrapping_sub(HEADER_LENGTH as u32),
            n => n,
        };
        let total_length = payload.wrapping_add(HEADER_LENGTH as u32);
        if start[0] >> 4 != 6 || total_length > available {
            return Err(DropReason::Malformed);
        }
        // Nearly all packets have none.
        let chain = if is_extension(next) {
            packet
                .extension_headers(offset as u32, next, payload)
                .check()?
        } else {
            Chain::none(next)
        };
        Ok(Self {
            start: w[0],
            source: V6([w[1], w[2]]),
            destination: V6([w[3], w[4]]),
            total_length,
            chain,
        })
    }
}

/// Whether an address counts on its link alone (RFC 4291, section 2.5.6).
#[inline(always)]
pub const fn is_link_local(address: V6) -> bool {
    u64::from_be(address.0[0]) >> 54 == 0xfe80 >> 6
}

impl Ip for Ipv6 {
    type Address = V6;
    type Icmp = IcmpV6;
    /// Ethernet, and the header up to the hop limit.
    type Start = Start<22>;
    const ETHER_TYPE: u16 = ethernet::IPV6;
    const HEADER_LENGTH: usize = HEADER_LENGTH;
    const ADDRESSES: usize = 8;
    const CHECKSUM: Option<usize> = None;
    const HEAD: usize = HEAD_V6;

    #[inline(always)]
    fn parse<P: Bytes>(packet: &P, offset: usize) -> Result<Self, DropReason> {
        let w = packet.words::<5>(offset).ok_or(DropReason::Malformed)?;
        let available = packet.length().wrapping_sub(offset as u32);
        Self::read(packet, &w, offset + HEADER_LENGTH, available)
    }

    #[inline(always)]
    fn parse_carried<P: Bytes>(packet: &P, offset: usize) -> Option<Self> {
        let w = packet.words_anywhere::<5>(offset)?;
        Self::read(packet, &w, offset + HEADER_LENGTH, u32::MAX).ok()
    }

    #[inline(always)]
    fn carried_ports<P: Bytes>(packet: &P, offset: usize) -> Option<usize> {
        let [next] = packet.anywhere::<1>(offset + NEXT_HEADER)?;
        matches!(next, TCP | UDP).then_some(offset + Self::HEADER_LENGTH)
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
        self.chain.protocol()
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.start.to_ne_bytes()[7]
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        HEADER_LENGTH + self.chain.length()
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
        self.chain.has(Chain::FIRST)
    }

    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.chain.has(Chain::LATER)
    }

    /// Not multicast, unspecified, loopback, link-local or IPv4-mapped (RFC 4291,
    /// section 2.4).
    #[inline(always)]
    fn is_unicast(&self) -> bool {
        let [high, low] = self.destination.0.map(u64::from_be);
        let embedded = high == 0 && (low <= 1 || low >> 32 == 0xffff);
        high >> 56 != 0xff && !is_link_local(self.destination) && !embedded
    }

    #[inline(always)]
    fn is_source_routed(&self) -> bool {
        self.chain.has(Chain::ROUTED)
    }

    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        let identification = self.chain.identification();
        FragmentKey::new(self.source, self.destination, identification, 0)
    }

    #[inline(always)]
    fn onward(&self) -> (usize, [u8; 4]) {
        let [.., a, b, next, hops] = self.start.to_ne_bytes();
        (4, [a, b, next, hops.wrapping_sub(1)])
    }

    #[inline(always)]
    fn hop(&self, destination: [u8; 6], source: [u8; 6]) -> Start<22> {
        let (d, s) = (destination, source);
        let i = self.start.to_ne_bytes();
        let (_, j) = self.onward();
        Start([
            d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1], s[2], s[3], s[4], s[5], 0x86,
            0xdd, //
            i[0], i[1], i[2], i[3], j[0], j[1], j[2], j[3],
        ])
    }
}

const _: () = assert!(size_of::<V6>() == <V6 as Address>::BITS as usize / 8);

#[cfg(test)]
mod tests;
