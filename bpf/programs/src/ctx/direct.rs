//! Direct packet access in words.
//!
//! BPF has no unaligned loads of its own, so the compiler reads an array of
//! bytes byte by byte. The kernel lets programs read packets in words wherever
//! the machine can (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`: all of x86 and
//! arm64), which takes a quarter of the instructions. The same goes for arrays
//! of bytes in map values, and for filling with zeros, which the compiler turns
//! into a call of a function that does it byte by byte.

use veer_bpf_common::{
    address::{Address, joined},
    tables::FlowEntry,
};

/// `N` bytes from `start`.
///
/// # Safety
///
/// The program has compared `start + N` with the packet's end, or it is all
/// within a map value.
#[inline(always)]
pub(crate) unsafe fn read<const N: usize>(start: usize) -> [u8; N] {
    let mut bytes = [0; N];
    let mut at = 0;
    while at + 4 <= N {
        // SAFETY: inside the N bytes; alignment is no concern of this machine.
        let word = unsafe { *((start + at) as *const u32) }.to_ne_bytes();
        bytes[at] = word[0];
        bytes[at + 1] = word[1];
        bytes[at + 2] = word[2];
        bytes[at + 3] = word[3];
        at += 4;
    }
    if at + 2 <= N {
        // SAFETY: as above.
        let half = unsafe { *((start + at) as *const u16) }.to_ne_bytes();
        bytes[at] = half[0];
        bytes[at + 1] = half[1];
        at += 2;
    }
    if at < N {
        // SAFETY: as above.
        bytes[at] = unsafe { *((start + at) as *const u8) };
    }
    bytes
}

/// `N` words of 64 bits from `start`.
///
/// # Safety
///
/// As for [`read`], of `8 * N` bytes.
#[inline(always)]
pub(crate) unsafe fn words<const N: usize>(start: usize) -> [u64; N] {
    let mut words = [0; N];
    let mut at = 0;
    while at < N {
        // SAFETY: inside the words; alignment is no concern of this machine.
        words[at] = unsafe { *((start + 8 * at) as *const u64) };
        at += 1;
    }
    words
}

/// An array of bytes in a map value.
#[inline(always)]
pub(crate) fn copy<const N: usize>(bytes: &[u8; N]) -> [u8; N] {
    // SAFETY: a reference to N bytes.
    unsafe { read(bytes.as_ptr() as usize) }
}

/// An address in a map value, which holds it aligned to words.
#[inline(always)]
pub(crate) fn address<A: Address>(octets: &A::Octets) -> A {
    const { assert!(size_of::<A::Octets>() * 8 == A::BITS as usize) };
    let start = core::ptr::from_ref(octets) as usize;
    if A::BITS == 32 {
        // SAFETY: all of the octets.
        let word = unsafe { *(start as *const u32) };
        return A::from_words([joined([word, 0]), 0]);
    }
    // SAFETY: all of the octets.
    A::from_words(unsafe { words(start) })
}

/// A flow entry of the map, its tag last: where the kernel writes the value of another
/// entry from its beginning meanwhile, as it mostly does, what was read before an old tag
/// is of the same entry.
#[inline(always)]
pub(crate) fn entry(found: *const FlowEntry) -> FlowEntry {
    const { assert!(size_of::<FlowEntry>() == 4 * 8) };
    let words = found.cast::<u64>();
    // SAFETY: all of the entry, which is aligned like its words; any bits make integers.
    unsafe {
        let [d, c, b, a] = [3, 2, 1, 0].map(|at| words.add(at).read_volatile());
        core::mem::transmute::<[u64; 4], FlowEntry>([a, b, c, d])
    }
}

/// Copies a structure of integers. Assigned as a whole, it would be copied byte by byte.
#[inline(always)]
pub(crate) fn copy_to<T: Copy>(from: &T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() >= 8) };
    let mut at = 0;
    while at < size_of::<T>() / 8 {
        // Volatile: else the compiler finds the call again.
        // SAFETY: within both structures, and aligned like them.
        unsafe {
            let word = core::ptr::from_ref(from).cast::<u64>().add(at).read();
            to.cast::<u64>().add(at).write_volatile(word);
        }
        at += 1;
    }
}

/// Fills a structure of integers with zeros.
#[inline(always)]
pub(crate) fn blank<T>(value: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    let mut at = 0;
    while at < size_of::<T>() / 4 {
        // Volatile: else the compiler finds the call again.
        // SAFETY: within the structure, and aligned like it.
        unsafe { value.cast::<u32>().add(at).write_volatile(0) };
        at += 1;
    }
}
