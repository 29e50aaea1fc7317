//! Rows of Services, and what they are made of.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
};

use veer_bpf_common::tables::{Backend, BackendKey, Frontend, Member, Members, Service};

use crate::index::ServicePort;

/// Rows to write and to remove, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Slots of new versions.
    pub backends: Vec<(BackendKey, Backend)>,
    /// Backends that are new or have another value.
    pub members: Vec<(Member, u32)>,
    /// Frontends that are new or lead elsewhere now.
    pub services: Vec<(Frontend, Service)>,
    /// Frontends that lead nowhere any more.
    pub gone_services: Vec<Frontend>,
    /// Backends that are none any more.
    pub gone_members: Vec<Member>,
    /// Whether datagrams may have gone to one of those.
    pub gone_datagrams: bool,
    /// Slots of former versions.
    pub gone_backends: Vec<BackendKey>,
    /// Whether other frontends than before lead to no backend, [`super::Plan::unserved`].
    pub unserved: bool,
}

/// All rows that the maps should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRows {
    /// Of `SERVICES`.
    pub services: HashMap<Frontend, Service>,
    /// Of `BACKENDS`.
    pub backends: HashMap<BackendKey, Backend>,
    /// Of `MEMBERS`.
    pub members: HashMap<Member, u32>,
}

/// The members of one number with their values, in the order of the addresses.
pub(super) type Held = BTreeMap<Backend, u32>;

/// Those of `now` that are new or had another value.
pub(super) fn changed(id: u32, before: &Held, now: &Held) -> Vec<(Member, u32)> {
    let new = now
        .iter()
        .filter(|(backend, value)| before.get(*backend) != Some(*value));
    new.map(|(backend, value)| (member(id, backend), *value))
        .collect()
}

/// Those of `before` that are none any more.
pub(super) fn gone(id: u32, before: &Held, now: &Held) -> Vec<Member> {
    let old = before.keys().filter(|backend| !now.contains_key(*backend));
    old.map(|backend| member(id, backend)).collect()
}

/// These, as members that new flows may go to.
pub(super) fn all_chosen<'a>(backends: impl IntoIterator<Item = &'a Backend>) -> Held {
    let all = backends.into_iter();
    all.map(|backend| (*backend, Members::CHOSEN)).collect()
}

/// The endpoints that flows may be with, and whether new ones may go there.
pub(super) fn members(port: &ServicePort) -> Held {
    let all = port.endpoints.iter();
    let serving = all.filter(|endpoint| endpoint.state.serves());
    let mut held: Held = serving
        .map(|endpoint| (Backend::at(endpoint.address), Members::SERVING))
        .collect();
    held.extend(all_chosen(&backends(port)));
    held
}

pub(super) fn member(id: u32, backend: &Backend) -> Member {
    Member::new(id, backend.address, backend.port)
}

pub(super) fn slot_key(service: u32, version: u32, slot: u32) -> BackendKey {
    BackendKey {
        service,
        version,
        slot,
    }
}

pub(super) fn frontends(port: &ServicePort) -> BTreeSet<Frontend> {
    let all = port.frontends.iter();
    all.map(|(address, number)| Frontend::new(*address, *number, port.protocol))
        .collect()
}

/// Where new flows may go, once each and in the order of the addresses: the same set gives
/// the same rows.
pub(super) fn backends(port: &ServicePort) -> Vec<Backend> {
    let chosen = port.endpoints.iter().filter(|endpoint| endpoint.chosen);
    let sorted: BTreeSet<SocketAddr> = chosen.map(|endpoint| endpoint.address).collect();
    sorted.into_iter().map(Backend::at).collect()
}
