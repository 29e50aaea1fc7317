//! What the CNI verbs and the repairs of pods work on, and the rows that follow from
//! it.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, mpsc},
};

use veer_agent_core::{desired, endpoint::LocalEndpoint, index::Index};
use veer_agent_kernel::{
    datapath::{self, Datapath},
    lock::Lock,
};
use veer_bpf_common::device::IfIndex;

use super::local::Local;
use crate::{
    report::publish::Publisher,
    state::{handles::Reader, input::Input, options::Options, plan::Plan},
};

/// What a pod's ADD, DEL or repair needs.
pub(crate) struct Pods {
    /// Where things are.
    pub(super) options: Arc<Options>,
    /// The maps and programs.
    pub(super) datapath: Arc<Lock<Datapath>>,
    /// What the API server said.
    pub(super) index: Reader<Index>,
    /// The engine's last decisions.
    pub(super) plan: Reader<Plan>,
    /// Wired pods.
    pub(super) local: Arc<Local>,
    /// Writes PodEndpoints.
    pub(super) publisher: Publisher,
    /// The engine.
    pub(super) engine: mpsc::Sender<Input>,
}

impl Pods {
    /// All parts together.
    pub(crate) fn new(
        options: Arc<Options>,
        datapath: Arc<Lock<Datapath>>,
        (index, plan): (Reader<Index>, Reader<Plan>),
        local: Arc<Local>,
        publisher: Publisher,
        engine: mpsc::Sender<Input>,
    ) -> Self {
        Self {
            options,
            datapath,
            index,
            plan,
            local,
            publisher,
            engine,
        }
    }

    /// A round of the maps for one address: of a local pod that comes, goes or changes,
    /// or of another node's. `device` is the interface index that its veth had, if the
    /// caller knows; the maps may not. Without `complete` a row that nothing is known of
    /// stays.
    fn converge_address(
        &self,
        datapath: &mut Datapath,
        address: IpAddr,
        device: Option<IfIndex>,
        complete: bool,
    ) -> Result<(), datapath::Error> {
        let tables = &mut datapath.maps.tables;
        let before = device.or(tables.device_at(address)?);
        let wanted = {
            let (index, plan, store) = (self.index.read(), self.plan.read(), self.local.store());
            let Plan { facts, peers, .. } = &*plan;
            desired::address_rows_of(&index, &store, facts, peers, address, before)
        };
        Ok(tables.converge_address(&wanted, complete)?)
    }

    /// A round of the maps for all addresses of a local pod; `device` as above.
    pub(super) fn converge_pod(
        &self,
        datapath: &mut Datapath,
        pod: &LocalEndpoint,
        device: Option<IfIndex>,
    ) -> Result<(), datapath::Error> {
        let mut addresses = pod.addresses();
        addresses.try_for_each(|a| self.converge_address(datapath, a.address, device, true))
    }

    /// Writes the ipcache rows of these addresses.
    pub(crate) fn converge_rows(&self, addresses: &HashSet<IpAddr>) -> Result<(), datapath::Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        let mut datapath = self.datapath.lock();
        let complete = self.index.read().complete;
        let complete = complete.nodes && complete.endpoints;
        for address in addresses {
            self.converge_address(&mut datapath, *address, None, complete)?;
        }
        Ok(())
    }
}
