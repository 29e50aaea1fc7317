//! This node's wired pods: in memory, on disk, and those whose ADD is under way.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard},
};

use veer_agent_api::Attachment;
use veer_agent_core::endpoint::{LocalEndpoint, Store};
use veer_agent_kernel::lock::Lock;

use super::records::Records;
use crate::state::handles::View;

/// Wired pods.
#[derive(Debug)]
pub(crate) struct Local {
    store: Arc<Lock<Store>>,
    /// The store on disk.
    records: Records,
    /// Host-side device names of ADDs under way.
    adding: Lock<BTreeSet<String>>,
}

impl Local {
    /// Those whose records are below the state folder.
    ///
    /// # Errors
    ///
    /// The folder cannot be made or listed.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let (records, store) = Records::open(state)?;
        Ok(Self {
            store: Arc::new(Lock::new(store)),
            records,
            adding: Lock::default(),
        })
    }

    /// Those in memory.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    /// Those in memory, to read.
    pub(crate) fn view(&self) -> View<Store> {
        View::of(&self.store)
    }

    /// Host-side device names of ADDs under way.
    pub(super) fn adding(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.adding.lock()
    }

    /// Wired pods but those whose ADD or DEL is under way.
    pub(crate) fn settled(&self) -> Vec<Arc<LocalEndpoint>> {
        let adding = self.adding().clone();
        let mut pods = self.store().wired_now();
        pods.retain(|pod| !adding.contains(&pod.host_ifname));
        pods
    }

    /// Path of an interface's record.
    pub(super) fn path(&self, attachment: &Attachment) -> PathBuf {
        self.records.path(attachment)
    }

    /// Brings the record of an interface on disk to what the store says.
    pub(super) fn persist(&self, attachment: &Attachment) -> io::Result<()> {
        self.records.persist(&self.store, attachment)
    }

    /// Writes the order of released addresses to disk, if it changed.
    pub(crate) fn persist_released(&self) -> io::Result<()> {
        self.records.persist_released(&self.store)
    }
}
