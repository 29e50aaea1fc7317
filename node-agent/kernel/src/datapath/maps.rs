//! The maps as typed handles, and the difference between what they hold and
//! what they should.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as BpfHashMap, LpmTrie, MapData, PerCpuArray, lpm_trie::Key},
};
use veer_bpf_common::{
    key::{FlowKey, IP_KEY_TAG_BITS, IpKey},
    maps::{
        CONFIG, COUNTERS, ENDPOINTS, FLOWS, HEARTBEAT, INTERFACES, IPCACHE, NODES, REMOTES,
        REMOTES_MAX, SAMPLES,
    },
    outcome::{DropReason, Program, SAMPLES_PER_REASON, counter_index, outcomes, sample_index},
    value::{Config, Counter, DropSample, Endpoint, FlowNote, Interface, IpcacheEntry, Remote},
};

use super::Error;
use veer_agent_core::prefix::Prefix;

/// Typed handles of all maps the agent reads or writes.
pub struct Maps {
    pub config: Array<MapData, Config>,
    pub endpoints: BpfHashMap<MapData, IpKey, Endpoint>,
    pub interfaces: BpfHashMap<MapData, u32, Interface>,
    pub ipcache: LpmTrie<MapData, IpKey, IpcacheEntry>,
    pub nodes: BpfHashMap<MapData, IpKey, u32>,
    pub remotes: Array<MapData, Remote>,
    pub flows: BpfHashMap<MapData, FlowKey, FlowNote>,
    pub counters: PerCpuArray<MapData, Counter>,
    samples: PerCpuArray<MapData, DropSample>,
    heartbeat: Array<MapData, u64>,
    /// What the entries were when last written here, or taken over.
    pub shadow: Shadow,
    /// Where the look at unused remotes goes on.
    turn: u32,
}

/// Unused entries of the remotes' array looked at in one round; all of them, as a
/// read takes a system call each, would be most of a small cluster's round.
const REMOTES_IN_TURN: u32 = 512;

/// The maps' entries as this agent wrote them. Only agents write these maps, one
/// at a time, so an entry that differs from here is somebody else's work.
#[derive(Debug, Default)]
pub struct Shadow {
    /// The maps were compared once: what is noted here is all there is.
    pub begun: bool,
    pub config: Option<Config>,
    pub endpoints: HashMap<IpKey, Endpoint>,
    pub interfaces: HashMap<u32, Interface>,
    pub ipcache: HashMap<Prefix, IpcacheEntry>,
    pub nodes: HashMap<IpKey, u32>,
    pub remotes: HashMap<u32, Remote>,
}

fn note<K: Eq + Hash, V>(shadow: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => shadow.insert(key, value),
        None => shadow.remove(&key),
    };
}

