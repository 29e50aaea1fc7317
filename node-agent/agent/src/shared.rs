//! State that the agent's parts share, and the order in which its locks are taken:
//! datapath, index, plan, store. None of them is held over netlink, the disk or the
//! network, but for two: the datapath's over the maps and pins that it guards, and
//! the index for reading by the engine's thread, which alone writes index and plan
//! and so may hold it all through a round, whatever it takes then. The content
//! of the disk is decided under the store's lock and written without it, in order by
//! [`Records`], which is taken before the store and never under one of these locks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::{Arc, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
};

use veer_agent_api::Attachment;
use veer_monitoring::Pulse;

use crate::{
    pods::records::Records,
    report::{events::Events, publish::Publisher},
    state::{input::Input, options::Options, plan::Plan},
};
use veer_agent_core::{
    desired,
    endpoint::{LocalEndpoint, Store},
    index::Index,
    repair::{Kind, Ledger, Note, RoundLog},
};
use veer_agent_kernel::{
    datapath::{self, Datapath},
    lock::Lock,
};

pub(crate) struct Shared {
    /// Where things are.
    pub(crate) options: Options,
    /// The node's boot id as the operator compares it.
    pub(crate) boot_id: String,
    datapath: Lock<Datapath>,
    index: RwLock<Index>,
    plan: RwLock<Plan>,
    store: Lock<Store>,
    /// The store on disk.
    pub(crate) records: Records,
    /// Host-side device names of ADDs under way.
    adding: Lock<BTreeSet<String>>,
    repairs: Lock<Ledger>,
    /// Tells what happens on this node as Kubernetes Events.
    pub(crate) events: Events,
    /// Writes PodEndpoints.
    pub(crate) publisher: Publisher,
    /// Whether the engine still goes round.
    pub(crate) pulse: Pulse,
    /// The engine.
    pub(crate) engine: mpsc::Sender<Input>,
}

impl Shared {
    /// All parts together.
    pub(crate) fn new(
        options: Options,
        boot_id: String,
        datapath: Datapath,
        (records, store): (Records, Store),
        publisher: Publisher,
        events: Events,
        engine: mpsc::Sender<Input>,
    ) -> Self {
        let index = Index::new(&options.node);
        Self {
            options,
            boot_id,
            datapath: Lock::new(datapath),
            index: RwLock::new(index),
            plan: RwLock::new(Plan {
                not_ready: "the agent is starting".into(),
                ..Plan::default()
            }),
            store: Lock::new(store),
            records,
            adding: Lock::default(),
            repairs: Lock::default(),
            events,
            publisher,
            pulse: Pulse::default(),
            engine,
        }
    }

    /// The maps and programs.
    pub(crate) fn datapath(&self) -> MutexGuard<'_, Datapath> {
        self.datapath.lock()
    }

    /// Its lock.
    pub(crate) fn datapath_lock(&self) -> &Lock<Datapath> {
        &self.datapath
    }

    /// The index, to read.
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, to change.
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan, to read.
    pub(crate) fn plan(&self) -> RwLockReadGuard<'_, Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan, to change.
    pub(crate) fn plan_mut(&self) -> RwLockWriteGuard<'_, Plan> {
        self.plan.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wired pods.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    /// Brings the record of an interface on disk to what the store says.
    pub(crate) fn persist(&self, attachment: &Attachment) -> io::Result<()> {
        self.records.persist(&self.store, attachment)
    }

    /// Writes the order of released addresses to disk, if it changed.
    pub(crate) fn persist_released(&self) -> io::Result<()> {
        self.records.persist_released(&self.store)
    }

    /// Host-side device names of ADDs under way.
    pub(crate) fn adding(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.adding.lock()
    }

    /// Counts one thing that somebody else changed or removed and that was put
    /// back. `what` says what was found: "route 10.244.2.0/24 was removed".
    pub(crate) fn repaired(&self, kind: Kind, what: String) {
        self.ledger().enter(kind, what);
    }

    /// Reports in log and Events what was put back since the last call.
    pub(crate) fn report_repairs(&self) {
        for sentence in self.ledger().sentences() {
            tracing::warn!("{sentence}");
            self.events.warn("Repaired", sentence);
        }
    }

    /// Takes over what a round did.
    pub(crate) fn take_in(&self, done: &mut RoundLog) {
        let (repairs, notes) = done.take();
        for (kind, what) in repairs {
            self.repaired(kind, what);
        }
        for Note {
            reason,
            text,
            warning,
        } in notes
        {
            if warning {
                tracing::warn!("{text}");
                self.events.warn(reason, text);
            } else {
                tracing::info!("{text}");
                self.events.normal(reason, text);
            }
        }
    }

    /// A round of the maps for one address: of a local pod that comes, goes or changes,
    /// or of another node's. `device` is the interface index that its veth had, if the
    /// caller knows; the maps may not. Without `complete` a row that nothing is known of
    /// stays.
    pub(crate) fn converge_address(
        &self,
        datapath: &mut Datapath,
        address: IpAddr,
        device: Option<u32>,
        complete: bool,
    ) -> Result<(), datapath::Error> {
        let tables = &mut datapath.maps.tables;
        let before = device.or(tables.device_at(address)?);
        let wanted = {
            let (index, plan, store) = (self.index(), self.plan(), self.store());
            let Plan { facts, peers, .. } = &*plan;
            desired::address_rows_of(&index, &store, facts, peers, address, before)
        };
        Ok(tables.converge_address(&wanted, complete)?)
    }

    /// [`Self::converge_address`] for all addresses of a local pod.
    pub(crate) fn converge_pod(
        &self,
        datapath: &mut Datapath,
        pod: &LocalEndpoint,
        device: Option<u32>,
    ) -> Result<(), datapath::Error> {
        let mut addresses = pod.addresses();
        addresses.try_for_each(|a| self.converge_address(datapath, a.address, device, true))
    }

    /// Wired pods but those whose ADD or DEL is under way.
    pub(crate) fn settled_pods(&self) -> Vec<Arc<LocalEndpoint>> {
        let adding = self.adding().clone();
        let mut pods = self.store().wired_now();
        pods.retain(|pod| !adding.contains(&pod.host_ifname));
        pods
    }

    /// How often what was put back since the agent started, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.ledger().counts()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.repairs.lock()
    }
}
