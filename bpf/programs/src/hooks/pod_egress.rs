//! What a pod sends.

use aya_ebpf::{macros::classifier, programs::TcContext};
use veer_bpf_common::{
    address::{Address, V6},
    identity::Identity,
    mark,
    node::NodeId,
    outcome::{DropReason, Outcome, Program, Verdict},
    tables::{Interface, Share, Tuple, Who},
};
use veer_bpf_net::{
    arp::Arp,
    ethernet,
    flow::Flow,
    ip::{Ip, TCP, UDP, v4::Ipv4, v6::Ipv6},
    nd,
};

use crate::{
    ctx::{
        direct::{address, copy},
        skb::Skb,
    },
    exit::{self, Hook},
    path::{local, remote, stack},
    state::{
        flows::{self, Answer},
        lookup, translations,
    },
};

/// Device: the host side of a pod's veth; direction: ingress. Expects whatever
/// a pod may send. Emits it to a local pod, into the tunnel, out of an uplink or to the
/// stack; answers ARP and neighbour solicitations for the gateway; drops what the pod
/// may not send.
#[classifier]
fn pod_egress(ctx: TcContext) -> i32 {
    exit::tc::<PodEgress>(ctx.skb.skb)
}

enum PodEgress {}

impl Hook for PodEgress {
    const PROGRAM: Program = Program::PodEgress;

    #[inline(always)]
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome {
        if skb.mark() != 0 {
            skb.set_mark(0);
        }
        let frame = skb.ethernet::<I>()?;
        let interface = lookup::interface(skb.ifindex()).ok_or(DropReason::UnknownInterface)?;
        skb.decision.source_identity = interface.identity().get();
        if frame.source != copy(&interface.mac) {
            return Err(DropReason::SpoofedMac);
        }
        if skb.has_vlan() {
            return Err(DropReason::UnsupportedL3);
        }
        // The instance of IPv6 sees no other frames than its own.
        match (I::ETHER_TYPE, frame.ether_type) {
            (ethernet::IPV6, ethernet::IPV6) => ipv6(skb, interface),
            (ethernet::IPV4, ethernet::IPV4) => {
                let header = skb.ip::<Ipv4>()?;
                ip(skb, interface, &header)
            }
            (ethernet::IPV4, ethernet::ARP) => arp(skb, interface),
            _ => Err(DropReason::UnsupportedL3),
        }
    }

    const GOES_BEYOND: bool = true;

    #[inline(always)]
    fn between() {
        translations::answer();
    }

    #[inline(always)]
    fn beyond<I: Ip>(skb: &mut Skb) -> Outcome {
        to_backend::<I>(skb)
    }
}

/// Answers for the gateway, from the host side of the same veth.
#[inline(always)]
fn arp(skb: &mut Skb, interface: &Interface) -> Outcome {
    let request = Arp::parse(skb)?;
    if request.sender_mac != interface.mac {
        return Err(DropReason::SpoofedMac);
    }
    if request.sender != interface.v4 || interface.v4 == <[u8; 4]>::NONE {
        return Err(DropReason::SpoofedAddress);
    }
    let config = lookup::config().ok_or(DropReason::NotConfigured)?;
    if config.gateway_v4 == [0; 4] || !request.asks_for(config.gateway_v4) {
        return Err(DropReason::NeighbourNotGateway);
    }
    skb.write_arp(&request.reply(interface.node_mac))?;
    answered(skb)
}

/// Sends the frame, which is an answer now, back to the pod.
#[inline(always)]
fn answered(skb: &mut Skb) -> Outcome {
    skb.set_mark(mark::REDIRECTED);
    skb.redirect(skb.ifindex())?;
    Ok(Verdict::Answer)
}

/// A packet or a neighbour message of a pod that has an IPv6 address.
#[inline(always)]
fn ipv6(skb: &mut Skb, interface: &Interface) -> Outcome {
    let own: V6 = address(&interface.v6);
    if own == V6::NONE {
        return Err(DropReason::UnsupportedL3);
    }
    let header = skb.ip::<Ipv6>()?;
    let config = lookup::config().ok_or(DropReason::NotConfigured)?;
    let link = nd::Link {
        own,
        gateway: lookup::gateway(config),
    };
    match link.judge(skb, &header)? {
        None => ip(skb, interface, &header),
        Some(nd::Judged::Ignore) => Ok(Verdict::Ignore),
        Some(nd::Judged::Tell) => Ok(Verdict::ToStack),
        Some(nd::Judged::Ask) => {
            skb.write_advertisement(interface, config)?;
            answered(skb)
        }
    }
}

