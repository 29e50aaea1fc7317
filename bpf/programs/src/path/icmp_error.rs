//! ICMP errors that routers outside the cluster send about bare packets of pods.

use veer_bpf_common::outcome::{Outcome, Verdict};
use veer_bpf_net::{icmp, ip::Ip};

use super::local;
use crate::{
    ctx::skb::Skb,
    state::{flows, lookup},
};

/// A packet from the world: to the stack, except an error about a flow that the stack
/// does not know. Netfilter calls such an error invalid, and rules that drop invalid
/// packets (kube-proxy's, in iptables mode) would leave a pod sending packets that
/// never fit.
#[inline(always)]
pub(crate) fn from_world<I: Ip>(skb: &mut Skb, ip: &I) -> Outcome {
    if !ip.is_icmp() || !is_about_direct_flow(skb, ip) {
        return Ok(Verdict::Pass);
    }
    local::by_flow(skb, ip, lookup::endpoint(ip.destination()))
}

/// Whether this is an error about what a local pod sent bare to another node or a pod
/// there, past the stack.
#[inline(always)]
fn is_about_direct_flow<I: Ip>(skb: &Skb, ip: &I) -> bool {
    if ip.is_later_fragment() || lookup::endpoint(ip.destination()).is_none() {
        return false;
    }
    let Some(about) = icmp::undeliverable(skb, ip) else {
        return false;
    };
    let source = about.source_address::<I::Address>();
    let remote = lookup::who(about.destination_address::<I::Address>()).remote_node();
    source == ip.destination()
        && remote.is_some_and(lookup::accepts_native)
        && !flows::is_recorded(&about)
}
