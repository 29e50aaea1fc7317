//! The entry of one other node: the form of the pair, and what the program is to
//! know of its last change.

use std::net::IpAddr;

use veer_bpf_common::{
    address::IpKey,
    tables::{FORM_NONE, Form, Remote},
};
use veer_crds::v1alpha1::{Phase, RoutingMode};

use super::{
    PairState, Paths,
    epoch::{RoutingStep, overhead, peer_accepts, peer_left_native, target},
    paths::Leg,
};
use crate::{family::Family, index::NodeRecord, mtu::Mtu};

/// What decides the entry of one other node.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    /// What the epoch asks.
    pub step: &'a RoutingStep,
    /// The peer.
    pub node: &'a NodeRecord,
    /// The address that stands for it.
    pub address: IpAddr,
    /// How bare packets reach it.
    pub paths: &'a Paths,
    /// Largest packet of the underlay to it.
    pub mtu: Mtu,
    /// Its entry now.
    pub present: Option<&'a Remote>,
    /// What probes say.
    pub view: PairState,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
}

/// The form of a pair, and what the program is to know of the last change. `None`: none
/// was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PairForm {
    now: Option<Form>,
    previous: Option<Form>,
    revert_at: u64,
    epoch: u32,
}

impl Pair<'_> {
    /// The form as it is, a change that ran out or was confirmed done with.
    fn present_form(&self) -> PairForm {
        let Some(p) = self.present else {
            // A pair never probed uses the tunnel.
            return PairForm {
                now: Some(Form::Tunnel),
                previous: Some(Form::Tunnel),
                revert_at: 0,
                epoch: 0,
            };
        };
        let now = || self.now;
        let over = p.has_reverted(now) || self.view.confirmed.is_some_and(|f| f.byte() == p.form);
        PairForm {
            now: Form::of(p.form_now(now)),
            previous: Form::of(p.previous_form),
            revert_at: if over { 0 } else { p.revert_at },
            epoch: p.epoch,
        }
    }

    fn form(&self) -> PairForm {
        let (own, peer) = (self.step.epoch.as_ref(), self.node.applied.as_ref());
        let tunnel = |previous| PairForm {
            now: Some(Form::Tunnel),
            previous: Some(previous),
            revert_at: 0,
            epoch: number(self.step),
        };
        let mut form = self.present_form();
        let target = target(self.step.mode(), self.paths);
        if let Some(target) = target
            && self.step.phase() >= Phase::Switch
            && form.revert_at == 0
            && form.now != Some(target)
            && self.view.passed.cover(self.paths.families)
            && peer_accepts(target, own, peer)
        {
            form = PairForm {
                now: Some(target),
                previous: form.now,
                revert_at: self.now + self.step.confirm,
                epoch: number(self.step),
            };
        }
        // Also where a family came later and was not probed yet: there is one form for all.
        let lost = |family| self.paths.leg(family).is_none() || !self.was_probed(family);
        let lost = self.paths.families.iter().any(lost);
        if form.now == Some(Form::Native) && (lost || peer_left_native(own, peer)) {
            form = tunnel(Form::Native);
        }
        if form.revert_at == 0 {
            form.epoch = number(self.step);
        }
        form
    }

    /// Whether bare packets of a family were probed: an entry of that form has the ways of
    /// families that were.
    fn was_probed(&self, family: Family) -> bool {
        let bare =
            |p: &&Remote| goes_bare(Form::of(p.form), Form::of(p.previous_form), p.revert_at);
        let present = self.present.filter(bare);
        let has_way = |p: &Remote| family.pick([p.next_hop_family != 0, p.ifindex_v6 != 0]);
        self.view.passed.has(family) || present.is_some_and(has_way)
    }

    /// The way of a family's packets that the entry is to have: long before they take it,
    /// but not where they might before it was probed.
    fn leg(&self, form: PairForm, family: Family) -> Option<Leg> {
        let bare = goes_bare(form.now, form.previous, form.revert_at);
        let may = |_: &Leg| !bare || self.was_probed(family);
        self.paths.leg(family).filter(may)
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
                    || target(step.mode(), self.paths) == Some(Form::Native)
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

/// Whether packets go bare, or will once a change has run out.
fn goes_bare(form: Option<Form>, previous: Option<Form>, revert_at: u64) -> bool {
    let native = Some(Form::Native);
    form == native || (previous == native && revert_at != 0)
}

/// The entry of one other node.
pub fn remote(pair: &Pair<'_>) -> Remote {
    let form = pair.form();
    let [v4, v6] = Family::ALL.map(|family| pair.leg(form, family));
    let byte = |form: Option<Form>| form.map_or(FORM_NONE, Form::byte);
    let tunnel = IpKey::from(pair.address);
    let next_hop = v4.map(|leg| IpKey::from(leg.path.next_hop));
    let in_tunnel = pair.mtu.less(overhead(Some(pair.address)));
    let smaller = pair.mtu < pair.step.native_mtu || in_tunnel < pair.step.tunnel_mtu;
    Remote {
        revert_at: form.revert_at,
        tunnel_address: *tunnel.addr(),
        next_hop: next_hop.map_or([0; 16], |hop| *hop.addr()),
        ifindex: v4.map_or(0, |leg| leg.path.index.get()),
        flags: if pair.accepts_native() {
            Remote::ACCEPT_NATIVE
        } else {
            0
        },
        epoch: form.epoch,
        form: byte(form.now),
        previous_form: byte(form.previous),
        tunnel_family: tunnel.family(),
        next_hop_family: next_hop.map_or(0, |hop| hop.family()),
        path_mtu: if smaller { pair.mtu.get() } else { 0 },
        address_v4: match v4.map(|leg| leg.to) {
            Some(IpAddr::V4(address)) => address.octets(),
            Some(IpAddr::V6(_)) | None => [0; 4],
        },
        next_hop_v6: v6.map_or([0; 16], |leg| *IpKey::from(leg.path.next_hop).addr()),
        address_v6: v6.map_or([0; 16], |leg| *IpKey::from(leg.to).addr()),
        ifindex_v6: v6.map_or(0, |leg| leg.path.index.get()),
        pad: 0,
    }
}
