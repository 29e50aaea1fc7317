//! ICMP: the packets that errors are about. The types are in one file per family.

pub(crate) mod v4;
pub(crate) mod v6;

use crate::{
    bytes::Bytes,
    ethernet,
    ip::{DCCP, Ip, SCTP, TCP, UDP, UDP_LITE},
    l4::{NO_PORTS, UDP_HEADER, ports, query},
};
use veer_bpf_common::tables::Tuple;

/// What the types of one family's ICMP mean.
pub trait Types {
    /// Protocol number.
    const PROTOCOL: u8;
    /// Of a type that carries an identifier: which end asks, as [`Tuple::asker`]; else 0.
    fn asker(icmp_type: u8) -> u8;
    /// Types that carry the packet they are about.
    fn is_error(icmp_type: u8) -> bool;
    /// Those of them that say that the packet never arrived.
    fn is_undeliverable(icmp_type: u8) -> bool;
}

/// Bytes of a header without its payload, in both families.
pub(crate) const HEADER: usize = 8;

/// The tuple of the packet that never arrived, as an ICMP error says: unreachable,
/// too big for a link, time exceeded or parameter problem. `None` for all else.
#[inline(always)]
pub fn undeliverable<I: Ip, P: Bytes>(packet: &P, ip: &I) -> Option<Tuple> {
    let h = ip.transport::<HEADER, P>(packet)?;
    if I::Icmp::is_undeliverable(h[0]) {
        of_error(packet, ip)
    } else {
        None
    }
}

/// The tuple of the packet that the ICMP error with header `ip` carries.
#[inline(always)]
pub(crate) fn of_error<I: Ip, P: Bytes>(packet: &P, ip: &I) -> Option<Tuple> {
    let offset = ethernet::HEADER_LENGTH + ip.header_length() + HEADER;
    packet.carried::<I>(
        offset as u32,
        ip.payload_length().checked_sub(HEADER as u32)?,
    )
}

/// The tuple of the packet that an ICMP error carries at `offset`, of which `available`
/// bytes are there: its IP header and at least eight bytes (RFC 792, RFC 4443), which is
/// where ports and identifiers are. That of a later fragment has no ports.
#[inline(always)]
pub fn carried<I: Ip, P: Bytes>(packet: &P, offset: u32, available: u32) -> Option<Tuple> {
    let offset = offset as usize;
    let inner = I::parse_carried(packet, offset)?;
    if (available as usize) < inner.header_length() + UDP_HEADER {
        return None;
    }
    let protocol = inner.protocol();
    if inner.is_later_fragment() {
        return Some(inner.tuple(protocol, NO_PORTS));
    }
    let h = packet.anywhere::<UDP_HEADER>(offset + inner.header_length())?;
    let ports = match protocol {
        DCCP | SCTP | TCP | UDP | UDP_LITE => ports([h[0], h[1]], [h[2], h[3]]),
        icmp if icmp == I::Icmp::PROTOCOL => query([h[4], h[5]], I::Icmp::asker(h[0])),
        _ => NO_PORTS,
    };
    Some(inner.tuple(protocol, ports))
}
