//! The tunnel's checks before an skb exists.

use aya_ebpf::{macros::xdp, programs::XdpContext};
use veer_bpf_common::{
    outcome::{DropReason, Outcome, Program, Verdict},
    tables::Config,
};
use veer_bpf_net::{
    ethernet::{self, Ethernet},
    ip::{Ip, v4::Ipv4, v6::Ipv6},
};

use crate::{ctx::xdp::Frame, exit, path::tunnel, state::lookup};

/// Device: an uplink; direction: ingress, before anything else. Expects
/// anything from outside. Drops tunnel packets that no node sent, tunnel packets
/// and IP headers that lie about their lengths, and what comes from denied
/// prefixes; all else passes.
#[xdp]
fn uplink_xdp(ctx: XdpContext) -> u32 {
    exit::xdp(Program::UplinkXdp, &ctx, inner)
}

#[inline(always)]
fn inner(frame: &Frame) -> Outcome {
    let Ok(ethernet) = Ethernet::parse(frame) else {
        return Ok(Verdict::Pass);
    };
    match ethernet.ether_type {
        ethernet::VLAN | ethernet::PROVIDER_VLAN => tagged(frame),
        ether_type => untagged(frame, ether_type),
    }
}

#[inline(always)]
fn untagged(frame: &Frame, ether_type: u16) -> Outcome {
    match ether_type {
        ethernet::IPV4 => packet::<Ipv4>(frame),
        ethernet::IPV6 => packet::<Ipv6>(frame),
        _ => Ok(Verdict::Pass),
    }
}

/// A frame with a tag. One with only a priority is judged as one without a tag; a
/// second tag behind it is left to `uplink_ingress`.
#[inline(always)]
fn tagged(frame: &Frame) -> Outcome {
    // The MAC fields of this view are wrong; nothing here reads them.
    let behind = frame.behind(ethernet::TAG_LENGTH);
    match (ethernet::tag_id(frame), Ethernet::parse(&behind)) {
        (Some(0), Ok(ethernet)) => untagged(&behind, ethernet.ether_type),
        _ => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn packet<I: Ip>(frame: &Frame) -> Outcome {
    let ip = I::parse(frame, ethernet::HEADER_LENGTH)?;
    if let Some(verdict) = tunnel::judge(frame, &ip)? {
        return Ok(verdict);
    }
    // Only denied prefixes need this lookup, so it is skipped where there are none.
    let denies = lookup::config().is_some_and(Config::denies);
    if denies && lookup::row(ip.source()).is_some_and(|row| row.is_denied()) {
        return Err(DropReason::DeniedPrefix);
    }
    Ok(Verdict::Pass)
}
