//! The entry of one other node: the form of the pair, and what the program is to
//! know of its last change.

use std::net::IpAddr;

use veer_bpf_common::{
    address::IpKey,
    tables::{FORM_NATIVE, FORM_TUNNEL, Remote},
};
use veer_crds::v1alpha1::{Phase, RoutingMode};

use super::{
    PairState,
    epoch::{RoutingStep, peer_accepts, peer_left_native, target},
};
use crate::{facts::Path, index::NodeRecord};

/// What decides the entry of one other node.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// What the epoch asks.
    pub step: &'a RoutingStep,
    /// The peer.
    pub node: &'a NodeRecord,
    /// The address that stands for it.
    pub address: IpAddr,
    /// How the kernel reaches it.
    pub path: Option<Path>,
    /// Largest packet of the underlay to it, in bytes.
    pub mtu: u32,
    /// Its entry now.
    pub present: Option<&'a Remote>,
    /// What probes say.
    pub view: PairState,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
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
                .is_some_and(|p| p.flags & Remote::ACCEPT_NATIVE != 0),
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
fn number(step: &RoutingStep) -> u32 {
    let number = step.epoch.as_ref().map_or(0, |e| e.number);
    u32::try_from(number & 0xffff_ffff).unwrap_or(0)
}

/// The entry of one other node.
pub fn remote(pair: &Pair<'_>) -> Remote {
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
            Remote::ACCEPT_NATIVE
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
        address_v4: match pair.address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => [0; 4],
        },
        ..Remote::default()
    }
}
