//! What the routing epoch asks of this node, and of each pair.

use std::net::IpAddr;

use veer_bpf_common::{
    key::IpKey,
    value::{FORM_NATIVE, FORM_TUNNEL, REMOTE_ACCEPT_NATIVE, Remote},
};
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use super::{Facts, Path, tunnel_mtu};
use crate::{index::NodeRecord, probe::View};

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
    /// Some pair keeps the form it had before this epoch.
    pub(crate) kept: bool,
    /// Nanoseconds that a switched pair has to be confirmed in.
    pub(crate) confirm: u64,
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

    /// Whether bare packets are what every pair sends, and has been for long
    /// enough that no peer sends anything else.
    pub(crate) fn all_native(&self) -> bool {
        self.mode() == RoutingMode::Native && self.phase() >= Phase::Finalize && !self.kept
    }
}

/// What the epoch asks of this node. `present_mtu` is what pods have now; 0:
/// nothing yet. `kept`: some pair keeps its old form. `confirm` as in [`Step`].
pub(crate) fn step(
    epoch: Option<&Epoch>,
    underlay_mtu: u32,
    present_mtu: u32,
    kept: bool,
    confirm: u64,
) -> Step {
    let mut step = Step {
        epoch: epoch.cloned(),
        // The smaller of the two.
        mtu: tunnel_mtu(underlay_mtu),
        tunnel_mtu: tunnel_mtu(underlay_mtu),
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
pub(crate) fn pair_mtu(step: &Step, facts: &Facts, peer: &NodeRecord) -> u32 {
    let ends = [facts.path_mtu(), peer.path_mtu].into_iter();
    let known = ends.filter(|mtu| *mtu != 0);
    known.fold(step.native_mtu, u32::min)
}

/// The form that a mode leads to for a peer reached by `path`; `None`: a bare
/// packet that has no path.
pub(crate) fn target(mode: RoutingMode, path: Option<Path>) -> Option<u8> {
    match (mode, path) {
        (RoutingMode::Native, path) => path.map(|_| FORM_NATIVE),
        (RoutingMode::Hybrid, Some(path)) if path.same_link => Some(FORM_NATIVE),
        (RoutingMode::Tunnel | RoutingMode::Hybrid, _) => Some(FORM_TUNNEL),
    }
}

/// Whether a peer takes a form from us now, by its own report. The tunnel
/// everybody takes always.
pub(crate) fn peer_accepts(form: u8, own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
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
fn peer_left_native(own: Option<&Epoch>, peer: Option<&Epoch>) -> bool {
    peer.is_some_and(|peer| {
        peer.mode == RoutingMode::Tunnel
            && peer.phase >= Phase::Finalize
            && own.is_none_or(|own| own.number < peer.number)
    })
}

/// What decides the entry of one other node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    /// What the epoch asks.
    pub(super) step: &'a Step,
    /// The peer.
    pub(super) node: &'a NodeRecord,
    /// The address that stands for it.
    pub(super) address: IpAddr,
    /// How the kernel reaches it.
    pub(super) path: Option<Path>,
    /// Largest packet of the underlay to it, in bytes.
    pub(super) mtu: u32,
    /// Its entry now.
    pub(super) present: Option<&'a Remote>,
    /// What probes say.
    pub(super) view: View,
    /// As [`crate::clock::monotonic`].
    pub(super) now: u64,
}

/// The form of a pair, and what the program is to know of the last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    now: u8,
    previous: u8,
    revert_at: u64,
    epoch: u32,
}

impl Pair<'_> {
    /// The form as it is, a change that ran out or was confirmed done with.
    fn present_form(&self) -> Form {
        let Some(p) = self.present else {
            // A pair never probed uses the tunnel.
            return Form {
                now: FORM_TUNNEL,
                previous: FORM_TUNNEL,
                revert_at: 0,
                epoch: 0,
            };
        };
        let now = || self.now;
        let over = p.has_reverted(now) || self.view.confirmed == Some(p.form);
        Form {
            now: p.form_now(now),
            previous: p.previous_form,
            revert_at: if over { 0 } else { p.revert_at },
            epoch: p.epoch,
        }
    }

    fn form(&self) -> Form {
        let (own, peer) = (self.step.epoch.as_ref(), self.node.applied.as_ref());
        let tunnel = |previous| Form {
            now: FORM_TUNNEL,
            previous,
            revert_at: 0,
            epoch: number(self.step),
        };
        let mut form = self.present_form();
        let target = target(self.step.mode(), self.path);
        if let Some(target) = target
            && self.step.phase() >= Phase::Switch
            && form.revert_at == 0
            && form.now != target
            && self.view.passed
            && peer_accepts(target, own, peer)
        {
            form = Form {
                now: target,
                previous: form.now,
                revert_at: self.now + self.step.confirm,
                epoch: number(self.step),
            };
        }
        let lost = self.path.is_none() || peer_left_native(own, peer);
        if form.now == FORM_NATIVE && lost {
            form = tunnel(FORM_NATIVE);
        }
        if form.revert_at == 0 {
            form.epoch = number(self.step);
        }
        form
    }

    /// Whether bare packets with a source on the peer are accepted.
    fn accepts_native(&self) -> bool {
        let step = self.step;
        let own_number = step.epoch.as_ref().map_or(0, |e| e.number);
        match step.phase() {
            Phase::Preflight => self
                .present
                .is_some_and(|p| p.flags & REMOTE_ACCEPT_NATIVE != 0),
            Phase::Prepare | Phase::Switch => true,
            Phase::Finalize | Phase::Ready => {
                step.mode() == RoutingMode::Native
                    || target(step.mode(), self.path) == Some(FORM_NATIVE)
                    // It could not leave the form that we go on to accept.
                    || self.node.keeps_form_to_us == Some(own_number)
            }
        }
    }
}

/// The low 32 bits of the epoch's number: what an entry's field holds.
fn number(step: &Step) -> u32 {
    let number = step.epoch.as_ref().map_or(0, |e| e.number);
    u32::try_from(number & 0xffff_ffff).unwrap_or(0)
}

/// The entry of one other node.
pub(super) fn remote(pair: &Pair<'_>) -> Remote {
    let Form {
        now: form,
        previous,
        revert_at,
        epoch,
    } = pair.form();
    let tunnel = IpKey::from(pair.address);
    let next_hop = pair.path.map(|p| IpKey::from(p.next_hop));
    Remote {
        revert_at,
        tunnel_address: *tunnel.addr(),
        next_hop: next_hop.map_or([0; 16], |hop| *hop.addr()),
        ifindex: pair.path.map_or(0, |p| p.index),
        flags: if pair.accepts_native() {
            REMOTE_ACCEPT_NATIVE
        } else {
            0
        },
        epoch,
        form,
        previous_form: previous,
        tunnel_family: tunnel.family(),
        next_hop_family: next_hop.map_or(0, |hop| hop.family()),
        path_mtu: if pair.mtu < pair.step.native_mtu {
            pair.mtu
        } else {
            0
        },
        pad: 0,
    }
}
