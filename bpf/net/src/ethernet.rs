//! Ethernet II.

use crate::bytes::Bytes;
use veer_bpf_common::outcome::DropReason;

/// Bytes of an Ethernet header.
pub const HEADER_LENGTH: usize = 14;

/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;

/// The smallest `EtherType`; below it the field is an IEEE 802.3 length.
const FIRST_ETHER_TYPE: u16 = 0x0600;

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// What follows, host byte order.
    pub ether_type: u16,
}

impl Ethernet {
    /// Reads the header. [`DropReason::Malformed`] where the frame is shorter,
    /// [`DropReason::UnsupportedL2`] for an IEEE 802.3 length.
    #[inline(always)]
    pub fn parse<P: Bytes>(packet: &P) -> Result<Self, DropReason> {
        let h = packet
            .head::<HEADER_LENGTH>(0)
            .ok_or(DropReason::Malformed)?;
        let ether_type = u16::from_be_bytes([h[12], h[13]]);
        if ether_type < FIRST_ETHER_TYPE {
            return Err(DropReason::UnsupportedL2);
        }
        Ok(Self {
            destination: [h[0], h[1], h[2], h[3], h[4], h[5]],
            source: [h[6], h[7], h[8], h[9], h[10], h[11]],
            ether_type,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bytes::Slice, testing};

    #[test]
    fn every_length_below_a_header_is_malformed() {
        let frame = testing::udp().frame();
        for n in 0..HEADER_LENGTH {
            assert_eq!(
                Ethernet::parse(&Slice(&frame[..n])),
                Err(DropReason::Malformed)
            );
        }
        assert_eq!(
            Ethernet::parse(&Slice(&frame[..HEADER_LENGTH])).map(|e| e.ether_type),
            Ok(IPV4)
        );
    }

    #[test]
    fn a_length_field_is_not_an_ether_type() {
        let mut frame = testing::udp().frame();
        for (value, expected) in [
            (0x05ff_u16, Err(DropReason::UnsupportedL2)),
            (0x0600, Ok(0x0600)),
        ] {
            frame[12..14].copy_from_slice(&value.to_be_bytes());
            assert_eq!(
                Ethernet::parse(&Slice(&frame)).map(|e| e.ether_type),
                expected
            );
        }
    }
}
