//! Other addresses and ports for a packet, with the checksums that cover them.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
    },
};
use veer_bpf_common::{
    address::{Address, halves, joined},
    tables::{Question, Tuple},
};
use veer_bpf_net::{
    ethernet,
    ip::{Ip, TCP, UDP},
};

use super::apart::{Raw, load_into, load_words};

/// Source and destination in memory words; what IPv4 does not have is zero.
type Ends = [u64; 4];

/// Gives the packet the ends of [`Question::to`], where `transport` has the offset of its
/// transport header in the frame with their ports. `back`: it is an answer. Whether it did.
///
/// Another flow may have got the place that `to` was read from: what a client sends keeps
/// its source, or comes back to it, and an answer is for who it was for, or for its sender.
#[inline(always)]
pub(crate) fn rewrite<I: Ip>(
    raw: *mut __sk_buff,
    work: &mut Question,
    transport: Option<u32>,
    back: bool,
) -> bool {
    let own = ethernet::HEADER_LENGTH as u32;
    if !load_ends::<I>(raw, own, &mut work.old) {
        return false;
    }
    work.tuple.show(&work.old, &work.to);
    work.new = ends_of::<I::Address>(&work.to);
    let ([source, destination], [from, to]) = (halves_of(&work.old), halves_of(&work.new));
    let is_clients = if back {
        to == destination
    } else {
        from == source
    };
    if !is_clients && to != source {
        return false;
    }
    let Some(addresses) = set_ends::<I>(raw, own, &work.old, &work.new, true) else {
        return false;
    };
    let Some(transport) = transport else {
        return true;
    };
    let (checksum, flags) = match work.to.protocol {
        TCP => (transport + 16, 0),
        // 0 is none, and stays none.
        UDP => (transport + 6, BPF_F_MARK_MANGLED_0),
        // Nothing else is translated.
        _ => return false,
    };
    let as_pseudo_header = u64::from(flags | BPF_F_PSEUDO_HDR);
    // SAFETY: a valid context.
    let covered = unsafe { bpf_l4_csum_replace(raw, checksum, 0, addresses, as_pseudo_header) };
    covered == 0 && set_ports(raw, work, transport, (checksum, flags))
}

/// Gives an ICMP error whose header is at `icmp` the form that suits a packet
/// [`Question::to`] instead of the one that it carries: that one, and of the error's own
/// addresses those that are of its ends. Whether it did; not where the error is not for
/// who sends `to`.
///
/// The checksum of the transport header that it carries is left as it is: all of what it
/// covers is hardly ever there, and the kernel does not look at it.
#[inline(always)]
pub(crate) fn rewrite_error<I: Ip>(raw: *mut __sk_buff, work: &mut Question, icmp: u32) -> bool {
    let carried = icmp + ICMP_HEADER;
    let own = ethernet::HEADER_LENGTH as u32;
    let ports = I::carried_ports(&Raw(raw), carried as usize);
    if !load_ends::<I>(raw, own, &mut work.outside) || !load_ends::<I>(raw, carried, &mut work.old)
    {
        return false;
    }
    work.tuple.show(&work.old, &work.to);
    work.new = ends_of::<I::Address>(&work.to);
    let [source, destination] = halves_of(&work.outside);
    let ([old_from, old_to], [from, to]) = (halves_of(&work.old), halves_of(&work.new));
    // What a pod that is its own backend sends seems to come from the gateway.
    if destination != from && source != from {
        return false;
    }
    let Some(inner) = set_ends::<I>(raw, carried, &work.old, &work.new, false) else {
        return false;
    };
    // The error goes the other way.
    let [a, b] = if source == old_to { to } else { source };
    let [c, d] = if destination == old_from {
        from
    } else {
        destination
    };
    work.new = [a, b, c, d];
    let Some(outer) = set_ends::<I>(raw, own, &work.outside, &work.new, true) else {
        return false;
    };
    let checksum = icmp + ICMP_CHECKSUM;
    // Addresses of IPv4 are not covered, or with the checksum of their own header.
    let covered = I::CHECKSUM.is_some()
        // SAFETY: a valid context.
        || unsafe {
            bpf_l4_csum_replace(raw, checksum, 0, inner, 0) == 0
                && bpf_l4_csum_replace(raw, checksum, 0, outer, BPF_F_PSEUDO_HDR.into()) == 0
        };
    covered && ports.is_none_or(|at| set_ports(raw, work, at as u32, (checksum, 0)))
}

