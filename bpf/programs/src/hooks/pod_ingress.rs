//! What the host's stack delivers to a pod.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::outcome::{Outcome, Program, Verdict};
use veer_bpf_net::ip::Ip;

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::stack,
    state::{
        flows::{self, Answer},
        lookup, translations,
    },
};

/// Device: the host side of a pod's veth; direction: egress. Expects what the
/// stack routed to the pod and `pod_egress`'s ARP answers; `bpf_redirect_peer`
/// never passes here. Emits all of it, and records the flows of pods and other
/// nodes: only the stack's translation brings those this way. Translates back what answers
/// a flow that the programs translate, from a backend that is this node or the world.
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
        let Some(ip) = stack::header::<I>(skb) else {
            return Ok(Verdict::Pass);
        };
        let source = lookup::who(ip.source());
        skb.decision.source_identity = source.identity().get();
        if let Some(pod) = lookup::interface(skb.ifindex()) {
            skb.decision.destination_identity = pod.identity().get();
        }
        if source.takes_redirects() {
            flows::record(skb, &ip)
        } else {
            Ok(Verdict::Beyond)
        }
    }

    const GOES_BEYOND: bool = true;

    /// From the node itself or the world, which may be backends of Services.
    #[inline(always)]
    fn beyond<I: Ip>(skb: &mut Skb) -> Outcome {
        let ip = skb.ip::<I>()?;
        let Ok(flow) = flows::of(skb, &ip) else {
            return Ok(Verdict::Pass);
        };
        if let Answer::Of(translation) = flows::answers(skb, &flow) {
            translations::apply(skb, &ip, translation)?;
        }
        Ok(Verdict::Pass)
    }
}
