//! The maps: those that the agent fills, and those that it reads.

use aya::{
    Ebpf,
    maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, PerCpuArray},
};
use veer_agent_core::tables::Tables;
use veer_bpf_common::{
    outcome::{DropReason, Program, outcomes},
    tables::{
        Backend, Backends, Configuration, Counter, Counters, Endpoints, Event, Heartbeat,
        HostSockets, Interfaces, Ipcache, Members, Nodes, Remotes, Samples, Services, SocketKey,
        Sockets, Table,
    },
};

use super::{
    Error,
    rows::{ArrayRows, HashRows, TrieRows},
    sockets,
};

/// All maps that the agent reads or writes.
pub struct Maps {
    /// Those that it fills.
    pub tables: Tables,
    counters: PerCpuArray<MapData, Counter>,
    samples: PerCpuArray<MapData, Event>,
    heartbeat: Array<MapData, u64>,
    pub(super) host_sockets: sockets::Words,
    pub(super) sockets: BpfHashMap<MapData, SocketKey, Backend>,
}

/// Takes the map of a [`Table`] out of an object, as the handle that is wanted.
fn take<T: Table, M>(object: &mut Ebpf) -> Result<M, Error>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = object.take_map(T::NAME).ok_or(Error::MissingMap(T::NAME))?;
    M::try_from(map).map_err(error::<T>)
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(object: &mut Ebpf) -> Result<Self, Error> {
        let config = take::<Configuration, Array<_, _>>(object)?;
        let endpoints = take::<Endpoints, BpfHashMap<_, _, _>>(object)?;
        let interfaces = take::<Interfaces, BpfHashMap<_, _, _>>(object)?;
        let ipcache = take::<Ipcache, LpmTrie<_, _, _>>(object)?;
        let nodes = take::<Nodes, BpfHashMap<_, _, _>>(object)?;
        let remotes = take::<Remotes, Array<_, _>>(object)?;
        let services = take::<Services, BpfHashMap<_, _, _>>(object)?;
        let backends = take::<Backends, BpfHashMap<_, _, _>>(object)?;
        let members = take::<Members, BpfHashMap<_, _, _>>(object)?;
        Ok(Self {
            tables: Tables::new(
                ArrayRows::new(config),
                HashRows(endpoints),
                HashRows(interfaces),
                TrieRows(ipcache),
                HashRows(nodes),
                ArrayRows::new(remotes),
                (HashRows(services), HashRows(backends), HashRows(members)),
            ),
            counters: take::<Counters, _>(object)?,
            samples: take::<Samples, _>(object)?,
            heartbeat: take::<Heartbeat, _>(object)?,
            host_sockets: take::<HostSockets, _>(object)?,
            sockets: take::<Sockets, _>(object)?,
        })
    }

    /// The packets that a program ended so, on all CPUs.
    pub fn counter(&self, program: Program, outcome: u32) -> Result<Counter, Error> {
        let index = Counters::index(program, outcome);
        let values = self.counters.get(&index, 0).map_err(error::<Counters>)?;
        Ok(values.iter().copied().sum())
    }

    /// All counters that are not zero, by program and outcome.
    pub fn counted(
        &self,
    ) -> impl Iterator<Item = Result<(Program, u32, &'static str, Counter), Error>> + '_ {
        let all = Program::ALL
            .iter()
            .flat_map(|program| outcomes().map(move |(outcome, name)| (*program, outcome, name)));
        all.filter_map(
            |(program, outcome, name)| match self.counter(program, outcome) {
                Ok(counter) if counter.packets == 0 => None,
                counter => Some(counter.map(|counter| (program, outcome, name, counter))),
            },
        )
    }

    /// All samples of drops, of all CPUs.
    pub fn samples(&self) -> Result<Vec<(Program, DropReason, Event)>, Error> {
        let mut found = Vec::new();
        for program in Program::ALL {
            for reason in DropReason::ALL {
                for window in 0..u64::from(Samples::PER_REASON) {
                    let index = Samples::index(*program, *reason, window);
                    let values = self.samples.get(&index, 0).map_err(error::<Samples>)?;
                    let some = values.iter().filter(|sample| sample.at != 0);
                    found.extend(some.map(|sample| (*program, *reason, *sample)));
                }
            }
        }
        Ok(found)
    }

    /// What a socket of the node asked for, given by its cookie, when it was given this
    /// backend; `None`: it asked for that itself, or is not the node's.
    pub fn asked_by(&self, cookie: u64, backend: &Backend) -> Result<Option<Backend>, Error> {
        match self.sockets.get(&SocketKey::given(cookie, backend), 0) {
            Ok(asked) => Ok(Some(asked)),
            Err(aya::maps::MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(error::<Sockets>(source)),
        }
    }

    /// Tells the programs that the agent lives and has compared their maps with the
    /// node, at `now`, nanoseconds of `CLOCK_MONOTONIC`.
    pub fn beat(&mut self, now: u64) -> Result<(), Error> {
        self.heartbeat.set(0, now, 0).map_err(error::<Heartbeat>)
    }
}

pub(super) fn error<T: Table>(source: aya::maps::MapError) -> Error {
    Error::Map {
        name: T::NAME,
        source,
    }
}
