//! What a pod may say to its neighbours.

extern crate std;

use super::*;
use crate::{
    bytes::Slice,
    ethernet::HEADER_LENGTH as ETH,
    testing::{self, Extension, sum, v6_of},
};
use std::{vec, vec::Vec};

const OWN: [u8; 4] = [10, 0, 0, 5];
const GATEWAY: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 9];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

fn link() -> Link {
    Link {
        own: V6::from_octets(v6_of(OWN)),
        gateway: V6::from_octets(v6_of(GATEWAY)),
    }
}

/// A message of this type about `target`, from `source`.
fn message(kind: u8, source: [u8; 16], target: [u8; 16], chain: &[Extension]) -> Vec<u8> {
    let mut packet = testing::echo();
    packet.ttl = 255;
    packet.payload = [
        &[kind, 0, 0, 0, 0, 0, 0, 0][..],
        &target,
        &[1, 1, 2, 0, 0, 0, 0, 5],
    ]
    .concat();
    let mut frame = packet.v6_frame(chain);
    frame[ETH + 8..ETH + 24].copy_from_slice(&source);
    frame
}

fn judge(frame: &[u8]) -> Result<Option<Judged>, DropReason> {
    let packet = Slice(frame);
    link().judge(&packet, &Ipv6::parse(&packet, ETH)?)
}

#[test]
fn messages_are_judged_by_who_speaks_for_whom() {
    let (own, gateway, other) = (v6_of(OWN), v6_of(GATEWAY), v6_of(OTHER));
    let ask = Ok(Some(Judged::Ask));
    let ignore = Ok(Some(Judged::Ignore));
    for (what, kind, source, target, expected) in [
        ("asks for its gateway", 135, own, gateway, ask),
        ("by its link-local address", 135, LINK_LOCAL, gateway, ask),
        (
            "asks for another",
            135,
            own,
            other,
            Err(DropReason::NeighbourNotGateway),
        ),
        (
            "asks for itself",
            135,
            own,
            own,
            Err(DropReason::NeighbourNotGateway),
        ),
        (
            "asks as another",
            135,
            other,
            gateway,
            Err(DropReason::SpoofedAddress),
        ),
        ("looks for a duplicate", 135, [0; 16], own, ignore),
        ("of its link-local one", 135, [0; 16], LINK_LOCAL, ignore),
        (
            "takes the gateway's",
            135,
            [0; 16],
            gateway,
            Err(DropReason::ForeignNeighbour),
        ),
        ("tells of itself", 136, own, own, Ok(Some(Judged::Tell))),
        (
            "tells of its link-local one",
            136,
            LINK_LOCAL,
            LINK_LOCAL,
            Ok(Some(Judged::Tell)),
        ),
        (
            "speaks for the gateway",
            136,
            own,
            gateway,
            Err(DropReason::ForeignNeighbour),
        ),
        (
            "speaks as another",
            136,
            other,
            own,
            Err(DropReason::SpoofedAddress),
        ),
        ("asks for routers", 133, LINK_LOCAL, other, ignore),
        (
            "plays router",
            134,
            LINK_LOCAL,
            other,
            Err(DropReason::RouterAdvertisement),
        ),
        (
            "redirects",
            137,
            LINK_LOCAL,
            other,
            Err(DropReason::Redirect),
        ),
        ("joins a group", 143, LINK_LOCAL, other, ignore),
        ("leaves a group", 132, LINK_LOCAL, other, ignore),
        ("pings", 128, own, other, Ok(None)),
    ] {
        assert_eq!(
            judge(&message(kind, source, target, &[])),
            expected,
            "{what}"
        );
        // Group reports come behind a router alert.
        let behind = message(kind, source, target, &[(0, vec![0; 8])]);
        assert_eq!(judge(&behind), expected, "{what}, behind options");
    }
}

#[test]
fn a_message_from_another_link_with_a_code_or_cut_off_is_refused() {
    let frame = message(135, v6_of(OWN), v6_of(GATEWAY), &[]);
    for (at, value) in [(ETH + 7, 254), (ETH + 41, 1)] {
        let mut frame = frame.clone();
        frame[at] = value;
        assert_eq!(judge(&frame), Err(DropReason::ForeignNeighbour));
    }
    for length in 0..MESSAGE {
        let mut frame = frame[..ETH + 40 + length].to_vec();
        frame[ETH + 5] = length as u8;
        assert_eq!(judge(&frame), Err(DropReason::Malformed), "{length} bytes");
    }
}

#[test]
fn without_a_gateway_nobody_answers() {
    let link = Link {
        gateway: V6::NONE,
        ..link()
    };
    let frame = message(135, v6_of(OWN), [0; 16], &[]);
    let packet = Slice(&frame);
    let judged = link.judge(&packet, &Ipv6::parse(&packet, ETH).unwrap());
    assert_eq!(judged, Err(DropReason::NeighbourNotGateway));
}

#[test]
fn the_answer_tells_the_gateways_mac_with_a_checksum_that_fits() {
    let to = v6_of(OWN);
    let (pod, node) = ([2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 9]);
    let answer = Answer::new(pod, V6::from_octets(to), link().gateway, node);
    let mut frame = answer.ethernet.0.to_vec();
    frame.extend(answer.packet.iter().flat_map(|word| word.to_ne_bytes()));
    assert_eq!((&frame[..6], &frame[6..12]), (&pod[..], &node[..]));
    let ip = Ipv6::parse(&Slice(&frame), ETH).unwrap();
    assert_eq!(ip.total_length() as usize, frame.len() - ETH);
    assert_eq!((ip.hops(), ip.protocol()), (255, ICMP_V6));
    assert_eq!(ip.source(), link().gateway);
    assert_eq!(ip.destination(), V6::from_octets(to));
    let message = &frame[ETH + 40..];
    assert_eq!((message[0], message[4]), (136, 0xe0));
    assert_eq!(message[8..24], v6_of(GATEWAY));
    assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
    // The pseudo-header (RFC 8200, section 8.1).
    let mut all = [&v6_of(GATEWAY)[..], &to].concat();
    all.extend([0, 0, 0, message.len() as u8, 0, 0, 0, ICMP_V6]);
    all.extend(message);
    assert_eq!(sum(&all), 0xffff);
}
