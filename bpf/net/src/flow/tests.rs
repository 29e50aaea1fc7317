//! Flows of whole, cut off, fragmented and erroneous packets.

extern crate std;

use super::*;
use crate::{
    bytes::Slice,
    ethernet::HEADER_LENGTH as ETH,
    ip::v4::Ipv4,
    l4::{ACK, RST, SYN},
    testing::{self, Packet, Table},
};
use proptest::prelude::*;
use std::{vec, vec::Vec};

fn flow(frame: &[u8], table: &Table) -> Result<Flow, DropReason> {
    let packet = Slice(frame);
    of(&packet, &Ipv4::parse(&packet, ETH)?, table)
}

/// `packet` cut to `n` bytes with lengths that admit it.
fn cut(packet: &Packet, n: usize) -> Vec<u8> {
    let mut packet = packet.clone();
    packet.payload.truncate(n);
    packet.frame()
}

#[test]
fn a_transport_header_cut_off_at_any_byte_is_malformed() {
    for (packet, header) in [
        (testing::udp(), 8),
        (testing::tcp(SYN), 20),
        (testing::echo(), 8),
    ] {
        for n in 0..packet.payload.len() {
            let result = flow(&cut(&packet, n), &Table::default());
            assert_eq!(result.is_err(), n < header, "{n} bytes of {packet:?}");
        }
    }
}

#[test]
fn bytes_behind_the_packets_own_length_are_not_a_header() {
    let mut frame = cut(&testing::udp(), 7);
    frame.extend_from_slice(&[0; 40]);
    assert_eq!(flow(&frame, &Table::default()), Err(DropReason::Malformed));
}

#[test]
fn a_reply_has_the_reversed_tuple() {
    let request = testing::udp();
    let there = flow(&request.frame(), &Table::default()).unwrap();
    let back = flow(&request.answer().frame(), &Table::default()).unwrap();
    assert_eq!(back.tuple, there.tuple.reversed());
}

#[test]
fn echo_and_its_reply_share_their_identifier() {
    let there = flow(&testing::echo().frame(), &Table::default()).unwrap();
    let mut reply = testing::echo();
    reply.payload[0] = 0;
    (reply.source, reply.destination) = (reply.destination, reply.source);
    let back = flow(&reply.frame(), &Table::default()).unwrap();
    assert_eq!(there.tuple.source_port, [0xab, 0xcd]);
    assert_eq!(back.tuple, there.tuple.reversed());
}

#[test]
fn only_a_syn_without_ack_opens() {
    for (flags, opens) in [(SYN, true), (SYN | ACK, false), (ACK, false), (RST, false)] {
        let f = flow(&testing::tcp(flags).frame(), &Table::default()).unwrap();
        assert_eq!((f.tcp_flags, f.opens()), (flags, opens));
    }
}

#[test]
fn later_fragments_have_the_ports_of_the_first() {
    let table = Table::default();
    let mut first = testing::udp();
    first.fragment = 0x2000;
    let mut later = testing::udp();
    later.fragment = 0x0005;
    later.payload = vec![7; 24];
    assert_eq!(
        flow(&later.frame(), &table),
        Err(DropReason::FragmentWithoutFirst)
    );
    let a = flow(&first.frame(), &table).unwrap();
    let b = flow(&later.frame(), &table).unwrap();
    assert_eq!(a.tuple, b.tuple);
    assert_eq!(a.tuple.destination_port, 53u16.to_be_bytes());
    later.identification += 1;
    assert_eq!(
        flow(&later.frame(), &table),
        Err(DropReason::FragmentWithoutFirst),
        "of another datagram"
    );
}

#[test]
fn a_whole_packet_is_not_remembered() {
    let table = Table::default();
    flow(&testing::udp().frame(), &table).unwrap();
    assert!(table.0.borrow().is_empty());
}

#[test]
fn an_icmp_error_is_looked_up_by_what_it_carries() {
    for kind in [3, 4, 5, 11, 12] {
        let inner = testing::udp();
        let expected = flow(&inner.frame(), &Table::default()).unwrap().tuple;
        let f = flow(&testing::error(kind, &inner).frame(), &Table::default()).unwrap();
        assert_eq!((f.tuple, f.is_error), (expected, true), "type {kind}");
    }
}

#[test]
fn an_icmp_error_about_a_packet_with_options_is_understood() {
    let mut inner = testing::tcp(ACK);
    inner.options = vec![1; 8];
    let expected = flow(&inner.frame(), &Table::default()).unwrap().tuple;
    let mut error = testing::error(3, &inner);
    error.options = vec![1; 12];
    let f = flow(&error.frame(), &Table::default()).unwrap();
    assert_eq!(f.tuple, expected);
}

#[test]
fn an_icmp_error_cut_off_at_any_byte_is_malformed() {
    let error = testing::error(3, &testing::udp());
    assert_eq!(error.payload.len(), 8 + 20 + 8);
    for n in 0..error.payload.len() {
        assert_eq!(
            flow(&cut(&error, n), &Table::default()),
            Err(DropReason::Malformed),
            "{n} bytes"
        );
    }
    assert!(flow(&error.frame(), &Table::default()).is_ok());
}

#[test]
fn an_icmp_error_about_a_later_fragment_has_no_ports() {
    let mut inner = testing::udp();
    inner.fragment = 0x0005;
    let f = flow(&testing::error(11, &inner).frame(), &Table::default()).unwrap();
    assert_eq!(
        (f.tuple.source_port, f.tuple.destination_port),
        ([0; 2], [0; 2])
    );
}

#[test]
fn a_protocol_without_ports_has_zeros() {
    let mut packet = testing::udp();
    packet.protocol = 47;
    packet.payload.clear();
    let f = flow(&packet.frame(), &Table::default()).unwrap();
    assert_eq!((f.tuple.source_port, f.tuple.protocol), ([0; 2], 47));
}

proptest! {
    #[test]
    fn any_bytes_behind_an_ipv4_header_are_survived(
        payload: Vec<u8>, protocol in prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()],
        fragment: u16, options in 0usize..=10,
    ) {
        let mut packet = testing::udp();
        packet.payload = payload;
        packet.protocol = protocol;
        packet.fragment = fragment;
        packet.options = vec![1; options * 4];
        let _ = flow(&packet.frame(), &Table::default());
    }
}
