//! What the routing epoch asks of this node, and of each pair.

use std::net::IpAddr;

use veer_bpf_common::{
    key::{FAMILY_V4, FAMILY_V6},
    value::{FORM_NATIVE, FORM_TUNNEL, REMOTE_ACCEPT_NATIVE, Remote},
};
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use super::{Path, tunnel_mtu};
use crate::{index::NodeRecord, netlink::address::octets};

/// What the epoch asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Step {
    /// The epoch; `None`: the operator has not said anything yet.
    pub(crate) epoch: Option<Epoch>,
    /// MTU of pods' default routes, in bytes.
    pub(crate) mtu: u32,
    /// Largest inner packet of the tunnel, in bytes.
    pub(crate) tunnel_mtu: u32,
    /// Largest packet of the native form, in bytes.
    pub(crate) native_mtu: u32,
}

impl Step {
    /// The mode that traffic is to move by, once switched.
    pub(crate) fn mode(&self) -> RoutingMode {
        self.epoch.as_ref().map_or(RoutingMode::Tunnel, |e| e.mode)
    }

    /// The phase.
    pub(crate) fn phase(&self) -> Phase {
        self.epoch.as_ref().map_or(Phase::Ready, |e| e.phase)
    }
}

/// What the epoch asks of this node. `present_mtu` is what pods have now; 0:
/// nothing yet.
pub(crate) fn step(epoch: Option<&Epoch>, underlay_mtu: u32, present_mtu: u32) -> Step {
    let tunnel = tunnel_mtu(underlay_mtu);
    let (mode, phase) = epoch.map_or((RoutingMode::Tunnel, Phase::Ready), |e| (e.mode, e.phase));
    let mtu = match (phase, mode) {
        (Phase::Preflight, _) if present_mtu != 0 => present_mtu,
        (Phase::Finalize | Phase::Ready, RoutingMode::Native) => underlay_mtu,
        // The tunnel's is the smaller of the two.
        (Phase::Preflight | Phase::Prepare | Phase::Switch, _)
        | (Phase::Finalize | Phase::Ready, RoutingMode::Tunnel | RoutingMode::Hybrid) => tunnel,
    };
    Step {
        epoch: epoch.cloned(),
        mtu,
        tunnel_mtu: tunnel,
        native_mtu: underlay_mtu,
    }
}

/// The form that a mode leads to for a peer reached by `path`.
fn target(mode: RoutingMode, path: Option<Path>) -> u8 {
    match (mode, path) {
        (RoutingMode::Native, Some(_)) => FORM_NATIVE,
        (RoutingMode::Hybrid, Some(path)) if path.same_link => FORM_NATIVE,
        (RoutingMode::Tunnel | RoutingMode::Native | RoutingMode::Hybrid, _) => FORM_TUNNEL,
    }
}

/// Whether a peer takes the native form from us now, by its own report.
fn peer_accepts_native(own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
    let (Some(own), Some(peer)) = (own, peer) else {
        return false;
    };
    let leads_there = peer.mode != RoutingMode::Tunnel;
    let same_change = peer.number == own.number
        && peer.cluster_network_uid == own.cluster_network_uid
        && peer.phase >= Phase::Prepare;
    leads_there && (same_change || peer.phase == Phase::Ready)
}

/// The entry of one other node.
pub(super) fn remote(
    step: &Step,
    node: &NodeRecord,
    address: IpAddr,
    path: Option<Path>,
    present: Option<&Remote>,
) -> Remote {
    let (phase, mode) = (step.phase(), step.mode());
    let present_form = present.map_or(FORM_TUNNEL, |p| p.form);
    let target = target(mode, path);
    let form = match phase {
        // Not yet: as it is, or the tunnel, which everybody always accepts.
        Phase::Preflight | Phase::Prepare => present_form,
        Phase::Switch | Phase::Finalize | Phase::Ready
            if target == FORM_NATIVE
                && peer_accepts_native(step.epoch.as_ref(), node.applied.as_ref()) =>
        {
            FORM_NATIVE
        }
        Phase::Switch | Phase::Finalize | Phase::Ready => FORM_TUNNEL,
    };
    let form = if form == FORM_NATIVE && path.is_some() {
        FORM_NATIVE
    } else {
        FORM_TUNNEL
    };
    let accept_native = match phase {
        Phase::Preflight => present.is_some_and(|p| p.flags & REMOTE_ACCEPT_NATIVE != 0),
        Phase::Prepare | Phase::Switch => true,
        Phase::Finalize | Phase::Ready => target == FORM_NATIVE || mode == RoutingMode::Native,
    };
    let (tunnel_address, tunnel_family) = widen(address);
    let (next_hop, next_hop_family) = path.map_or(([0; 16], 0), |p| widen(p.next_hop));
    let previous_form = match present {
        Some(p) if p.form == form => p.previous_form,
        Some(p) => p.form,
        None => form,
    };
    let number = step.epoch.as_ref().map_or(0, |e| e.number);
    Remote {
        revert_at: 0,
        tunnel_address,
        next_hop,
        ifindex: path.map_or(0, |p| p.index),
        flags: if accept_native {
            REMOTE_ACCEPT_NATIVE
        } else {
            0
        },
        // The low 32 bits are what the field holds.
        epoch: u32::try_from(number & 0xffff_ffff).unwrap_or(0),
        form,
        previous_form,
        tunnel_family,
        next_hop_family,
    }
}

fn widen(address: IpAddr) -> ([u8; 16], u8) {
    let bytes = octets(address);
    let mut wide = [0; 16];
    wide[..bytes.len()].copy_from_slice(&bytes);
    (
        wide,
        if address.is_ipv4() {
            FAMILY_V4
        } else {
            FAMILY_V6
        },
    )
}
