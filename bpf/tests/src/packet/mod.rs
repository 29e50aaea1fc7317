//! Frames for tests: chosen field by field, with lengths and checksums that fit
//! unless the test breaks them.

use std::net::Ipv4Addr;
use veer_bpf_common::identity::Vni;

/// TCP flag, as the programs know it.
pub use veer_bpf_net::l4::{ACK, FIN, RST, SYN};

/// `EtherType` IPv4 and the ones around it.
const IPV4: u16 = 0x0800;

/// What follows the IPv4 header.
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
        kind: u8,
        code: u8,
        rest: [u8; 4],
    },
    Raw {
        protocol: u8,
    },
}

/// An IPv4 packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Packet {
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
    ether_type: u16,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    identification: u16,
    fragment: u16,
    options: Vec<u8>,
    transport: Transport,
    /// Whether the transport header is left out: a later fragment.
    headless: bool,
    payload: Vec<u8>,
}

impl Packet {
    fn new(source: Ipv4Addr, destination: Ipv4Addr, transport: Transport) -> Self {
        Self {
            source_mac: [0; 6],
            destination_mac: [0; 6],
            ether_type: IPV4,
            source,
            destination,
            ttl: 64,
            identification: 1,
            fragment: 0,
            options: Vec::new(),
            transport,
            headless: false,
            payload: b"veer".to_vec(),
        }
    }

