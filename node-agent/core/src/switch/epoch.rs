//! What the routing epoch asks of this node.

use std::net::IpAddr;

use veer_bpf_common::{VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, tables::Form};
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use super::paths::Paths;
use crate::{facts::Facts, index::NodeRecord, mtu::Mtu};

/// What the epoch asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingStep {
    /// The epoch; `None`: the operator has not said anything yet.
    pub epoch: Option<Epoch>,
    /// MTU of pods' default routes.
    pub mtu: Mtu,
    /// Largest inner packet of the tunnel.
    pub tunnel_mtu: Mtu,
    /// Largest packet of the native form.
    pub native_mtu: Mtu,
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
/// bytes; `present_mtu` is what pods have now; `None`: nothing yet. `kept`: some pair keeps
/// its old form. `confirm` as in [`RoutingStep`].
pub fn step(
    epoch: Option<&Epoch>,
    underlay_mtu: Mtu,
    overhead: u32,
    present_mtu: Option<Mtu>,
    kept: bool,
    confirm: u64,
) -> RoutingStep {
    let mut step = RoutingStep {
        epoch: epoch.cloned(),
        // The smaller of the two.
        mtu: underlay_mtu.less(overhead),
        tunnel_mtu: underlay_mtu.less(overhead),
        native_mtu: underlay_mtu,
        kept,
        confirm,
    };
    if step.all_native() {
        step.mtu = underlay_mtu;
    } else if step.phase() == Phase::Preflight {
        step.mtu = present_mtu.unwrap_or(step.mtu);
    }
    step
}

/// Largest packet of the underlay between this node and a peer: the smaller of what the two ends carry.
pub fn pair_mtu(step: &RoutingStep, facts: &Facts, peer: &NodeRecord) -> Mtu {
    let ends = [facts.path_mtu(), peer.path_mtu].into_iter();
    ends.flatten().fold(step.native_mtu, Mtu::min)
}

/// The form that a mode leads to for a peer reached by `paths`; `None`: a bare
/// packet that has no path.
pub fn target(mode: RoutingMode, paths: &Paths) -> Option<Form> {
    match mode {
        _ if paths.are_native(mode) => Some(Form::Native),
        RoutingMode::Native => None,
        RoutingMode::Tunnel | RoutingMode::Hybrid => Some(Form::Tunnel),
    }
}

/// Whether a peer takes a form from us now, by its own report. The tunnel
/// everybody takes always.
pub fn peer_accepts(form: Form, own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
    if form == Form::Tunnel {
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
