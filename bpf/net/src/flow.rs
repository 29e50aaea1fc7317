//! Which flow a packet belongs to.

use crate::{
    bytes::Bytes,
    ethernet,
    ipv4::{DCCP, ICMP, Ipv4, SCTP, TCP, UDP, UDP_LITE},
};
use veer_bpf_common::{
    outcome::DropReason,
    tables::{FlowKey, FragmentKey, FragmentPorts},
};

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: a connection begins.
pub const SYN: u8 = 0x02;
/// TCP flag: a connection is refused or aborted.
pub const RST: u8 = 0x04;
/// TCP flag: the acknowledgement number is valid.
pub const ACK: u8 = 0x10;

/// Bytes of a UDP header, and of an ICMP header without its payload.
const UDP_HEADER: usize = 8;
/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;

/// Ports by datagram, so that later fragments find those of the first.
pub trait Fragments {
    /// What the first fragment had.
    fn ports(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// The first fragment has these.
    fn remember(&self, key: &FragmentKey, ports: FragmentPorts);
}

/// The flow of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The tuple: the packet's own, or that of the packet an ICMP error is about.
    pub key: FlowKey,
    /// TCP's flags; 0 for all else and for later fragments.
    pub tcp_flags: u8,
    /// Whether `key` is that of the packet an ICMP error carries, which went
    /// the other way.
    pub is_error: bool,
}

impl Flow {
    /// Whether this packet opens a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        self.tcp_flags & (SYN | ACK) == SYN
    }
}

/// The tuple of `ip` with these ports.
#[inline(always)]
const fn key(ip: &Ipv4, ports: FragmentPorts) -> FlowKey {
    FlowKey::v4(
        ip.source,
        ip.destination,
        ports.source_port,
        ports.destination_port,
        ip.protocol,
    )
}

const NO_PORTS: FragmentPorts = FragmentPorts {
    source_port: [0; 2],
    destination_port: [0; 2],
};

/// ICMP types that carry an identifier: echo, timestamp, information and
/// address mask, with their replies (RFC 792, RFC 950).
const fn has_identifier(icmp_type: u8) -> bool {
    matches!(icmp_type, 0 | 8 | 13..=18)
}

/// ICMP types that carry the packet they are about: unreachable, source
/// quench, redirect, time exceeded, parameter problem (RFC 792).
const fn is_error(icmp_type: u8) -> bool {
    matches!(icmp_type, 3..=5 | 11 | 12)
}

/// The flow of the packet with header `ip` at [`ethernet::HEADER_LENGTH`].
///
/// [`DropReason::Malformed`] where the transport header is cut off;
/// [`DropReason::FragmentWithoutFirst`] for a later fragment that `fragments`
/// does not know.
#[inline(always)]
pub fn of<P: Bytes, F: Fragments>(
    packet: &P,
    ip: &Ipv4,
    fragments: &F,
) -> Result<Flow, DropReason> {
    if ip.is_later_fragment() {
        let ports = fragments
            .ports(&ip.fragment_key())
            .ok_or(DropReason::FragmentWithoutFirst)?;
        return Ok(Flow {
            key: key(ip, ports),
            tcp_flags: 0,
            is_error: false,
        });
    }
    let (ports, tcp_flags) = match ip.protocol {
        TCP => {
            let h = ip
                .transport::<TCP_HEADER, P>(packet)
                .ok_or(DropReason::Malformed)?;
            (both([h[0], h[1]], [h[2], h[3]]), h[13])
        }
        UDP => {
            let h = ip
                .transport::<UDP_HEADER, P>(packet)
                .ok_or(DropReason::Malformed)?;
            (both([h[0], h[1]], [h[2], h[3]]), 0)
        }
        ICMP => {
            let h = ip
                .transport::<UDP_HEADER, P>(packet)
                .ok_or(DropReason::Malformed)?;
            if is_error(h[0]) {
                return Ok(Flow {
                    key: carried(packet, ip).ok_or(DropReason::Malformed)?,
                    tcp_flags: 0,
                    is_error: true,
                });
            }
            let identifier = if has_identifier(h[0]) {
                [h[4], h[5]]
            } else {
                [0; 2]
            };
            (both(identifier, identifier), 0)
        }
        DCCP | SCTP | UDP_LITE => {
            let h = ip.transport::<4, P>(packet).ok_or(DropReason::Malformed)?;
            (both([h[0], h[1]], [h[2], h[3]]), 0)
        }
        _ => (NO_PORTS, 0),
    };
    if ip.is_first_fragment() {
        fragments.remember(&ip.fragment_key(), ports);
    }
    Ok(Flow {
        key: key(ip, ports),
        tcp_flags,
        is_error: false,
    })
}

/// The tuple of the packet that never arrived, as an ICMP error says: unreachable
/// (too big for a link included), time exceeded or parameter problem. `None` for all
/// else.
#[inline(always)]
pub fn undeliverable<P: Bytes>(packet: &P, ip: &Ipv4) -> Option<FlowKey> {
    let h = ip.transport::<UDP_HEADER, P>(packet)?;
    if matches!(h[0], 3 | 11 | 12) {
        carried(packet, ip)
    } else {
        None
    }
}

#[inline(always)]
const fn both(source_port: [u8; 2], destination_port: [u8; 2]) -> FragmentPorts {
    FragmentPorts {
        source_port,
        destination_port,
    }
}

/// The tuple of the packet that an ICMP error carries: its IPv4 header and at
/// least eight bytes (RFC 792), which is where ports and identifiers are. That
/// of a later fragment has no ports.
#[inline(always)]
fn carried<P: Bytes>(packet: &P, ip: &Ipv4) -> Option<FlowKey> {
    let offset = ethernet::HEADER_LENGTH + ip.header_length + UDP_HEADER;
    let inner = Ipv4::parse_carried(packet, offset)?;
    let needed = UDP_HEADER + inner.header_length + UDP_HEADER;
    if (ip.payload_length() as usize) < needed {
        return None;
    }
    if inner.is_later_fragment() {
        return Some(key(&inner, NO_PORTS));
    }
    let h = packet.anywhere::<UDP_HEADER>(offset + inner.header_length)?;
    let ports = match inner.protocol {
        DCCP | SCTP | TCP | UDP | UDP_LITE => both([h[0], h[1]], [h[2], h[3]]),
        ICMP if has_identifier(h[0]) => both([h[4], h[5]], [h[4], h[5]]),
        _ => NO_PORTS,
    };
    Some(key(&inner, ports))
}

#[cfg(test)]
mod tests;
