//! Frames decoded as far as the tests look: Ethernet, ARP, IPv4, IPv6, TCP,
//! UDP, ICMP, and VXLAN with the frame inside.
//!
//! Invariant: no input makes this panic. What is cut short, or not known, is
//! left out of the result; every layer before it is there.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// UDP port of VXLAN that veer's chart sets (and Linux's own default).
pub const VXLAN_PORT: u16 = 8472;

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.map(|octet| format!("{octet:02x}"));
        f.write_str(&pairs.join(":"))
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octets: Result<Vec<u8>, _> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect();
        let octets = octets.map_err(|e| format!("{text:?} is no MAC address: {e}"))?;
        let octets = <[u8; 6]>::try_from(octets.as_slice());
        octets
            .map(Self)
            .map_err(|_| format!("{text:?} is no MAC address"))
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packet {
    /// Ethernet's source.
    pub source_mac: Mac,
    /// Ethernet's destination.
    pub destination_mac: Mac,
    /// Ethernet's type, after a VLAN tag if there is one.
    pub ethertype: u16,
    /// VLAN id, if tagged.
    pub vlan: Option<u16>,
    /// An ARP message, as (operation, sender, target).
    pub arp: Option<Arp>,
    /// The IP header.
    pub ip: Option<Ip>,
    /// What IP carries.
    pub transport: Option<Transport>,
    /// A VXLAN header and the frame inside, if UDP goes to [`VXLAN_PORT`].
    pub vxlan: Option<Vxlan>,
}

/// An ARP message for IPv4 over Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// 1: request, 2: reply.
    pub operation: u16,
    /// Sender's MAC.
    pub sender_mac: Mac,
    /// Sender's address.
    pub sender: Ipv4Addr,
    /// Target's MAC.
    pub target_mac: Mac,
    /// Target's address.
    pub target: Ipv4Addr,
}

/// An IPv4 or IPv6 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ip {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Protocol or next header (extension headers are not followed).
    pub protocol: u8,
    /// Identification (IPv4).
    pub id: u16,
    /// Don't Fragment (IPv4; true for IPv6).
    pub dont_fragment: bool,
    /// More Fragments (IPv4).
    pub more_fragments: bool,
    /// Fragment offset in octets (IPv4).
    pub offset: u16,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Length of the whole packet in octets, as the header says.
    pub length: u32,
}

/// A transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
        flags: u8,
    },
    /// ICMP or `ICMPv6`.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier of an echo (else these two octets).
        id: u16,
        /// Sequence number of an echo (else these two octets: the MTU of
        /// "fragmentation needed").
        sequence: u16,
    },
}

/// A VXLAN header (RFC 7348) and its load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier: veer's identity of the sender.
    pub vni: u32,
    /// The frame inside.
    pub inner: Box<Packet>,
}

impl Packet {
    /// Decodes a frame.
    pub fn decode(frame: &[u8]) -> Self {
        Self::decode_nested(frame, 0)
    }

    fn decode_nested(frame: &[u8], depth: u8) -> Self {
        let mut packet = Self::default();
        let (Some(to), Some(from), Some(kind)) = (mac(frame, 0), mac(frame, 6), u16_at(frame, 12))
        else {
            return packet;
        };
        packet.destination_mac = to;
        packet.source_mac = from;
        packet.ethertype = kind;
        let mut at = 14;
        if kind == 0x8100 {
            let (Some(tag), Some(kind)) = (u16_at(frame, 14), u16_at(frame, 16)) else {
                return packet;
            };
            packet.vlan = Some(tag & 0x0fff);
            packet.ethertype = kind;
            at = 18;
        }
        let load = frame.get(at..).unwrap_or_default();
        match packet.ethertype {
            0x0806 => packet.arp = arp(load),
            0x0800 => packet.ipv4(load, depth),
            0x86dd => packet.ipv6(load, depth),
            _ => {}
        }
        packet
    }

    fn ipv4(&mut self, bytes: &[u8], depth: u8) {
        let Some(ip) = ipv4(bytes) else { return };
        self.ip = Some(ip);
        let header = usize::from(bytes[0] & 0x0f) * 4;
        // Later fragments carry no header of the transport.
        if ip.offset == 0 {
            self.load(ip.protocol, bytes.get(header..).unwrap_or_default(), depth);
        }
    }

    fn ipv6(&mut self, bytes: &[u8], depth: u8) {
        let Some(ip) = ipv6(bytes) else { return };
        self.ip = Some(ip);
        self.load(ip.protocol, bytes.get(40..).unwrap_or_default(), depth);
    }

    fn load(&mut self, protocol: u8, bytes: &[u8], depth: u8) {
        self.transport = transport(protocol, bytes);
        if let Some(Transport::Udp { destination: VXLAN_PORT, .. }) = self.transport
            // A frame in a frame in a frame is no test of ours, and depth
            // must end somewhere.
            && depth < 4
            // The I flag says that the VNI is valid.
            && bytes.get(8).is_some_and(|flags| flags & 0x08 != 0)
            && let (Some(word), Some(frame)) = (u32_at(bytes, 12), bytes.get(16..))
        {
            let inner = Box::new(Self::decode_nested(frame, depth + 1));
            self.vxlan = Some(Vxlan {
                vni: word >> 8,
                inner,
            });
        }
    }

