//! Which rows the maps have of Services: numbers, versions, and what follows from them.
//!
//! A port of a Service, in one family and for its internal or its external frontends, has a
//! number while it is there. A change of its backends is a version, whose rows are written
//! under keys of its own before one write of each frontend leads there.

mod left;
mod numbers;
mod rows;
#[cfg(test)]
mod tests;
mod unserved;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use veer_bpf_common::tables::{Backend, BackendKey, Frontend, Service};

pub use rows::{ServiceRows, Step};
pub use unserved::{Refusal, Unserved};

use crate::{family::Family, index::ServicePort};
use left::{Left, left_keys};
use numbers::Numbers;
use rows::{Held, all_chosen, backends, changed, frontends, gone, member, members, slot_key};

/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// What a port of a Service is known by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    port: String,
    protocol: u8,
    family: Family,
    external: bool,
}

impl Name {
    fn of(port: &ServicePort) -> Self {
        Self {
            port: port.name.clone(),
            protocol: port.protocol,
            family: port.family,
            external: port.external,
        }
    }
}

/// A port that claims a frontend. The first in this order has it: a cluster IP goes before
/// an external address, which anybody who may write a Service may name (CVE-2020-8554).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    external: bool,
    service: String,
    id: u32,
}

/// A port with its number's rows.
#[derive(Debug, Default)]
struct Port {
    version: u32,
    /// In the order of their slots.
    backends: Vec<Backend>,
    /// These, and those that serve beside them.
    members: Held,
    affinity: u32,
    frontends: BTreeSet<Frontend>,
    /// What becomes of packets while it has no backends.
    refusal: Refusal,
}

impl Port {
    /// The row of its frontends.
    fn row(&self, id: u32) -> Service {
        Service {
            id,
            version: self.version,
            backends: u32::try_from(self.backends.len()).unwrap_or(u32::MAX),
            affinity: self.affinity,
        }
    }
}

/// What updates have done to a plan.
#[derive(Default)]
struct Changes {
    step: Step,
    /// Frontends whose rows may differ.
    touched: BTreeSet<Frontend>,
    former: Vec<Former>,
    /// The members that numbers had, and of which protocol their ports are.
    members: Vec<(u32, Held, u8)>,
    /// Numbers of ports that are gone.
    gone: Vec<u32>,
}

/// A version that is not the one of its number any more.
struct Former {
    id: u32,
    version: u32,
    backends: Vec<Backend>,
}

/// Which numbers and versions Services have.
#[derive(Debug, Default)]
pub struct Plan {
    /// Numbers of the ports of Services, by `namespace/name`.
    ids: BTreeMap<String, BTreeMap<Name, u32>>,
    ports: HashMap<u32, Port>,
    claims: HashMap<Frontend, BTreeSet<Claim>>,
    /// The rows of frontends in the map.
    shown: HashMap<Frontend, Service>,
    /// Those of them that lead to no backend.
    unserved: Unserved,
    left: Left,
    numbers: Numbers,
}

impl Plan {
    /// Takes up what an earlier agent left in the maps: numbers by frontend, versions and
    /// their slots, so that a restart writes nothing where nothing changed and no number
    /// means two Services.
    pub fn from_present(
        services: &HashMap<Frontend, Service>,
        backends: &HashMap<BackendKey, Backend>,
    ) -> Self {
        let mut left = Left::default();
        for (frontend, service) in services {
            let frontends = left.frontends.entry(service.id).or_default();
            frontends.insert(*frontend);
        }
        for (key, backend) in backends {
            let slots = left.slots.entry(key.service).or_default();
            slots.insert((key.version, key.slot), *backend);
        }
        let numbers = left.frontends.keys().chain(left.slots.keys());
        Self {
            numbers: numbers.copied().collect(),
            unserved: services
                .iter()
                .filter(|(_, service)| service.backends == 0)
                .map(|(frontend, _)| (*frontend, Refusal::default()))
                .collect(),
            shown: services.clone(),
            left,
            ..Self::default()
        }
    }

    /// The Service `key` has these ports now (none: it is gone, or is not translated).
    /// Takes time by the rows of this Service alone.
    pub fn update(&mut self, key: &str, ports: &[ServicePort]) -> Step {
        self.update_all([(key, ports)])
    }

