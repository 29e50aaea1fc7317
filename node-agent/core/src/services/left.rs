//! What an earlier agent left in the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use veer_bpf_common::tables::{Backend, BackendKey, Frontend, Service};

use super::rows::{Held, all_chosen, slot_key};

/// What an earlier agent left and no port has taken up, by number.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) frontends: HashMap<u32, BTreeSet<Frontend>>,
    /// Backends by version and slot.
    pub(super) slots: HashMap<u32, BTreeMap<(u32, u32), Backend>>,
}

impl Left {
    /// A port claims the frontend, which leads to this number.
    pub(super) fn claimed(&mut self, id: u32, frontend: &Frontend) {
        if let Some(frontends) = self.frontends.get_mut(&id) {
            frontends.remove(frontend);
            if frontends.is_empty() {
                self.frontends.remove(&id);
            }
        }
    }

    /// Whether it has slots of this version.
    pub(super) fn has_version(&self, id: u32, version: u32) -> bool {
        let slots = self.slots.get(&id);
        slots.is_some_and(|s| s.range((version, 0)..=(version, u32::MAX)).next().is_some())
    }

    /// Takes the backends that a row leads to; `None`: not all of them are there.
    pub(super) fn take(&mut self, row: &Service) -> Option<Vec<Backend>> {
        let mut none = BTreeMap::new();
        let slots = self.slots.get_mut(&row.id).unwrap_or(&mut none);
        let keys = || (0..row.backends).map(|slot| (row.version, slot));
        let backends: Vec<Backend> = keys().map_while(|key| slots.get(&key).copied()).collect();
        if u32::try_from(backends.len()) != Ok(row.backends) {
            return None;
        }
        for key in keys() {
            slots.remove(&key);
        }
        if slots.is_empty() {
            self.slots.remove(&row.id);
        }
        Some(backends)
    }

    /// The backends of its slots. What else an earlier agent had as members is not known: it
    /// is written again, or goes when the maps are compared.
    pub(super) fn members(&self, id: u32) -> Held {
        let slots = self.slots.get(&id);
        all_chosen(slots.into_iter().flat_map(BTreeMap::values))
    }

    /// Whether rows of this number may be there.
    pub(super) fn has(&self, id: u32) -> bool {
        self.frontends.contains_key(&id) || self.slots.contains_key(&id)
    }
}

/// The keys of slots of a number, in their order.
pub(super) fn left_keys(
    id: u32,
    slots: &BTreeMap<(u32, u32), Backend>,
) -> impl Iterator<Item = BackendKey> {
    let keys = slots.keys();
    keys.map(move |(version, slot)| slot_key(id, *version, *slot))
}