    /// The IP source.
    pub fn source(&self) -> Option<IpAddr> {
        self.ip.map(|ip| ip.source)
    }

    /// The IP destination.
    pub fn destination(&self) -> Option<IpAddr> {
        self.ip.map(|ip| ip.destination)
    }

    /// Whether this is from `source` to `destination`, by IP.
    pub fn is_between(&self, source: IpAddr, destination: IpAddr) -> bool {
        self.source() == Some(source) && self.destination() == Some(destination)
    }

    /// Whether this is an ICMP or `ICMPv6` echo request.
    pub fn is_echo_request(&self) -> bool {
        matches!(self.transport, Some(Transport::Icmp { kind: 8 | 128, .. }))
    }

    /// Whether this is an ICMP or `ICMPv6` echo reply.
    pub fn is_echo_reply(&self) -> bool {
        matches!(self.transport, Some(Transport::Icmp { kind: 0 | 129, .. }))
    }

    /// The frame in the tunnel, or this one.
    pub fn innermost(&self) -> &Self {
        self.vxlan
            .as_ref()
            .map_or(self, |vxlan| vxlan.inner.innermost())
    }
}

/// One line, as tcpdump would say it.
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {}", self.source_mac, self.destination_mac)?;
        if let Some(arp) = self.arp {
            let verb = if arp.operation == 1 {
                "asks for"
            } else {
                "answers"
            };
            return write!(
                f,
                " ARP {} ({}) {verb} {}",
                arp.sender, arp.sender_mac, arp.target
            );
        }
        let Some(ip) = self.ip else {
            return write!(f, " type {:#06x}", self.ethertype);
        };
        write!(
            f,
            " {} > {} ttl {} len {}",
            ip.source, ip.destination, ip.ttl, ip.length
        )?;
        match self.transport {
            Some(Transport::Udp {
                source,
                destination,
            }) => {
                write!(f, " UDP {source} > {destination}")?;
            }
            Some(Transport::Tcp {
                source,
                destination,
                flags,
                ..
            }) => {
                write!(f, " TCP {source} > {destination} flags {flags:#04x}")?;
            }
            Some(Transport::Icmp {
                kind,
                code,
                id,
                sequence,
            }) => {
                write!(f, " ICMP {kind}/{code} id {id} seq {sequence}")?;
            }
            None => write!(f, " protocol {}", ip.protocol)?,
        }
        if let Some(vxlan) = &self.vxlan {
            write!(f, " VXLAN vni {} [{}]", vxlan.vni, vxlan.inner)?;
        }
        Ok(())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    Some(Mac(bytes.get(at..at.checked_add(6)?)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    u32_at(bytes, at).map(Ipv4Addr::from)
}

fn v6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = bytes.get(at..at.checked_add(16)?)?.try_into().ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(octets)))
}

fn arp(bytes: &[u8]) -> Option<Arp> {
    // Ethernet, IPv4, lengths 6 and 4 (RFC 826).
    if bytes.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Arp {
        operation: u16_at(bytes, 6)?,
        sender_mac: mac(bytes, 8)?,
        sender: v4(bytes, 14)?,
        target_mac: mac(bytes, 18)?,
        target: v4(bytes, 24)?,
    })
}

fn ipv4(bytes: &[u8]) -> Option<Ip> {
    let first = *bytes.first()?;
    if first >> 4 != 4 || first & 0x0f < 5 {
        return None;
    }
    let fragment = u16_at(bytes, 6)?;
    Some(Ip {
        source: v4(bytes, 12)?.into(),
        destination: v4(bytes, 16)?.into(),
        ttl: *bytes.get(8)?,
        protocol: *bytes.get(9)?,
        id: u16_at(bytes, 4)?,
        dont_fragment: fragment & 0x4000 != 0,
        more_fragments: fragment & 0x2000 != 0,
        offset: (fragment & 0x1fff) << 3,
        tos: *bytes.get(1)?,
        length: u16_at(bytes, 2)?.into(),
    })
}

fn ipv6(bytes: &[u8]) -> Option<Ip> {
    let word = u32_at(bytes, 0)?;
    if word >> 28 != 6 {
        return None;
    }
    let [_, tos, _, _] = (word >> 4).to_be_bytes();
    Some(Ip {
        source: v6(bytes, 8)?,
        destination: v6(bytes, 24)?,
        ttl: *bytes.get(7)?,
        protocol: *bytes.get(6)?,
        id: 0,
        dont_fragment: true,
        more_fragments: false,
        offset: 0,
        tos,
        length: u32::from(u16_at(bytes, 4)?) + 40,
    })
}

fn transport(protocol: u8, bytes: &[u8]) -> Option<Transport> {
    match protocol {
        1 | 58 => Some(Transport::Icmp {
            kind: *bytes.first()?,
            code: *bytes.get(1)?,
            id: u16_at(bytes, 4)?,
            sequence: u16_at(bytes, 6)?,
        }),
        6 => Some(Transport::Tcp {
            source: u16_at(bytes, 0)?,
            destination: u16_at(bytes, 2)?,
            sequence: u32_at(bytes, 4)?,
            acknowledgement: u32_at(bytes, 8)?,
            flags: *bytes.get(13)?,
        }),
        17 if bytes.len() >= 8 => Some(Transport::Udp {
            source: u16_at(bytes, 0)?,
            destination: u16_at(bytes, 2)?,
        }),
        _ => None,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
