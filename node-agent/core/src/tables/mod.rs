//! The maps that the agent fills, against what they should hold. All writes of theirs
//! are here: a round compares whole maps, a pod that comes, goes or changes is a round
//! of one address. What differs is written; what differs from what this agent wrote is
//! somebody else's work and told.
//!
//! Where the entries are is behind [`Rows`]: the kernel, or a test's tables.

mod services;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use veer_bpf_common::{
    address::{IP_KEY_TAG_BITS, IpKey, PrefixKey},
    device::IfIndex,
    tables::{
        Backends, Configuration, Endpoints, Interfaces, Ipcache, Members, Nodes, Remote, Remotes,
        Services, Table,
    },
};

use crate::{
    desired::{AddressRows, Desired},
    diff::{Difference, compare},
    prefix::host_prefix,
};

/// A key that people can read.
pub trait Key: Copy + Eq + Hash + Send {
    /// The key in words.
    fn text(&self) -> String;
}

impl Key for u32 {
    fn text(&self) -> String {
        self.to_string()
    }
}

impl Key for IpKey {
    fn text(&self) -> String {
        self.to_ip()
            .map_or_else(|| "of no family".into(), |ip| ip.to_string())
    }
}

impl Key for PrefixKey {
    fn text(&self) -> String {
        let length = self.bits.saturating_sub(IP_KEY_TAG_BITS);
        format!("{}/{length}", self.ip.text())
    }
}

/// A map that the agent fills.
pub trait Filled: Table<Key: Key, Value: Copy + PartialEq + Send> {}
impl<T: Table<Key: Key, Value: Copy + PartialEq + Send>> Filled for T {}

/// The entries of a map by key.
pub type Entries<T> = HashMap<<T as Table>::Key, <T as Table>::Value>;

/// A map operation failed.
#[derive(Debug, thiserror::Error)]
#[error("map {name}")]
pub struct Error {
    /// Which map.
    pub name: &'static str,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The entries of one map, wherever they are.
pub trait Rows<T: Filled>: Send {
    /// All entries that are in use. `own` are those that the agent knows to have
    /// written; with it, of an array whose unused entries are many, some of these may be
    /// left to later calls. `None`: nothing is known yet, so all are read.
    fn read(&mut self, own: Option<&Entries<T>>) -> Result<Entries<T>, Error>;

    /// One entry.
    fn get(&self, key: &T::Key) -> Result<Option<T::Value>, Error>;

    /// Writes one entry.
    fn write(&mut self, key: T::Key, value: T::Value) -> Result<(), Error>;

    /// Removes one entry; fine when there is none.
    fn remove(&mut self, key: T::Key) -> Result<(), Error>;
}

/// A map with what this agent wrote into it. Only agents write these maps, one at a
/// time, so an entry that is otherwise is somebody else's work.
pub struct Tracked<T: Filled> {
    rows: Box<dyn Rows<T>>,
    /// `None`: not compared yet.
    own: Option<Entries<T>>,
}

impl<T: Filled> Tracked<T> {
    fn new(rows: Box<dyn Rows<T>>) -> Self {
        Self { rows, own: None }
    }

    /// All entries in use.
    pub fn read(&mut self) -> Result<Entries<T>, Error> {
        self.rows.read(self.own.as_ref())
    }

    /// One entry, as it is.
    pub fn get(&self, key: &T::Key) -> Result<Option<T::Value>, Error> {
        self.rows.get(key)
    }

    /// One entry, as this agent wrote it, or as it is while none has been compared.
    fn known(&self, key: &T::Key) -> Result<Option<T::Value>, Error> {
        match &self.own {
            Some(own) => Ok(own.get(key).copied()),
            None => self.get(key),
        }
    }

    /// How many entries this agent has written.
    pub fn len(&self) -> usize {
        self.own.as_ref().map_or(0, HashMap::len)
    }

    /// Whether this agent has written no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is to be done with the map, which holds `found`.
    fn audit(
        &mut self,
        found: Entries<T>,
        wanted: &Entries<T>,
        complete: bool,
        tell: &mut impl FnMut(String),
    ) -> Difference<T::Key, T::Value> {
        let begun = self.own.is_some();
        let own = self.own.get_or_insert_default();
        let compared = compare(found, own, wanted, complete, begun);
        compared.tell(|key, how| {
            tell(format!("entry {} of map {} was {how}", key.text(), T::NAME));
        });
        compared.todo
    }

    fn set(&mut self, key: T::Key, value: Option<T::Value>) -> Result<(), Error> {
        match value {
            Some(value) => self.rows.write(key, value)?,
            None => self.rows.remove(key)?,
        }
        match (&mut self.own, value) {
            (Some(own), Some(value)) => own.insert(key, value),
            (Some(own), None) => own.remove(&key),
            (None, _) => None,
        };
        Ok(())
    }

    /// Brings one entry to what it should be.
    fn bring(&mut self, key: T::Key, value: Option<T::Value>) -> Result<(), Error> {
        if self.own.is_some() && self.known(&key)? == value {
            return Ok(());
        }
        self.set(key, value)
    }

    fn write(&mut self, entries: Vec<(T::Key, T::Value)>) -> Result<(), Error> {
        let mut entries = entries.into_iter();
        entries.try_for_each(|(key, value)| self.set(key, Some(value)))
    }

    fn remove(&mut self, keys: Vec<T::Key>) -> Result<(), Error> {
        keys.into_iter().try_for_each(|key| self.set(key, None))
    }
}

/// What the lists that the desired state was made from let a comparison do.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Every node is known: the others' entries go.
    pub nodes: bool,
    /// Every node and every pod is known.
    pub rows: bool,
    /// Compare the ipcache too, the one map that grows with the cluster.
    pub ipcache: bool,
}