    /// The same of several Services, each named once. A frontend that more than one of them
    /// claims is not written before all are known.
    pub fn update_all<'a>(
        &mut self,
        all: impl IntoIterator<Item = (&'a str, &'a [ServicePort])>,
    ) -> Step {
        let mut before: BTreeMap<&str, BTreeMap<Name, u32>> = BTreeMap::new();
        let mut ports: Vec<(&str, &ServicePort)> = Vec::new();
        for (key, of_service) in all {
            before.insert(key, self.ids.remove(key).unwrap_or_default());
            ports.extend(of_service.iter().map(|port| (key, port)));
        }
        // In the order of claims: who has a frontend takes up the number that it leads to.
        ports.sort_by_key(|(key, port)| (port.external, *key));
        let mut changes = Changes::default();
        for (key, port) in ports {
            let name = Name::of(port);
            // The API server takes no Service that names two ports alike.
            if self.ids.get(key).is_some_and(|ids| ids.contains_key(&name)) {
                continue;
            }
            let id = before.get_mut(key).and_then(|ids| ids.remove(&name));
            let id = self.set(key, port, id, &mut changes);
            let ids = self.ids.entry(key.to_owned()).or_default();
            ids.insert(name, id);
        }
        for (key, ids) in before {
            for (name, id) in ids {
                self.withdraw(key, &name, id, &mut changes);
            }
        }
        self.finish(changes)
    }

    /// A port is as given, with its number, or one that is taken up or new. Returns that.
    fn set(
        &mut self,
        key: &str,
        port: &ServicePort,
        id: Option<u32>,
        changes: &mut Changes,
    ) -> u32 {
        let frontends = frontends(port);
        let id = id.unwrap_or_else(|| self.take_up(&frontends));
        changes.members.push((id, self.members(id), port.protocol));
        let mut held = self.ports.remove(&id).unwrap_or_default();
        let former = self.change(id, &mut held, backends(port), &mut changes.step);
        changes.former.extend(former);
        held.members = members(port);
        held.affinity = port.affinity;
        held.refusal = Refusal::of(port);
        let touched = self.claim(key, (id, port.external), &held.frontends, &frontends);
        changes.touched.extend(touched);
        held.frontends = frontends;
        self.ports.insert(id, held);
        id
    }

    /// A port is gone.
    fn withdraw(&mut self, key: &str, name: &Name, id: u32, changes: &mut Changes) {
        changes.members.push((id, self.members(id), name.protocol));
        let held = self.ports.remove(&id).unwrap_or_default();
        let touched = self.claim(key, (id, name.external), &held.frontends, &BTreeSet::new());
        changes.touched.extend(touched);
        changes.former.push(Former {
            id,
            version: held.version,
            backends: held.backends,
        });
        changes.gone.push(id);
    }

    /// What is to be done when all claims are known.
    fn finish(&mut self, changes: Changes) -> Step {
        let mut step = changes.step;
        for frontend in changes.touched {
            self.show(frontend, &mut step);
        }
        for former in &changes.former {
            self.retire(former, &mut step);
        }
        for (id, before, protocol) in &changes.members {
            let now = self.members(*id);
            step.members.extend(changed(*id, before, &now));
            let gone = gone(*id, before, &now);
            step.gone_datagrams |= *protocol == UDP && !gone.is_empty();
            step.gone_members.extend(gone);
        }
        for id in changes.gone {
            if !self.left.has(id) {
                self.numbers.give_back(id);
            }
        }
        step
    }

    /// Every Service has had an update: what an earlier agent left and no Service has taken
    /// up is to go.
    pub fn drop_left(&mut self) -> Step {
        let left = mem::take(&mut self.left);
        let mut step = Step::default();
        for frontend in left.frontends.values().flatten() {
            self.shown.remove(frontend);
            step.unserved |= self.unserved.remove(frontend).is_some();
            step.gone_services.push(*frontend);
        }
        for (id, slots) in &left.slots {
            let others = gone(*id, &left.members(*id), &self.members(*id));
            // Of which protocol is not known.
            step.gone_datagrams |= !others.is_empty();
            step.gone_members.extend(others);
            step.gone_backends.extend(left_keys(*id, slots));
        }
        for id in left.frontends.keys().chain(left.slots.keys()) {
            if !self.ports.contains_key(id) {
                self.numbers.give_back(*id);
            }
        }
        step
    }

    /// No Service is to be translated: all rows go.
    pub fn clear(&mut self) -> Step {
        let rows = self.rows();
        let unserved = !self.unserved.is_empty();
        let mut numbers = mem::take(&mut self.numbers);
        numbers.give_back_all();
        *self = Self {
            numbers,
            ..Self::default()
        };
        Step {
            gone_services: rows.services.into_keys().collect(),
            gone_members: rows.members.into_keys().collect(),
            gone_backends: rows.backends.into_keys().collect(),
            unserved,
            ..Step::default()
        }
    }

    /// The frontends that lead to no backend now.
    pub fn unserved(&self) -> &Unserved {
        &self.unserved
    }

    /// All rows that the maps should hold; what an earlier agent left is among them until
    /// [`Self::drop_left`].
    pub fn rows(&self) -> ServiceRows {
        let mut rows = ServiceRows {
            services: self.shown.clone(),
            ..ServiceRows::default()
        };
        for (id, port) in &self.ports {
            for (slot, backend) in (0..).zip(&port.backends) {
                rows.backends
                    .insert(slot_key(*id, port.version, slot), *backend);
            }
        }
        for (id, slots) in &self.left.slots {
            for (key, backend) in left_keys(*id, slots).zip(slots.values()) {
                rows.backends.insert(key, *backend);
            }
        }
        for id in self.ports.keys().chain(self.left.slots.keys()) {
            let held = self.members(*id).into_iter();
            rows.members
                .extend(held.map(|(backend, value)| (member(*id, &backend), value)));
        }
        rows
    }

    /// The members of a number. What its port says of one goes before what was left.
    fn members(&self, id: u32) -> Held {
        let mut held = self.left.members(id);
        if let Some(port) = self.ports.get(&id) {
            held.extend(&port.members);
        }
        held
    }

    /// The Services, by `namespace/name`, that it has ports of.
    pub fn keys(&self) -> Vec<String> {
        self.ids.keys().cloned().collect()
    }

    /// A number for a port with these frontends: the one to which one of them leads already,
    /// whose port then has what that has, or a new one.
    fn take_up(&mut self, frontends: &BTreeSet<Frontend>) -> u32 {
        let mut rows = frontends.iter().filter_map(|f| self.shown.get(f)).copied();
        let found = rows.find(|row| {
            let free = !self.ports.contains_key(&row.id);
            row.id != 0 && free && self.left.frontends.contains_key(&row.id)
        });
        let Some(row) = found else {
            return self.numbers.take();
        };
        let backends = self.left.take(&row).unwrap_or_default();
        let port = Port {
            version: row.version,
            members: all_chosen(&backends),
            backends,
            affinity: row.affinity,
            ..Port::default()
        };
        self.ports.insert(row.id, port);
        row.id
    }

    /// Gives a port these backends, in a new version if they differ. Returns the version
    /// before.
    fn change(
        &self,
        id: u32,
        held: &mut Port,
        backends: Vec<Backend>,
        step: &mut Step,
    ) -> Option<Former> {
        if held.backends == backends {
            return None;
        }
        let mut next = held.version.wrapping_add(1);
        // A frontend that an earlier agent left may lead there.
        while self.left.has_version(id, next) {
            next = next.wrapping_add(1);
        }
        let slots = (0..).zip(&backends);
        step.backends
            .extend(slots.map(|(slot, backend)| (slot_key(id, next, slot), *backend)));
        Some(Former {
            id,
            version: mem::replace(&mut held.version, next),
            backends: mem::replace(&mut held.backends, backends),
        })
    }

    /// A port claims these frontends, and no others. Returns those whose rows may differ.
    fn claim(
        &mut self,
        service: &str,
        (id, external): (u32, bool),
        before: &BTreeSet<Frontend>,
        now: &BTreeSet<Frontend>,
    ) -> BTreeSet<Frontend> {
        let claim = Claim {
            external,
            service: service.to_owned(),
            id,
        };
        for frontend in before.difference(now) {
            if let Some(claims) = self.claims.get_mut(frontend) {
                claims.remove(&claim);
                if claims.is_empty() {
                    self.claims.remove(frontend);
                }
            }
        }
        for frontend in now {
            let claims = self.claims.entry(*frontend).or_default();
            claims.insert(claim.clone());
            if let Some(row) = self.shown.get(frontend) {
                self.left.claimed(row.id, frontend);
            }
        }
        before.union(now).copied().collect()
    }

    /// Brings the row of a frontend to what the first of its claims says.
    fn show(&mut self, frontend: Frontend, step: &mut Step) {
        let first = self.claims.get(&frontend).and_then(BTreeSet::first);
        let port = first.and_then(|claim| Some((claim.id, self.ports.get(&claim.id)?)));
        let refusal = port.and_then(|(_, port)| port.backends.is_empty().then_some(port.refusal));
        let row = port.map(|(id, port)| port.row(id));
        if self.unserved.get(&frontend).copied() != refusal {
            step.unserved = true;
            match refusal {
                Some(refusal) => self.unserved.insert(frontend, refusal),
                None => self.unserved.remove(&frontend),
            };
        }
        if self.shown.get(&frontend).copied() == row {
            return;
        }
        if let Some(row) = row {
            self.shown.insert(frontend, row);
            step.services.push((frontend, row));
        } else {
            self.shown.remove(&frontend);
            step.gone_services.push(frontend);
        }
    }

    /// Removes a version that was. It stays while a frontend that an earlier agent left
    /// leads to its number.
    fn retire(&mut self, former: &Former, step: &mut Step) {
        let Former {
            id,
            version,
            backends,
        } = former;
        if self.left.frontends.contains_key(id) {
            let slots = (0..).zip(backends);
            let slots = slots.map(|(slot, backend)| ((*version, slot), *backend));
            self.left.slots.entry(*id).or_default().extend(slots);
            return;
        }
        let slots = (0..).zip(backends);
        step.gone_backends
            .extend(slots.map(|(slot, _)| slot_key(*id, *version, slot)));
    }
}
