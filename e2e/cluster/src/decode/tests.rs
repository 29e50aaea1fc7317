//! The decoder against frames written out by hand, whole and cut at every
//! octet, and against every value of every octet.

use std::net::Ipv6Addr;

use super::*;

const POD_A: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const POD_B: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
const NODE_A: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
const NODE_B: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 12);

fn ethernet(kind: u16, load: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(load);
    frame
}

fn ipv4_packet(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, load: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + load.len()).expect("short");
    let mut packet = vec![0x45, 0x10];
    packet.extend(length.to_be_bytes());
    packet.extend([0x12, 0x34, 0x40, 0, 63, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(load);
    packet
}

fn echo_request() -> Vec<u8> {
    ethernet(
        0x0800,
        &ipv4_packet(POD_A, POD_B, 1, &[8, 0, 0, 0, 0, 7, 0, 3, 1, 2, 3, 4]),
    )
}

fn tunnelled() -> Vec<u8> {
    let inner = echo_request();
    let mut udp = vec![0xc0, 0, 0x21, 0x18];
    udp.extend(
        u16::try_from(16 + inner.len())
            .expect("short")
            .to_be_bytes(),
    );
    udp.extend([0, 0, 0x08, 0, 0, 0, 0x01, 0x86, 0xa1, 0]);
    udp.extend(inner);
    ethernet(0x0800, &ipv4_packet(NODE_A, NODE_B, 17, &udp))
}

#[test]
fn a_ping_in_a_tunnel_shows_both_frames_and_the_vni() {
    let packet = Packet::decode(&tunnelled());
    assert!(packet.is_between(NODE_A.into(), NODE_B.into()));
    assert_eq!(
        packet.transport,
        Some(Transport::Udp {
            source: 0xc000,
            destination: 8472
        })
    );
    let vxlan = packet.vxlan.as_ref().expect("a tunnel");
    assert_eq!(vxlan.vni, 0x0001_86a1);
    assert!(vxlan.inner.is_echo_request());
    assert!(packet.innermost().is_between(POD_A.into(), POD_B.into()));
    let ip = packet.innermost().ip.expect("an IP header");
    assert_eq!(
        (ip.ttl, ip.id, ip.tos, ip.dont_fragment, ip.offset),
        (63, 0x1234, 0x10, true, 0)
    );
    assert_eq!(ip.length, 32);
    assert!(packet.to_string().contains("VXLAN vni 100001"), "{packet}");
}

#[test]
fn a_vxlan_header_without_a_valid_vni_is_no_tunnel() {
    let mut frame = tunnelled();
    frame[14 + 20 + 8] = 0;
    assert_eq!(Packet::decode(&frame).vxlan, None);
}

#[test]
fn an_arp_reply_names_both_ends() {
    let mut load = vec![0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9];
    load.extend(POD_A.octets());
    load.extend([2, 0, 0, 0, 0, 8]);
    load.extend(POD_B.octets());
    let arp = Packet::decode(&ethernet(0x0806, &load)).arp.expect("ARP");
    assert_eq!(arp.operation, 2);
    assert_eq!((arp.sender, arp.target), (POD_A, POD_B));
    assert_eq!(arp.sender_mac.to_string(), "02:00:00:00:00:09");
}

#[test]
fn a_tcp_segment_after_ip_options_and_a_vlan_tag() {
    let tcp = [
        0, 80, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x12, 0, 0, 0, 0, 0, 0,
    ];
    let mut load = vec![1, 1, 1, 0];
    load.extend(tcp);
    let mut packet = ipv4_packet(POD_A, POD_B, 6, &load);
    packet[0] = 0x46;
    let mut tagged = 42_u16.to_be_bytes().to_vec();
    tagged.extend(0x0800_u16.to_be_bytes());
    tagged.extend(packet);
    let packet = Packet::decode(&ethernet(0x8100, &tagged));
    assert_eq!(packet.vlan, Some(42));
    let expected = Transport::Tcp {
        source: 80,
        destination: 8080,
        sequence: 1,
        acknowledgement: 2,
        flags: 0x12,
    };
    assert_eq!(packet.transport, Some(expected));
}

#[test]
fn a_later_fragment_has_an_offset_and_no_ports() {
    let mut packet = ipv4_packet(POD_A, POD_B, 17, &[0, 53, 0, 53, 0, 8, 0, 0]);
    packet[6..8].copy_from_slice(&0x20b9_u16.to_be_bytes());
    let packet = Packet::decode(&ethernet(0x0800, &packet));
    let ip = packet.ip.expect("an IP header");
    assert_eq!(
        (ip.offset, ip.more_fragments, ip.dont_fragment),
        (1480, true, false)
    );
    assert_eq!(packet.transport, None);
}

#[test]
fn a_first_fragment_has_its_ports() {
    let mut packet = ipv4_packet(POD_A, POD_B, 17, &[0, 53, 0, 54, 5, 0xdc, 0, 0]);
    packet[6..8].copy_from_slice(&0x2000_u16.to_be_bytes());
    let packet = Packet::decode(&ethernet(0x0800, &packet));
    assert!(packet.ip.expect("an IP header").more_fragments);
    let expected = Transport::Udp {
        source: 53,
        destination: 54,
    };
    assert_eq!(packet.transport, Some(expected));
}

#[test]
fn ipv6_extension_headers_are_followed() {
    // Hop-by-hop options (a router alert), then a fragment header.
    for (offset, transport) in [(0_u16, true), (1480, false)] {
        let mut load = vec![0x60, 0, 0, 0, 0, 24, 0, 62];
        load.extend(Ipv6Addr::LOCALHOST.octets());
        load.extend(Ipv6Addr::UNSPECIFIED.octets());
        load.extend([44, 0, 5, 2, 0, 0, 1, 0]);
        load.extend([17, 0]);
        load.extend((offset | 1).to_be_bytes());
        load.extend([0, 0, 0, 9]);
        load.extend([0, 53, 0, 54, 0, 8, 0, 0]);
        let packet = Packet::decode(&ethernet(0x86dd, &load));
        let ip = packet.ip.expect("an IP header");
        assert_eq!(
            (ip.protocol, ip.offset, ip.more_fragments),
            (17, offset, true)
        );
        assert_eq!(packet.transport.is_some(), transport, "offset {offset}");
    }
}

#[test]
fn an_ipv6_echo_reply() {
    let mut load = vec![0x61, 0x20, 0, 0, 0, 8, 58, 62];
    load.extend(Ipv6Addr::LOCALHOST.octets());
    load.extend(Ipv6Addr::UNSPECIFIED.octets());
    load.extend([129, 0, 0, 0, 0, 1, 0, 2]);
    let packet = Packet::decode(&ethernet(0x86dd, &load));
    assert!(packet.is_echo_reply());
    let ip = packet.ip.expect("an IP header");
    assert_eq!((ip.ttl, ip.tos, ip.length), (62, 0x12, 48));
}

#[test]
fn a_frame_cut_anywhere_keeps_the_layers_before_the_cut() {
    for whole in [tunnelled(), echo_request()] {
        let full = Packet::decode(&whole);
        for cut in 0..whole.len() {
            let packet = Packet::decode(&whole[..cut]);
            if cut >= 14 + 20 {
                assert_eq!(packet.ip, full.ip, "cut at {cut}");
            } else {
                assert_eq!(packet.ip, None, "cut at {cut}");
            }
            assert!(
                cut >= 14 + 20 + 8 || packet.transport.is_none(),
                "cut at {cut}"
            );
        }
    }
}

#[test]
fn no_value_of_any_octet_makes_it_panic() {
    let whole = tunnelled();
    for at in 0..whole.len() {
        for value in 0..=255 {
            let mut frame = whole.clone();
            frame[at] = value;
            // Lengths and offsets in the frame may now lie: only bounds count.
            for cut in [frame.len(), at + 1] {
                let text = Packet::decode(&frame[..cut]).to_string();
                assert!(!text.is_empty());
            }
        }
    }
}

#[test]
fn tunnels_nested_without_end_are_cut_off() {
    let mut frame = echo_request();
    for _ in 0..20 {
        let mut udp = vec![0xc0, 0, 0x21, 0x18, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 1, 0];
        udp.extend(frame);
        frame = ethernet(0x0800, &ipv4_packet(NODE_A, NODE_B, 17, &udp));
    }
    let mut depth = 0;
    let mut packet = &Packet::decode(&frame);
    while let Some(vxlan) = &packet.vxlan {
        packet = &vxlan.inner;
        depth += 1;
    }
    assert_eq!(depth, 4);
}
