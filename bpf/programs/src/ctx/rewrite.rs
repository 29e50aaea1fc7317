//! Other addresses and ports for a packet, with the checksums that cover them.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::generated::{
        bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes,
        bpf_skb_store_bytes,
    },
};
use veer_bpf_common::{
    address::{Address, FAMILY_V4, V6, halves, joined},
    tables::{Question, Tuple},
};
use veer_bpf_net::{
    ethernet,
    ip::{Ip, TCP, UDP},
};

use super::apart::{Raw, load_into, load_words};

/// Memory words of source and destination, of the longer family.
const WORDS: usize = 4;

/// The addresses of a tuple as the header of its family has them.
#[inline(always)]
fn addresses<A: Address>(tuple: &Tuple) -> [u64; WORDS] {
    let source = tuple.source_address::<A>().words();
    let destination = tuple.destination_address::<A>().words();
    if A::FAMILY == FAMILY_V4 {
        let [from, ..] = V6(source).quarters();
        let [to, ..] = V6(destination).quarters();
        [joined([from, to]), 0, 0, 0]
    } else {
        [source[0], source[1], destination[0], destination[1]]
    }
}

/// Whether the client is the same before and after. Another flow may have got the place
/// that `new` was read from: what a client sends keeps its source, or comes back to it,
/// and an answer is for who it was for, or for its sender.
#[inline(always)]
fn is_same_client<A: Address>(old: &[u64; WORDS], new: &[u64; WORDS], back: bool) -> bool {
    let ends = |words: &[u64; WORDS]| {
        if A::FAMILY == FAMILY_V4 {
            let [source, destination] = halves(words[0]);
            [[source.into(), 0], [destination.into(), 0]]
        } else {
            [[words[0], words[1]], [words[2], words[3]]]
        }
    };
    let ([source, destination], [from, to]): ([[u64; 2]; 2], [[u64; 2]; 2]) =
        (ends(old), ends(new));
    to == source
        || (if back {
            to == destination
        } else {
            from == source
        })
}

/// Gives the packet the addresses of `to`, and where `ports` has the offset of its
/// transport header in the frame, the ports too. `back`: it is an answer. Whether it did.
///
/// The checksum of IPv6 addresses is in the transport header alone, so what the device
/// has summed up changes with the addresses and back with the checksum. That is why they
/// are stored with `BPF_F_RECOMPUTE_CSUM`; in IPv4 the header's own checksum makes up for
/// them.
#[inline(always)]
pub(crate) fn rewrite<I: Ip>(
    raw: *mut __sk_buff,
    to: &Tuple,
    ports: Option<u32>,
    back: bool,
) -> bool {
    let mut old = [0u64; WORDS];
    let mut new = addresses::<I::Address>(to);
    let bytes = 2 * <I::Address as Address>::BITS / 8;
    let at = (ethernet::HEADER_LENGTH + I::ADDRESSES) as u32;
    // SAFETY: a valid context, and at least as many bytes in both arrays.
    let loaded = unsafe { bpf_skb_load_bytes(raw.cast(), at, old.as_mut_ptr().cast(), bytes) };
    if loaded != 0 || !is_same_client::<I::Address>(&old, &new, back) {
        return false;
    }
    // SAFETY: as above.
    let (diff, stored) = unsafe {
        let (from, into) = (old.as_mut_ptr().cast(), new.as_mut_ptr().cast());
        let diff = bpf_csum_diff(from, bytes, into, bytes, 0);
        let flags = if I::CHECKSUM.is_none() {
            u64::from(BPF_F_RECOMPUTE_CSUM)
        } else {
            0
        };
        (
            diff,
            bpf_skb_store_bytes(raw, at, new.as_ptr().cast(), bytes, flags),
        )
    };
    if diff < 0 || stored != 0 {
        return false;
    }
    let diff = diff.cast_unsigned();
    if let Some(checksum) = I::CHECKSUM {
        let at = (ethernet::HEADER_LENGTH + checksum) as u32;
        // SAFETY: a valid context.
        if unsafe { bpf_l3_csum_replace(raw, at, 0, diff, 0) } != 0 {
            return false;
        }
    }
    match ports {
        Some(transport) => transport_header(raw, to, transport, diff),
        None => true,
    }
}

