//! Whether a packet fits a path.

use crate::{
    bytes::Bytes,
    ip::{Ip, TCP, UDP},
};

/// The `gso_size` of a packet whose segments are as they were made, each within the
/// path's MTU (`GSO_BY_FRAGS` in `include/linux/skbuff.h`; SCTP's).
const GSO_BY_FRAGS: u32 = 0xffff;

/// Whether `ip` is larger than `mtu` once it is on the wire. A packet with a
/// `gso_size` other than 0 goes out in segments of that many bytes of payload,
/// each with its own headers.
#[inline(always)]
pub fn exceeds<I: Ip, P: Bytes>(packet: &P, ip: &I, gso_size: u32, mtu: u32) -> bool {
    if ip.total_length() <= mtu {
        return false;
    }
    if gso_size == 0 {
        return true;
    }
    if gso_size == GSO_BY_FRAGS {
        return false;
    }
    let transport = match ip.protocol() {
        TCP => ip
            .transport::<20, P>(packet)
            .map_or(0, |h| u32::from(h[12] >> 4) * 4),
        UDP => 8,
        _ => 0,
    };
    gso_size.saturating_add(ip.header_length() as u32 + transport) > mtu
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes::Slice, ethernet::HEADER_LENGTH as ETH, ip::v4::Ipv4, l4::ACK, testing};

    fn sized(mut packet: testing::Packet, total: usize) -> (Ipv4, std::vec::Vec<u8>) {
        packet.payload.resize(total - 20, 0);
        let frame = packet.frame();
        (Ipv4::parse(&Slice(&frame), ETH).unwrap(), frame)
    }

    #[test]
    fn a_packet_may_be_as_large_as_the_mtu() {
        for (total, expected) in [(1450, false), (1451, true)] {
            let (ip, frame) = sized(testing::udp(), total);
            assert_eq!(exceeds(&Slice(&frame), &ip, 0, 1450), expected);
        }
    }

    #[test]
    fn segments_of_their_own_lengths_fit() {
        let (ip, frame) = sized(testing::udp(), 20_000);
        assert!(!exceeds(&Slice(&frame), &ip, GSO_BY_FRAGS, 1450));
    }

    #[test]
    fn segments_count_with_their_headers() {
        let mut tcp = testing::tcp(ACK);
        // 32 bytes of TCP header: timestamps.
        tcp.payload[12] = 8 << 4;
        for (gso, expected) in [(1398, false), (1399, true)] {
            let (ip, frame) = sized(tcp.clone(), 20_000);
            assert_eq!(exceeds(&Slice(&frame), &ip, gso, 1450), expected);
        }
        for (gso, expected) in [(1422, false), (1423, true)] {
            let (ip, frame) = sized(testing::udp(), 20_000);
            assert_eq!(exceeds(&Slice(&frame), &ip, gso, 1450), expected);
        }
    }

    extern crate std;
}
