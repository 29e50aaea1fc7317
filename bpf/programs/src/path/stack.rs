//! To the host's stack, and down from it.

use veer_bpf_common::{
    mark,
    outcome::{Outcome, Verdict},
};
use veer_bpf_net::ip::Ip;

use crate::{ctx::skb::Skb, state::flows};

/// Whether a packet with this mark was sent by a program, or brought up by one, and so
/// belongs to no flow that is to be recorded.
#[inline(always)]
pub(crate) fn is_ours(mark: u32) -> bool {
    matches!(mark, mark::REDIRECTED | mark::TO_STACK)
}

/// Lets a packet that came down from the stack pass, and records its flow where
/// `is_translated` says that only translation brings it here. One without a valid header
/// of this family belongs to no translated flow of it.
#[inline(always)]
pub(crate) fn sent<I: Ip>(
    skb: &mut Skb,
    is_translated: impl FnOnce(&mut Skb, &I) -> bool,
) -> Outcome {
    match header::<I>(skb) {
        Some(ip) if is_translated(skb, &ip) => flows::record(skb, &ip),
        _ => Ok(Verdict::Pass),
    }
}

/// The header of a packet of this family; `None`: it is none.
#[inline(always)]
pub(crate) fn header<I: Ip>(skb: &Skb) -> Option<I> {
    if skb.ethernet::<I>().ok()?.ether_type != I::ETHER_TYPE {
        return None;
    }
    skb.ip().ok()
}

/// To the stack, which translated the flow that the packet answers.
#[inline(always)]
pub(crate) fn answer(skb: &Skb) -> Verdict {
    skb.set_mark(mark::TO_STACK);
    Verdict::ToStackNoted
}

/// To the stack, which answers with an ICMP error, or fragments.
#[inline(always)]
pub(crate) fn exception(skb: &Skb) -> Verdict {
    skb.set_mark(mark::TO_STACK);
    Verdict::ToStackException
}