/// Bytes of an ICMP header.
const ICMP_HEADER: u32 = 8;
/// Offset of its checksum.
const ICMP_CHECKSUM: u32 = 2;

/// The ends of a tuple.
#[inline(always)]
fn ends_of<A: Address>(tuple: &Tuple) -> Ends {
    let [a, b] = tuple.source_address::<A>().words();
    let [c, d] = tuple.destination_address::<A>().words();
    [a, b, c, d]
}

/// Source and destination.
#[inline(always)]
const fn halves_of(ends: &Ends) -> [[u64; 2]; 2] {
    let [a, b, c, d] = *ends;
    [[a, b], [c, d]]
}

/// Reads the ends of the header at an offset. Whether they are there.
#[inline(always)]
fn load_ends<I: Ip>(raw: *mut __sk_buff, header: u32, ends: &mut Ends) -> bool {
    let at = header + I::ADDRESSES as u32;
    if I::CHECKSUM.is_none() {
        return load_into(raw, at, ends);
    }
    let Some([word]) = load_words::<1>(raw, at) else {
        return false;
    };
    let [source, destination] = halves(word);
    *ends = [joined([source, 0]), 0, joined([destination, 0]), 0];
    true
}

/// Replaces the ends of the header at an offset. What that adds to a checksum which
/// covers them; `None`: it did not.
///
/// Those of IPv6 that are the packet's `own` are covered by the transport header alone: what
/// the device has summed up of the packet changes with them, and back with that header's
/// checksum. So they are stored with `BPF_F_RECOMPUTE_CSUM`. The header of IPv4 has a
/// checksum of its own, which makes up for them.
#[inline(always)]
fn set_ends<I: Ip>(
    raw: *mut __sk_buff,
    header: u32,
    old: &Ends,
    new: &Ends,
    own: bool,
) -> Option<u64> {
    let at = header + I::ADDRESSES as u32;
    let bytes = size_of::<Ends>() as u32;
    let (before, after) = (
        core::ptr::from_ref(old).cast_mut().cast(),
        core::ptr::from_ref(new).cast_mut().cast(),
    );
    // SAFETY: a valid context, and as many readable bytes, which the helpers only read.
    unsafe {
        let diff = bpf_csum_diff(before, bytes, after, bytes, 0);
        if diff < 0 {
            return None;
        }
        let diff = diff.cast_unsigned();
        let Some(checksum) = I::CHECKSUM else {
            let flags = if own { BPF_F_RECOMPUTE_CSUM } else { 0 };
            let stored = bpf_skb_store_bytes(raw, at, after.cast(), bytes, flags.into());
            return (stored == 0).then_some(diff);
        };
        let [source, _, destination, _] = *new;
        let word = joined([halves(source)[0], halves(destination)[0]]);
        let (start, length) = ((&raw const word).cast(), size_of::<u64>() as u32);
        let done = bpf_skb_store_bytes(raw, at, start, length, 0) == 0
            && bpf_l3_csum_replace(raw, header + checksum as u32, 0, diff, 0) == 0;
        done.then_some(diff)
    }
}

/// Replaces the ports at an offset, which a checksum covers: where it is, and flags of
/// `bpf_l4_csum_replace`.
#[inline(always)]
fn set_ports(
    raw: *mut __sk_buff,
    work: &mut Question,
    at: u32,
    (checksum, flags): (u32, u32),
) -> bool {
    let mut old = 0u32;
    if !load_into(raw, at, &raw mut old) {
        return false;
    }
    let [a, b, c, d] = old.to_ne_bytes();
    (work.tuple.source_port, work.tuple.destination_port) = ([a, b], [c, d]);
    let ([a, b], [c, d]) = (work.to.source_port, work.to.destination_port);
    let new = u32::from_ne_bytes([a, b, c, d]);
    let bytes = size_of::<u32>() as u32;
    // SAFETY: a valid context, and as many readable bytes.
    unsafe {
        let flags = u64::from(flags | bytes);
        old == new
            || (bpf_l4_csum_replace(raw, checksum, old.into(), new.into(), flags) == 0
                && bpf_skb_store_bytes(raw, at, (&raw const new).cast(), bytes, 0) == 0)
    }
}
