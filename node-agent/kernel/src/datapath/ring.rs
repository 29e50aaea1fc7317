//! The programs' decisions, for those who listen.

use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray, RingBuf};
use veer_bpf_common::{
    outcome::{Observation, Program},
    tables::{Counter, Counters, Events, Listen, Listening, Record, Table},
};

use super::{Error, maps::error};

/// The ring of events, and the switch that makes the programs fill it. Handles of its
/// own: a reader never waits for the comparison of the maps.
pub struct Ring {
    pins: PathBuf,
    listening: Array<MapData, Listen>,
    counters: PerCpuArray<MapData, Counter>,
}

impl Ring {
    /// The ring that is pinned in a folder.
    pub(super) fn open(pins: &Path) -> Result<Self, Error> {
        Ok(Self {
            pins: pins.to_owned(),
            listening: pinned::<Listening, _>(pins, Map::Array)?,
            counters: pinned::<Counters, _>(pins, Map::PerCpuArray)?,
        })
    }

    /// Says which decisions are wanted, and until when.
    pub fn listen(&mut self, listen: Listen) -> Result<(), Error> {
        let set = self.listening.set(0, listen, 0);
        set.map_err(error::<Listening>)
    }

    /// How many events the programs lost so far, as the ring was full.
    pub fn lost(&self) -> Result<u64, Error> {
        let lost = |program: &Program| {
            let index = Counters::index(*program, Observation::EventLost as u32);
            let values = self.counters.get(&index, 0).map_err(error::<Counters>)?;
            Ok(values.iter().map(|counter| counter.packets).sum::<u64>())
        };
        Program::ALL.iter().map(lost).sum()
    }

    /// A reader of what comes from now on. There is one at a time: what it takes is gone.
    pub fn read(&self) -> Result<Reader, Error> {
        let mut reader = Reader(pinned::<Events, _>(&self.pins, Map::RingBuf)?);
        // What nobody was there to hear.
        while reader.0.next().is_some() {}
        Ok(reader)
    }
}

/// A map that is pinned under its name, as a handle of its kind.
pub(super) fn pinned<T: Table, M>(pins: &Path, kind: fn(MapData) -> Map) -> Result<M, Error>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = MapData::from_pin(pins.join(T::NAME)).map_err(error::<T>)?;
    M::try_from(kind(map)).map_err(error::<T>)
}

/// Reads the ring. The position from which it reads is in the kernel, and is looked up
/// when it begins.
pub struct Reader(RingBuf<MapData>);

impl Reader {
    /// Takes out at most `most` [`Record`]s and appends them to `to`, one behind the other.
    /// Returns how many there were in another form, which programs of another version
    /// write.
    pub fn take(&mut self, most: usize, to: &mut Vec<u8>) -> u64 {
        let mut others = 0;
        for _ in 0..most {
            let Some(record) = self.0.next() else {
                break;
            };
            if record.len() == Record::SIZE {
                to.extend_from_slice(&record);
            } else {
                others += 1;
            }
        }
        others
    }
}
