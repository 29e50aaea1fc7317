//! IPv4 headers (RFC 791).

use crate::{bytes::Bytes, ethernet};
use veer_bpf_common::{
    address::{FAMILY_V4, IpKey},
    outcome::DropReason,
    tables::{FlowKey, FragmentKey, FragmentPorts},
};

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
    /// Bytes of the header, options included.
    pub header_length: usize,
    /// Bytes of the whole packet.
    pub total_length: u32,
    /// Flags and fragment offset, host byte order.
    fragment: u16,
    /// Identification, network byte order.
    pub identification: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// What the payload is.
    pub protocol: u8,
    /// Header checksum, network byte order.
    pub checksum: [u8; 2],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// The first eight bytes as they are, for rewriting in one piece.
    pub start: [u8; 8],
}

impl Ipv4 {
    /// Reads the header at `offset`, a constant in BPF, and checks its lengths
    /// against the frame: [`DropReason::Malformed`] where either lies.
    #[inline(always)]
    pub fn parse<P: Bytes>(packet: &P, offset: usize) -> Result<Self, DropReason> {
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
        if (total_length as usize) < header.header_length || total_length > available {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            total_length,
            ..header
        })
    }

    /// The header that an ICMP error carries, at a computed offset. Its packet
    /// is cut off behind the first bytes, so only the header's own length counts.
    #[inline(always)]
    pub fn parse_carried<P: Bytes>(packet: &P, offset: usize) -> Option<Self> {
        Self::read(&packet.anywhere::<HEADER_LENGTH>(offset)?)
    }

    /// Reads the fixed part; `None` where version or IHL are impossible.
    #[inline(always)]
    fn read(h: &[u8; HEADER_LENGTH]) -> Option<Self> {
        let header_length = ((h[0] & 0x0f) as usize) * 4;
        if h[0] >> 4 != 4 || header_length < HEADER_LENGTH {
            return None;
        }
        Some(Self {
            header_length,
            total_length: u32::from(u16::from_be_bytes([h[2], h[3]])),
            fragment: u16::from_be_bytes([h[6], h[7]]),
            identification: [h[4], h[5]],
            ttl: h[8],
            protocol: h[9],
            checksum: [h[10], h[11]],
            source: [h[12], h[13], h[14], h[15]],
            destination: [h[16], h[17], h[18], h[19]],
            start: [h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]],
        })
    }

    /// Bytes behind the header.
    #[inline(always)]
    pub const fn payload_length(&self) -> u32 {
        self.total_length.wrapping_sub(self.header_length as u32)
    }

    /// Whether routers must not fragment it.
    #[inline(always)]
    pub const fn dont_fragment(&self) -> bool {
        self.fragment & DONT_FRAGMENT != 0
    }

    /// Whether it is the first fragment of several.
    #[inline(always)]
    pub const fn is_first_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | OFFSET) == MORE_FRAGMENTS
    }

    /// Whether it is a fragment without the transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment & OFFSET != 0
    }

    /// Whether its destination is one other host: not multicast, broadcast,
    /// unspecified or loopback (RFC 1122, section 3.2.1.3). A node accepts loopback
    /// destinations from devices with `route_localnet`.
    #[inline(always)]
    pub const fn is_unicast(&self) -> bool {
        self.destination[0] < 224 && self.destination[0] != 0 && self.destination[0] != 127
    }

    /// The tuple of the packet with these ports.
    #[inline(always)]
    pub(crate) fn flow_key(&self, ports: FragmentPorts) -> FlowKey {
        FlowKey::new(
            self.source,
            self.destination,
            ports.source_port,
            ports.destination_port,
            self.protocol,
        )
    }

    /// What all fragments of this packet share.
    #[inline(always)]
    pub const fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: *IpKey::v4(self.source).addr(),
            destination: *IpKey::v4(self.destination).addr(),
            identification: [0, 0, self.identification[0], self.identification[1]],
            protocol: self.protocol,
            family: FAMILY_V4,
            pad: [0; 2],
        }
    }

    /// `N` bytes of the transport header of the packet whose IPv4 header is at
    /// [`ethernet::HEADER_LENGTH`], if both the packet's own length and the
    /// frame have them.
    #[inline(always)]
    pub fn transport<const N: usize, P: Bytes>(&self, packet: &P) -> Option<[u8; N]> {
        if (self.payload_length() as usize) < N {
            return None;
        }
        if self.header_length == HEADER_LENGTH {
            packet.head::<N>(ethernet::HEADER_LENGTH + HEADER_LENGTH)
        } else {
            packet.anywhere::<N>(ethernet::HEADER_LENGTH + self.header_length)
        }
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
        assert_eq!(header.header_length, 60);
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
                prop_assert!(h.header_length as u32 <= h.total_length);
            }
        }
    }

    extern crate std;
    use std::{vec, vec::Vec};
}
