//! What the agent's parts share, and the order in which its locks are taken:
//! datapath, index, plan, store. No lock is held over netlink, the disk or the
//! network, except the datapath's over the maps it guards.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc},
};

use veer_api_client::Pulse;

use crate::{
    datapath::Datapath,
    desired::{Facts, Peers, Step},
    endpoint::Store,
    engine::Input,
    events::Events,
    index::Index,
    publish::Publisher,
    repair::{Kind, Ledger},
};

/// Where things are.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The node's name.
    pub(crate) node: String,
    /// The kubelet's idea of its address.
    pub(crate) node_ip: Option<IpAddr>,
    /// Folder of conflists.
    pub(crate) cni_conf_dir: PathBuf,
    /// Folder of CNI plugins.
    pub(crate) cni_bin_dir: PathBuf,
    /// State folder.
    pub(crate) state: PathBuf,
    /// bpffs.
    pub(crate) bpffs: PathBuf,
    /// Socket for veer-cni and the command.
    pub(crate) socket: PathBuf,
    /// A writable `/proc/sys/net` of the node.
    pub(crate) proc_sys_net: PathBuf,
}

/// What the engine decided last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// The node.
    pub(crate) facts: Facts,
    /// Other nodes.
    pub(crate) peers: Arc<Peers>,
    /// What the epoch asks.
    pub(crate) step: Step,
    /// Why pairs do not have the form that the epoch leads to, by the peer's name.
    pub(crate) troubles: BTreeMap<String, String>,
    /// MTU of veths, in bytes.
    pub(crate) link_mtu: u32,
    /// Why ADD cannot be served; empty: it can.
    pub(crate) not_ready: String,
    /// The node is being cleaned up or was.
    pub(crate) decommission: bool,
}

/// See the module.
pub(crate) struct Shared {
    /// Where things are.
    pub(crate) options: Options,
    /// The node's boot id as the operator compares it.
    pub(crate) boot_id: String,
    datapath: Mutex<Datapath>,
    index: RwLock<Index>,
    plan: RwLock<Plan>,
    store: Mutex<Store>,
    /// Host-side device names of ADDs under way.
    adding: Mutex<BTreeSet<String>>,
    repairs: Mutex<Ledger>,
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
        store: Store,
        publisher: Publisher,
        events: Events,
        engine: mpsc::Sender<Input>,
    ) -> Self {
        let index = Index::new(&options.node);
        Self {
            options,
            boot_id,
            datapath: Mutex::new(datapath),
            index: RwLock::new(index),
            plan: RwLock::new(Plan {
                not_ready: "the agent is starting".into(),
                ..Plan::default()
            }),
            store: Mutex::new(store),
            adding: Mutex::default(),
            repairs: Mutex::default(),
            events,
            publisher,
            pulse: Pulse::default(),
            engine,
        }
    }

    /// The maps and programs.
    pub(crate) fn datapath(&self) -> MutexGuard<'_, Datapath> {
        self.datapath.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host-side device names of ADDs under way.
    pub(crate) fn adding(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.adding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one thing that somebody else changed or removed and that was put
    /// back. `what` says what was found: "route 10.244.2.0/24 was removed".
    pub(crate) fn repaired(&self, kind: Kind, what: String) {
        self.ledger().enter(kind, what);
    }

    /// Tells in log and Events what was put back since the last call.
    pub(crate) fn tell_repairs(&self) {
        self.ledger().tell(&self.events);
    }

    /// How often what was put back since the agent started, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.ledger().counts()
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.repairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
