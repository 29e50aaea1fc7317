//! How a frame begins, for those who look at it later.

use veer_bpf_common::tables::EVENT_BYTES;
use veer_bpf_net::{
    bytes::{Bytes, HEAD, HEAD_V6},
    ethernet,
};

use super::{apart, skb::Skb, xdp::Frame};

/// A packet of which events are made.
pub(crate) trait Captured: Bytes {
    /// Copies the first `N` bytes, where the frame has them. Returns their number.
    fn start<const N: usize>(&self, to: &mut [u8; EVENT_BYTES]) -> Option<u32>;

    /// Copies how the frame begins. Returns how many bytes that are. In steps that are
    /// constants: older verifiers (5.10, 6.1) lose what is known of a length as soon as
    /// the compiler keeps it in two registers.
    #[inline(always)]
    fn capture(&self, to: &mut [u8; EVENT_BYTES]) -> u32 {
        self.start::<EVENT_BYTES>(to)
            .or_else(|| self.start::<TCP_V6>(to))
            .or_else(|| self.start::<UDP_V6>(to))
            .or_else(|| self.start::<TCP>(to))
            .or_else(|| self.start::<UDP>(to))
            .or_else(|| self.start::<IP>(to))
            .or_else(|| self.start::<{ ethernet::HEADER_LENGTH }>(to))
            .unwrap_or(0)
    }
}

impl Captured for Skb {
    /// The helper writes where the bytes belong; copied by the program they would pass
    /// through its stack.
    #[inline(always)]
    fn start<const N: usize>(&self, to: &mut [u8; EVENT_BYTES]) -> Option<u32> {
        apart::load_into(self.raw(), 0, to.first_chunk_mut::<N>()?).then_some(N as u32)
    }
}

impl Captured for Frame {
    /// No more than the headers: older kernels have no helper for XDP
    /// (`bpf_xdp_load_bytes`, 5.18).
    #[inline(always)]
    fn start<const N: usize>(&self, to: &mut [u8; EVENT_BYTES]) -> Option<u32> {
        if N > HEAD_V6 {
            return None;
        }
        *to.first_chunk_mut::<N>()? = self.head(0)?;
        Some(N as u32)
    }
}

/// Up to the end of an IPv4 header without options.
const IP: usize = UDP - 8;
/// Up to the end of a UDP or ICMP header behind IPv4 without options, and of ARP.
const UDP: usize = 42;
/// Up to the end of a TCP header behind IPv4, both without options.
const TCP: usize = HEAD;
/// Up to the end of a UDP or `ICMPv6` header behind IPv6 without extension headers.
const UDP_V6: usize = HEAD_V6 - (TCP - UDP);
/// Up to the end of a TCP header there.
const TCP_V6: usize = HEAD_V6;
