//! Frames decoded as far as the tests look: Ethernet, ARP, IPv4, IPv6, TCP,
//! UDP, ICMP, and VXLAN with the frame inside. etherparse knows all but VXLAN.
//!
//! Invariant: no input makes this panic. What is cut short, or not known, is
//! left out of the result; every layer before it is there.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use etherparse::{
    ArpPacketSlice, Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv6ExtensionSlice, LaxIpPayloadSlice,
    LaxIpv4Slice, LaxIpv6Slice, LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice,
    TcpHeaderSlice, UdpSlice, ip_number,
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
    /// Protocol of the payload, after IPv6 extension headers.
    pub protocol: u8,
    /// Identification (IPv4).
    pub id: u16,
    /// Don't Fragment (IPv4; true for IPv6).
    pub dont_fragment: bool,
    /// More Fragments, of IPv6 by its fragment header.
    pub more_fragments: bool,
    /// Fragment offset in octets, of IPv6 by its fragment header.
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
        /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32, ECE 64, CWR 128.
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
        let Ok(sliced) = LaxSlicedPacket::from_ethernet(frame) else {
            return packet;
        };
        if let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link {
            packet.source_mac = Mac(ethernet.source());
            packet.destination_mac = Mac(ethernet.destination());
            packet.ethertype = ethernet.ether_type().0;
        }
        if let Some(LaxLinkExtSlice::Vlan(tag)) = sliced.link_exts.first() {
            packet.vlan = Some(tag.vlan_identifier().value());
            packet.ethertype = tag.ether_type().0;
        }
        match &sliced.net {
            Some(LaxNetSlice::Arp(message)) => packet.arp = arp(message),
            Some(LaxNetSlice::Ipv4(ip)) => packet.network(ipv4(ip), ip.payload(), depth),
            Some(LaxNetSlice::Ipv6(ip)) => packet.network(ipv6(ip), ip.payload(), depth),
            None => {}
        }
        packet
    }

    fn network(&mut self, ip: Ip, payload: &LaxIpPayloadSlice<'_>, depth: u8) {
        self.ip = Some(ip);
        // Later fragments carry no header of the transport.
        if ip.offset != 0 {
            return;
        }
        self.transport = transport(payload.ip_number, payload.payload);
        if let Some(Transport::Udp { destination: VXLAN_PORT, .. }) = self.transport
            // A frame in a frame in a frame is no test of ours, and depth
            // must end somewhere.
            && depth < 4
            && let Ok(udp) = UdpSlice::from_slice_lax(payload.payload)
            && let Some((header, frame)) = udp.payload().split_first_chunk()
        {
            self.vxlan = vni(*header).map(|vni| Vxlan {
                vni,
                inner: Box::new(Self::decode_nested(frame, depth + 1)),
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

fn arp(message: &ArpPacketSlice<'_>) -> Option<Arp> {
    let message = message.to_packet().try_eth_ipv4().ok()?;
    Some(Arp {
        operation: message.operation.0,
        sender_mac: Mac(message.sender_mac),
        sender: message.sender_ipv4_addr(),
        target_mac: Mac(message.target_mac),
        target: message.target_ipv4_addr(),
    })
}

fn ipv4(ip: &LaxIpv4Slice<'_>) -> Ip {
    let header = ip.header();
    Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.ttl(),
        protocol: ip.payload_ip_number().0,
        id: header.identification(),
        dont_fragment: header.dont_fragment(),
        more_fragments: header.more_fragments(),
        offset: header.fragments_offset().byte_offset(),
        tos: header.dcp().value() << 2 | header.ecn().value(),
        length: header.total_len().into(),
    }
}

fn ipv6(ip: &LaxIpv6Slice<'_>) -> Ip {
    let header = ip.header();
    let fragment = ip.extensions().clone().into_iter().find_map(|e| match e {
        Ipv6ExtensionSlice::Fragment(fragment) => Some(fragment.to_header()),
        Ipv6ExtensionSlice::HopByHop(_)
        | Ipv6ExtensionSlice::Routing(_)
        | Ipv6ExtensionSlice::DestinationOptions(_)
        | Ipv6ExtensionSlice::Authentication(_) => None,
    });
    Ip {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        ttl: header.hop_limit(),
        protocol: ip.payload().ip_number.0,
        id: 0,
        dont_fragment: true,
        more_fragments: fragment
            .as_ref()
            .is_some_and(|header| header.more_fragments),
        offset: fragment.map_or(0, |header| header.fragment_offset.byte_offset()),
        tos: header.traffic_class(),
        length: u32::from(header.payload_length()) + 40,
    }
}

/// The header of a transport, also of a packet's first fragment.
fn transport(protocol: IpNumber, bytes: &[u8]) -> Option<Transport> {
    match protocol {
        ip_number::ICMP => {
            let icmp = Icmpv4Slice::from_slice(bytes).ok()?;
            Some(echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()))
        }
        ip_number::IPV6_ICMP => {
            let icmp = Icmpv6Slice::from_slice(bytes).ok()?;
            Some(echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()))
        }
        ip_number::TCP => {
            let tcp = TcpHeaderSlice::from_slice(bytes).ok()?;
            Some(Transport::Tcp {
                source: tcp.source_port(),
                destination: tcp.destination_port(),
                sequence: tcp.sequence_number(),
                acknowledgement: tcp.acknowledgment_number(),
                flags: tcp.slice()[13],
            })
        }
        ip_number::UDP => {
            let udp = UdpSlice::from_slice_lax(bytes).ok()?;
            Some(Transport::Udp {
                source: udp.source_port(),
                destination: udp.destination_port(),
            })
        }
        _ => None,
    }
}

fn echo(kind: u8, code: u8, [id_high, id_low, high, low]: [u8; 4]) -> Transport {
    Transport::Icmp {
        kind,
        code,
        id: u16::from_be_bytes([id_high, id_low]),
        sequence: u16::from_be_bytes([high, low]),
    }
}

/// The network identifier of a VXLAN header (RFC 7348, section 5), if its I flag says
/// that there is one.
fn vni([flags, _, _, _, high, middle, low, _]: [u8; 8]) -> Option<u32> {
    (flags & 0x08 != 0).then(|| u32::from_be_bytes([0, high, middle, low]))
}

#[cfg(test)]
mod tests;
