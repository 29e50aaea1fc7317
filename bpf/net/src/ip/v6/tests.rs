//! IPv6 headers with every kind and number of extension headers.

extern crate std;

use super::*;
use crate::{
    bytes::Slice,
    ethernet::HEADER_LENGTH as ETH,
    flow,
    ip::{ICMP_V6, UDP},
    testing::{self, Extension, Table, fragment},
};
use proptest::prelude::*;
use std::{vec, vec::Vec};

fn parse(frame: &[u8]) -> Result<Ipv6, DropReason> {
    Ipv6::parse(&Slice(frame), ETH)
}

/// One of each extension header that has another behind it, atomic fragments included.
fn every() -> Vec<Extension> {
    let plain = |number: u8| (number, vec![0; 8]);
    let mut all: Vec<Extension> = [0, ROUTING, 60, 135, 139, 140].map(plain).into();
    all.push((60, [&[0, 2][..], &[0; 22]].concat()));
    all.push((AUTHENTICATION, [&[0, 4][..], &[0; 22]].concat()));
    all.push(fragment(0));
    all
}

#[test]
fn every_truncation_is_malformed() {
    for chain in every() {
        let frame = testing::udp().v6_frame(&[chain]);
        for n in 0..frame.len() {
            assert_eq!(parse(&frame[..n]), Err(DropReason::Malformed), "{n} bytes");
        }
        assert!(parse(&frame).is_ok());
    }
}

#[test]
fn the_transport_header_is_found_behind_up_to_eight_extension_headers() {
    for extension in every() {
        for count in 0..=9 {
            let chain = vec![extension.clone(); count];
            let frame = testing::udp().v6_frame(&chain);
            let found = parse(&frame);
            if count > MAX_EXTENSIONS {
                assert_eq!(found, Err(DropReason::TooManyHeaders));
                continue;
            }
            let ip = found.unwrap();
            assert_eq!(ip.protocol(), UDP, "{count} of {}", extension.0);
            let ports = ip.transport::<4, _>(&Slice(&frame));
            assert_eq!(ports, Some([0x30, 0x39, 0, 53]));
            assert_eq!(ip.is_source_routed(), count > 0 && extension.0 == ROUTING);
            assert!(!ip.is_first_fragment() && !ip.is_later_fragment());
        }
    }
}

#[test]
fn an_extension_header_that_is_longer_than_the_packet_is_malformed() {
    for (number, bytes) in every().into_iter().filter(|e| e.0 != FRAGMENT) {
        let mut bytes = bytes;
        bytes[1] = 0xff;
        let frame = testing::udp().v6_frame(&[(number, bytes)]);
        assert_eq!(parse(&frame), Err(DropReason::Malformed), "{number}");
    }
}

#[test]
fn a_payload_length_that_lies_or_is_a_jumbograms_is_malformed() {
    let frame = testing::udp().v6_frame(&[]);
    let longer = frame.len() - ETH - HEADER_LENGTH + 1;
    for (payload, next) in [(longer as u16, UDP), (u16::MAX, UDP), (0, 0)] {
        let mut frame = frame.clone();
        frame[ETH + 4..ETH + 6].copy_from_slice(&payload.to_be_bytes());
        frame[ETH + 6] = next;
        assert_eq!(parse(&frame), Err(DropReason::Malformed), "{payload}");
    }
    let mut segment = frame.clone();
    segment.resize(ETH + 70_000, 0);
    segment[ETH + 4..ETH + 6].fill(0);
    assert_eq!(parse(&segment).map(|ip| ip.total_length()), Ok(70_000));
}

#[test]
fn other_versions_are_malformed() {
    for first in [0x40, 0x00, 0x70, 0x50] {
        let mut frame = testing::udp().v6_frame(&[]);
        frame[ETH] = first;
        assert_eq!(parse(&frame), Err(DropReason::Malformed));
    }
}

fn flow_of(frame: &[u8], table: &Table) -> Result<flow::Flow, DropReason> {
    flow::of(&Slice(frame), &parse(frame)?, table)
}

