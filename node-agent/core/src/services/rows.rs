//! Rows of Services, and what they are made of.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use veer_bpf_common::{
    address::IpKey,
    tables::{Backend, BackendKey, Frontend, Member, Service},
};

use crate::index::ServicePort;

/// Rows to write and to remove, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Slots of new versions.
    pub backends: Vec<(BackendKey, Backend)>,
    /// New backends.
    pub members: Vec<Member>,
    /// Frontends that are new or lead elsewhere now.
    pub services: Vec<(Frontend, Service)>,
    /// Frontends that lead nowhere any more.
    pub gone_services: Vec<Frontend>,
    /// Backends that are none any more.
    pub gone_members: Vec<Member>,
    /// Slots of former versions.
    pub gone_backends: Vec<BackendKey>,
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

/// What of `all` is not among `others`, as members.
pub(super) fn beyond(id: u32, all: &[Backend], others: &[Backend]) -> Vec<Member> {
    let others: HashSet<&Backend> = others.iter().collect();
    let rest = all.iter().filter(|backend| !others.contains(backend));
    rest.map(|backend| member(id, backend)).collect()
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
    all.map(|(address, number)| frontend(*address, *number, port.protocol))
        .collect()
}

pub(super) fn frontend(address: IpAddr, port: u16, protocol: u8) -> Frontend {
    let key = IpKey::from(address);
    Frontend {
        address: *key.addr(),
        port: port.to_be_bytes(),
        protocol,
        family: key.family(),
        pad: [0; 4],
    }
}

/// Where new flows may go, once each and in the order of the addresses: the same set gives
/// the same rows.
pub(super) fn backends(port: &ServicePort) -> Vec<Backend> {
    let chosen = port.endpoints.iter().filter(|endpoint| endpoint.chosen);
    let sorted: BTreeSet<SocketAddr> = chosen.map(|endpoint| endpoint.address).collect();
    sorted.into_iter().map(backend).collect()
}

pub(super) fn backend(at: SocketAddr) -> Backend {
    let key = IpKey::from(at.ip());
    Backend {
        address: *key.addr(),
        port: at.port().to_be_bytes(),
        family: key.family(),
        pad: [0; 5],
    }
}