macro_rules! take {
    ($object:expr, $name:expr) => {
        $object
            .take_map($name)
            .ok_or(Error::MissingMap($name))?
            .try_into()
            .map_err(|source| Error::Map {
                name: $name,
                source,
            })?
    };
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(object: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: take!(object, CONFIG),
            endpoints: take!(object, ENDPOINTS),
            interfaces: take!(object, INTERFACES),
            ipcache: take!(object, IPCACHE),
            nodes: take!(object, NODES),
            remotes: take!(object, REMOTES),
            flows: take!(object, FLOWS),
            counters: take!(object, COUNTERS),
            samples: take!(object, SAMPLES),
            heartbeat: take!(object, HEARTBEAT),
            shadow: Shadow::default(),
            turn: 0,
        })
    }

    /// Entries of the remotes' array that are in use. Once this agent has written
    /// them it looks at its own each time and at the others in turn: what stands
    /// in an entry that no row names changes nothing.
    pub fn used_remotes(&mut self) -> Result<HashMap<u32, Remote>, Error> {
        let last = u32::try_from(REMOTES_MAX).unwrap_or(u32::MAX);
        let mut ids: BTreeSet<u32> = self.shadow.remotes.keys().copied().collect();
        if self.shadow.begun {
            let end = (self.turn + REMOTES_IN_TURN).min(last);
            ids.extend(self.turn..end);
            self.turn = if end == last { 0 } else { end };
        } else {
            ids.extend(0..last);
        }
        let mut found = HashMap::new();
        for id in ids {
            let remote = self.remotes.get(&id, 0).map_err(error(REMOTES))?;
            if remote != Remote::default() {
                found.insert(id, remote);
            }
        }
        Ok(found)
    }

    /// The packets that a program ended so, on all CPUs.
    pub fn counter(&self, program: Program, outcome: u32) -> Result<Counter, Error> {
        let index = counter_index(program, outcome);
        let values = self.counters.get(&index, 0).map_err(error(COUNTERS))?;
        Ok(Counter {
            packets: values.iter().map(|c| c.packets).sum(),
            bytes: values.iter().map(|c| c.bytes).sum(),
        })
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
    pub fn samples(&self) -> Result<Vec<(Program, DropReason, DropSample)>, Error> {
        let mut found = Vec::new();
        for program in Program::ALL {
            for reason in DropReason::ALL {
                for window in 0..u64::from(SAMPLES_PER_REASON) {
                    let index = sample_index(*program, *reason, window);
                    let values = self.samples.get(&index, 0).map_err(error(SAMPLES))?;
                    let some = values.iter().filter(|sample| sample.at != 0);
                    found.extend(some.map(|sample| (*program, *reason, *sample)));
                }
            }
        }
        Ok(found)
    }

    /// All rows of the ipcache.
    pub fn ipcache_rows(&self) -> Result<HashMap<Prefix, IpcacheEntry>, Error> {
        let mut found = HashMap::new();
        for row in &self.ipcache {
            let (key, entry) = row.map_err(error(IPCACHE))?;
            let length = u8::try_from(key.prefix_len().saturating_sub(IP_KEY_TAG_BITS));
            found.insert((length.unwrap_or(0), key.data()), entry);
        }
        Ok(found)
    }

    /// Writes one row of the ipcache, or removes it.
    pub fn set_ipcache(
        &mut self,
        (length, address): Prefix,
        entry: Option<IpcacheEntry>,
    ) -> Result<(), Error> {
        let key = Key::new(IP_KEY_TAG_BITS + u32::from(length), address);
        match entry {
            Some(entry) => self.ipcache.insert(&key, entry, 0),
            None => absent_is_fine(self.ipcache.remove(&key)),
        }
        .map_err(error(IPCACHE))?;
        note(&mut self.shadow.ipcache, (length, address), entry);
        Ok(())
    }

    /// Writes or removes the rows of one local pod address.
    pub fn set_endpoint(
        &mut self,
        address: IpKey,
        endpoint: Option<Endpoint>,
    ) -> Result<(), Error> {
        match endpoint {
            Some(e) => self.endpoints.insert(address, e, 0),
            None => absent_is_fine(self.endpoints.remove(&address)),
        }
        .map_err(error(ENDPOINTS))?;
        note(&mut self.shadow.endpoints, address, endpoint);
        Ok(())
    }

    /// Writes or removes the row of one host-side veth.
    pub fn set_interface(&mut self, index: u32, interface: Option<Interface>) -> Result<(), Error> {
        match interface {
            Some(i) => self.interfaces.insert(index, i, 0),
            None => absent_is_fine(self.interfaces.remove(&index)),
        }
        .map_err(error(INTERFACES))?;
        note(&mut self.shadow.interfaces, index, interface);
        Ok(())
    }

    /// Writes or removes a node's address.
    pub fn set_node(&mut self, address: IpKey, id: Option<u32>) -> Result<(), Error> {
        match id {
            Some(id) => self.nodes.insert(address, id, 0),
            None => absent_is_fine(self.nodes.remove(&address)),
        }
        .map_err(error(NODES))?;
        note(&mut self.shadow.nodes, address, id);
        Ok(())
    }

    /// Writes a node's entry; a default entry is an unused one.
    pub fn set_remote(&mut self, id: u32, remote: Remote) -> Result<(), Error> {
        self.remotes.set(id, remote, 0).map_err(error(REMOTES))?;
        let used = (remote != Remote::default()).then_some(remote);
        note(&mut self.shadow.remotes, id, used);
        Ok(())
    }

    /// Tells the programs that the agent lives and has compared their maps with the
    /// node, at `now`, nanoseconds of `CLOCK_MONOTONIC`.
    pub fn beat(&mut self, now: u64) -> Result<(), Error> {
        self.heartbeat.set(0, now, 0).map_err(error(HEARTBEAT))
    }

    /// The node's configuration.
    pub fn present_config(&self) -> Result<Config, Error> {
        self.config.get(&0, 0).map_err(error(CONFIG))
    }

    /// Writes the node's configuration.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        self.config.set(0, config, 0).map_err(error(CONFIG))?;
        self.shadow.config = Some(config);
        Ok(())
    }
}

/// Reads a whole hash map.
pub fn read_all<K: Pod + Hash + Eq, V: Pod>(
    map: &BpfHashMap<MapData, K, V>,
    name: &'static str,
) -> Result<HashMap<K, V>, Error> {
    map.iter()
        .map(|row| row.map_err(error(name)))
        .collect::<Result<_, _>>()
}

fn absent_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(e))
            if e.io_error.raw_os_error() == Some(nix::libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn error(name: &'static str) -> impl Fn(aya::maps::MapError) -> Error {
    move |source| Error::Map { name, source }
}
