//! To another node, in the form its entry says.

use veer_bpf_common::{
    address::{Address, FAMILY_V6, V6},
    identity::Identity,
    mark,
    node::NodeId,
    outcome::{DropReason, Outcome, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_bpf_net::{ip::Ip, size};

use super::{fib, stack::exception};
use crate::{
    ctx::{
        clock::now,
        direct,
        skb::{NextHop, Outer, Skb},
    },
    state::lookup,
};

/// A pod's packet to the node `id` or a pod on it.
///
/// A packet that does not fit the path goes to the stack, whose route has the path's
/// `mtu`: the stack answers with the inner MTU where DF is set and fragments for the
/// native form otherwise. In the tunnel, the kernel fragments an outer IPv4 packet that
/// exceeds this node's own uplink, and drops one of IPv6 (`ip6_fragment` takes only what
/// sockets made). No router fragments for a smaller uplink of the other node. So the
/// stack fragments in these two cases too.
#[inline(always)]
pub(crate) fn from_pod<I: Ip>(skb: &mut Skb, ip: &I, id: NodeId, identity: Identity) -> Outcome {
    let remote = find(skb, id)?;
    let config = lookup::config().ok_or(DropReason::NotConfigured)?;
    match remote.form_now(now) {
        FORM_TUNNEL => {
            let mtu = remote.tunnel_mtu(config);
            let whole = remote.tunnel_family == FAMILY_V6 || mtu < config.tunnel_mtu;
            if (whole || ip.dont_fragment()) && size::exceeds(skb, ip, skb.gso_size(), mtu) {
                return Ok(exception(skb));
            }
            let vxlan = config.vxlan().ok_or(DropReason::NotConfigured)?;
            tunnel(skb, remote, identity, Outer::MayFragment)?;
            skb.set_mark(mark::REDIRECTED);
            skb.redirect(vxlan)?;
            Ok(Verdict::Overlay)
        }
        FORM_NATIVE => {
            if ip.hops() <= 1 || size::exceeds(skb, ip, skb.gso_size(), remote.native_mtu(config)) {
                return Ok(exception(skb));
            }
            // The kernel writes the MACs, those of the neighbour.
            skb.hop_within(ip)?;
            native::<I::Address>(skb, remote)
        }
        _ => Err(DropReason::RemoteUnusable),
    }
}

/// A packet that the stack sends out of the tunnel device to the node `id` or a
/// pod on it. The stack has decremented the TTL and checked the size. `tunnelled`
/// is the identity for the VNI, or why the tunnel must not carry it.
///
/// A probe goes in the form that it asks for, and in the tunnel with DF in
/// the outer header too: it measures what the path takes without fragmentation.
#[inline(always)]
pub(crate) fn from_stack<A: Address>(
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
            native::<A>(skb, remote)
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
    if remote.tunnel_family == 0 {
        return Err(DropReason::RemoteUnusable);
    }
    let to = direct::address(&remote.tunnel_address);
    skb.set_tunnel(identity.into(), to, remote.tunnel_family, outer)
}

/// Next hop of the native form; `None`: no path is known. Behind a router it comes from the node's
/// routes at the agent's last round. Where that was long ago, the program asks the
/// routes itself, so that a changed gateway does not cut the pods off.
#[inline(always)]
fn next_hop<A: Address>(skb: &Skb, remote: &Remote) -> Option<NextHop> {
    let (ifindex, hop, family) = remote.native::<A>();
    if family == 0 {
        return None;
    }
    let address: V6 = direct::address(hop);
    let node = direct::address::<A>(A::of_remote(remote));
    let same_link = family == A::FAMILY && address.words() == node.words();
    if !same_link
        && node != A::NONE
        && lookup::agent_is_silent()
        && let Some(found) = fib::next_hop(skb, ifindex, node)
    {
        return Some(found);
    }
    Some(NextHop {
        ifindex,
        family,
        address,
    })
}

#[inline(always)]
fn native<A: Address>(skb: &mut Skb, remote: &Remote) -> Outcome {
    let hop = next_hop::<A>(skb, remote).ok_or(DropReason::RemoteUnusable)?;
    skb.set_mark(mark::REDIRECTED);
    skb.redirect_neighbour(&hop)?;
    Ok(Verdict::Native)
}
