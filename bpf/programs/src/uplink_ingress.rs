//! What arrives on an uplink.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::{
    outcome::{DropReason, Program, Verdict},
    value::REMOTE_ACCEPT_NATIVE,
};
use veer_bpf_net::{
    bytes::Bytes,
    ethernet::{self, Ethernet},
    ipv4::Ipv4,
    vxlan,
};

use crate::{
    deliver,
    exit::Outcome,
    lookup::{self, Who},
    skb::{self, Skb},
};

/// Device: an uplink; direction: ingress. Expects anything from outside. Emits
/// bare packets of pods and nodes that may use the native form to local pods;
/// drops tunnel packets that no node sent, bare ones that claim what they may
/// not, and all from denied prefixes; the rest goes to the stack.
#[classifier]
fn uplink_ingress(ctx: TcContext) -> i32 {
    skb::run(Program::UplinkIngress, ctx.skb.skb, inner)
}

#[inline(always)]
fn inner(skb: &mut Skb) -> Outcome {
    // Tagged frames are for a VLAN device, which is an uplink of its own or none.
    if skb.has_vlan() {
        return Ok(Verdict::Pass);
    }
    skb.pull_head();
    let Ok(Ethernet {
        ether_type: ethernet::IPV4,
        ..
    }) = Ethernet::parse(skb)
    else {
        return Ok(Verdict::Pass);
    };
    let ip = Ipv4::parse(skb, ethernet::HEADER_LENGTH)?;
    if let Some(verdict) = tunnel(skb, &ip)? {
        return Ok(verdict);
    }
    let row = lookup::row(ip.source);
    if row.is_some_and(|row| lookup::denied(*row)) {
        return Err(DropReason::DeniedPrefix);
    }
    let source = row.map_or(Who::World, |row| Who::of(*row));
    skb.decision.source_identity = source.identity();
    match source {
        Who::World => Ok(Verdict::Pass),
        Who::Host => own(&ip),
        Who::LocalPod(_) => Err(DropReason::OwnSourceFromOutside),
        Who::RemotePod(_, node) | Who::RemoteNode(node) => bare(skb, &ip, node),
    }
}

/// What is to become of a tunnel packet; `None` for one that is none of ours.
///
/// A node's packet to the tunnel port is one, without a look at its
/// destination: that saves the tunnel's every packet a look-up.
#[inline(always)]
pub(crate) fn tunnel<P: Bytes>(packet: &P, ip: &Ipv4) -> Result<Option<Verdict>, DropReason> {
    let Some(config) = lookup::config() else {
        return Ok(None);
    };
    if !vxlan::is_tunnel(packet, ip, config.tunnel_port) {
        return Ok(None);
    }
    if lookup::node(ip.source).is_some() {
        vxlan::vni(packet, ip)?;
        return Ok(Some(Verdict::Pass));
    }
    match lookup::who(ip.destination) {
        Who::Host => Err(DropReason::TunnelSourceNotNode),
        Who::World | Who::LocalPod(_) | Who::RemotePod(..) | Who::RemoteNode(_) => Ok(None),
    }
}

/// A packet from outside with a source of this node's own stack. That of the
/// pods' gateway, which is the health address, is on no link outside; with the
/// others there are set-ups in which this is right, and the stack knows.
#[inline(always)]
fn own(ip: &Ipv4) -> Outcome {
    match lookup::config() {
        Some(config) if config.gateway_v4 == ip.source => Err(DropReason::OwnSourceFromOutside),
        _ => Ok(Verdict::Pass),
    }
}

/// A bare packet with a source on the node `id`.
#[inline(always)]
fn bare(skb: &mut Skb, ip: &Ipv4, id: u32) -> Outcome {
    skb.decision.node_id = id;
    let (destination, pod) = lookup::arrived(ip.destination);
    skb.decision.destination_identity = destination.identity();
    match destination {
        Who::LocalPod(_) => {
            let accepted = lookup::remote(id).is_some_and(|r| r.flags & REMOTE_ACCEPT_NATIVE != 0);
            if !accepted {
                return Err(DropReason::NativeNotAccepted);
            }
            deliver::by_flow(skb, ip, pod)
        }
        Who::World | Who::Host | Who::RemotePod(..) | Who::RemoteNode(_) => Ok(Verdict::Pass),
    }
}
