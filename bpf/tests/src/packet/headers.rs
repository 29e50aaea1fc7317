//! Frames that were captured or returned.

use super::sum;
use crate::family::Family;
use std::net::IpAddr;
use veer_bpf_common::identity::Vni;

/// The header fields of a captured or returned frame that tests ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// Source MAC.
    pub source_mac: [u8; 6],
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number, behind all extension headers.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Flags and fragment offset as IPv4 has them.
    pub fragment: u16,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port, or the ICMP type in its high byte.
    pub destination_port: u16,
    /// Whether the header's checksum is right. That of IPv6 has none.
    pub checksum_ok: bool,
    /// Where the transport header begins in the frame.
    pub transport_at: usize,
}

impl Headers {
    /// Reads an IP frame; `None` for anything else.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let ether_type = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        let family = Family::ALL
            .into_iter()
            .find(|f| f.ether_type() == ether_type)?;
        let ip = frame.get(14..14 + family.header_length())?;
        let seen = match family {
            Family::V4 => Self::v4(frame, ip)?,
            Family::V6 => Self::v6(frame, ip)?,
        };
        let at = seen.transport_at;
        let ports = frame.get(at..at + 4).unwrap_or(&[0; 4]);
        Some(Self {
            destination_mac: frame[..6].try_into().ok()?,
            source_mac: frame[6..12].try_into().ok()?,
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
            ..seen
        })
    }

    fn v4(frame: &[u8], ip: &[u8]) -> Option<Self> {
        let transport_at = 14 + usize::from(ip[0] & 0xf) * 4;
        let address = |at: usize| IpAddr::from([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol: ip[9],
            ttl: ip[8],
            fragment: u16::from_be_bytes([ip[6], ip[7]]),
            checksum_ok: sum(frame.get(14..transport_at)?) == 0xffff,
            transport_at,
            ..BLANK
        })
    }

    fn v6(frame: &[u8], ip: &[u8]) -> Option<Self> {
        let address = |at: usize| {
            let octets: [u8; 16] = ip[at..at + 16].try_into().ok()?;
            Some(IpAddr::from(octets))
        };
        let (mut protocol, mut at, mut fragment) = (ip[6], 14 + 40, 0);
        let mut is_later = false;
        while matches!(protocol, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) && !is_later {
            let Some(h) = frame.get(at..at + 8) else {
                break;
            };
            at += match protocol {
                44 => {
                    let word = u16::from_be_bytes([h[2], h[3]]);
                    fragment = word >> 3 | (word & 1) << 13;
                    is_later = word >> 3 != 0;
                    8
                }
                51 => (usize::from(h[1]) + 2) * 4,
                _ => (usize::from(h[1]) + 1) * 8,
            };
            protocol = h[0];
        }
        Some(Self {
            source: address(8)?,
            destination: address(24)?,
            protocol,
            ttl: ip[7],
            fragment,
            checksum_ok: ip[0] >> 4 == 6,
            transport_at: at,
            ..BLANK
        })
    }

    /// Its family.
    pub fn family(&self) -> Family {
        Family::of_address(self.source)
    }

    /// Whether it is of its family's ICMP.
    pub fn is_icmp(&self) -> bool {
        self.protocol == self.family().icmp()
    }

    /// Type and code of an ICMP message.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let [kind, code] = self.source_port.to_be_bytes();
        self.is_icmp().then_some((kind, code))
    }

    /// Whether routers must not fragment it: those of IPv6 never do.
    pub fn dont_fragment(&self) -> bool {
        self.family() == Family::V6 || self.fragment & 0x4000 != 0
    }

    /// Whether it is a part of a datagram.
    pub fn is_fragment(&self) -> bool {
        self.fragment & 0x3fff != 0
    }

    /// Whether it is a part without the transport header.
    pub fn is_later_fragment(&self) -> bool {
        // The upper three bits are flags.
        self.fragment << 3 != 0
    }

    /// VNI and inner frame of a tunnel packet.
    pub fn tunnelled<'a>(&self, frame: &'a [u8]) -> Option<(Vni, &'a [u8])> {
        if self.protocol != 17 || self.destination_port != 8472 {
            return None;
        }
        let vxlan = frame.get(self.transport_at + 8..)?;
        let vni = Vni::from_header([*vxlan.get(4)?, *vxlan.get(5)?, *vxlan.get(6)?]);
        Some((vni, vxlan.get(8..)?))
    }
}

/// What has not been read yet.
const BLANK: Headers = Headers {
    destination_mac: [0; 6],
    source_mac: [0; 6],
    source: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    destination: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
    protocol: 0,
    ttl: 0,
    fragment: 0,
    source_port: 0,
    destination_port: 0,
    checksum_ok: false,
    transport_at: 0,
};
