//! The outer side of a tunnel packet: UDP to the tunnel port and the VXLAN
//! header behind it (RFC 7348, section 5).

use crate::{
    bytes::Bytes,
    ethernet,
    ip::{Ip, UDP},
};
use veer_bpf_common::{identity::Vni, outcome::DropReason};

/// Bytes of the UDP and the VXLAN header.
const HEADERS: usize = 16;
/// The flag that says the VNI counts; the only one without extensions.
const VNI_VALID: u8 = 0x08;

/// Whether `ip` is UDP to the tunnel port. Later fragments are not: they have
/// no port, and what they belong to was judged by the first.
#[inline(always)]
pub fn is_tunnel<I: Ip, P: Bytes>(packet: &P, ip: &I, tunnel_port: [u8; 2]) -> bool {
    if ip.protocol() != UDP || ip.is_later_fragment() {
        return false;
    }
    ip.transport::<4, P>(packet)
        .is_some_and(|h| [h[2], h[3]] == tunnel_port)
}

/// The VNI of a tunnel packet. [`DropReason::Malformed`] where the UDP length
/// lies, a header is cut off or there is no whole inner Ethernet header.
#[inline(always)]
pub fn vni<I: Ip, P: Bytes>(packet: &P, ip: &I) -> Result<Vni, DropReason> {
    let h = ip
        .transport::<HEADERS, P>(packet)
        .ok_or(DropReason::Malformed)?;
    let udp_length = u32::from(u16::from_be_bytes([h[4], h[5]]));
    let needed = (HEADERS + ethernet::HEADER_LENGTH) as u32;
    // What a first fragment lacks of the datagram is in the others.
    let available = if ip.is_first_fragment() {
        u32::MAX
    } else {
        ip.payload_length()
    };
    if udp_length < needed
        || udp_length > available
        || ip.payload_length() < needed
        || h[8] & VNI_VALID == 0
    {
        return Err(DropReason::Malformed);
    }
    Ok(Vni::from_header([h[12], h[13], h[14]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bytes::Slice,
        ethernet::HEADER_LENGTH as ETH,
        ip::v4::Ipv4,
        testing::{self, Packet},
    };

    const PORT: [u8; 2] = 8472u16.to_be_bytes();

    fn read(packet: &Packet) -> Result<u32, DropReason> {
        let frame = packet.frame();
        let slice = Slice(&frame);
        let ip = Ipv4::parse(&slice, ETH)?;
        if !is_tunnel(&slice, &ip, PORT) {
            return Err(DropReason::UnsupportedL3);
        }
        vni(&slice, &ip).map(Vni::get)
    }

    #[test]
    fn the_vni_is_read() {
        assert_eq!(read(&testing::vxlan(0x00ab_cdef)), Ok(0x00ab_cdef));
    }

    #[test]
    fn a_tunnel_packet_cut_off_at_any_byte_of_its_headers_is_malformed() {
        for n in 8..16 + 14 {
            let mut packet = testing::vxlan(256);
            packet.payload.truncate(n);
            packet.payload[4..6].copy_from_slice(&(n as u16).to_be_bytes());
            assert_eq!(read(&packet), Err(DropReason::Malformed), "{n} bytes");
        }
    }

    #[test]
    fn a_udp_length_that_lies_is_malformed() {
        let honest = testing::vxlan(256).payload.len() as u16;
        for length in [0, 8, 29, honest + 1, u16::MAX] {
            let mut packet = testing::vxlan(256);
            packet.payload[4..6].copy_from_slice(&length.to_be_bytes());
            assert_eq!(read(&packet), Err(DropReason::Malformed), "{length}");
        }
    }

    #[test]
    fn a_first_fragment_may_lack_the_rest_of_its_datagram() {
        let mut packet = testing::vxlan(256);
        packet.fragment = 0x2000;
        packet.payload[4..6].copy_from_slice(&3000u16.to_be_bytes());
        assert_eq!(read(&packet), Ok(256));
    }

    #[test]
    fn without_the_flag_there_is_no_vni() {
        let mut packet = testing::vxlan(256);
        packet.payload[8] = 0;
        assert_eq!(read(&packet), Err(DropReason::Malformed));
    }

    #[test]
    fn other_ports_protocols_and_later_fragments_are_not_the_tunnel() {
        let mut port = testing::vxlan(256);
        port.payload[2..4].copy_from_slice(&4789u16.to_be_bytes());
        let mut protocol = testing::vxlan(256);
        protocol.protocol = 6;
        let mut later = testing::vxlan(256);
        later.fragment = 1;
        for packet in [port, protocol, later] {
            assert_eq!(read(&packet), Err(DropReason::UnsupportedL3));
        }
    }
}
