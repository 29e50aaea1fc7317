//! State that the agent's parts share, and the order in which its locks are taken:
//! datapath, index, plan, store. None of them is held over netlink, the disk or the
//! network, but for two: the datapath's over the maps and pins that it guards, and
//! the index for reading by the engine's thread, which alone writes index and plan
//! and so may hold it all through a round, whatever it takes then. The content
//! of the disk is decided under the store's lock and written without it, in order by
//! [`Records`], which is taken before the store and never under one of these locks.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{Arc, MutexGuard, RwLockReadGuard, mpsc},
};

use veer_agent_api::Attachment;
use veer_bpf_common::device::IfIndex;

use crate::{
    pods::records::Records,
    report::{events::Events, publish::Publisher, repairs::Repairs},
    state::{handles::Reader, input::Input, options::Options, plan::Plan},
};
use veer_agent_core::{
    desired,
    endpoint::{LocalEndpoint, Store},
    index::Index,
};
use veer_agent_kernel::{
    datapath::{self, Datapath},
    lock::Lock,
};

pub(crate) struct Shared {
    /// Where things are.
    pub(crate) options: Arc<Options>,
    pub(crate) datapath: Arc<Lock<Datapath>>,
    pub(crate) index: Reader<Index>,
    pub(crate) plan: Reader<Plan>,
    pub(crate) store: Arc<Lock<Store>>,
    /// The store on disk.
    pub(crate) records: Records,
    /// Host-side device names of ADDs under way.
    pub(crate) adding: Lock<BTreeSet<String>>,
    pub(crate) repairs: Arc<Repairs>,
    /// Tells what happens on this node as Kubernetes Events.
    pub(crate) events: Events,
    /// Writes PodEndpoints.
    pub(crate) publisher: Publisher,
    /// The engine.
    pub(crate) engine: mpsc::Sender<Input>,
}

impl Shared {
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
        self.index.read()
    }

    /// The plan, to read.
    pub(crate) fn plan(&self) -> RwLockReadGuard<'_, Plan> {
        self.plan.read()
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

    /// A round of the maps for one address: of a local pod that comes, goes or changes,
    /// or of another node's. `device` is the interface index that its veth had, if the
    /// caller knows; the maps may not. Without `complete` a row that nothing is known of
    /// stays.
    pub(crate) fn converge_address(
        &self,
        datapath: &mut Datapath,
        address: IpAddr,
        device: Option<IfIndex>,
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
        device: Option<IfIndex>,
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
}
