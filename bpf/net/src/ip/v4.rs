//! IPv4 headers (RFC 791).

use super::{Ip, Start, TCP, UDP};
use crate::{
    bytes::{Bytes, HEAD},
    checksum, ethernet,
    icmp::v4::IcmpV4,
};
use veer_bpf_common::{outcome::DropReason, tables::FragmentKey};

/// Bytes of a header without options.
pub const HEADER_LENGTH: usize = 20;
/// The "don't fragment" bit in the word of the fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;
/// The "more fragments" bit there.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The offset there, in units of eight bytes.
const OFFSET: u16 = 0x1fff;

/// What veer needs of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// The header without options in memory words. Single fields would each take a
    /// register or a place on the stack of a BPF program.
    words: [u32; HEADER_LENGTH / 4],
    /// Bytes of the whole packet.
    total_length: u32,
}

impl Ipv4 {
    /// Reads the fixed part; `None` where version or IHL are impossible.
    #[inline(always)]
    fn read(h: &[u8; HEADER_LENGTH]) -> Option<Self> {
        let word = |at: usize| u32::from_ne_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let header = Self {
            words: [word(0), word(4), word(8), word(12), word(16)],
            total_length: u16::from_be_bytes([h[2], h[3]]).into(),
        };
        (h[0] >> 4 == 4 && header.header_length() >= HEADER_LENGTH).then_some(header)
    }

    /// The bytes of a word.
    #[inline(always)]
    const fn bytes(&self, word: usize) -> [u8; 4] {
        self.words[word].to_ne_bytes()
    }

    /// Flags and fragment offset.
    #[inline(always)]
    const fn fragment(&self) -> u16 {
        let [.., high, low] = self.bytes(1);
        u16::from_be_bytes([high, low])
    }
}

impl Ip for Ipv4 {
    type Address = [u8; 4];
    type Icmp = IcmpV4;
    /// Ethernet, and the header up to its checksum.
    type Start = Start<26>;
    const ETHER_TYPE: u16 = ethernet::IPV4;
    const HEADER_LENGTH: usize = HEADER_LENGTH;
    const ADDRESSES: usize = 12;
    const CHECKSUM: Option<usize> = Some(10);
    const HEAD: usize = HEAD;

