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

/// `EtherType` of a VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// `EtherType` of a provider's VLAN tag (IEEE 802.1ad).
pub const PROVIDER_VLAN: u16 = 0x88a8;
/// Bytes of a VLAN tag, its `EtherType` included.
pub const TAG_LENGTH: usize = 4;
/// The bits of a tag that are the VLAN's id. Id 0: the tag only has a priority, and
/// the frame is of no VLAN.
pub const VLAN_ID: u16 = 0x0fff;

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

/// The id in a frame's VLAN tag, where its `EtherType` is [`VLAN`] or
/// [`PROVIDER_VLAN`].
#[inline(always)]
pub fn tag_id<P: Bytes>(packet: &P) -> Option<u16> {
    let tag = packet.head::<2>(HEADER_LENGTH)?;
    Some(u16::from_be_bytes(tag) & VLAN_ID)
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
    fn a_tags_priority_is_no_part_of_its_id() {
        let mut frame = testing::udp().frame();
        for (tag, id) in [([0xff, 0xff], 0x0fff), ([0xe0, 0], 0), ([0x10, 5], 5)] {
            frame[14..16].copy_from_slice(&tag);
            assert_eq!(tag_id(&Slice(&frame)), Some(id));
        }
        assert_eq!(tag_id(&Slice(&frame[..15])), None);
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
