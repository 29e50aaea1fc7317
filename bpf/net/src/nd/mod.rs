//! Neighbour discovery (RFC 4861) and multicast group reports (RFC 3810) as a pod sends
//! them.

use crate::{
    bytes::Bytes,
    ethernet,
    ip::{
        ICMP_V6, Ip, Start,
        v6::{self, Ipv6, is_link_local},
    },
};
use veer_bpf_common::{
    address::{Address, V6},
    outcome::DropReason,
};

/// The hop limit of all messages: one that another link sent has a smaller one.
const HOPS: u8 = 255;
/// Bytes of a solicitation or an advertisement without options.
const MESSAGE: usize = 24;
/// Bytes of an advertisement with the option that names the MAC.
const ANSWER: usize = MESSAGE + 8;
/// Bytes of the packet that answers a solicitation.
pub const PACKET: usize = v6::HEADER_LENGTH + ANSWER;

/// What a pod has on its link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Its address.
    pub own: V6,
    /// Its gateway; unspecified: none.
    pub gateway: V6,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It asks for the gateway: an [`Answer`] to its source.
    Ask,
    /// It says the pod's own MAC: to the stack, which may have asked.
    Tell,
    /// Nobody needs it.
    Ignore,
}

impl Link {
    /// Whether an address is the pod's, or one that it has on this link alone.
    #[inline(always)]
    fn has(&self, address: V6) -> bool {
        address == self.own || is_link_local(address)
    }

    /// Judges what the pod sends; `None`: no message of these kinds.
    ///
    /// [`DropReason::RouterAdvertisement`], [`DropReason::Redirect`] for what only
    /// routers send; [`DropReason::ForeignNeighbour`] for another's address, or from
    /// another link; [`DropReason::SpoofedAddress`] for another's source;
    /// [`DropReason::NeighbourNotGateway`] for a question for somebody else;
    /// [`DropReason::Malformed`] for a message that is cut off.
    #[inline(always)]
    pub fn judge<P: Bytes>(&self, packet: &P, ip: &Ipv6) -> Result<Option<Judged>, DropReason> {
        if !ip.is_icmp() || ip.is_later_fragment() {
            return Ok(None);
        }
        let h = ip.transport::<8, P>(packet).ok_or(DropReason::Malformed)?;
        match h[0] {
            130..=133 | 143 => return Ok(Some(Judged::Ignore)),
            134 => return Err(DropReason::RouterAdvertisement),
            137 => return Err(DropReason::Redirect),
            135 | 136 => {}
            _ => return Ok(None),
        }
        let m = ip
            .transport::<MESSAGE, P>(packet)
            .ok_or(DropReason::Malformed)?;
        let target = V6([
            u64::from_ne_bytes([m[8], m[9], m[10], m[11], m[12], m[13], m[14], m[15]]),
            u64::from_ne_bytes([m[16], m[17], m[18], m[19], m[20], m[21], m[22], m[23]]),
        ]);
        let source = ip.source();
        if ip.hops() != HOPS || m[1] != 0 {
            return Err(DropReason::ForeignNeighbour);
        }
        if h[0] == 136 || source == V6::NONE {
            // An advertisement, or duplicate address detection.
            if !self.has(target) {
                return Err(DropReason::ForeignNeighbour);
            }
            if source == V6::NONE {
                return Ok(Some(Judged::Ignore));
            }
        }
        if !self.has(source) {
            return Err(DropReason::SpoofedAddress);
        }
        if h[0] == 136 {
            return Ok(Some(Judged::Tell));
        }
        if self.gateway == V6::NONE || target != self.gateway {
            return Err(DropReason::NeighbourNotGateway);
        }
        Ok(Some(Judged::Ask))
    }
}

/// An answer to a solicitation.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The frame's first bytes.
    pub ethernet: Start<{ ethernet::HEADER_LENGTH }>,
    /// The packet behind them, in memory words.
    pub packet: [u32; PACKET / 4],
}

impl Answer {
    /// What tells the pod with the MAC `pod` and the address `to` the gateway's MAC:
    /// solicited, from a router, and to override what was known.
    #[inline(always)]
    pub fn new(pod: [u8; 6], to: V6, gateway: V6, gateway_mac: [u8; 6]) -> Self {
        /// Router, solicited, override.
        const FLAGS: u32 = 0xe000_0000;
        /// Type 136, code 0.
        const ADVERTISEMENT: u32 = 136 << 24;
        let (p, m) = (pod, gateway_mac);
        let half = |a: u8, b: u8| u32::from(u16::from_be_bytes([a, b]));
        let mac = [
            // Option 2, of one unit of eight bytes.
            2 << 24 | 1 << 16 | half(m[0], m[1]),
            half(m[2], m[3]) << 16 | half(m[4], m[5]),
        ];
        // A sum does not depend on the order of bytes (RFC 1071), so addresses stay in
        // memory words.
        let (g, t) = (gateway.quarters(), to.quarters());
        let mut sum = Sum(0);
        let mut at = 0;
        while at < 4 {
            // Source, destination and target.
            sum.add(g[at]);
            sum.add(g[at]);
            sum.add(t[at]);
            at += 1;
        }
        for word in [
            ANSWER as u32,
            ICMP_V6.into(),
            ADVERTISEMENT,
            FLAGS,
            mac[0],
            mac[1],
        ] {
            sum.add(word.to_be());
        }
        let checksum = u32::from(u16::from_be(sum.complement()));
        Self {
            ethernet: Start([
                p[0], p[1], p[2], p[3], p[4], p[5], m[0], m[1], m[2], m[3], m[4], m[5], 0x86, 0xdd,
            ]),
            packet: [
                0x6000_0000_u32.to_be(),
                ((ANSWER as u32) << 16 | u32::from(ICMP_V6) << 8 | u32::from(HOPS)).to_be(),
                g[0],
                g[1],
                g[2],
                g[3],
                t[0],
                t[1],
                t[2],
                t[3],
                (ADVERTISEMENT | checksum).to_be(),
                FLAGS.to_be(),
                g[0],
                g[1],
                g[2],
                g[3],
                mac[0].to_be(),
                mac[1].to_be(),
            ],
        }
    }
}

/// A ones' complement sum of 16-bit words, not folded yet.
struct Sum(u32);

impl Sum {
    /// Adds the two halves of a word.
    #[inline(always)]
    fn add(&mut self, word: u32) {
        self.0 += (word >> 16) + (word & 0xffff);
    }

    /// The checksum that makes all of it sum to zero.
    #[inline(always)]
    fn complement(self) -> u16 {
        let folded = (self.0 & 0xffff) + (self.0 >> 16);
        !((folded + (folded >> 16)) as u16)
    }
}

#[cfg(test)]
mod tests;
