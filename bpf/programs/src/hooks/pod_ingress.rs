//! What the host's stack delivers to a pod.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::outcome::{Outcome, Program};
use veer_bpf_net::ip::Ip;

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::stack,
    state::lookup,
};

/// Device: the host side of a pod's veth; direction: egress. Expects what the
/// stack routed to the pod and `pod_egress`'s ARP answers; `bpf_redirect_peer`
/// never passes here. Emits all of it, and records the flows of pods and other
/// nodes: only translation brings those this way.
#[classifier]
fn pod_ingress(ctx: TcContext) -> i32 {
    exit::tc::<PodIngress>(ctx.skb.skb)
}

enum PodIngress {}

impl Hook for PodIngress {
    const PROGRAM: Program = Program::PodIngress;

    #[inline(always)]
    fn passes(mark: u32) -> bool {
        stack::is_ours(mark)
    }

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        stack::sent(skb, |skb, ip: &I| {
            let source = lookup::who(ip.source());
            skb.decision.source_identity = source.identity().get();
            source.takes_redirects()
        })
    }
}