/// All maps that the agent fills.
pub struct Tables {
    /// The node's configuration.
    pub config: Tracked<Configuration>,
    /// Local pods by address.
    pub endpoints: Tracked<Endpoints>,
    /// Local pods by device.
    pub interfaces: Tracked<Interfaces>,
    /// Who an address is.
    pub ipcache: Tracked<Ipcache>,
    /// Which node has an address.
    pub nodes: Tracked<Nodes>,
    /// Other nodes.
    pub remotes: Tracked<Remotes>,
    /// What clients of Services send to.
    pub services: Tracked<Services>,
    /// Where that leads.
    pub backends: Tracked<Backends>,
    /// Which backends Services have.
    pub members: Tracked<Members>,
}

impl Tables {
    /// The maps with these entries. The last are those of Services: frontends, backends and
    /// members.
    pub fn new(
        config: impl Rows<Configuration> + 'static,
        endpoints: impl Rows<Endpoints> + 'static,
        interfaces: impl Rows<Interfaces> + 'static,
        ipcache: impl Rows<Ipcache> + 'static,
        nodes: impl Rows<Nodes> + 'static,
        remotes: impl Rows<Remotes> + 'static,
        (services, backends, members): (
            impl Rows<Services> + 'static,
            impl Rows<Backends> + 'static,
            impl Rows<Members> + 'static,
        ),
    ) -> Self {
        Self {
            config: Tracked::new(Box::new(config)),
            endpoints: Tracked::new(Box::new(endpoints)),
            interfaces: Tracked::new(Box::new(interfaces)),
            ipcache: Tracked::new(Box::new(ipcache)),
            nodes: Tracked::new(Box::new(nodes)),
            remotes: Tracked::new(Box::new(remotes)),
            services: Tracked::new(Box::new(services)),
            backends: Tracked::new(Box::new(backends)),
            members: Tracked::new(Box::new(members)),
        }
    }

    /// The entries of other nodes as this agent wrote them; before it has written any,
    /// as an earlier one left them. `found` is what the map holds.
    pub fn own_remotes(&self, found: &HashMap<u32, Remote>) -> HashMap<u32, Remote> {
        self.remotes.own.as_ref().unwrap_or(found).clone()
    }

    /// Compares and writes. Targets come before what points to them, and go after.
    /// `remotes` is what that map holds; `tell` is given each entry that somebody else
    /// changed.
    pub fn converge(
        &mut self,
        wanted: &Desired,
        remotes: HashMap<u32, Remote>,
        scope: Scope,
        mut tell: impl FnMut(String),
    ) -> Result<(), Error> {
        let (config, nodes) = (self.config.read()?, self.nodes.read()?);
        let (interfaces, endpoints) = (self.interfaces.read()?, self.endpoints.read()?);
        let ipcache = scope.ipcache.then(|| self.ipcache.read()).transpose()?;

        let tell = &mut tell;
        let config = self
            .config
            .audit(config, &HashMap::from([(0, wanted.config)]), true, tell);
        let remotes = self
            .remotes
            .audit(remotes, &wanted.remotes, scope.nodes, tell);
        let nodes = self.nodes.audit(nodes, &wanted.nodes, scope.nodes, tell);
        let interfaces = self
            .interfaces
            .audit(interfaces, &wanted.interfaces, true, tell);
        let endpoints = self
            .endpoints
            .audit(endpoints, &wanted.endpoints, true, tell);
        let ipcache = ipcache
            .map(|found| self.ipcache.audit(found, &wanted.ipcache, scope.rows, tell))
            .unwrap_or_default();

        self.config.write(config.write)?;
        self.remotes.write(remotes.write)?;
        self.nodes.write(nodes.write)?;
        self.interfaces.write(interfaces.write)?;
        self.endpoints.write(endpoints.write)?;
        self.ipcache.write(ipcache.write)?;
        self.ipcache.remove(ipcache.remove)?;
        self.endpoints.remove(endpoints.remove)?;
        self.interfaces.remove(interfaces.remove)?;
        self.nodes.remove(nodes.remove)?;
        self.remotes.remove(remotes.remove)
    }

    /// The device of the local pod that the maps know at an address.
    pub fn device_at(&self, address: IpAddr) -> Result<Option<IfIndex>, Error> {
        let known = self.endpoints.known(&IpKey::from(address))?;
        Ok(known.and_then(|endpoint| IfIndex::new(endpoint.ifindex)))
    }

    /// A round of one address. Without `complete` a row that nothing is known of stays.
    pub fn converge_address(&mut self, wanted: &AddressRows, complete: bool) -> Result<(), Error> {
        let key = IpKey::from(wanted.address);
        let devices = || wanted.interfaces.into_iter().flatten();
        for (device, interface) in devices().filter(|(_, interface)| interface.is_some()) {
            self.interfaces.bring(device.get(), interface)?;
        }
        if wanted.endpoint.is_some() {
            self.endpoints.bring(key, wanted.endpoint)?;
        }
        if wanted.row.is_some() || complete {
            self.ipcache
                .bring(host_prefix(wanted.address), wanted.row)?;
        }
        if wanted.endpoint.is_none() {
            self.endpoints.bring(key, None)?;
        }
        for (device, _) in devices().filter(|(_, interface)| interface.is_none()) {
            self.interfaces.bring(device.get(), None)?;
        }
        Ok(())
    }
}
