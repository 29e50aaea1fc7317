//! A packet as bytes.

use super::{Extension, Fragment, Packet, Payload, Transport, put, sum};
use crate::family::Family;
use std::net::IpAddr;

impl Packet {
    fn address(&self, address: IpAddr) -> Vec<u8> {
        match self.family.address(address) {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        }
    }

    /// Whether the transport header is in another fragment.
    fn is_headless(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Udp { .. } => 17,
            Transport::Tcp { .. } => 6,
            Transport::Icmp { .. } => self.family.icmp(),
            Transport::Raw { protocol } => protocol,
        }
    }

    /// The transport header, and where its checksum is.
    fn transport_header(&self, payload: usize) -> (Vec<u8>, Option<usize>) {
        let mut h = Vec::new();
        match self.transport {
            Transport::Udp {
                source,
                destination,
            } => {
                h.extend(source.to_be_bytes());
                h.extend(destination.to_be_bytes());
                h.extend(((8 + payload) as u16).to_be_bytes());
                h.extend([0, 0]);
                (h, Some(6))
            }
            Transport::Tcp {
                source,
                destination,
                flags,
            } => {
                h.extend(source.to_be_bytes());
                h.extend(destination.to_be_bytes());
                h.extend([0, 0, 0, 1, 0, 0, 0, 1]);
                h.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (h, Some(16))
            }
            Transport::Icmp { message, rest } => {
                let (kind, code) = message.numbers(self.family);
                h.extend([kind, code, 0, 0]);
                h.extend(rest);
                (h, Some(2))
            }
            Transport::Raw { .. } => (h, None),
        }
    }

    fn payload_bytes(&self, in_front: usize) -> Vec<u8> {
        match &self.payload {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Start(about) => {
                let bytes = about.ip();
                let length = about.header().len() + 8;
                bytes[..length.min(bytes.len())].to_vec()
            }
            Payload::Fill(total) => vec![0x5a; total - in_front],
        }
    }

    /// What is behind the IP header and its options or extension headers.
    fn transport_bytes(&self) -> Vec<u8> {
        let headers = self.header().len();
        if self.is_headless() {
            return self.payload_bytes(headers);
        }
        let without = self.transport_header(0).0.len();
        let payload = self.payload_bytes(headers + without);
        let (mut bytes, checksum_at) = self.transport_header(payload.len());
        bytes.extend(payload);
        let Some(at) = checksum_at else {
            return bytes;
        };
        let mut summed = Vec::new();
        // ICMP for IPv4 has no pseudo-header.
        if self.protocol() != 1 {
            summed.extend(self.address(self.source));
            summed.extend(self.address(self.destination));
            summed.extend([0, self.protocol()]);
            summed.extend((bytes.len() as u16).to_be_bytes());
        }
        summed.extend(&bytes);
        put(&mut bytes, at, !sum(&summed));
        bytes
    }

    /// The IP header, with options or extension headers, of a packet without payload.
    fn header(&self) -> Vec<u8> {
        match self.family {
            Family::V4 => self.header_v4(),
            Family::V6 => self.header_v6(),
        }
    }

    fn header_v4(&self) -> Vec<u8> {
        assert!(
            self.extensions.is_empty(),
            "only IPv6 has extension headers"
        );
        let header = 20 + self.option_words * 4;
        let fragment = self.fragment.unwrap_or(Fragment {
            offset: 0,
            more: false,
            identification: 1,
        });
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(fragment.more) << 13;
        let mut h = vec![0x40 | (header / 4) as u8, 0, 0, 0];
        h.extend(fragment.identification.to_be_bytes());
        h.extend((flags | fragment.offset).to_be_bytes());
        h.extend([self.ttl, self.protocol(), 0, 0]);
        h.extend(self.address(self.source));
        h.extend(self.address(self.destination));
        h.resize(header, 1);
        h
    }

    fn header_v6(&self) -> Vec<u8> {
        let mut chain = Vec::new();
        if self.option_words != 0 {
            chain.push(Extension::destination(self.option_words.div_ceil(2)));
        }
        chain.extend_from_slice(&self.extensions);
        if let Some(Fragment {
            offset,
            more,
            identification,
        }) = self.fragment
        {
            chain.push(Extension::fragment(offset, more, identification.into()));
        }
        let mut h = vec![0x60, 0, 0, 0, 0, 0, 0, self.ttl];
        h.extend(self.address(self.source));
        h.extend(self.address(self.destination));
        let mut names_next = 6;
        for extension in chain {
            h[names_next] = extension.number;
            names_next = h.len();
            h.extend(extension.bytes);
        }
        h[names_next] = self.protocol();
        h
    }

    /// The IP packet.
    pub fn ip(&self) -> Vec<u8> {
        let mut packet = self.header();
        let transport = self.transport_bytes();
        let length = packet.len() + transport.len();
        match self.family {
            Family::V4 => {
                put(&mut packet, 2, length as u16);
                let checksum = !sum(&packet);
                put(&mut packet, 10, checksum);
            }
            Family::V6 => put(&mut packet, 4, (length - 40) as u16),
        }
        packet.extend(transport);
        packet
    }

    /// The Ethernet frame of the packet of this family, see [`Packet::of`].
    pub fn frame_of(&self, family: Family) -> Vec<u8> {
        self.clone().of(family).frame()
    }

    /// The Ethernet frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.destination_mac.to_vec();
        frame.extend(self.source_mac);
        let ether_type = self.ether_type.unwrap_or(self.family.ether_type());
        frame.extend(ether_type.to_be_bytes());
        frame.extend(self.ip());
        frame
    }
}