/// Gives an ICMP error whose header is at `icmp` the form that suits a packet [`Question::to`]
/// instead of the one that it carries: that one, and of the error's own addresses those
/// that are of its ends. Whether it did; not where the error is not for who sends `to`.
///
/// The checksum of the transport header that it carries is left as it is: all of what it
/// covers is hardly ever there, and the kernel does not look at it.
#[inline(always)]
pub(crate) fn rewrite_error<I: Ip>(raw: *mut __sk_buff, work: &mut Question, icmp: u32) -> bool {
    let carried = icmp + ICMP_HEADER;
    let own = ethernet::HEADER_LENGTH as u32;
    let Some(ports) = carried_ports::<I>(raw, carried) else {
        return false;
    };
    if !load_ends::<I>(raw, own, &mut work.outside) || !load_ends::<I>(raw, carried, &mut work.old)
    {
        return false;
    }
    let [from, to] = [
        work.to.source_address::<I::Address>(),
        work.to.destination_address(),
    ];
    let ([a, b], [c, d]) = (from.words(), to.words());
    work.new = [a, b, c, d];
    let [source, destination] = [
        [work.outside[0], work.outside[1]],
        [work.outside[2], work.outside[3]],
    ];
    // What a pod that is its own backend sends seems to come from the gateway.
    if destination != [a, b] && source != [a, b] {
        return false;
    }
    let is_backends = source == [work.old[2], work.old[3]];
    let is_for_sender = destination == [work.old[0], work.old[1]];
    if !set_ends::<I>(raw, carried, &work.old, &work.new, Covered::ByError(icmp)) {
        return false;
    }
    if !is_backends {
        [work.new[2], work.new[3]] = source;
    }
    if !is_for_sender {
        [work.new[0], work.new[1]] = destination;
    }
    // The error goes the other way.
    work.new = [work.new[2], work.new[3], work.new[0], work.new[1]];
    set_ends::<I>(
        raw,
        own,
        &work.outside,
        &work.new,
        Covered::AsPseudoHeader(icmp),
    ) && (ports == 0 || set_ports(raw, &work.to, ports, icmp + ICMP_CHECKSUM))
}

/// Bytes of an ICMP header.
const ICMP_HEADER: u32 = 8;
/// Offset of its checksum.
const ICMP_CHECKSUM: u32 = 2;

/// How an ICMP header's checksum covers addresses of IPv6; those of IPv4 it covers with a
/// checksum of their own, or not at all.
#[derive(Clone, Copy)]
enum Covered {
    /// As data of the error whose header is here.
    ByError(u32),
    /// As those of the packet.
    AsPseudoHeader(u32),
}

/// Where the ports of the packet with its header at `offset` are; 0: it has none.
#[inline(always)]
fn carried_ports<I: Ip>(raw: *mut __sk_buff, offset: u32) -> Option<u32> {
    let header = I::parse_carried(&Raw(raw), offset as usize)?;
    let has_ports = matches!(header.protocol(), TCP | UDP) && !header.is_later_fragment();
    Some(if has_ports {
        offset + header.header_length() as u32
    } else {
        0
    })
}

