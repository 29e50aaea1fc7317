//! How packet bytes are read.

use crate::{
    icmp,
    ip::{Ip, v6::Chain},
};
use veer_bpf_common::tables::Tuple;

/// A frame that begins with its Ethernet header.
pub trait Bytes {
    /// Bytes of the whole frame, data outside its linear part included.
    fn length(&self) -> u32;

    /// `N` bytes at an offset that is a constant in BPF. Only the first
    /// [`HEAD`] bytes are promised to be reachable this way.
    fn head<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// As [`Self::head`], in memory words: what is 16 bytes long stays in two registers.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u64; N]>;

    /// `N` bytes at an offset computed from the packet.
    fn anywhere<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// As [`Self::anywhere`], in memory words.
    fn words_anywhere<const N: usize>(&self, offset: usize) -> Option<[u64; N]>;

    /// [`Chain::read`], in the way that suits this kind of packet.
    #[inline(always)]
    fn extension_headers(&self, offset: u32, next: u8, available: u32) -> Chain
    where
        Self: Sized,
    {
        Chain::read(self, offset, next, available)
    }

    /// [`icmp::carried`], in the way that suits this kind of packet.
    #[inline(always)]
    fn carried<I: Ip>(&self, offset: u32, available: u32) -> Option<Tuple>
    where
        Self: Sized,
    {
        icmp::carried::<I, Self>(self, offset, available)
    }
}

/// Bytes that [`Bytes::head`] must reach where the frame has them: Ethernet
/// (14), IPv4 without options (20), TCP without options (20).
pub const HEAD: usize = 54;
/// The same of frames with IPv6, whose header has 40 bytes.
pub const HEAD_V6: usize = 74;

/// A frame in memory.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a>(pub &'a [u8]);

impl Bytes for Slice<'_> {
    fn length(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    fn head<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        debug_assert!(offset + N <= HEAD_V6, "beyond what skbs promise");
        self.anywhere(offset)
    }

    fn words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        debug_assert!(offset + 8 * N <= HEAD_V6, "beyond what skbs promise");
        self.words_anywhere(offset)
    }

    fn words_anywhere<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let end = offset.checked_add(8 * N)?;
        let bytes = self.0.get(offset..end)?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().ok()?);
        }
        Some(words)
    }

    fn anywhere<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N)?;
        self.0.get(offset..end)?.try_into().ok()
    }
}
