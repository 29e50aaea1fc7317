//! Services that the programs translate.

use std::collections::{BTreeSet, HashSet};

use veer_api_client::chain;
use veer_crds::v1alpha1::ServiceTranslation;

use super::{Engine, ROWS_PER_ROUND, converge::Converger, error::Error, host_sockets::is_full};
use veer_agent_core::{
    index::{Index, ServicePort},
    repair::{Kind, RoundLog},
    services::{Plan, Step, UDP},
    tables::Tables,
};

/// After how many rounds it is told that Services are not known.
const UNKNOWN: usize = 15;

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// The programs.
    Programs {
        /// For the node's own sockets and at `NodePorts`, too.
        full: bool,
    },
    /// The host's stack: the maps are empty.
    Stack,
}

impl By {
    /// Whether it is the programs.
    pub(super) fn programs(self) -> bool {
        matches!(self, Self::Programs { .. })
    }
}

/// What the maps hold of Services.
#[derive(Debug)]
pub(super) struct Translation {
    pub(super) plan: Plan,
    /// Every program was this version's once. Those of a version before would send replies of
    /// translated flows up the stack, where nobody knows them.
    attached: bool,
    /// What the maps were filled or emptied for; `None`: nothing yet, and what an earlier
    /// agent left stays.
    pub(super) by: Option<By>,
    /// Rounds since the maps were compared.
    rounds: usize,
    /// Rounds for which it was not known what the programs should translate.
    unknown: usize,
    /// Why the maps do not hold what they should; empty: they do.
    trouble: String,
}

impl Translation {
    /// Over what is in the maps.
    pub(super) fn open(tables: &mut Tables) -> Result<Self, Error> {
        let (services, backends) = (tables.services.read()?, tables.backends.read()?);
        Ok(Self {
            plan: Plan::from_present(&services, &backends),
            attached: false,
            by: None,
            rounds: 0,
            unknown: 0,
            trouble: String::new(),
        })
    }

    /// Every program is this version's.
    pub(super) fn all_attached(&mut self) {
        self.attached = true;
    }

    /// Who is to translate; `None`: that is not known yet, or cannot be done yet.
    fn wanted(&self, index: &Index) -> Option<By> {
        let (_, cluster) = index.cluster.as_ref()?;
        let complete = index.complete;
        // Without the zone hints do not count, and flows would go far for nothing.
        if !(complete.services && complete.slices && complete.zone) {
            return None;
        }
        match cluster.services {
            ServiceTranslation::KubeProxy => Some(By::Stack),
            ServiceTranslation::Pods | ServiceTranslation::Full => {
                let full = cluster.services.is_full();
                self.attached.then_some(By::Programs { full })
            }
        }
    }

    /// Whether the programs should translate, and it is not known what for a while.
    fn waits(&mut self, index: &Index) -> bool {
        let cluster = index.cluster.as_ref();
        let is_asked = cluster.is_some_and(|(_, c)| c.services.by_programs());
        self.unknown = if is_asked && self.attached && self.wanted(index).is_none() {
            self.unknown.saturating_add(1)
        } else {
            0
        };
        self.unknown >= UNKNOWN
    }

    /// What is to be written so that these Services are as they should be.
    fn update<'a>(
        &mut self,
        index: &Index,
        full: bool,
        keys: impl Iterator<Item = &'a str>,
    ) -> Step {
        let ports = |key: &str| translated(index.services.ports_of(key, index.own(), full));
        let all: Vec<(&str, Vec<ServicePort>)> = keys.map(|key| (key, ports(key))).collect();
        let ports = all.iter().map(|(key, ports)| (*key, ports.as_slice()));
        self.plan.update_all(ports)
    }

    /// The steps to what is wanted; `touched` are the Services that changed.
    fn steps(&mut self, index: &Index, touched: &HashSet<String>) -> Vec<Step> {
        let Some(by) = self.wanted(index) else {
            return Vec::new();
        };
        let is_new = self.by != Some(by);
        self.by = Some(by);
        match by {
            By::Stack if is_new => vec![self.plan.clear()],
            By::Stack => Vec::new(),
            By::Programs { full } if is_new => {
                let mut keys: BTreeSet<String> = self.plan.keys().into_iter().collect();
                keys.extend(index.services.keys().map(str::to_owned));
                let all = self.update(index, full, keys.iter().map(String::as_str));
                vec![all, self.plan.drop_left()]
            }
            By::Programs { full } => {
                vec![self.update(index, full, touched.iter().map(String::as_str))]
            }
        }
    }
}

