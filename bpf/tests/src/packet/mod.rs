//! Frames for tests: chosen field by field, with lengths and checksums that fit
//! unless the test breaks them. A packet of IPv4 addresses becomes the one of IPv6 that
//! it stands for by [`Packet::of`].

mod bytes;
mod extension;
mod headers;
mod message;
pub mod tags;

pub use extension::Extension;
pub use headers::Headers;
pub use message::{Complaint, link_local};

use crate::family::Family;
use message::Message;
use std::net::{IpAddr, Ipv4Addr};
use veer_bpf_common::identity::Vni;

/// TCP flag, as the programs know it.
pub use veer_bpf_net::l4::{ACK, FIN, RST, SYN};

/// What follows the IP header.
#[derive(Clone, Debug)]
enum Transport {
    Udp {
        source: u16,
        destination: u16,
    },
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    Icmp {
        message: Message,
        rest: [u8; 4],
    },
    Raw {
        protocol: u8,
    },
}

/// What is carried.
#[derive(Clone, Debug)]
enum Payload {
    Bytes(Vec<u8>),
    /// The headers of another packet and eight bytes.
    Start(Box<Packet>),
    /// As much as makes the packet this long.
    Fill(usize),
}

/// A part of a datagram.
#[derive(Clone, Copy, Debug)]
struct Fragment {
    /// In units of eight bytes.
    offset: u16,
    more: bool,
    identification: u16,
}

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    family: Family,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    /// Another than the family's.
    ether_type: Option<u16>,
    source: IpAddr,
    destination: IpAddr,
    ttl: u8,
    dont_fragment: bool,
    fragment: Option<Fragment>,
    option_words: usize,
    extensions: Vec<Extension>,
    transport: Transport,
    payload: Payload,
}

impl Packet {
    fn new(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        transport: Transport,
    ) -> Self {
        let (source, destination) = (source.into(), destination.into());
        Self {
            family: if source.is_ipv6() || destination.is_ipv6() {
                Family::V6
            } else {
                Family::V4
            },
            source_mac: [0; 6],
            destination_mac: [0; 6],
            ether_type: None,
            source,
            destination,
            ttl: 64,
            dont_fragment: false,
            fragment: None,
            option_words: 0,
            extensions: Vec::new(),
            transport,
            payload: Payload::Bytes(b"veer".to_vec()),
        }
    }

    /// UDP between two (address, port).
    pub fn udp(source: (impl Into<IpAddr>, u16), destination: (impl Into<IpAddr>, u16)) -> Self {
        let transport = Transport::Udp {
            source: source.1,
            destination: destination.1,
        };
        Self::new(source.0, destination.0, transport)
    }

    /// TCP between two (address, port) with these flags.
    pub fn tcp(
        source: (impl Into<IpAddr>, u16),
        destination: (impl Into<IpAddr>, u16),
        flags: u8,
    ) -> Self {
        let transport = Transport::Tcp {
            source: source.1,
            destination: destination.1,
            flags,
        };
        Self::new(source.0, destination.0, transport)
    }

    /// An ICMP echo request.
    pub fn echo(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        identifier: u16,
    ) -> Self {
        let [a, b] = identifier.to_be_bytes();
        let transport = Transport::Icmp {
            message: Message::Echo,
            rest: [a, b, 0, 1],
        };
        Self::new(source, destination, transport)
    }

    /// An ICMP error about `about`, whose headers and eight bytes it carries.
    pub fn error(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        complaint: Complaint,
        about: &Self,
    ) -> Self {
        let transport = Transport::Icmp {
            message: Message::Error(complaint),
            rest: [0; 4],
        };
        Self {
            payload: Payload::Start(Box::new(about.clone())),
            ..Self::new(source, destination, transport)
        }
    }

    /// An ICMP message of this type; what it carries begins behind its checksum.
    pub fn icmp(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        (kind, code): (u8, u8),
        body: &[u8],
    ) -> Self {
        let (rest, payload) = body.split_at(4);
        let transport = Transport::Icmp {
            message: Message::Other(kind, code),
            rest: [rest[0], rest[1], rest[2], rest[3]],
        };
        Self {
            payload: Payload::Bytes(payload.to_vec()),
            ..Self::new(source, destination, transport)
        }
    }

