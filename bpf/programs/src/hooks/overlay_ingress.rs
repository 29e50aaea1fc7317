//! What arrives through the tunnel.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::{
    identity::{Identity, Vni},
    node::NodeId,
    outcome::{DropReason, Observation, Outcome, Program, Verdict},
    tables::Who,
};
use veer_bpf_net::{bytes::Bytes, ip::Ip};

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::local,
    state::{counters, lookup},
};

/// Device: the VXLAN device; direction: ingress. Expects decapsulated packets
/// with their tunnel key. Emits them to a local pod or, for the node's own
/// addresses, to the stack; drops what its sender could not have sent.
#[classifier]
fn overlay_ingress(ctx: TcContext) -> i32 {
    exit::tc::<OverlayIngress>(ctx.skb.skb)
}

enum OverlayIngress {}

impl Hook for OverlayIngress {
    const PROGRAM: Program = Program::OverlayIngress;

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        let (vni, outer) = skb.tunnel().ok_or(DropReason::TunnelSourceNotNode)?;
        skb.decision.vni = vni.get();
        let node = lookup::node(outer).ok_or(DropReason::TunnelSourceNotNode)?;
        skb.decision.node_id = node.get();
        // The kernel has removed the inner frame's tag and would deliver the payload.
        if skb.has_vlan() {
            return Err(DropReason::UnsupportedL3);
        }
        if skb.ethernet::<I>()?.ether_type == I::ETHER_TYPE {
            packet::<I>(skb, vni, node)
        } else {
            Err(DropReason::UnsupportedL3)
        }
    }
}

/// A packet that the node `node` sent with this VNI.
#[inline(always)]
fn packet<I: Ip>(skb: &mut Skb, vni: Vni, node: NodeId) -> Outcome {
    let ip = skb.ip::<I>()?;
    if ip.is_source_routed() {
        return Err(DropReason::RoutingHeader);
    }
    let source = lookup::who(ip.source());
    skb.decision.source_identity = source.identity().get();
    if source.remote_node() != Some(node) {
        return Err(DropReason::TunnelSourceNotOnNode);
    }
    check_vni(skb, vni, source)?;
    // The sender chose the inner MAC; it is never that of this device.
    skb.set_for_host();
    let (destination, pod) = lookup::arrived(ip.destination());
    skb.decision.destination_identity = destination.identity().get();
    match destination {
        Who::LocalPod(_) => local::by_flow(skb, &ip, pod),
        Who::World | Who::Host | Who::RemotePod(..) | Who::RemoteNode(_) => Ok(Verdict::ToStack),
    }
}

/// The VNI grants nothing. It must be one that a sender writes, and of the
/// sender's kind. A VNI other than the identity known here is only counted: this
/// node's row for the sender may be older than the sender's identity.
#[inline(always)]
fn check_vni(skb: &Skb, vni: Vni, source: Who) -> Result<(), DropReason> {
    let from_node = matches!(source, Who::RemoteNode(_));
    let claimed = vni.claimed().ok_or(DropReason::ReservedVni)?;
    if (claimed == Identity::REMOTE_NODE) != from_node {
        return Err(DropReason::ReservedVni);
    }
    if claimed != source.identity() {
        counters::observe(skb.program, skb.length(), Observation::IdentityMismatch);
    }
    Ok(())
}