/// Reads source and destination of the header at an offset; what IPv4 does not have is
/// zero. Whether they are there.
#[inline(always)]
fn load_ends<I: Ip>(raw: *mut __sk_buff, header: u32, ends: &mut [u64; WORDS]) -> bool {
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

/// Replaces the addresses of the header at an offset.
#[inline(always)]
fn set_ends<I: Ip>(
    raw: *mut __sk_buff,
    header: u32,
    old: &[u64; WORDS],
    new: &[u64; WORDS],
    covered: Covered,
) -> bool {
    let bytes = size_of::<[u64; WORDS]>() as u32;
    // SAFETY: as many bytes in both; the helper only reads them.
    let diff = unsafe {
        bpf_csum_diff(
            core::ptr::from_ref(old).cast_mut().cast(),
            bytes,
            core::ptr::from_ref(new).cast_mut().cast(),
            bytes,
            0,
        )
    };
    if diff < 0 {
        return false;
    }
    let diff = diff.cast_unsigned();
    let at = header + I::ADDRESSES as u32;
    // SAFETY: a valid context, and as many readable bytes.
    unsafe {
        if let Some(checksum) = I::CHECKSUM {
            let [source, _, destination, _] = *new;
            let words = joined([halves(source)[0], halves(destination)[0]]);
            let bytes = size_of::<u64>() as u32;
            return bpf_skb_store_bytes(raw, at, (&raw const words).cast(), bytes, 0) == 0
                && bpf_l3_csum_replace(raw, header + checksum as u32, 0, diff, 0) == 0;
        }
        let (icmp, pseudo, stored) = match covered {
            Covered::ByError(icmp) => (icmp, 0, 0),
            Covered::AsPseudoHeader(icmp) => (icmp, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM),
        };
        let from = core::ptr::from_ref(new).cast();
        bpf_skb_store_bytes(raw, at, from, bytes, stored.into()) == 0
            && bpf_l4_csum_replace(raw, icmp + ICMP_CHECKSUM, 0, diff, pseudo.into()) == 0
    }
}

/// Replaces the ports at an offset, which the checksum at `checksum` covers as data.
#[inline(always)]
fn set_ports(raw: *mut __sk_buff, to: &Tuple, at: u32, checksum: u32) -> bool {
    let mut old = 0u32;
    if !load_into(raw, at, &raw mut old) {
        return false;
    }
    let ([a, b], [c, d]) = (to.source_port, to.destination_port);
    let new = u32::from_ne_bytes([a, b, c, d]);
    let bytes = size_of::<u32>() as u32;
    // SAFETY: a valid context, and as many readable bytes.
    unsafe {
        old == new
            || (bpf_l4_csum_replace(raw, checksum, old.into(), new.into(), bytes.into()) == 0
                && bpf_skb_store_bytes(raw, at, (&raw const new).cast(), bytes, 0) == 0)
    }
}

/// The part of [`rewrite`] that is behind the IP header. `diff`: of the addresses.
#[inline(always)]
fn transport_header(raw: *mut __sk_buff, to: &Tuple, transport: u32, diff: u64) -> bool {
    let mut old = 0u32;
    if !load_into(raw, transport, &raw mut old) {
        return false;
    }
    let ([a, b], [c, d]) = (to.source_port, to.destination_port);
    let new = u32::from_ne_bytes([a, b, c, d]);
    let (checksum, flags) = match to.protocol {
        TCP => (16, 0),
        // 0 is none, and stays none.
        UDP => (6, BPF_F_MARK_MANGLED_0),
        // That of SCTP covers no addresses, and the agent sees to it that ports stay.
        _ => return true,
    };
    let at = transport + checksum;
    let (addresses, ports) = (
        u64::from(flags | BPF_F_PSEUDO_HDR),
        u64::from(flags) | size_of::<u32>() as u64,
    );
    // SAFETY: a valid context, and as many readable bytes.
    unsafe {
        bpf_l4_csum_replace(raw, at, 0, diff, addresses) == 0
            && (old == new
                || (bpf_l4_csum_replace(raw, at, old.into(), new.into(), ports) == 0
                    && bpf_skb_store_bytes(
                        raw,
                        transport,
                        (&raw const new).cast(),
                        size_of::<u32>() as u32,
                        0,
                    ) == 0))
    }
}
