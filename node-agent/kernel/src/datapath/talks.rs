//! Who sends to whom, as the programs count it.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuHashMap};
use veer_bpf_common::tables::{Counter, Talk, Traffic};

use super::{Error, maps::error, ring::pinned};

/// A handle of its own: to read all of it takes thousands of calls, and nobody waits.
pub struct Talks(PerCpuHashMap<MapData, Talk, Counter>);

impl Talks {
    /// The map that is pinned in a folder.
    pub(super) fn open(pins: &Path) -> Result<Self, Error> {
        Ok(Self(pinned::<Traffic, _>(pins, Map::PerCpuLruHashMap)?))
    }

    /// All of them, on all CPUs together. One that the programs forget meanwhile is missing.
    pub fn read(&self) -> Result<Vec<(Talk, Counter)>, Error> {
        let mut found = Vec::new();
        for talk in self.0.keys() {
            let talk = talk.map_err(error::<Traffic>)?;
            match self.0.get(&talk, 0) {
                Ok(values) => {
                    let counter = Counter {
                        packets: values.iter().map(|c| c.packets).sum(),
                        bytes: values.iter().map(|c| c.bytes).sum(),
                    };
                    found.push((talk, counter));
                }
                Err(MapError::KeyNotFound) => {}
                Err(other) => return Err(error::<Traffic>(other)),
            }
        }
        // A walk that met a forgotten key began again.
        found.sort_unstable_by_key(|(talk, _)| {
            (talk.source, talk.destination, talk.program, talk.outcome)
        });
        found.dedup_by_key(|(talk, _)| *talk);
        Ok(found)
    }
}
