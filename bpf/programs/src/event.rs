//! Samples of drops: the first bytes of some packets, with the program's decision
//! record.
//!
//! For each reason the first drop in each window of time is kept and replaces an older
//! one. This bounds the cost of a drop under a flood, and frequent reasons do not push
//! out rare ones. It needs no listener, and an agent that starts later still finds the
//! samples.

use veer_bpf_common::{
    device::IfIndex,
    outcome::{DropReason, Program},
    tables::{Decision, DropSample, SAMPLE_BYTES, Samples},
};
use veer_bpf_net::{
    bytes::{Bytes, HEAD, HEAD_V6},
    ethernet,
};

use crate::{ctx::clock::now, state::maps::SAMPLES};

/// Keeps a sample of a dropped packet, unless its window already has one.
#[inline(always)]
pub(crate) fn keep<P: Bytes>(
    program: Program,
    reason: DropReason,
    packet: &P,
    ifindex: IfIndex,
    decision: &Decision,
) {
    let now = now();
    let window = Samples::window(now);
    let Some(sample) = SAMPLES.get_ptr_mut(Samples::index(program, reason, window)) else {
        return;
    };
    // SAFETY: a slot of this CPU in a preallocated array, which no other program
    // uses; BPF programs do not migrate while they run.
    let sample: &mut DropSample = unsafe { &mut *sample };
    if Samples::window(sample.at) == window {
        return;
    }
    sample.decision = *decision;
    sample.ifindex = ifindex.get();
    sample.length = packet.length();
    let head = &mut sample.head;
    sample.captured = capture::<_, SAMPLE_BYTES>(packet, head)
        .or_else(|| capture::<_, TCP_V6>(packet, head))
        .or_else(|| capture::<_, UDP_V6>(packet, head))
        .or_else(|| capture::<_, TCP>(packet, head))
        .or_else(|| capture::<_, UDP>(packet, head))
        .or_else(|| capture::<_, { ethernet::HEADER_LENGTH }>(packet, head))
        .unwrap_or(0);
    sample.at = now;
}

/// Up to the end of a UDP or ICMP header behind IPv4 without options, and of ARP.
const UDP: usize = 42;
/// Up to the end of a TCP header behind IPv4, both without options.
const TCP: usize = HEAD;
/// Up to the end of a UDP or `ICMPv6` header behind IPv6 without extension headers.
const UDP_V6: usize = HEAD_V6 - (TCP - UDP);
/// Up to the end of a TCP header there.
const TCP_V6: usize = HEAD_V6;

/// The first `N` bytes, where the packet has them.
#[inline(always)]
fn capture<P: Bytes, const N: usize>(packet: &P, to: &mut [u8; SAMPLE_BYTES]) -> Option<u32> {
    packet.copy_start(to.first_chunk_mut::<N>()?)?;
    Some(N as u32)
}
