//! IP headers, one file per family, what they have in common, and the numbers of the
//! protocols behind them.

pub mod v4;
pub mod v6;

use crate::{bytes::Bytes, ethernet, icmp::Types};
use veer_bpf_common::{
    address::Address,
    outcome::DropReason,
    tables::{FragmentKey, FragmentPorts, Tuple},
};

/// The start of a frame, aligned, so that BPF writes words.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug)]
pub struct Start<const N: usize>(pub [u8; N]);

/// The header of one family, which all code beside the headers is generic over.
pub trait Ip: Copy {
    /// Its addresses.
    type Address: Address;
    /// The family's ICMP.
    type Icmp: Types;
    /// The start of a frame up to the last byte that changes at a hop.
    type Start: AsRef<[u8]>;
    /// `EtherType`.
    const ETHER_TYPE: u16;
    /// Bytes of a header without options or extension headers.
    const HEADER_LENGTH: usize;
    /// Offset of the source address in the header; the destination follows it.
    const ADDRESSES: usize;
    /// Offset of the header's own checksum; `None`: it has none.
    const CHECKSUM: Option<usize>;
    /// Bytes that [`Bytes::head`] must reach, TCP without options included.
    const HEAD: usize;

    /// Reads the header at `offset`, a constant in BPF, and checks its lengths
    /// against the frame: [`DropReason::Malformed`] where either lies.
    fn parse<P: Bytes>(packet: &P, offset: usize) -> Result<Self, DropReason>;
    /// The header that an ICMP error carries, at a computed offset. Its packet
    /// is cut off behind the first bytes, so only the headers' own lengths count.
    fn parse_carried<P: Bytes>(packet: &P, offset: usize) -> Option<Self>;

    /// Where TCP's or UDP's ports are of the packet that an ICMP error carries at `offset`;
    /// `None`: there are none, or, in IPv6, extension headers before them.
    fn carried_ports<P: Bytes>(packet: &P, offset: usize) -> Option<usize>;

    /// Source address.
    fn source(&self) -> Self::Address;
    /// Destination address.
    fn destination(&self) -> Self::Address;
    /// What the payload is.
    fn protocol(&self) -> u8;
    /// Time to live, or hop limit.
    fn hops(&self) -> u8;
    /// Bytes in front of the transport header.
    fn header_length(&self) -> usize;
    /// Bytes of the whole packet.
    fn total_length(&self) -> u32;
    /// Whether routers must not fragment it.
    fn dont_fragment(&self) -> bool;
    /// Whether it is the first fragment of several.
    fn is_first_fragment(&self) -> bool;
    /// Whether it is a fragment without the transport header.
    fn is_later_fragment(&self) -> bool;
    /// Whether its destination is one other host whose address counts beyond one link.
    fn is_unicast(&self) -> bool;
    /// Whether a header sends it on to a third address.
    fn is_source_routed(&self) -> bool;
    /// What all fragments of this packet share.
    fn fragment_key(&self) -> FragmentKey;
    /// The four bytes of the header that change at a hop, and where they are in it. The
    /// caller has checked that [`Self::hops`] is not 0.
    fn onward(&self) -> (usize, [u8; 4]);
    /// The start of its frame one hop on, as [`Self::onward`], with these MACs.
    fn hop(&self, destination: [u8; 6], source: [u8; 6]) -> Self::Start;

    /// Whether it is of the family's ICMP.
    #[inline(always)]
    fn is_icmp(&self) -> bool {
        self.protocol() == Self::Icmp::PROTOCOL
    }

    /// Bytes behind the headers.
    #[inline(always)]
    fn payload_length(&self) -> u32 {
        self.total_length()
            .wrapping_sub(self.header_length() as u32)
    }

    /// The tuple of the packet with these ports.
    #[inline(always)]
    fn tuple(&self, protocol: u8, ports: FragmentPorts) -> Tuple {
        let (source, destination) = (ports.source_port, ports.destination_port);
        Tuple::new(
            self.source(),
            self.destination(),
            source,
            destination,
            protocol,
        )
        .asked_by(ports.asker)
    }

    /// `N` bytes of the transport header of the packet whose header is at
    /// [`ethernet::HEADER_LENGTH`], if both the packet's own length and the
    /// frame have them.
    #[inline(always)]
    fn transport<const N: usize, P: Bytes>(&self, packet: &P) -> Option<[u8; N]> {
        if (self.payload_length() as usize) < N {
            return None;
        }
        let end = ethernet::HEADER_LENGTH + Self::HEADER_LENGTH + N;
        if self.header_length() == Self::HEADER_LENGTH && end <= Self::HEAD {
            packet.head::<N>(ethernet::HEADER_LENGTH + Self::HEADER_LENGTH)
        } else {
            packet.anywhere::<N>(ethernet::HEADER_LENGTH + self.header_length())
        }
    }
}

impl<const N: usize> AsRef<[u8]> for Start<N> {
    #[inline(always)]
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of `ICMPv6`.
pub const ICMP_V6: u8 = 58;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Protocol number of DCCP. Its ports are where UDP's are, as for the next two.
pub const DCCP: u8 = 33;
/// Protocol number of SCTP.
pub const SCTP: u8 = 132;
/// Protocol number of UDP-Lite.
pub const UDP_LITE: u8 = 136;
