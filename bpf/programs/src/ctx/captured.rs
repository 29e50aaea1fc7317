//! How a frame begins, for those who look at it later.

use veer_bpf_common::tables::EVENT_BYTES;
use veer_bpf_net::{
    bytes::{Bytes, HEAD, HEAD_V6},
    ethernet,
};

use super::{apart, skb::Skb, xdp::Frame};

/// A packet of which events are made.
pub(crate) trait Captured: Bytes {
    /// Copies how the frame begins. Returns how many bytes that are.
    fn capture(&self, to: &mut [u8; EVENT_BYTES]) -> u32;
}

impl Captured for Skb {
    /// The helper writes where the bytes belong; copied by the program they would pass
    /// through its stack.
    #[inline(always)]
    fn capture(&self, to: &mut [u8; EVENT_BYTES]) -> u32 {
        apart::load_start(self.raw(), to)
    }
}

impl Captured for Frame {
    /// As much of it as a constant says: older kernels have no helper for XDP
    /// (`bpf_xdp_load_bytes`, 5.18).
    #[inline(always)]
    fn capture(&self, to: &mut [u8; EVENT_BYTES]) -> u32 {
        start::<TCP_V6>(self, to)
            .or_else(|| start::<UDP_V6>(self, to))
            .or_else(|| start::<TCP>(self, to))
            .or_else(|| start::<UDP>(self, to))
            .or_else(|| start::<{ ethernet::HEADER_LENGTH }>(self, to))
            .unwrap_or(0)
    }
}

/// Up to the end of a UDP or ICMP header behind IPv4 without options, and of ARP.
const UDP: usize = 42;
/// Up to the end of a TCP header behind IPv4, both without options.
const TCP: usize = HEAD;
/// Up to the end of a UDP or `ICMPv6` header behind IPv6 without extension headers.
const UDP_V6: usize = HEAD_V6 - (TCP - UDP);
/// Up to the end of a TCP header there.
const TCP_V6: usize = HEAD_V6;

/// The first `N` bytes, where the frame has them.
#[inline(always)]
fn start<const N: usize>(frame: &Frame, to: &mut [u8; EVENT_BYTES]) -> Option<u32> {
    *to.first_chunk_mut::<N>()? = frame.head(0)?;
    Some(N as u32)
}
