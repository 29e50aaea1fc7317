//! Transport headers, of which a flow needs ports and TCP's flags.

use veer_bpf_common::tables::FragmentPorts;

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: a connection begins.
pub const SYN: u8 = 0x02;
/// TCP flag: a connection is refused or aborted.
pub const RST: u8 = 0x04;
/// TCP flag: the acknowledgement number is valid.
pub const ACK: u8 = 0x10;

/// Whether a segment with these flags of TCP opens a connection.
#[inline(always)]
pub const fn opens(tcp_flags: u8) -> bool {
    tcp_flags & (SYN | ACK) == SYN
}

/// Bytes of a UDP header.
pub(crate) const UDP_HEADER: usize = 8;
/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;

/// What a packet without ports has in their place.
pub(crate) const NO_PORTS: FragmentPorts = ports([0; 2], [0; 2]);

/// Ports as their header has them.
#[inline(always)]
pub(crate) const fn ports(source_port: [u8; 2], destination_port: [u8; 2]) -> FragmentPorts {
    FragmentPorts {
        source_port,
        destination_port,
        protocol: 0,
        asker: 0,
        pad: [0; 2],
    }
}

/// What an ICMP header with this identifier has in the place of ports. `asker`: see
/// [`veer_bpf_common::tables::Tuple::asker`]; 0: the type has no identifier.
#[inline(always)]
pub(crate) const fn query(identifier: [u8; 2], asker: u8) -> FragmentPorts {
    let identifier = if asker == 0 { [0; 2] } else { identifier };
    FragmentPorts {
        asker,
        ..ports(identifier, identifier)
    }
}