#[inline(always)]
fn ip<I: Ip>(skb: &mut Skb, interface: &Interface, ip: &I) -> Outcome {
    let own: I::Address = address(I::Address::of_interface(interface));
    if ip.source() != own || own == I::Address::NONE {
        return Err(DropReason::SpoofedAddress);
    }
    if ip.is_source_routed() {
        return Err(DropReason::RoutingHeader);
    }
    if !ip.is_unicast() {
        return Err(DropReason::UnsupportedDestination);
    }
    if let Some(pod) = lookup::in_own_block(ip.destination()) {
        skb.decision.destination_identity = pod.identity().get();
        return local::by_flow(skb, ip, Some(pod));
    }
    let row = lookup::row(ip.destination());
    let destination = row.map_or(Who::World, |row| Who::of(*row));
    skb.decision.destination_identity = destination.identity().get();
    if matches!(destination, Who::World) {
        return beyond(skb, interface, ip);
    }
    if matches!(destination, Who::LocalPod(_)) {
        return local::by_flow(skb, ip, lookup::endpoint(ip.destination()));
    }
    let to_node = to_node(destination);
    let flow = flows::of(skb, ip)?;
    if !matches!(destination, Who::RemotePod(..)) {
        not_the_tunnel(&flow.tuple)?;
    }
    let share = Share::of_pod(interface.endpoint_id);
    let Some(node) = NodeId::remote(to_node) else {
        return to_host(skb, ip, &flow, share);
    };
    let answer = flows::answers(skb, &flow);
    if matches!(answer, Answer::OfStack) {
        return Ok(stack::answer(skb));
    }
    let is_node = matches!(destination, Who::RemoteNode(_)) && !lookup::is_health(row);
    if is_node && translations::ask_node(&flow, &answer, share, true) {
        return Ok(Verdict::Beyond);
    }
    remote::from_pod(skb, ip, node, interface.identity())
}

/// The other node that a destination is on, as an integer that is always there: Linux 5.10
/// refuses to read the part of an enum that only some of its variants have.
#[inline(always)]
fn to_node(destination: Who) -> u32 {
    destination.remote_node().map_or(0, NodeId::get)
}

/// To the node's own stack, or one of its `NodePorts`. A pod that is its own backend answers
/// the gateway.
#[inline(always)]
fn to_host<I: Ip>(skb: &mut Skb, ip: &I, flow: &Flow, share: Share) -> Outcome {
    if !lookup::is_gateway(ip.destination()) {
        if !matches!(flow.tuple.protocol, TCP | UDP) {
            return Ok(Verdict::ToStack);
        }
        let answer = flows::answers(skb, flow);
        return Ok(if translations::ask_node(flow, &answer, share, false) {
            Verdict::Beyond
        } else {
            Verdict::ToStack
        });
    }
    if let Answer::Of(translation) = flows::answers(skb, flow) {
        translations::apply(skb, ip, translation)?;
        let ip = skb.ip::<I>()?;
        return local::to_pod(skb, &ip, lookup::endpoint(ip.destination()));
    }
    Ok(Verdict::ToStack)
}

/// To an address of neither a pod nor a node: a Service's, which leads to a backend, or
/// one of the world.
#[inline(always)]
fn beyond<I: Ip>(skb: &Skb, interface: &Interface, ip: &I) -> Outcome {
    let asks = flows::of(skb, ip)
        .is_ok_and(|flow| translations::ask(&flow, Share::of_pod(interface.endpoint_id)));
    if asks {
        Ok(Verdict::Beyond)
    } else {
        Ok(Verdict::ToStack)
    }
}

/// To the backend of the Service that the packet is for. What is for none, or is not to be
/// translated here, is the stack's, or the other node's that it is sent to.
#[inline(always)]
fn to_backend<I: Ip>(skb: &mut Skb) -> Outcome {
    match translations::answered(skb)? {
        Some(translation) => {
            let ip = skb.ip::<I>()?;
            translations::apply(skb, &ip, translation)?;
        }
        None if translations::is_to_node() => {}
        None => return Ok(Verdict::ToStack),
    }
    let ip = skb.ip::<I>()?;
    if let Some(pod) = lookup::endpoint(ip.destination()) {
        skb.decision.destination_identity = pod.identity().get();
        return local::to_pod(skb, &ip, Some(pod));
    }
    let destination = lookup::who(ip.destination());
    skb.decision.destination_identity = destination.identity().get();
    if matches!(destination, Who::LocalPod(_)) {
        return Err(DropReason::NoSuchEndpoint);
    }
    if matches!(destination, Who::World) {
        return Ok(Verdict::ToStack);
    }
    let to_node = to_node(destination);
    if !matches!(destination, Who::RemotePod(..)) {
        not_the_tunnel(&flows::of(skb, &ip)?.tuple)?;
    }
    let Some(node) = NodeId::remote(to_node) else {
        return Ok(Verdict::ToStack);
    };
    let identity =
        Identity::new(skb.decision.source_identity).ok_or(DropReason::UnknownInterface)?;
    remote::from_pod(skb, &ip, node, identity)
}

/// A pod that could send to the tunnel port of a node could forge what other
/// pods send.
#[inline(always)]
fn not_the_tunnel(tuple: &Tuple) -> Result<(), DropReason> {
    let config = lookup::config().ok_or(DropReason::NotConfigured)?;
    if tuple.protocol == UDP && tuple.destination_port == config.tunnel_port {
        return Err(DropReason::TunnelPortFromPod);
    }
    Ok(())
}