/// Destination options behind the fragment header are in the first fragment alone.
#[test]
fn later_fragments_have_the_protocol_and_the_ports_of_the_first() {
    for options in [vec![], vec![(60, vec![0; 8])]] {
        let table = Table::default();
        let mut later = testing::udp();
        later.protocol = options.first().map_or(UDP, |o: &Extension| o.0);
        let later = later.v6_frame(&[fragment(0x0010)]);
        let missing = Err(DropReason::FragmentWithoutFirst);
        assert_eq!(flow_of(&later, &table), missing);
        let first = [&[fragment(1)][..], &options].concat();
        let first = flow_of(&testing::udp().v6_frame(&first), &table).unwrap();
        assert_eq!(first.tuple.destination_port, [0, 53]);
        assert_eq!(flow_of(&later, &table), Ok(first));
    }
}

#[test]
fn two_fragment_headers_with_a_fragment_are_malformed() {
    let frame = testing::udp().v6_frame(&[fragment(1), fragment(1)]);
    assert_eq!(parse(&frame), Err(DropReason::Malformed));
}

#[test]
fn an_error_belongs_to_the_flow_that_it_carries() {
    let inner = testing::udp();
    let mut error = testing::error(1, &inner);
    for chain in [vec![], vec![(0, vec![0; 8])], vec![fragment(0)]] {
        error.payload.truncate(8);
        let carried = inner.v6_bytes(&chain);
        error.payload.extend(carried);
        for icmp_type in [1, 2, 3, 4] {
            error.payload[0] = icmp_type;
            let flow = flow_of(&error.v6_frame(&[]), &Table::default()).unwrap();
            assert!(flow.is_error);
            assert_eq!(flow.tuple.destination_port, [0, 53]);
            assert_eq!(flow.tuple.protocol, UDP);
        }
    }
}

#[test]
fn echoes_have_their_identifier_for_ports() {
    let mut echo = testing::echo();
    echo.payload[0] = 128;
    let flow = flow_of(&echo.v6_frame(&[]), &Table::default()).unwrap();
    assert_eq!(flow.tuple.source_port, [0xab, 0xcd]);
    assert_eq!(flow.tuple.protocol, ICMP_V6);
}

#[test]
fn addresses_of_one_link_groups_and_embedded_ones_are_no_destinations() {
    for (text, expected) in [
        ("2001:db8::1", true),
        ("fd00::1", true),
        ("::2", true),
        ("fec0::1", true),
        ("::", false),
        ("::1", false),
        ("fe80::1", false),
        ("febf::1", false),
        ("ff02::1", false),
        ("ff0e::1", false),
        ("::ffff:10.0.0.1", false),
    ] {
        let mut frame = testing::udp().v6_frame(&[]);
        let address: std::net::Ipv6Addr = text.parse().unwrap();
        frame[ETH + 24..ETH + 40].copy_from_slice(&address.octets());
        assert_eq!(parse(&frame).unwrap().is_unicast(), expected, "{text}");
    }
}

#[test]
fn one_hop_changes_the_macs_and_the_hop_limit_alone() {
    let frame = testing::udp().v6_frame(&[]);
    let start = parse(&frame).unwrap().hop([7; 6], [8; 6]);
    let mut expected = frame[..22].to_vec();
    expected[..6].fill(7);
    expected[6..12].fill(8);
    expected[21] -= 1;
    assert_eq!(start.as_ref(), expected);
}

proptest! {
    #[test]
    fn any_bytes_parse_without_reading_beyond_them(
        next: u8, rest in proptest::collection::vec(any::<u8>(), 0..400), honest: bool,
    ) {
        let mut frame = testing::udp().v6_frame(&[]);
        frame.truncate(ETH + HEADER_LENGTH);
        frame[ETH + 6] = next;
        frame.extend(&rest);
        if honest {
            frame[ETH + 4..ETH + 6].copy_from_slice(&(rest.len() as u16).to_be_bytes());
        }
        if let Ok(ip) = parse(&frame) {
            prop_assert!(ETH + ip.total_length() as usize <= frame.len());
            prop_assert!(ip.header_length() as u32 <= ip.total_length());
            let _ = flow_of(&frame, &Table::default());
        }
    }
}
