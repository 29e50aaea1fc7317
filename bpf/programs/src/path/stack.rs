//! To the host's stack, and down from it.

use veer_bpf_common::{mark, outcome::Verdict};
use veer_bpf_net::{ethernet, flow::Flow};

use crate::{ctx::skb::Skb, state::flows};

/// The family, as an `EtherType`, of a packet that came down from the stack; `None`: a
/// program sent it, or it is no IP packet and so belongs to no translated flow.
#[inline(always)]
pub(crate) fn sent(skb: &Skb) -> Option<u16> {
    if matches!(skb.mark(), mark::REDIRECTED | mark::TO_STACK) {
        return None;
    }
    let frame = skb.ethernet().ok()?;
    matches!(frame.ether_type, ethernet::IPV4 | ethernet::IPV6).then_some(frame.ether_type)
}

/// Sends the packet to the stack, with [`mark::TO_STACK`], if the stack translated its
/// flow.
#[inline(always)]
pub(crate) fn translated(skb: &Skb, flow: &Flow) -> Option<Verdict> {
    if !flows::answers(flow) {
        return None;
    }
    skb.set_mark(mark::TO_STACK);
    Some(Verdict::ToStackNoted)
}

/// To the stack, which answers with an ICMP error, or fragments.
#[inline(always)]
pub(crate) fn exception(skb: &Skb) -> Verdict {
    skb.set_mark(mark::TO_STACK);
    Verdict::ToStackException
}