    #[inline(always)]
    fn parse<P: Bytes>(packet: &P, offset: usize) -> Result<Self, DropReason> {
        let h = packet
            .head::<HEADER_LENGTH>(offset)
            .ok_or(DropReason::Malformed)?;
        let header = Self::read(&h).ok_or(DropReason::Malformed)?;
        let available = packet.length().wrapping_sub(offset as u32);
        let total_length = match header.total_length {
            // A segment of more than 64 KiB that is cut up later has no length
            // in its header (BIG TCP for IPv4; kernel commit b1a78b9b9886).
            0 if available > u32::from(u16::MAX) => available,
            n => n,
        };
        if (total_length as usize) < header.header_length() || total_length > available {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            total_length,
            ..header
        })
    }

    #[inline(always)]
    fn parse_carried<P: Bytes>(packet: &P, offset: usize) -> Option<Self> {
        Self::read(&packet.anywhere::<HEADER_LENGTH>(offset)?)
    }

    #[inline(always)]
    fn carried_ports<P: Bytes>(packet: &P, offset: usize) -> Option<usize> {
        let header = Self::parse_carried(packet, offset)?;
        let has_ports = matches!(header.protocol(), TCP | UDP) && !header.is_later_fragment();
        has_ports.then(|| offset + header.header_length())
    }

    #[inline(always)]
    fn source(&self) -> [u8; 4] {
        self.bytes(3)
    }

    #[inline(always)]
    fn destination(&self) -> [u8; 4] {
        self.bytes(4)
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.bytes(2)[1]
    }

    #[inline(always)]
    fn hops(&self) -> u8 {
        self.bytes(2)[0]
    }

    #[inline(always)]
    fn header_length(&self) -> usize {
        usize::from(self.bytes(0)[0] & 0x0f) * 4
    }

    #[inline(always)]
    fn total_length(&self) -> u32 {
        self.total_length
    }

    #[inline(always)]
    fn dont_fragment(&self) -> bool {
        self.fragment() & DONT_FRAGMENT != 0
    }

    #[inline(always)]
    fn is_first_fragment(&self) -> bool {
        self.fragment() & (MORE_FRAGMENTS | OFFSET) == MORE_FRAGMENTS
    }

    #[inline(always)]
    fn is_later_fragment(&self) -> bool {
        self.fragment() & OFFSET != 0
    }

    /// Not multicast, broadcast, unspecified or loopback (RFC 1122, section 3.2.1.3). A
    /// node accepts loopback destinations from devices with `route_localnet`.
    #[inline(always)]
    fn is_unicast(&self) -> bool {
        let [first, ..] = self.destination();
        first < 224 && first != 0 && first != 127
    }

    /// The kernel does not forward by IPv4's option for it (`accept_source_route`).
    #[inline(always)]
    fn is_source_routed(&self) -> bool {
        false
    }

    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        let [high, low, ..] = self.bytes(1);
        let identification = [0, 0, high, low];
        FragmentKey::new(
            self.source(),
            self.destination(),
            identification,
            self.protocol(),
        )
    }

    #[inline(always)]
    fn onward(&self) -> (usize, [u8; 4]) {
        let [ttl, protocol, checksum @ ..] = self.bytes(2);
        let (ttl, checksum) = checksum::decrement_ttl(ttl, checksum);
        (8, [ttl, protocol, checksum[0], checksum[1]])
    }

    #[inline(always)]
    fn hop(&self, destination: [u8; 6], source: [u8; 6]) -> Start<26> {
        let (_, [ttl, protocol, checksum @ ..]) = self.onward();
        let (d, s) = (destination, source);
        let (i, j) = (self.bytes(0), self.bytes(1));
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
            8,
            0, //
            i[0],
            i[1],
            i[2],
            i[3],
            j[0],
            j[1],
            j[2],
            j[3], //
            ttl,
            protocol,
            checksum[0],
            checksum[1],
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes::Slice, ethernet::HEADER_LENGTH as ETH, testing};
    use proptest::prelude::*;

    #[test]
    fn every_truncation_is_malformed() {
        let frame = testing::udp().frame();
        for n in 0..frame.len() {
            assert_eq!(
                Ipv4::parse(&Slice(&frame[..n]), ETH),
                Err(DropReason::Malformed),
                "{n} of {} bytes",
                frame.len()
            );
        }
        assert!(Ipv4::parse(&Slice(&frame), ETH).is_ok());
    }

    #[test]
    fn padding_behind_the_packet_is_not_part_of_it() {
        let mut frame = testing::udp().frame();
        let total = (frame.len() - ETH) as u32;
        frame.resize(200, 0xee);
        let header = Ipv4::parse(&Slice(&frame), ETH).unwrap();
        assert_eq!(header.total_length, total);
        assert_eq!(header.transport::<64, _>(&Slice(&frame)), None);
    }

    #[test]
    fn options_move_the_transport_header() {
        let mut packet = testing::udp();
        packet.options = vec![1; 40];
        let frame = packet.frame();
        let header = Ipv4::parse(&Slice(&frame), ETH).unwrap();
        assert_eq!(header.header_length(), 60);
        assert_eq!(
            header.transport::<4, _>(&Slice(&frame)),
            Some([0x30, 0x39, 0, 53])
        );
    }

    #[test]
    fn impossible_versions_and_lengths_are_malformed() {
        for first in [0x44, 0x40, 0x65, 0x05, 0x00] {
            let mut frame = testing::udp().frame();
            frame[ETH] = first;
            assert_eq!(
                Ipv4::parse(&Slice(&frame), ETH),
                Err(DropReason::Malformed),
                "first byte {first:#x}"
            );
        }
        let mut frame = testing::udp().frame();
        frame[ETH + 2..ETH + 4].copy_from_slice(&19u16.to_be_bytes());
        assert_eq!(Ipv4::parse(&Slice(&frame), ETH), Err(DropReason::Malformed));
    }

    #[test]
    fn a_length_of_zero_counts_only_for_more_than_64_kib() {
        for (size, expected) in [
            (1400, Err(DropReason::Malformed)),
            (ETH + 65_535, Err(DropReason::Malformed)),
            (ETH + 65_536, Ok(65_536)),
        ] {
            let mut frame = testing::udp().frame();
            frame.resize(size, 0);
            frame[ETH + 2..ETH + 4].fill(0);
            assert_eq!(
                Ipv4::parse(&Slice(&frame), ETH).map(|h| h.total_length),
                expected,
                "{size} bytes"
            );
        }
    }

    #[test]
    fn fragments_are_told_apart() {
        for (word, first, later, df) in [
            (0x0000u16, false, false, false),
            (0x4000, false, false, true),
            (0x2000, true, false, false),
            (0x2001, false, true, false),
            (0x0001, false, true, false),
            (0x1fff, false, true, false),
        ] {
            let mut packet = testing::udp();
            packet.fragment = word;
            let frame = packet.frame();
            let h = Ipv4::parse(&Slice(&frame), ETH).unwrap();
            assert_eq!(
                (
                    h.is_first_fragment(),
                    h.is_later_fragment(),
                    h.dont_fragment()
                ),
                (first, later, df),
                "{word:#x}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_reading_beyond_them(frame: Vec<u8>) {
            let slice = Slice(&frame);
            if let Ok(h) = Ipv4::parse(&slice, ETH) {
                prop_assert!(ETH + h.total_length as usize <= frame.len());
                prop_assert!(h.header_length() as u32 <= h.total_length);
            }
        }
    }

    extern crate std;
    use std::{vec, vec::Vec};
}
