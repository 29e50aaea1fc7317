//! The maps, to read.

use std::sync::Arc;

use veer_agent_core::tables::Entries;
use veer_agent_kernel::{
    datapath::{CpuTalk, Datapath, Error},
    lock::Lock,
};
use veer_bpf_common::{
    outcome::{DropReason, Program},
    tables::{Counter, Endpoints, Event, FlowEntry, FlowKey, Ipcache, Remotes, Services},
};

/// Packets and bytes of one outcome of a program, with the outcome's number and name.
pub(crate) type Counted = (Program, u32, &'static str, Counter);

/// Reads the maps. The datapath's lock is held for one call.
#[derive(Clone)]
pub(crate) struct Maps(Arc<Lock<Datapath>>);

impl Maps {
    /// The maps of this datapath.
    pub(crate) fn of(datapath: &Arc<Lock<Datapath>>) -> Self {
        Self(Arc::clone(datapath))
    }

    /// How programs are attached, in a word.
    pub(crate) fn attach_kind(&self) -> &'static str {
        self.0.lock().attach_kind()
    }

    /// Local pods by address.
    pub(crate) fn endpoints(&self) -> Result<Entries<Endpoints>, Error> {
        Ok(self.0.lock().maps.tables.endpoints.read()?)
    }

    /// What addresses are.
    pub(crate) fn ipcache(&self) -> Result<Entries<Ipcache>, Error> {
        Ok(self.0.lock().maps.tables.ipcache.read()?)
    }

    /// Other nodes by number.
    pub(crate) fn remotes(&self) -> Result<Entries<Remotes>, Error> {
        Ok(self.0.lock().maps.tables.remotes.read()?)
    }

    /// What the programs translate, by what clients send to.
    pub(crate) fn services(&self) -> Result<Entries<Services>, Error> {
        Ok(self.0.lock().maps.tables.services.read()?)
    }

    /// Whether the programs translate what pods send, and what the node's own sockets do.
    pub(crate) fn translates(&self) -> (bool, bool) {
        let datapath = self.0.lock();
        let pods = !datapath.maps.tables.services.is_empty();
        (pods, pods && datapath.serves_sockets())
    }

    /// Entries of flows that something translates.
    pub(crate) fn flows(&self) -> Result<Vec<(FlowKey, FlowEntry)>, Error> {
        self.0.lock().flows()
    }

    /// Who sends to whom, as each CPU counted it. Read without the datapath's lock.
    pub(crate) fn traffic(&self) -> Result<Vec<(CpuTalk, Counter)>, Error> {
        let talks = self.0.lock().talks()?;
        talks.read()
    }

    /// Samples of drops.
    pub(crate) fn samples(&self) -> Result<Vec<(Program, DropReason, Event)>, Error> {
        self.0.lock().maps.samples()
    }

    /// What is counted, each as far as it can be read.
    pub(crate) fn counted(&self) -> Vec<Result<Counted, Error>> {
        self.0.lock().maps.counted().collect()
    }
}