/// What the programs translate. They leave SCTP to the stack: its checksum covers the
/// ports, and where an association is in its midst cannot be seen of a packet.
fn translated(mut ports: Vec<ServicePort>) -> Vec<ServicePort> {
    ports.retain(|port| matches!(port.protocol, TCP | UDP));
    ports
}

/// IP protocol number of TCP.
const TCP: u8 = 6;

impl Converger {
    /// Writes what changed of these Services; of all, where somebody else is to translate
    /// now. Returns whether other frontends than before lead to no backend.
    pub(super) fn services(&mut self, index: &Index, touched: &HashSet<String>) -> bool {
        let mut unserved = false;
        for step in self.translation.steps(index, touched) {
            if step == Step::default() {
                continue;
            }
            let outcome = self.datapath.lock().maps.tables.apply_services(&step);
            if let Err(error) = outcome {
                self.failed(&Error::from(error));
            }
            unserved |= step.unserved;
            self.host_datagrams(&step);
        }
        unserved
    }

    /// The part of a round. With `full` the maps are compared entry by entry, where they are
    /// large not in every such round.
    pub(super) fn services_round(&mut self, index: &Index, done: &mut RoundLog, full: bool) {
        self.services(index, &HashSet::new());
        self.translation.rounds = self.translation.rounds.saturating_add(1);
        if full && self.translation.by.is_some() {
            self.compare_services(done);
        }
        if self.translation.waits(index) {
            let text = "spec.services has veer translate, but Services, EndpointSlices or this \
                        Node cannot be read: kube-proxy, or what an earlier agent wrote, decides \
                        meanwhile";
            self.concerns.push(("ServicesUnknown", text.to_owned()));
        }
        if !self.translation.trouble.is_empty() {
            let trouble = self.translation.trouble.clone();
            self.concerns.push(("ServicesIncomplete", trouble));
        }
        self.host_sockets(done, full);
    }

    fn compare_services(&mut self, done: &mut RoundLog) {
        let mut datapath = self.datapath.lock();
        let tables = &mut datapath.maps.tables;
        let rows = tables.services.len() + tables.backends.len() + tables.members.len();
        if self.translation.rounds <= rows / ROWS_PER_ROUND {
            return;
        }
        self.translation.rounds = 0;
        let outcome = tables.converge_services(&self.translation.plan.rows(), |what| {
            done.repaired(Kind::MapEntry, what);
        });
        drop(datapath);
        match outcome {
            Ok(()) => self.translation.trouble.clear(),
            Err(error) => self.failed(&Error::from(error)),
        }
    }

    fn failed(&mut self, error: &Error) {
        let text = format!(
            "cannot write all rows of Services, so some lead where they led before: {}",
            chain(error)
        );
        if self.translation.trouble != text {
            tracing::error!("{text}; trying again");
        }
        self.translation.trouble = text;
    }
}

impl Engine {
    /// Writes what changed of Services, without a round.
    pub(super) fn services(&mut self, touched: &HashSet<String>) {
        if touched.is_empty() || self.converger.decommissioned || self.told_to_go() {
            return;
        }
        let index = self.index.read();
        let unserved = self.converger.services(&index, touched);
        if unserved && is_full(&index) {
            let mut done = RoundLog::default();
            if let Err(error) = self.converger.rules(&index, &mut done) {
                tracing::error!(error = %chain(&error), "cannot refuse what nobody serves; the next round will");
            }
            drop(index);
            self.repairs.take_in(done);
        }
    }
}
