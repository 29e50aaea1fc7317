//! What leaves by an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::outcome::{Outcome, Program};
use veer_bpf_net::ip::Ip;

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::stack,
    state::lookup,
};

/// Device: an uplink; direction: egress. Expects everything the node sends.
/// Emits all of it, and records the flows of local pods to other nodes and pods:
/// only translation brings those down from the stack to here.
#[classifier]
fn uplink_egress(ctx: TcContext) -> i32 {
    exit::tc::<UplinkEgress>(ctx.skb.skb)
}

enum UplinkEgress {}

impl Hook for UplinkEgress {
    const PROGRAM: Program = Program::UplinkEgress;

    #[inline(always)]
    fn passes(mark: u32) -> bool {
        stack::is_ours(mark)
    }

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        stack::sent(skb, |skb, ip: &I| {
            // A hash look-up tells most of a node's packets apart from a pod's.
            let Some(pod) = lookup::endpoint(ip.source()) else {
                return false;
            };
            skb.decision.source_identity = pod.identity().get();
            let destination = lookup::who(ip.destination());
            skb.decision.destination_identity = destination.identity().get();
            destination.takes_redirects()
        })
    }
}
