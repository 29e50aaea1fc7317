//! What the routing epoch asks of this node.

use std::net::IpAddr;

use veer_bpf_common::{
    VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6,
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use super::paths::Paths;
use crate::{facts::Facts, index::NodeRecord};

/// What the epoch asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingStep {
    /// The epoch; `None`: the operator has not said anything yet.
    pub epoch: Option<Epoch>,
    /// MTU of pods' default routes, in bytes.
    pub mtu: u32,
    /// Largest inner packet of the tunnel, in bytes.
    pub tunnel_mtu: u32,
    /// Largest packet of the native form, in bytes.
    pub native_mtu: u32,
    /// Some pair keeps the form it had before this epoch.
    pub kept: bool,
    /// Nanoseconds that a switched pair has to be confirmed in.
    pub confirm: u64,
}

impl RoutingStep {
    /// The mode that traffic is to move by, once switched.
    pub fn mode(&self) -> RoutingMode {
        self.epoch.as_ref().map_or(RoutingMode::Tunnel, |e| e.mode)
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        self.epoch.as_ref().map_or(Phase::Ready, |e| e.phase)
    }

    /// Whether bare packets are what every pair sends, and has been for long
    /// enough that no peer sends anything else.
    pub fn all_native(&self) -> bool {
        self.mode() == RoutingMode::Native && self.phase() >= Phase::Finalize && !self.kept
    }
}

/// What the epoch asks of this node. `overhead` is what the tunnel adds to a packet, in
/// bytes; `present_mtu` is what pods have now; 0: nothing yet. `kept`: some pair keeps
/// its old form. `confirm` as in [`RoutingStep`].
pub fn step(
    epoch: Option<&Epoch>,
    underlay_mtu: u32,
    overhead: u32,
    present_mtu: u32,
    kept: bool,
    confirm: u64,
) -> RoutingStep {
    let mut step = RoutingStep {
        epoch: epoch.cloned(),
        // The smaller of the two.
        mtu: underlay_mtu.saturating_sub(overhead),
        tunnel_mtu: underlay_mtu.saturating_sub(overhead),
        native_mtu: underlay_mtu,
        kept,
        confirm,
    };
    if step.all_native() {
        step.mtu = underlay_mtu;
    } else if step.phase() == Phase::Preflight && present_mtu != 0 {
        step.mtu = present_mtu;
    }
    step
}

/// Largest packet between this node and a peer, in bytes of the underlay: the
/// smaller of what the two ends carry.
pub fn pair_mtu(step: &RoutingStep, facts: &Facts, peer: &NodeRecord) -> u32 {
    let ends = [facts.path_mtu(), peer.path_mtu].into_iter();
    let known = ends.filter(|mtu| *mtu != 0);
    known.fold(step.native_mtu, u32::min)
}

/// The form that a mode leads to for a peer reached by `paths`; `None`: a bare
/// packet that has no path.
pub fn target(mode: RoutingMode, paths: &Paths) -> Option<u8> {
    match mode {
        _ if paths.are_native(mode) => Some(FORM_NATIVE),
        RoutingMode::Native => None,
        RoutingMode::Tunnel | RoutingMode::Hybrid => Some(FORM_TUNNEL),
    }
}

/// Whether a peer takes a form from us now, by its own report. The tunnel
/// everybody takes always.
pub fn peer_accepts(form: u8, own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
    if form == FORM_TUNNEL {
        return true;
    }
    let (Some(own), Some(peer)) = (own, peer) else {
        return false;
    };
    let same = peer.number == own.number && peer.cluster_network_uid == own.cluster_network_uid;
    peer.mode != RoutingMode::Tunnel
        && ((same && peer.phase >= Phase::Prepare) || peer.phase == Phase::Ready)
}

/// Whether a peer has gone on to a later epoch in which it takes the tunnel only.
pub(super) fn peer_left_native(own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
    peer.is_some_and(|peer| {
        peer.mode == RoutingMode::Tunnel
            && peer.phase >= Phase::Finalize
            && own.is_none_or(|own| own.number < peer.number)
    })
}

/// Bytes that the tunnel adds to a packet, with this address outside; IPv4 while there is
/// none.
pub fn overhead(outside: Option<IpAddr>) -> u32 {
    match outside {
        Some(IpAddr::V6(_)) => VXLAN_OVERHEAD_V6,
        Some(IpAddr::V4(_)) | None => VXLAN_OVERHEAD_V4,
    }
}
