//! To the host's stack, and down from it.

use veer_bpf_common::{mark, outcome::Verdict};
use veer_bpf_net::{
    ethernet::{self, Ethernet},
    flow::Flow,
    ip::v4::Ipv4,
};

use crate::{ctx::skb::Skb, state::flows};

/// The IPv4 header of a packet that came down from the stack; `None`: a program sent
/// it, or it has no valid IPv4 header and so belongs to no translated flow.
#[inline(always)]
pub(crate) fn sent(skb: &Skb) -> Option<Ipv4> {
    if matches!(skb.mark(), mark::REDIRECTED | mark::TO_STACK) {
        return None;
    }
    skb.pull_head();
    let frame = Ethernet::parse(skb).ok()?;
    if frame.ether_type != ethernet::IPV4 {
        return None;
    }
    Ipv4::parse(skb, ethernet::HEADER_LENGTH).ok()
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
