//! ARP for IPv4 over Ethernet (RFC 826).

use crate::{bytes::Bytes, ethernet::HEADER_LENGTH};
use veer_bpf_common::outcome::DropReason;

/// Bytes of an ARP message for IPv4 over Ethernet.
pub const LENGTH: usize = 28;
/// Bytes of a whole ARP frame.
pub const FRAME_LENGTH: usize = HEADER_LENGTH + LENGTH;

/// Hardware type Ethernet, protocol type IPv4 and the lengths of both addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Who has.
const REQUEST: u16 = 1;

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 is a request, 2 a reply.
    pub operation: u16,
    /// MAC of who asks or answers.
    pub sender_mac: [u8; 6],
    /// Address of who asks or answers.
    pub sender: [u8; 4],
    /// Address that is asked for.
    pub target: [u8; 4],
}

impl Arp {
    /// Reads the message after an Ethernet header. [`DropReason::Malformed`]
    /// where it is cut off or not for IPv4 over Ethernet.
    #[inline(always)]
    pub fn parse<P: Bytes>(packet: &P) -> Result<Self, DropReason> {
        let m = packet
            .head::<LENGTH>(HEADER_LENGTH)
            .ok_or(DropReason::Malformed)?;
        if [m[0], m[1], m[2], m[3], m[4], m[5]] != ETHERNET_IPV4 {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            operation: u16::from_be_bytes([m[6], m[7]]),
            sender_mac: [m[8], m[9], m[10], m[11], m[12], m[13]],
            sender: [m[14], m[15], m[16], m[17]],
            target: [m[24], m[25], m[26], m[27]],
        })
    }

    /// Whether this asks for `address`.
    #[inline(always)]
    pub fn asks_for(&self, address: [u8; 4]) -> bool {
        self.operation == REQUEST && self.target == address
    }

    /// The frame that answers this request with `mac`.
    #[inline(always)]
    pub fn reply(&self, mac: [u8; 6]) -> [u8; FRAME_LENGTH] {
        let (a, b) = (self.sender_mac, mac);
        let (s, t) = (self.sender, self.target);
        [
            a[0], a[1], a[2], a[3], a[4], a[5], b[0], b[1], b[2], b[3], b[4], b[5], 8, 6, //
            0, 1, 8, 0, 6, 4, 0, 2, //
            b[0], b[1], b[2], b[3], b[4], b[5], t[0], t[1], t[2], t[3], //
            a[0], a[1], a[2], a[3], a[4], a[5], s[0], s[1], s[2], s[3],
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::Slice;

    const REQUEST_FRAME: [u8; FRAME_LENGTH] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, //
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 5, //
        0, 0, 0, 0, 0, 0, 10, 0, 0, 1,
    ];

    #[test]
    fn every_truncation_is_malformed() {
        for n in 0..FRAME_LENGTH {
            assert_eq!(
                Arp::parse(&Slice(&REQUEST_FRAME[..n])),
                Err(DropReason::Malformed),
                "{n} bytes"
            );
        }
        assert!(Arp::parse(&Slice(&REQUEST_FRAME)).is_ok());
    }

    #[test]
    fn a_request_is_answered_to_its_sender() {
        let request = Arp::parse(&Slice(&REQUEST_FRAME)).unwrap();
        assert!(request.asks_for([10, 0, 0, 1]));
        assert!(!request.asks_for([10, 0, 0, 2]));
        let frame = request.reply([2, 0, 0, 0, 0, 9]);
        let reply = Arp::parse(&Slice(&frame)).unwrap();
        assert_eq!(frame[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!(frame[6..12], [2, 0, 0, 0, 0, 9]);
        assert_eq!(
            reply,
            Arp {
                operation: 2,
                sender_mac: [2, 0, 0, 0, 0, 9],
                sender: [10, 0, 0, 1],
                target: [10, 0, 0, 5],
            }
        );
        assert!(!reply.asks_for([10, 0, 0, 5]));
    }

    #[test]
    fn other_hardware_or_protocol_is_malformed() {
        for i in 14..20 {
            let mut frame = REQUEST_FRAME;
            frame[i] ^= 0x10;
            assert_eq!(Arp::parse(&Slice(&frame)), Err(DropReason::Malformed));
        }
    }
}
