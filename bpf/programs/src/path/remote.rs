//! To another node, in the form its entry says.

use veer_bpf_common::{
    address::FAMILY_V4,
    device::IfIndex,
    identity::Identity,
    mark,
    node::NodeId,
    outcome::{DropReason, Outcome, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_bpf_net::{ipv4::Ipv4, size};

use super::{fib, stack::exception};
use crate::{
    ctx::{
        clock::now,
        skb::{Outer, Skb},
    },
    state::lookup,
};

#[inline(always)]
const fn v4(address: &[u8; 16]) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}

/// A pod's packet to the node `id` or a pod on it.
///
/// What does not fit the path goes to the stack, whose route has the path's
/// `mtu`: it answers with the inner MTU where DF is set and fragments for the
/// native form otherwise. For the tunnel the outer packet is fragmented where this
/// node's own uplink is what it does not fit; nobody would do that for the other
/// end's, so there too the stack fragments.
#[inline(always)]
pub(crate) fn from_pod(skb: &mut Skb, ip: &Ipv4, id: NodeId, identity: Identity) -> Outcome {
    let remote = find(skb, id)?;
    let config = lookup::config().ok_or(DropReason::NotConfigured)?;
    match remote.form_now(now) {
        FORM_TUNNEL => {
            let mtu = remote.tunnel_mtu(config);
            if (ip.dont_fragment() || mtu < config.tunnel_mtu)
                && size::exceeds(skb, ip, skb.gso_size(), mtu)
            {
                return Ok(exception(skb));
            }
            let vxlan = config.vxlan().ok_or(DropReason::NotConfigured)?;
            tunnel(skb, remote, identity, Outer::MayFragment)?;
            skb.set_mark(mark::REDIRECTED);
            skb.redirect(vxlan)?;
            Ok(Verdict::Overlay)
        }
        FORM_NATIVE => {
            if ip.ttl <= 1 || size::exceeds(skb, ip, skb.gso_size(), remote.native_mtu(config)) {
                return Ok(exception(skb));
            }
            // The MACs are the neighbour's; what is written here for them is
            // replaced.
            skb.hop(ip, [0; 6], [0; 6])?;
            native(skb, remote)
        }
        _ => Err(DropReason::RemoteUnusable),
    }
}

/// A packet that the stack sends out of the tunnel device to the node `id` or a
/// pod on it. The stack has counted the hop and seen to the size. `tunnelled`
/// is the identity for the VNI, or why the tunnel must not carry it.
///
/// A probe goes in the form that it asks for, and in the tunnel with DF outside
/// too: it is to find what the path takes whole.
#[inline(always)]
pub(crate) fn from_stack(
    skb: &mut Skb,
    id: NodeId,
    tunnelled: Result<Identity, DropReason>,
    probe: Option<u8>,
) -> Outcome {
    let remote = find(skb, id)?;
    let (form, outer) = match probe {
        Some(form) => (form, Outer::DontFragment),
        None => (remote.form_now(now), Outer::MayFragment),
    };
    match form {
        FORM_TUNNEL => {
            tunnel(skb, remote, tunnelled?, outer)?;
            Ok(Verdict::Overlay)
        }
        FORM_NATIVE => {
            skb.forget_route()?;
            native(skb, remote)
        }
        _ => Err(DropReason::RemoteUnusable),
    }
}

#[inline(always)]
fn find(skb: &mut Skb, id: NodeId) -> Result<&'static Remote, DropReason> {
    skb.decision.node_id = id.get();
    lookup::remote(id).ok_or(DropReason::RemoteUnusable)
}

#[inline(always)]
fn tunnel(
    skb: &mut Skb,
    remote: &Remote,
    identity: Identity,
    outer: Outer,
) -> Result<(), DropReason> {
    if remote.tunnel_family != FAMILY_V4 {
        return Err(DropReason::RemoteUnusable);
    }
    skb.set_tunnel(identity.into(), v4(&remote.tunnel_address), outer)
}

/// Uplink and next hop of the native form. Behind a router they are what the node's
/// routes said at the agent's last round: where that is long ago, the routes are asked
/// here, lest a changed gateway cuts the pods off.
#[inline(always)]
fn next_hop(skb: &Skb, remote: &Remote) -> (IfIndex, [u8; 4]) {
    let (known, node) = (v4(&remote.next_hop), v4(&remote.tunnel_address));
    if known != node
        && remote.tunnel_family == FAMILY_V4
        && lookup::agent_is_silent()
        && let Some(found) = fib::next_hop(skb, remote.uplink(), node)
    {
        return found;
    }
    (remote.uplink(), known)
}

#[inline(always)]
fn native(skb: &mut Skb, remote: &Remote) -> Outcome {
    if remote.next_hop_family != FAMILY_V4 {
        return Err(DropReason::RemoteUnusable);
    }
    let (ifindex, hop) = next_hop(skb, remote);
    skb.set_mark(mark::REDIRECTED);
    skb.redirect_neighbour(ifindex, hop)?;
    Ok(Verdict::Native)
}
