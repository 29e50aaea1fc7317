//! What is rarely needed, in functions of its own: inlined, each would take a large part
//! of its caller's stack, or multiply what the verifier walks.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use core::mem::MaybeUninit;
use veer_bpf_common::{
    address::V6,
    tables::{Config, Interface, Tuple},
};
use veer_bpf_net::{
    bytes::Bytes,
    ethernet, icmp,
    ip::{Ip, v6::Chain},
    nd,
};

use super::direct::{address, copy};

/// A packet that is read by a helper alone, wherever its bytes are.
pub(super) struct Raw(pub(super) *mut __sk_buff);

/// `N` bytes of the packet.
#[inline(always)]
pub(crate) fn load<const N: usize>(raw: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = MaybeUninit::uninit();
    // SAFETY: the helper has written all of it, and any bytes are integers.
    load_into(raw, offset, bytes.as_mut_ptr()).then(|| unsafe { bytes.assume_init() })
}

/// `N` memory words of the packet.
#[inline(always)]
pub(crate) fn load_words<const N: usize>(raw: *mut __sk_buff, offset: u32) -> Option<[u64; N]> {
    let mut words = MaybeUninit::uninit();
    // SAFETY: as above.
    load_into(raw, offset, words.as_mut_ptr()).then(|| unsafe { words.assume_init() })
}

/// Fills `to`, which may be written, with the bytes at an offset, if the packet has them:
/// the helper checks.
#[inline(always)]
pub(crate) fn load_into<T>(raw: *mut __sk_buff, offset: u32, to: *mut T) -> bool {
    // SAFETY: a valid context, and as many writable bytes.
    unsafe { bpf_skb_load_bytes(raw.cast(), offset, to.cast(), size_of::<T>() as u32) == 0 }
}

impl Bytes for Raw {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a valid context.
        unsafe { (&raw const (*self.0).len).read_volatile() }
    }

    #[inline(always)]
    fn head<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.0, offset as u32)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        load_words(self.0, offset as u32)
    }

    #[inline(always)]
    fn anywhere<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        load(self.0, offset as u32)
    }

    #[inline(always)]
    fn words_anywhere<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        load_words(self.0, offset as u32)
    }

    #[inline(always)]
    fn extension_headers(&self, offset: u32, next: u8, available: u32) -> Chain {
        // SAFETY: a valid context.
        Chain::from_bits(unsafe { extension_headers(self.0, offset, next.into(), available) })
    }
}

/// [`Chain::read`] as a global function, which the verifier walks once by itself and not
/// again in every state of its callers (kernel commit 51c39bb1d5d1, v5.6): the ways
/// through eight headers would multiply with all that follows.
///
/// # Safety
///
/// `raw` is the context that the kernel handed to the program.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) unsafe extern "C" fn extension_headers(
    raw: *mut __sk_buff,
    offset: u32,
    next: u32,
    available: u32,
) -> u64 {
    Chain::read(&Raw(raw), offset, next as u8, available).bits()
}

/// [`icmp::carried`].
#[inline(always)]
pub(crate) fn carried<I: Ip>(raw: *mut __sk_buff, offset: u32, available: u32) -> Option<Tuple> {
    let mut key = MaybeUninit::uninit();
    if carried_into::<I>(raw, offset, available, &mut key) {
        // SAFETY: written, as the function says.
        Some(unsafe { key.assume_init() })
    } else {
        None
    }
}

/// The same; whether it wrote the key.
#[inline(never)]
fn carried_into<I: Ip>(
    raw: *mut __sk_buff,
    offset: u32,
    available: u32,
    key: &mut MaybeUninit<Tuple>,
) -> bool {
    match icmp::carried::<I, _>(&Raw(raw), offset, available) {
        Some(found) => {
            key.write(found);
            true
        }
        None => false,
    }
}

/// Makes a neighbour solicitation of the pod behind `interface`, whatever options it
/// has, the answer to it. Returns 0, or an error of a helper.
#[inline(never)]
pub(crate) fn advertise(raw: *mut __sk_buff, interface: &Interface, config: &Config) -> i64 {
    let Some(source) = load_words(raw, SOURCE) else {
        return -1;
    };
    let answer = nd::Answer::new(
        copy(&interface.mac),
        V6(source),
        address(&config.gateway_v6),
        copy(&interface.node_mac),
    );
    let (start, length) = (ethernet::HEADER_LENGTH as u32, nd::PACKET as u32);
    let (frame, packet) = (&raw const answer.ethernet, &raw const answer.packet);
    // SAFETY: a valid context, and as many readable bytes.
    unsafe {
        let mut error = bpf_skb_change_tail(raw, start + length, 0);
        if error == 0 {
            error = bpf_skb_store_bytes(raw, 0, frame.cast(), start, 0);
        }
        if error == 0 {
            error = bpf_skb_store_bytes(raw, start, packet.cast(), length, 0);
        }
        error
    }
}

/// Offset of an IPv6 packet's source in its frame.
const SOURCE: u32 = 22;
