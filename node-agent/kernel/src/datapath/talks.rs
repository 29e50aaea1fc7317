//! Who sends to whom, as the programs count it.

use std::{collections::BTreeMap, path::Path};

use aya::maps::{Map, MapData, PerCpuArray};
use veer_bpf_common::tables::{Counter, Table, Talk, Talked, Traffic};

use super::{Error, maps::error, ring::pinned};

/// A handle of its own: to read all of it takes thousands of calls, and nobody waits.
pub struct Talks(PerCpuArray<MapData, Talked>);

impl Talks {
    /// The map that is pinned in a folder.
    pub(super) fn open(pins: &Path) -> Result<Self, Error> {
        Ok(Self(pinned::<Traffic, _>(pins, Map::PerCpuArray)?))
    }

    /// All of them, on all CPUs together, in the order of their keys.
    pub fn read(&self) -> Result<Vec<(Talk, Counter)>, Error> {
        let mut found: BTreeMap<Talk, Counter> = BTreeMap::new();
        for slot in 0..Traffic::SPEC.max_entries {
            let values = self.0.get(&slot, 0).map_err(error::<Traffic>)?;
            for talked in values.iter().filter(|talked| talked.counter.packets != 0) {
                let counter = found.entry(talked.talk).or_default();
                counter.packets += talked.counter.packets;
                counter.bytes += talked.counter.bytes;
            }
        }
        Ok(found.into_iter().collect())
    }
}
