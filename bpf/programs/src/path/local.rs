//! Into a local pod, past the host's stack.

use veer_bpf_common::{
    outcome::{DropReason, Outcome, Verdict},
    tables::Endpoint,
};
use veer_bpf_net::ip::Ip;

use super::stack;
use crate::{
    ctx::{direct::copy, skb::Skb},
    state::{
        flows::{self, Answer},
        lookup, translations,
    },
};

/// A packet to one of this node's pods: to the stack where the flow was translated
/// there, else delivered, translated back where the programs translate its flow.
#[inline(always)]
pub(crate) fn by_flow<I: Ip>(skb: &mut Skb, ip: &I, pod: Option<&Endpoint>) -> Outcome {
    let flow = flows::of(skb, ip)?;
    match flows::answers(skb, &flow) {
        Answer::No | Answer::Asks => to_pod(skb, ip, pod),
        Answer::OfStack => Ok(stack::answer(skb)),
        Answer::Of(translation) => {
            translations::apply(skb, ip, translation)?;
            let ip = skb.ip::<I>()?;
            to_pod(skb, &ip, lookup::endpoint(ip.destination()))
        }
    }
}

/// Delivers to the pod that has the packet's destination, if any has: one hop, the
/// MACs of the pod's own link, and over to its end of the veth. A packet whose
/// TTL ends here goes to the stack, which answers it.
#[inline(always)]
pub(crate) fn to_pod<I: Ip>(skb: &mut Skb, ip: &I, pod: Option<&Endpoint>) -> Outcome {
    let pod = pod.ok_or(DropReason::NoSuchEndpoint)?;
    if ip.hops() <= 1 {
        return Ok(stack::exception(skb));
    }
    skb.hop(ip, copy(&pod.mac), copy(&pod.node_mac))?;
    skb.set_for_host();
    skb.redirect_peer(pod.ifindex())?;
    Ok(Verdict::Deliver)
}
