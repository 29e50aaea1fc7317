//! To the host's stack, and down from it.

use veer_bpf_common::{mark, outcome::Verdict};
use veer_bpf_net::{
    ethernet::{self, Ethernet},
    flow::Flow,
    ipv4::Ipv4,
};

use crate::{
    ctx::skb::Skb,
    state::{flows, maps::FLOWS},
};

/// The IPv4 header of a packet that came down from the stack; `None`: the programs
/// sent it themselves, or it is something else. What has no such header the
/// stack made as it liked, and it is nobody's translated flow.
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

/// Whether the packet belongs to a flow that the stack translated: it answers
/// one, or is an ICMP error about one. Then it is marked as going to the stack
/// on purpose.
///
/// A connection that a pod opens directly on a noted tuple proves the note old,
/// and deletes it.
#[inline(always)]
pub(crate) fn translated(skb: &Skb, flow: &Flow) -> Option<Verdict> {
    if flow.opens() {
        // Absent is the rule, and as good.
        let _ = FLOWS.remove(flow.key);
    }
    let noted_as = if flow.is_error {
        flow.key
    } else {
        flow.key.reversed()
    };
    flows::refresh(&noted_as, flow, true)?;
    skb.set_mark(mark::TO_STACK);
    Some(Verdict::ToStackNoted)
}

/// To the stack, which answers with an ICMP error, or fragments.
#[inline(always)]
pub(crate) fn exception(skb: &Skb) -> Verdict {
    skb.set_mark(mark::TO_STACK);
    Verdict::ToStackException
}
