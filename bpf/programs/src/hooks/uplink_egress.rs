//! What leaves by an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::outcome::{Outcome, Program, Verdict};
use veer_bpf_net::{
    ethernet,
    ip::{Ip, v4::Ipv4, v6::Ipv6},
};

use crate::{
    ctx::skb::Skb,
    exit,
    path::stack,
    state::{flows, lookup},
};

/// Device: an uplink; direction: egress. Expects everything the node sends.
/// Emits all of it, and records the flows of local pods to other nodes and pods:
/// only translation brings those down from the stack to here.
#[classifier]
fn uplink_egress(ctx: TcContext) -> i32 {
    exit::tc(Program::UplinkEgress, ctx.skb.skb, inner)
}

#[inline(always)]
fn inner(skb: &mut Skb) -> Outcome {
    match stack::sent(skb) {
        Some(ethernet::IPV4) => packet::<Ipv4>(skb),
        Some(ethernet::IPV6) => packet::<Ipv6>(skb),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn packet<I: Ip>(skb: &mut Skb) -> Outcome {
    // One without a valid header belongs to no translated flow.
    let Ok(ip) = skb.ip::<I>() else {
        return Ok(Verdict::Pass);
    };
    // A hash look-up tells most of a node's packets apart from a pod's.
    let Some(pod) = lookup::endpoint(ip.source()) else {
        return Ok(Verdict::Pass);
    };
    skb.decision.source_identity = pod.identity().get();
    let destination = lookup::who(ip.destination());
    skb.decision.destination_identity = destination.identity().get();
    if !destination.takes_redirects() {
        return Ok(Verdict::Pass);
    }
    Ok(flows::record(skb, &ip))
}
