//! Maps in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use veer_bpf_common::tables::{
    Backends, Configuration, Endpoints, Interfaces, Ipcache, Members, Nodes, Remotes, Services,
};

use crate::tables::{Entries, Error, Filled, Rows, Tables};

/// A map in memory, and how often it was written to.
#[derive(Default)]
pub(super) struct Memory<T: Filled> {
    pub(super) entries: Entries<T>,
    /// More entries are refused; `None`: none are.
    pub(super) limit: Option<usize>,
    writes: usize,
}

pub(super) type Shared<T> = Arc<Mutex<Memory<T>>>;

struct InMemory<T: Filled>(Shared<T>);

impl<T: Filled> Rows<T> for InMemory<T> {
    fn read(&mut self, _: Option<&Entries<T>>) -> Result<Entries<T>, Error> {
        Ok(self.0.lock().unwrap().entries.clone())
    }

    fn get(&self, key: &T::Key) -> Result<Option<T::Value>, Error> {
        Ok(self.0.lock().unwrap().entries.get(key).copied())
    }

    fn write(&mut self, key: T::Key, value: T::Value) -> Result<(), Error> {
        let mut memory = self.0.lock().unwrap();
        let is_full = memory.limit.is_some_and(|max| memory.entries.len() >= max);
        if is_full && !memory.entries.contains_key(&key) {
            return Err(Error {
                name: T::NAME,
                source: "full".into(),
            });
        }
        memory.writes += 1;
        memory.entries.insert(key, value);
        Ok(())
    }

    fn remove(&mut self, key: T::Key) -> Result<(), Error> {
        let mut memory = self.0.lock().unwrap();
        memory.writes += 1;
        memory.entries.remove(&key);
        Ok(())
    }
}

/// The kernel of these tests. It outlives the agent.
pub(super) struct Kernel {
    pub(super) config: Shared<Configuration>,
    pub(super) endpoints: Shared<Endpoints>,
    pub(super) interfaces: Shared<Interfaces>,
    pub(super) ipcache: Shared<Ipcache>,
    pub(super) nodes: Shared<Nodes>,
    pub(super) remotes: Shared<Remotes>,
    pub(super) services: Shared<Services>,
    pub(super) backends: Shared<Backends>,
    pub(super) members: Shared<Members>,
}

fn empty<T: Filled>() -> Shared<T> {
    Arc::new(Mutex::new(Memory {
        entries: HashMap::new(),
        limit: None,
        writes: 0,
    }))
}

impl Kernel {
    pub(super) fn new() -> Self {
        Self {
            config: empty(),
            endpoints: empty(),
            interfaces: empty(),
            ipcache: empty(),
            nodes: empty(),
            remotes: empty(),
            services: empty(),
            backends: empty(),
            members: empty(),
        }
    }

    pub(super) fn tables(&self) -> Tables {
        Tables::new(
            InMemory(self.config.clone()),
            InMemory(self.endpoints.clone()),
            InMemory(self.interfaces.clone()),
            InMemory(self.ipcache.clone()),
            InMemory(self.nodes.clone()),
            InMemory(self.remotes.clone()),
            (
                InMemory(self.services.clone()),
                InMemory(self.backends.clone()),
                InMemory(self.members.clone()),
            ),
        )
    }

    pub(super) fn writes(&self) -> usize {
        fn of<T: Filled>(map: &Shared<T>) -> usize {
            map.lock().unwrap().writes
        }
        of(&self.config)
            + of(&self.endpoints)
            + of(&self.interfaces)
            + of(&self.ipcache)
            + of(&self.nodes)
            + of(&self.remotes)
            + of(&self.services)
            + of(&self.backends)
            + of(&self.members)
    }
}