    /// A protocol without ports.
    pub fn raw(source: impl Into<IpAddr>, destination: impl Into<IpAddr>, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Raw { protocol })
    }

    /// The outer side of a tunnel packet around `inner`.
    pub fn vxlan(
        source: impl Into<IpAddr>,
        destination: impl Into<IpAddr>,
        vni: impl Into<Vni>,
        inner: &[u8],
    ) -> Self {
        let packet = Self::udp((source, 49_152), (destination, 8472));
        packet.payload(vxlan_payload(vni, inner))
    }

    /// The packet of this family that it stands for, with all that it carries but the
    /// inner packet of a tunnel.
    #[must_use]
    pub fn of(mut self, family: Family) -> Self {
        self.family = family;
        if let Payload::Start(about) = self.payload {
            self.payload = Payload::Start(Box::new(about.of(family)));
        }
        self
    }

    /// Source and destination MAC.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.source_mac = source;
        self.destination_mac = destination;
        self
    }

    /// Another `EtherType` (or length, below 0x600).
    #[must_use]
    pub fn ether_type(mut self, value: u16) -> Self {
        self.ether_type = Some(value);
        self
    }

    /// Time to live, or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets "don't fragment". IPv6 has no such bit: no router fragments it.
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.dont_fragment = true;
        self
    }

    /// Makes it the first fragment of datagram `identification`.
    #[must_use]
    pub fn first_fragment(mut self, identification: u16) -> Self {
        self.fragment = Some(Fragment {
            offset: 0,
            more: true,
            identification,
        });
        self
    }

    /// Makes it the last fragment, which has no transport header.
    #[must_use]
    pub fn last_fragment(self, identification: u16) -> Self {
        self.later_fragment(identification, 16, false)
    }

    /// Makes it a later fragment with an offset in units of eight bytes.
    #[must_use]
    pub fn later_fragment(mut self, identification: u16, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment {
            offset,
            more,
            identification,
        });
        self
    }

    /// IPv4 options, padded to words with "no operation"; in IPv6 a header with at least
    /// as many bytes of options for the destination.
    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.option_words = words;
        self
    }

    /// Extension headers, which IPv6 alone has, in front of a fragment header of
    /// [`Self::first_fragment`] and its like.
    #[must_use]
    pub fn behind(mut self, extensions: &[Extension]) -> Self {
        self.extensions.extend_from_slice(extensions);
        self
    }

    /// What is carried.
    #[must_use]
    pub fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = Payload::Bytes(payload);
        self
    }

    /// Payload that makes the IP packet this long.
    #[must_use]
    pub fn total_length(mut self, total: usize) -> Self {
        self.payload = Payload::Fill(total);
        self
    }

    /// The packet of the other direction: addresses and ports swapped.
    #[must_use]
    pub fn reply(&self) -> Self {
        let mut other = self.clone();
        (other.source, other.destination) = (self.destination, self.source);
        match &mut other.transport {
            Transport::Udp {
                source,
                destination,
            }
            | Transport::Tcp {
                source,
                destination,
                ..
            } => std::mem::swap(source, destination),
            Transport::Icmp { message, .. } => *message = Message::Reply,
            Transport::Raw { .. } => {}
        }
        other
    }
}

/// A VXLAN header and an inner frame: what a UDP socket sends to the tunnel
/// port.
pub fn vxlan_payload(vni: impl Into<Vni>, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni.into().get() << 8).to_be_bytes());
    payload.extend(inner);
    payload
}

/// An ARP frame. `operation` 1 asks, 2 answers.
pub fn arp(operation: u8, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let broadcast = [0xff; 6];
    let to = if operation == 1 { broadcast } else { target.0 };
    let mut frame = to.to_vec();
    frame.extend(sender.0);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(sender.0);
    frame.extend(sender.1.octets());
    frame.extend(target.0);
    frame.extend(target.1.octets());
    frame
}

/// A frame with VLAN tags, outermost first: of each its type and what follows it.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, tags.as_flattened(), rest].concat()
}

/// A frame without the last bytes of its packet, which says so.
#[must_use]
pub fn shortened(family: Family, frame: &[u8], by: usize) -> Vec<u8> {
    let mut frame = frame[..frame.len() - by].to_vec();
    let length = frame.len() - 14;
    match family {
        Family::V4 => put(&mut frame, 14 + 2, length as u16),
        Family::V6 => put(&mut frame, 14 + 4, (length - 40) as u16),
    }
    frame
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The ones' complement sum of big-endian words.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
