//! Who sends to whom, as the programs count it.

use std::path::Path;

use aya::maps::{Map, MapData, PerCpuArray};
use veer_bpf_common::tables::{Counter, Table, Talk, Talked, Traffic};

use super::{Error, maps::error, ring::pinned};

/// What one CPU saw. It forgets alone, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuTalk {
    /// Number of the CPU.
    pub cpu: u32,
    /// Who sends to whom.
    pub talk: Talk,
}

/// A handle of its own: to read all of it takes thousands of calls, and nobody waits.
pub struct Talks(PerCpuArray<MapData, Talked>);

impl Talks {
    /// The map that is pinned in a folder.
    pub(super) fn open(pins: &Path) -> Result<Self, Error> {
        Ok(Self(pinned::<Traffic, _>(pins, Map::PerCpuArray)?))
    }

    /// All of them, those of each CPU on their own.
    pub fn read(&self) -> Result<Vec<(CpuTalk, Counter)>, Error> {
        let mut found = Vec::new();
        for slot in 0..Traffic::SPEC.max_entries {
            let values = self.0.get(&slot, 0).map_err(error::<Traffic>)?;
            let talked = (0..).zip(values.iter());
            let talked = talked.filter(|(_, talked)| talked.counter.packets != 0);
            found.extend(talked.map(|(cpu, talked)| {
                let talk = talked.talk;
                (CpuTalk { cpu, talk }, talked.counter)
            }));
        }
        Ok(found)
    }
}
