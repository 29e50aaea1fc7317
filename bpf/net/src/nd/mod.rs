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
/// Bytes of the frame that answers a solicitation.
pub const FRAME_LENGTH: usize = ethernet::HEADER_LENGTH + v6::HEADER_LENGTH + ANSWER;

/// What a pod has on its link.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Its address.
    pub own: V6,
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its gateway; unspecified: none.
    pub gateway: V6,
    /// The gateway's MAC.
    pub gateway_mac: [u8; 6],
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// It asks for the gateway: [`Link::answer`] to this address.
    Ask(V6),
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
        let word = |at: usize| u32::from_ne_bytes([m[at], m[at + 1], m[at + 2], m[at + 3]]);
        let target = V6([word(8), word(12), word(16), word(20)]);
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
        Ok(Some(Judged::Ask(source)))
    }

    /// The frame that tells `to` the gateway's MAC: solicited, from a router, and to
    /// override what was known.
    #[inline(always)]
    pub fn answer(&self, to: V6) -> Start<FRAME_LENGTH> {
        /// Router, solicited, override.
        const FLAGS: u32 = 0xe000_0000;
        /// Type 136, code 0.
        const ADVERTISEMENT: u32 = 136 << 24;
        let (m, p) = (self.gateway_mac, self.mac);
        let half = |a: u8, b: u8| u32::from(u16::from_be_bytes([a, b]));
        let mac = [
            // Option 2, of one unit of eight bytes.
            2 << 24 | 1 << 16 | half(m[0], m[1]),
            half(m[2], m[3]) << 16 | half(m[4], m[5]),
        ];
        let (gateway, to) = (self.gateway.0.map(u32::from_be), to.0.map(u32::from_be));
        let mut sum = Sum(0);
        sum.add(ANSWER as u32);
        sum.add(ICMP_V6.into());
        sum.add(ADVERTISEMENT);
        sum.add(FLAGS);
        let mut at = 0;
        while at < 4 {
            // Source, destination and target.
            sum.add(gateway[at]);
            sum.add(gateway[at]);
            sum.add(to[at]);
            at += 1;
        }
        sum.add(mac[0]);
        sum.add(mac[1]);
        let words = [
            0x6000_0000,
            (ANSWER as u32) << 16 | u32::from(ICMP_V6) << 8 | u32::from(HOPS),
            gateway[0],
            gateway[1],
            gateway[2],
            gateway[3],
            to[0],
            to[1],
            to[2],
            to[3],
            ADVERTISEMENT | u32::from(sum.complement()),
            FLAGS,
            gateway[0],
            gateway[1],
            gateway[2],
            gateway[3],
            mac[0],
            mac[1],
        ];
        let mut frame = [0; FRAME_LENGTH];
        let mut at = 0;
        while at < 6 {
            frame[at] = p[at];
            frame[at + 6] = m[at];
            at += 1;
        }
        [frame[12], frame[13]] = ethernet::IPV6.to_be_bytes();
        let mut at = 0;
        while at < words.len() {
            let start = ethernet::HEADER_LENGTH + 4 * at;
            [
                frame[start],
                frame[start + 1],
                frame[start + 2],
                frame[start + 3],
            ] = words[at].to_be_bytes();
            at += 1;
        }
        Start(frame)
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
