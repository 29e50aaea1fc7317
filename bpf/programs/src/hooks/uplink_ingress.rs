//! What arrives on an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::{
    identity::Identity,
    node::NodeId,
    outcome::{DropReason, Outcome, Program, Verdict},
    tables::{IpcacheEntry, Who},
};
use veer_bpf_net::{ethernet, ip::Ip};

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::{icmp_error, local, tunnel},
    state::lookup,
};

/// Device: an uplink; direction: ingress. Expects anything from outside. Emits
/// bare packets of pods and nodes that may use the native form to local pods, and
/// routers' ICMP errors about such; drops tunnel packets that no node sent, bare ones
/// that claim what they may not, wherever they go, and all from denied prefixes; the
/// rest goes to the stack.
#[classifier]
fn uplink_ingress(ctx: TcContext) -> i32 {
    exit::tc::<UplinkIngress>(ctx.skb.skb)
}

enum UplinkIngress {}

impl Hook for UplinkIngress {
    const PROGRAM: Program = Program::UplinkIngress;

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        // Frames of a VLAN are for its device, which is an uplink of its own or none.
        if skb.vlan_id() != 0 {
            return Ok(Verdict::Pass);
        }
        let Ok(frame) = skb.ethernet::<I>() else {
            return Ok(Verdict::Pass);
        };
        match frame.ether_type {
            found if found == I::ETHER_TYPE => packet::<I>(skb),
            ethernet::VLAN | ethernet::PROVIDER_VLAN => tag_within(skb),
            _ => Ok(Verdict::Pass),
        }
    }
}

/// A tag behind one with id 0. The kernel passes the frame to that tag's VLAN device.
/// Where the second id is 0 too, the kernel removes that tag as well and handles the
/// payload without running a program again (`check_vlan_id` in
/// `__netif_receive_skb_core`), so no program would see that payload.
#[inline(always)]
fn tag_within(skb: &Skb) -> Outcome {
    match ethernet::tag_id(skb) {
        Some(id) if id != 0 => Ok(Verdict::Pass),
        _ => Err(DropReason::UnsupportedL3),
    }
}

#[inline(always)]
fn packet<I: Ip>(skb: &mut Skb) -> Outcome {
    let ip = skb.ip::<I>()?;
    if let Some(verdict) = tunnel::judge(skb, &ip)? {
        return Ok(verdict);
    }
    let Some(row) = lookup::row(ip.source()).copied() else {
        skb.decision.source_identity = Identity::WORLD.get();
        return icmp_error::from_world(skb, &ip);
    };
    if row.is_denied() {
        return Err(DropReason::DeniedPrefix);
    }
    if row.is_unassigned() {
        return Err(DropReason::NativeNotAccepted);
    }
    let source = Who::of(row);
    skb.decision.source_identity = source.identity().get();
    match source {
        Who::World => icmp_error::from_world(skb, &ip),
        Who::Host => own(&ip),
        Who::LocalPod(_) => Err(DropReason::OwnSourceFromOutside),
        Who::RemotePod(_, node) | Who::RemoteNode(node) => bare(skb, &ip, row, node),
    }
}

/// A packet from outside with a source address of this node's own stack. The pods'
/// gateway, which is the health address, exists on no outside link, and the node
/// reaches its own pods directly: both are dropped. For other addresses some network
/// set-ups are legitimate, and the stack decides.
#[inline(always)]
fn own<I: Ip>(ip: &I) -> Outcome {
    if lookup::is_gateway(ip.source()) || lookup::endpoint(ip.destination()).is_some() {
        return Err(DropReason::OwnSourceFromOutside);
    }
    Ok(Verdict::Pass)
}

/// A bare packet with a source on the node `id`, whose row is `row`.
///
/// The node's own addresses belong to the underlay: they may send to everything here
/// but pods. Its pods and its health address send bare packets only while the native
/// form is accepted, whatever the destination: a forged packet that the stack
/// translates, answers or forwards does the same harm as one that is delivered.
/// Probes are exempt, since they find out whether that form works.
#[inline(always)]
fn bare<I: Ip>(skb: &mut Skb, ip: &I, row: IpcacheEntry, id: NodeId) -> Outcome {
    skb.decision.node_id = id.get();
    let (destination, pod) = lookup::arrived(ip.destination());
    skb.decision.destination_identity = destination.identity().get();
    let to_pod = matches!(destination, Who::LocalPod(_));
    if to_pod || row.identity() != Identity::REMOTE_NODE {
        if !lookup::accepts_native(id) && !is_probe(ip, row) {
            return Err(DropReason::NativeNotAccepted);
        }
        if ip.is_source_routed() {
            return Err(DropReason::RoutingHeader);
        }
    }
    if to_pod {
        local::by_flow(skb, ip, pod)
    } else {
        Ok(Verdict::Pass)
    }
}

/// Whether this is a probe or the answer to one: between two health addresses.
#[inline(always)]
fn is_probe<I: Ip>(ip: &I, row: IpcacheEntry) -> bool {
    row.identity() == Identity::HEALTH && ip.is_icmp() && lookup::is_gateway(ip.destination())
}
