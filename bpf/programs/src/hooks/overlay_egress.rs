//! What the host's stack sends to another node or a pod on it.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::{
    identity::Identity,
    mark,
    outcome::{DropReason, Outcome, Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL, Who},
};
use veer_bpf_net::ip::Ip;

use crate::{
    ctx::skb::Skb,
    exit::{self, Hook},
    path::remote,
    state::{flows, lookup},
};

/// Device: the VXLAN device; direction: egress. Expects `pod_egress`'s packets,
/// which have their tunnel key, and what the stack routed to remote pods and
/// nodes. Emits the latter with a key, or out of an uplink, by the remote's
/// form, or by the form that a probe asks for; records those that were translated.
#[classifier]
fn overlay_egress(ctx: TcContext) -> i32 {
    exit::tc::<OverlayEgress>(ctx.skb.skb)
}

enum OverlayEgress {}

impl Hook for OverlayEgress {
    const PROGRAM: Program = Program::OverlayEgress;

    #[inline(always)]
    fn passes(mark: u32) -> bool {
        mark == mark::REDIRECTED
    }

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        if skb.ethernet::<I>()?.ether_type == I::ETHER_TYPE {
            packet::<I>(skb, skb.mark())
        } else {
            Err(DropReason::UnsupportedL3)
        }
    }
}

#[inline(always)]
fn packet<I: Ip>(skb: &mut Skb, mark: u32) -> Outcome {
    let ip = skb.ip::<I>()?;
    let destination = lookup::who(ip.destination());
    skb.decision.destination_identity = destination.identity().get();
    let Some(node) = destination.remote_node() else {
        // The kernel and daemons of the host speak to groups on every device.
        return if ip.is_unicast() {
            Err(DropReason::RemoteUnusable)
        } else {
            Ok(Verdict::Ignore)
        };
    };
    let source = lookup::who(ip.source());
    skb.decision.source_identity = source.identity().get();
    if mark != mark::TO_STACK && source.takes_redirects() {
        flows::record(skb, &ip)?;
    }
    let tunnelled = match source {
        Who::Host => Ok(Identity::REMOTE_NODE),
        Who::LocalPod(identity) => Ok(identity),
        // The receiving node would drop it for the same reason.
        Who::World | Who::RemotePod(..) | Who::RemoteNode(_) => {
            Err(DropReason::TunnelSourceNotOnNode)
        }
    };
    let probe = match mark {
        mark::PROBE_TUNNEL => Some(FORM_TUNNEL),
        mark::PROBE_NATIVE => Some(FORM_NATIVE),
        _ => None,
    };
    remote::from_stack::<I::Address>(skb, node, tunnelled, probe)
}
