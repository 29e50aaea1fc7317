//! Packets for this crate's tests.

extern crate std;

use crate::fragments::Fragments;
use std::{cell::RefCell, vec, vec::Vec};
use veer_bpf_common::tables::{FragmentKey, FragmentPorts};

/// The map of the programs as plain data.
#[derive(Default)]
pub(crate) struct Table(pub(crate) RefCell<Vec<(FragmentKey, FragmentPorts)>>);

impl Fragments for Table {
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        let rows = self.0.borrow();
        rows.iter().find(|(k, _)| k == key).map(|(_, p)| *p)
    }

    fn remember(&self, key: &FragmentKey, ports: FragmentPorts) {
        self.0.borrow_mut().push((*key, ports));
    }
}

/// An IPv4 packet with all fields to choose.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) source: [u8; 4],
    pub(crate) destination: [u8; 4],
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) identification: u16,
    /// Flags and offset.
    pub(crate) fragment: u16,
    /// A multiple of four bytes, at most 40.
    pub(crate) options: Vec<u8>,
    /// Transport header and data.
    pub(crate) payload: Vec<u8>,
}

/// The ones' complement sum of big-endian words.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Packet {
    /// The IPv4 packet with lengths and checksum that fit.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = (header + self.payload.len()) as u16;
        let mut h = vec![0x40 | (header / 4) as u8, 0];
        h.extend(total.to_be_bytes());
        h.extend(self.identification.to_be_bytes());
        h.extend(self.fragment.to_be_bytes());
        h.extend([self.ttl, self.protocol, 0, 0]);
        h.extend(self.source);
        h.extend(self.destination);
        h.extend(&self.options);
        let checksum = !sum(&h);
        h[10..12].copy_from_slice(&checksum.to_be_bytes());
        h.extend(&self.payload);
        h
    }

    /// The packet in an Ethernet frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend(self.bytes());
        frame
    }

    /// A packet with addresses and ports swapped.
    pub(crate) fn answer(&self) -> Self {
        let mut other = self.clone();
        (other.source, other.destination) = (self.destination, self.source);
        other.payload[..2].copy_from_slice(&self.payload[2..4]);
        other.payload[2..4].copy_from_slice(&self.payload[..2]);
        other
    }
}

fn packet(protocol: u8, payload: Vec<u8>) -> Packet {
    Packet {
        source: [10, 0, 0, 5],
        destination: [10, 0, 1, 6],
        protocol,
        ttl: 64,
        identification: 77,
        fragment: 0,
        options: Vec::new(),
        payload,
    }
}

/// Port 12345 to port 53.
pub(crate) fn udp() -> Packet {
    let mut payload = vec![0x30, 0x39, 0, 53, 0, 12, 0, 0];
    payload.extend([1, 2, 3, 4]);
    packet(17, payload)
}

/// Port 40000 to port 80 with these flags.
pub(crate) fn tcp(flags: u8) -> Packet {
    let mut payload = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags];
    payload.extend([0xff, 0xff, 0, 0, 0, 0]);
    packet(6, payload)
}

/// An echo request with identifier 0xabcd.
pub(crate) fn echo() -> Packet {
    packet(1, vec![8, 0, 0, 0, 0xab, 0xcd, 0, 1, 9, 9])
}

/// An ICMP error of `kind` that carries the header of `inner` and eight bytes.
pub(crate) fn error(kind: u8, inner: &Packet) -> Packet {
    let mut payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    let bytes = inner.bytes();
    payload.extend(&bytes[..20 + inner.options.len() + 8]);
    packet(1, payload)
}

/// An extension header: its number, and its bytes with 0 as the next header.
pub(crate) type Extension = (u8, Vec<u8>);

/// A fragment header with this offset and these flags.
pub(crate) fn fragment(word: u16) -> Extension {
    let [a, b] = word.to_be_bytes();
    (44, vec![0, 0, a, b, 1, 2, 3, 4])
}

/// The IPv6 address that stands for an IPv4 one.
pub(crate) fn v6_of(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

impl Packet {
    /// The same in IPv6, behind these extension headers.
    pub(crate) fn v6_bytes(&self, chain: &[Extension]) -> Vec<u8> {
        let protocol = if self.protocol == 1 {
            58
        } else {
            self.protocol
        };
        let length: usize = chain.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut h = vec![0x60, 0, 0, 0];
        h.extend(((length + self.payload.len()) as u16).to_be_bytes());
        h.extend([chain.first().map_or(protocol, |e| e.0), self.ttl]);
        h.extend(v6_of(self.source));
        h.extend(v6_of(self.destination));
        for (at, (_, bytes)) in chain.iter().enumerate() {
            h.push(chain.get(at + 1).map_or(protocol, |e| e.0));
            h.extend(&bytes[1..]);
        }
        h.extend(&self.payload);
        h
    }

    /// That in an Ethernet frame.
    pub(crate) fn v6_frame(&self, chain: &[Extension]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        frame.extend(self.v6_bytes(chain));
        frame
    }
}

/// A tunnel packet with an inner frame.
pub(crate) fn vxlan(vni: u32) -> Packet {
    let inner = udp().frame();
    let length = (16 + inner.len()) as u16;
    let mut payload = vec![0xc0, 1];
    payload.extend(8472u16.to_be_bytes());
    payload.extend(length.to_be_bytes());
    payload.extend([0, 0, 8, 0, 0, 0]);
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    packet(17, payload)
}