    /// UDP between two (address, port).
    pub fn udp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let transport = Transport::Udp {
            source: source.1,
            destination: destination.1,
        };
        Self::new(source.0, destination.0, transport)
    }

    /// TCP between two (address, port) with these flags.
    pub fn tcp(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16), flags: u8) -> Self {
        let transport = Transport::Tcp {
            source: source.1,
            destination: destination.1,
            flags,
        };
        Self::new(source.0, destination.0, transport)
    }

    /// An ICMP echo request.
    pub fn echo(source: Ipv4Addr, destination: Ipv4Addr, identifier: u16) -> Self {
        let [a, b] = identifier.to_be_bytes();
        let transport = Transport::Icmp {
            kind: 8,
            code: 0,
            rest: [a, b, 0, 1],
        };
        Self::new(source, destination, transport)
    }

    /// An ICMP error of `kind` about `about`: its header and eight bytes.
    pub fn error(source: Ipv4Addr, destination: Ipv4Addr, kind: u8, about: &Self) -> Self {
        let transport = Transport::Icmp {
            kind,
            code: 0,
            rest: [0; 4],
        };
        let mut packet = Self::new(source, destination, transport);
        let carried = about.ip();
        packet.payload = carried[..20 + about.options.len() + 8].to_vec();
        packet
    }

    /// A protocol without ports.
    pub fn raw(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Self {
        Self::new(source, destination, Transport::Raw { protocol })
    }

    /// The outer side of a tunnel packet around `inner`.
    pub fn vxlan(
        source: Ipv4Addr,
        destination: Ipv4Addr,
        vni: impl Into<Vni>,
        inner: &[u8],
    ) -> Self {
        let mut packet = Self::udp((source, 49_152), (destination, 8472));
        packet.payload = vxlan_payload(vni, inner);
        packet
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
        self.ether_type = value;
        self
    }

    /// Time to live.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets "don't fragment".
    #[must_use]
    pub fn dont_fragment(mut self) -> Self {
        self.fragment |= 0x4000;
        self
    }

    /// Makes it the first fragment of datagram `identification`.
    #[must_use]
    pub fn first_fragment(mut self, identification: u16) -> Self {
        self.identification = identification;
        self.fragment = 0x2000;
        self
    }

    /// Makes it the last fragment, which has no transport header.
    #[must_use]
    pub fn last_fragment(mut self, identification: u16) -> Self {
        self.identification = identification;
        self.fragment = 0x0010;
        self.headless = true;
        self
    }

    /// IPv4 options, padded to words with "no operation".
    #[must_use]
    pub fn options(mut self, words: usize) -> Self {
        self.options = vec![1; words * 4];
        self
    }

    /// What is carried.
    #[must_use]
    pub fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// Payload that makes the IPv4 packet this long.
    #[must_use]
    pub fn total_length(mut self, total: usize) -> Self {
        let headers = self.ip().len() - self.payload.len();
        self.payload = vec![0x5a; total - headers];
        self
    }

    /// The packet of the other direction: addresses and ports swapped.
    #[must_use]
    pub fn reply(&self) -> Self {
        let mut other = self.clone();
        (other.source, other.destination) = (self.destination, self.source);
        other.transport = match self.transport {
            Transport::Udp {
                source,
                destination,
            } => Transport::Udp {
                source: destination,
                destination: source,
            },
            Transport::Tcp {
                source,
                destination,
                flags,
            } => Transport::Tcp {
                source: destination,
                destination: source,
                flags,
            },
            Transport::Icmp { code, rest, .. } => Transport::Icmp {
                kind: 0,
                code,
                rest,
            },
            Transport::Raw { protocol } => Transport::Raw { protocol },
        };
        other
    }

    fn transport_bytes(&self) -> (u8, Vec<u8>) {
        let (protocol, mut bytes, checksum_at) = match self.transport {
            Transport::Udp {
                source,
                destination,
            } => {
                let mut h = Vec::new();
                h.extend(source.to_be_bytes());
                h.extend(destination.to_be_bytes());
                h.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                h.extend([0, 0]);
                (17, h, Some(6))
            }
            Transport::Tcp {
                source,
                destination,
                flags,
            } => {
                let mut h = Vec::new();
                h.extend(source.to_be_bytes());
                h.extend(destination.to_be_bytes());
                h.extend([
                    0,
                    0,
                    0,
                    1,
                    0,
                    0,
                    0,
                    1,
                    5 << 4,
                    flags,
                    0xff,
                    0xff,
                    0,
                    0,
                    0,
                    0,
                ]);
                (6, h, Some(16))
            }
            Transport::Icmp { kind, code, rest } => {
                let mut h = vec![kind, code, 0, 0];
                h.extend(rest);
                (1, h, None)
            }
            Transport::Raw { protocol } => (protocol, Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = checksum_at {
            let mut pseudo = Vec::new();
            pseudo.extend(self.source.octets());
            pseudo.extend(self.destination.octets());
            pseudo.extend([0, protocol]);
            pseudo.extend((bytes.len() as u16).to_be_bytes());
            pseudo.extend(&bytes);
            put(&mut bytes, at, !sum(&pseudo));
        } else if protocol == 1 {
            let checksum = !sum(&bytes);
            put(&mut bytes, 2, checksum);
        }
        if self.headless {
            bytes.clone_from(&self.payload);
        }
        (protocol, bytes)
    }

    /// The IPv4 packet.
    pub fn ip(&self) -> Vec<u8> {
        let (protocol, transport) = self.transport_bytes();
        let header = 20 + self.options.len();
        let mut h = vec![0x40 | (header / 4) as u8, 0];
        h.extend(((header + transport.len()) as u16).to_be_bytes());
        h.extend(self.identification.to_be_bytes());
        h.extend(self.fragment.to_be_bytes());
        h.extend([self.ttl, protocol, 0, 0]);
        h.extend(self.source.octets());
        h.extend(self.destination.octets());
        h.extend(&self.options);
        let checksum = !sum(&h);
        put(&mut h, 10, checksum);
        h.extend(transport);
        h
    }

    /// The Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.destination_mac.to_vec();
        frame.extend(self.source_mac);
        frame.extend(self.ether_type.to_be_bytes());
        frame.extend(self.ip());
        frame
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

/// The header fields of a captured or returned frame that tests ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC.
    pub destination_mac: [u8; 6],
    /// Source MAC.
    pub source_mac: [u8; 6],
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Source port; 0 where the protocol has none.
    pub source_port: u16,
    /// Destination port, or the ICMP type in its high byte.
    pub destination_port: u16,
    /// Whether the header's checksum is right.
    pub checksum_ok: bool,
    /// Where the transport header begins in the frame.
    pub transport_at: usize,
}

impl Headers {
    /// Reads an IPv4 frame; `None` for anything else.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let ip = frame.get(14..34)?;
        if frame[12..14] != IPV4.to_be_bytes() {
            return None;
        }
        let header = usize::from(ip[0] & 0xf) * 4;
        let transport_at = 14 + header;
        let ports = frame.get(transport_at..transport_at + 4).unwrap_or(&[0; 4]);
        Some(Self {
            destination_mac: frame[..6].try_into().ok()?,
            source_mac: frame[6..12].try_into().ok()?,
            source: Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]),
            destination: Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]),
            protocol: ip[9],
            ttl: ip[8],
            fragment: u16::from_be_bytes([ip[6], ip[7]]),
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
            checksum_ok: sum(frame.get(14..transport_at)?) == 0xffff,
            transport_at,
        })
    }

    /// Whether routers must not fragment it.
    pub fn dont_fragment(&self) -> bool {
        self.fragment & 0x4000 != 0
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
