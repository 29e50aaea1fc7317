//! Which flow a packet belongs to.

use crate::{
    bytes::Bytes,
    fragments::Fragments,
    icmp::{self, Types},
    ip::{DCCP, Ip, SCTP, TCP, UDP, UDP_LITE},
    l4::{self, TCP_HEADER, UDP_HEADER},
};
use veer_bpf_common::{
    outcome::DropReason,
    tables::{FragmentPorts, Tuple},
};

/// The flow of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The tuple: the packet's own, or that of the packet an ICMP error is about.
    pub tuple: Tuple,
    /// TCP's flags; 0 for all else and for later fragments.
    pub tcp_flags: u8,
    /// Whether `tuple` is that of the packet an ICMP error carries, which went
    /// the other way.
    pub is_error: bool,
}

impl Flow {
    /// Whether this packet opens a TCP connection.
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        l4::opens(self.tcp_flags)
    }
}

/// The flow of the packet with header `ip` at [`crate::ethernet::HEADER_LENGTH`].
///
/// [`DropReason::Malformed`] where the transport header is cut off;
/// [`DropReason::FragmentWithoutFirst`] for a later fragment that `fragments`
/// does not know.
#[inline(always)]
pub fn of<I: Ip, P: Bytes, F: Fragments>(
    packet: &P,
    ip: &I,
    fragments: &F,
) -> Result<Flow, DropReason> {
    if ip.is_later_fragment() {
        let ports = fragments
            .ports(&ip.fragment_key())
            .ok_or(DropReason::FragmentWithoutFirst)?;
        return Ok(Flow {
            tuple: ip.tuple(ports.protocol, ports),
            tcp_flags: 0,
            is_error: false,
        });
    }
    let protocol = ip.protocol();
    let (ports, tcp_flags) = match protocol {
        TCP => {
            let h = ip
                .transport::<TCP_HEADER, P>(packet)
                .ok_or(DropReason::Malformed)?;
            (l4::ports([h[0], h[1]], [h[2], h[3]]), h[13])
        }
        UDP => {
            let h = ip
                .transport::<UDP_HEADER, P>(packet)
                .ok_or(DropReason::Malformed)?;
            (l4::ports([h[0], h[1]], [h[2], h[3]]), 0)
        }
        icmp if icmp == I::Icmp::PROTOCOL => {
            let h = ip
                .transport::<{ icmp::HEADER }, P>(packet)
                .ok_or(DropReason::Malformed)?;
            if I::Icmp::is_error(h[0]) {
                return Ok(Flow {
                    tuple: icmp::of_error(packet, ip).ok_or(DropReason::Malformed)?,
                    tcp_flags: 0,
                    is_error: true,
                });
            }
            (l4::query([h[4], h[5]], I::Icmp::asker(h[0])), 0)
        }
        DCCP | SCTP | UDP_LITE => {
            let h = ip.transport::<4, P>(packet).ok_or(DropReason::Malformed)?;
            (l4::ports([h[0], h[1]], [h[2], h[3]]), 0)
        }
        _ => (l4::NO_PORTS, 0),
    };
    if ip.is_first_fragment() {
        fragments.remember(&ip.fragment_key(), FragmentPorts { protocol, ..ports });
    }
    Ok(Flow {
        tuple: ip.tuple(protocol, ports),
        tcp_flags,
        is_error: false,
    })
}

#[cfg(test)]
mod tests;
