//! ICMP messages of both families, and those that only IPv6 has.

use super::Packet;
use crate::family::Family;
use std::net::Ipv6Addr;

/// What an ICMP error complains about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// The destination cannot be reached.
    Unreachable,
    /// The packet is too big for a link.
    TooBig,
    /// The TTL or hop limit is used up.
    TimeExceeded,
    /// A header makes no sense.
    Parameter,
    /// There is a better way. The one of IPv6 is a neighbour message.
    Redirect,
}

/// What an ICMP message says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Echo,
    Reply,
    Error(Complaint),
    /// Type and code.
    Other(u8, u8),
}

impl Message {
    /// Type and code.
    pub(super) fn numbers(self, family: Family) -> (u8, u8) {
        match self {
            Self::Echo => (family.pick(8, 128), 0),
            Self::Reply => (family.pick(0, 129), 0),
            Self::Error(complaint) => complaint.numbers(family),
            Self::Other(kind, code) => (kind, code),
        }
    }
}

impl Complaint {
    /// Type and code.
    pub fn numbers(self, family: Family) -> (u8, u8) {
        match self {
            Self::Unreachable => family.pick((3, 0), (1, 0)),
            Self::TooBig => family.pick((3, 4), (2, 0)),
            Self::TimeExceeded => family.pick((11, 0), (3, 0)),
            Self::Parameter => family.pick((12, 0), (4, 0)),
            Self::Redirect => family.pick((5, 0), (137, 0)),
        }
    }
}

/// Neighbour messages (RFC 4861).
impl Packet {
    /// A solicitation: who has `target`?
    pub fn solicitation(source: Ipv6Addr, target: Ipv6Addr, mac: [u8; 6]) -> Self {
        let option = [&[1, 1][..], &mac].concat();
        // Who has no address yet does not say its MAC (section 4.3).
        let option = if source.is_unspecified() {
            &[]
        } else {
            &option[..]
        };
        Self::neighbour(135, 0, (source, solicited_node(target)), target, option)
    }

    /// An advertisement: `target` has this MAC.
    pub fn advertisement(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        flags: u8,
        (target, mac): (Ipv6Addr, [u8; 6]),
    ) -> Self {
        let option = [&[2, 1][..], &mac].concat();
        Self::neighbour(136, flags, (source, destination), target, &option)
    }

    fn neighbour(
        kind: u8,
        flags: u8,
        (source, destination): (Ipv6Addr, Ipv6Addr),
        target: Ipv6Addr,
        options: &[u8],
    ) -> Self {
        let body = [&[flags, 0, 0, 0], &target.octets()[..], options].concat();
        Self::icmp(source, destination, (kind, 0), &body).ttl(255)
    }
}

/// The group in which who has an address listens for questions (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let (a, bc) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, a, bc)
}

/// The address that a device with this MAC has on its link (RFC 4291, appendix A).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    octets[8..11].copy_from_slice(&mac[..3]);
    octets[13..].copy_from_slice(&mac[3..]);
    octets[8] ^= 2;
    octets.into()
}
