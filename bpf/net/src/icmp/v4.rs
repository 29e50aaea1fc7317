//! ICMP for IPv4 (RFC 792).

use crate::{
    bytes::Bytes,
    ethernet,
    ip::{DCCP, ICMP, SCTP, TCP, UDP, UDP_LITE, v4::Ipv4},
    l4::{NO_PORTS, UDP_HEADER, ports},
};
use veer_bpf_common::tables::FlowKey;

/// Bytes of a header without its payload.
pub(crate) const HEADER: usize = 8;

/// ICMP types that carry an identifier: echo, timestamp, information and
/// address mask, with their replies (RFC 792, RFC 950).
pub(crate) const fn has_identifier(icmp_type: u8) -> bool {
    matches!(icmp_type, 0 | 8 | 13..=18)
}

/// ICMP types that carry the packet they are about: unreachable, source
/// quench, redirect, time exceeded, parameter problem (RFC 792).
pub(crate) const fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3..=5 | 11 | 12)
}

/// The tuple of the packet that never arrived, as an ICMP error says: unreachable
/// (too big for a link included), time exceeded or parameter problem. `None` for all
/// else.
#[inline(always)]
pub fn undeliverable<P: Bytes>(packet: &P, ip: &Ipv4) -> Option<FlowKey> {
    let h = ip.transport::<HEADER, P>(packet)?;
    if matches!(h[0], 3 | 11 | 12) {
        carried(packet, ip)
    } else {
        None
    }
}

/// The tuple of the packet that an ICMP error carries: its IPv4 header and at
/// least eight bytes (RFC 792), which is where ports and identifiers are. That
/// of a later fragment has no ports.
#[inline(always)]
pub(crate) fn carried<P: Bytes>(packet: &P, ip: &Ipv4) -> Option<FlowKey> {
    let offset = ethernet::HEADER_LENGTH + ip.header_length + HEADER;
    let inner = Ipv4::parse_carried(packet, offset)?;
    let needed = HEADER + inner.header_length + UDP_HEADER;
    if (ip.payload_length() as usize) < needed {
        return None;
    }
    if inner.is_later_fragment() {
        return Some(inner.flow_key(NO_PORTS));
    }
    let h = packet.anywhere::<UDP_HEADER>(offset + inner.header_length)?;
    let ports = match inner.protocol {
        DCCP | SCTP | TCP | UDP | UDP_LITE => ports([h[0], h[1]], [h[2], h[3]]),
        ICMP if has_identifier(h[0]) => ports([h[4], h[5]], [h[4], h[5]]),
        _ => NO_PORTS,
    };
    Some(inner.flow_key(ports))
}
