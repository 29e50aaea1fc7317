//! A frame as XDP programs see it.

use core::hint::black_box;
use veer_bpf_net::bytes::Bytes;

use super::direct;

/// The first buffer of an XDP frame.
pub(crate) struct Frame {
    start: usize,
    end: usize,
}

impl Frame {
    /// The bytes between two addresses that the kernel gave.
    #[inline(always)]
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// What lies behind the first `bytes`.
    #[inline(always)]
    pub(crate) fn behind(&self, bytes: usize) -> Self {
        Self::new(self.start + bytes, self.end)
    }

    /// Where an offset is, if as many bytes are there.
    #[inline(always)]
    fn at(&self, offset: usize, bytes: usize) -> Option<usize> {
        if offset > OFFSET_MASK {
            return None;
        }
        // The verifier must see the pointer that is checked and the one that is
        // read as the same; left alone, the compiler adds up each on its own. It must
        // also see the mask: older kernels (6.1) forget what a comparison says of an
        // offset that is on the stack.
        let start = black_box(self.start + (black_box(offset) & OFFSET_MASK));
        (start + bytes <= self.end).then_some(start)
    }
}

/// The longest chain of IPv6 extension headers and what may lie before it; bounds an
/// offset for the verifier.
const OFFSET_MASK: usize = 0x7fff;

impl Bytes for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        (self.end - self.start) as u32
    }

    #[inline(always)]
    fn head<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.start + offset;
        if start + N > self.end {
            return None;
        }
        // SAFETY: within the frame, checked above.
        Some(unsafe { direct::read(start) })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let start = self.start + offset;
        if start + 8 * N > self.end {
            return None;
        }
        // SAFETY: within the frame, checked above.
        Some(unsafe { direct::words(start) })
    }

    #[inline(always)]
    fn anywhere<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.at(offset, N)?;
        // SAFETY: within the frame, as was checked.
        Some(unsafe { direct::read(start) })
    }

    #[inline(always)]
    fn words_anywhere<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let start = self.at(offset, 8 * N)?;
        // SAFETY: within the frame, as was checked.
        Some(unsafe { direct::words(start) })
    }
}
