//! The loop that brings the kernel to the desired state: takes events in, works
//! out what they made stale, and applies it; a repair round every few seconds
//! puts back what others changed.
//!
//! One separate thread, blocking; the only writer of index and plan.

mod blocks;
pub(crate) mod checkpoint_file;
mod concerns;
mod converge;
mod decommission;
mod error;
mod files;
mod forgotten;
mod host_ports;
mod host_sockets;
mod probing;
mod reporting;
mod services;

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::watch;
use veer_api_client::chain;
use veer_crds::v1alpha1::Epoch;
use veer_monitoring::Pulse;

use crate::{
    engine::{checkpoint_file::CheckpointFile, converge::Converger},
    pods::{
        Pods, gc, identities, local::Local, noticed::Noticed, objects::Objects, portmap, recover,
    },
    report::{events::Events, repairs::Repairs, status::StatusReport},
    runtime::conflist::Chain,
    state::{handles::Writer, input::Input, options::Options, plan::Plan},
};
pub(crate) use error::Error;
use files::NodeFiles;
use veer_agent_core::{
    checkpoint::Checkpoint,
    index::{Index, Stale},
    repair::RoundLog,
    switch::{self, Answer},
};
use veer_agent_kernel::{datapath::Datapath, lock::Lock};

/// Time between repair rounds.
const ROUND: Duration = Duration::from_secs(2);
/// Every so many repair rounds dead sandboxes are collected.
const COLLECT_EVERY: u32 = 30;
/// Rows of the ipcache that one repair round on average compares: a larger one
/// is compared in every second, third, … round only, so that of the largest
/// (131,072 rows) each row is looked at twice a minute.
const ROWS_PER_ROUND: usize = 8192;
/// Time from the kernel's word that something changed to the round that looks:
/// what comes together is looked at together.
const SETTLE: Duration = Duration::from_millis(100);
/// Least time between two rounds for the kernel's sake.
const GAP: Duration = Duration::from_millis(500);
/// Events taken in before their consequences are applied.
const BATCH: usize = 10_000;

/// A job of probes: its round and what came of it.
type Probed = (u64, Option<Vec<Answer>>);

/// Messages that arrived since the last look.
#[derive(Debug, Default)]
struct News {
    /// What it made stale.
    stale: Stale,
    /// The kernel reported something.
    kernel: bool,
    probed: Option<Probed>,
    /// Some pods' hostPorts changed.
    host_ports: bool,
    /// Callers that wait until they are in the kernel.
    waiting: Vec<Sender<Result<(), String>>>,
}

/// Whether a job of probes may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    Idle,
    Running,
    /// The last could not be done: until the next repair round.
    Resting,
}

/// What the engine works on.
pub(crate) struct Parts {
    /// Where things are.
    pub(crate) options: Arc<Options>,
    /// veer's part of the conflist.
    pub(crate) chain: Chain,
    /// The node's boot id as the operator compares it.
    pub(crate) boot_id: String,
    /// The maps and programs.
    pub(crate) datapath: Arc<Lock<Datapath>>,
    /// What the API server said.
    pub(crate) index: Writer<Index>,
    /// The engine's decisions.
    pub(crate) plan: Writer<Plan>,
    /// Wired pods.
    pub(crate) local: Arc<Local>,
    /// What repairs them.
    pub(crate) pods: Arc<Pods>,
    /// What was put back.
    pub(crate) repairs: Arc<Repairs>,
    /// Tells what happens on this node as Kubernetes Events.
    pub(crate) events: Events,
    /// Whether the engine still goes round.
    pub(crate) pulse: Arc<Pulse>,
    /// What the engine is told: by itself, too.
    pub(crate) inbox: (Sender<Input>, Receiver<Input>),
    /// What it reports.
    pub(crate) report: watch::Sender<StatusReport>,
}

pub(crate) struct Engine {
    boot_id: String,
    datapath: Arc<Lock<Datapath>>,
    index: Writer<Index>,
    plan: Writer<Plan>,
    local: Arc<Local>,
    pods: Arc<Pods>,
    repairs: Arc<Repairs>,
    events: Events,
    pulse: Arc<Pulse>,
    inbox: Sender<Input>,
    from: Receiver<Input>,
    report: watch::Sender<StatusReport>,
    held: CheckpointFile,
    converger: Converger,
    rounds: u32,
    /// Once the first round is through, ADD is served.
    started: bool,
    probing: Probing,
    files: NodeFiles,
    noticed: Noticed,
    objects: Objects,
    /// Nothing is touched yet, see [`Engine::has_forgotten`].
    waiting: bool,
    /// The agent is to end, so that the kubelet starts another.
    ending: bool,
}

impl Engine {
    /// An engine over what is on disk and in the kernel.
    pub(crate) fn new(parts: Parts) -> Result<Self, Error> {
        let Parts {
            options,
            chain,
            boot_id,
            datapath,
            mut index,
            plan,
            local,
            pods,
            repairs,
            events,
            pulse,
            inbox: (inbox, from),
            report,
        } = parts;
        let held = CheckpointFile::open(&options.state);
        if let Some(cluster) = held.get().cluster.clone() {
            index.write().cluster = Some(cluster);
        }
        let files = NodeFiles::new(&options, chain, events.clone());
        let converger = Converger::new(
            options,
            Arc::clone(&datapath),
            Arc::clone(&local),
            Arc::clone(&pods),
            held.get(),
        )?;
        Ok(Self {
            boot_id,
            datapath,
            index,
            plan,
            local,
            pods,
            repairs,
            events,
            pulse,
            inbox,
            from,
            report,
            held,
            converger,
            rounds: 0,
            started: false,
            probing: Probing::Idle,
            files,
            noticed: Noticed::default(),
            objects: Objects::default(),
            waiting: true,
            ending: false,
        })
    }

    /// Works until the node is cleaned up, or only another agent can go on.
    pub(crate) fn run(mut self) {
        // Records from before the last boot: their device numbers may belong to other
        // devices now.
        if !self.told_to_go() {
            // The pool remembers whose addresses they were.
            let blocks = self.wanted_blocks();
            if !blocks.is_empty() {
                self.local.store().set_blocks(&blocks);
            }
            gc::collect(&self.pods);
        }
        portmap::adopt(&self.pods);
        self.round(true);
        let mut last = Instant::now();
        let mut next = last + ROUND;
        while !self.ending {
            self.pulse.beat();
            let wait = next.saturating_duration_since(Instant::now());
            let first = match self.from.recv_timeout(wait) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let Some(first) = first else {
                self.repair();
                if self.ending {
                    break;
                }
                if self.probing == Probing::Resting {
                    self.probing = Probing::Idle;
                }
                self.probe();
                last = Instant::now();
                next = last + ROUND;
                continue;
            };
            let News {
                mut stale,
                kernel,
                probed,
                host_ports,
                waiting,
            } = self.take_in(first);
            if self.waiting {
                // The first round looks at everything that was taken in.
                self.round(true);
                if self.ending {
                    break;
                }
                if !self.waiting {
                    self.identities();
                }
                continue;
            }
            if host_ports {
                self.host_ports(waiting);
            }
            if let Some((round, answers)) = probed {
                stale.pairs |= self.probed(round, answers);
            }
            if stale.identities {
                self.identities();
            }
            self.services(&stale.services);
            if stale.all || stale.pairs {
                self.round(stale.all);
                if self.ending {
                    break;
                }
                if !stale.all {
                    self.rows(&stale.addresses);
                }
                last = Instant::now();
                next = last + ROUND;
            } else {
                self.rows(&stale.addresses);
                if kernel {
                    next = next.min((Instant::now() + SETTLE).max(last + GAP));
                }
            }
            self.probe();
            self.report();
        }
    }

    /// A round without a trigger.
    fn repair(&mut self) {
        self.rounds = self.rounds.wrapping_add(1);
        let mut done = RoundLog::default();
        if self.rounds.is_multiple_of(COLLECT_EVERY) {
            gc::collect(&self.pods);
            gc::work_queue(&self.pods);
            self.noticed.strangers(&self.pods, &mut done);
        }
        recover::absent_records(&self.local, &mut done);
        self.repairs.take_in(done);
        portmap::adopt(&self.pods);
        let rows = self.datapath.lock().maps.tables.ipcache.len();
        let every = u32::try_from(rows / ROWS_PER_ROUND).unwrap_or(u32::MAX);
        self.round(self.rounds.is_multiple_of(every.max(1)));
    }

    /// Takes in what has come.
    fn take_in(&mut self, first: Input) -> News {
        let mut news = News::default();
        let mut index = self.index.write();
        let mut next = Some(first);
        for _ in 0..BATCH {
            match next {
                Some(Input::Api(event)) => news.stale.merge(index.handle(event)),
                Some(Input::Identities) => news.stale.identities = true,
                Some(Input::Kernel) => news.kernel = true,
                Some(Input::HostPorts(waiting)) => {
                    news.host_ports = true;
                    news.waiting.extend(waiting);
                }
                // One job at a time, so there is never a second.
                Some(Input::Probed { round, answers }) => news.probed = Some((round, answers)),
                None => break,
            }
            next = self.from.try_recv().ok();
        }
        news
    }

    /// The blocks the API server assigns, or those on disk while it is silent.
    fn wanted_blocks(&self) -> Vec<IpNet> {
        let index = self.index.read();
        index
            .nodes
            .get(index.own())
            .map(|n| n.pod_cidrs.clone())
            .filter(|c| !c.is_empty())
            .unwrap_or_else(|| self.held.get().pod_cidrs.clone())
    }

    fn wanted_epoch(&self) -> Option<Epoch> {
        let index = self.index.read();
        let told = index.nodes.get(index.own()).and_then(|n| n.epoch.clone());
        switch::newest(told, self.held.get().epoch.clone())
    }

    fn told_to_go(&self) -> bool {
        let index = self.index.read();
        index
            .nodes
            .get(index.own())
            .map_or(self.held.get().decommissioned, |n| n.decommission)
    }

    /// One round: observe, compare, change; with `full` every row of the ipcache.
    fn round(&mut self, full: bool) {
        self.waiting = self.waiting && self.has_forgotten();
        if self.waiting {
            return;
        }
        if self.told_to_go() {
            self.decommission();
            return;
        }
        if self.converger.decommissioned {
            self.start_again();
            return;
        }
        let outcome = self.try_round(full);
        if let Err(error @ Error::Moved { .. }) = &outcome {
            // Connections to the API server that began at the old address are
            // dead without knowing it. Everything else remains for the next agent,
            // which takes over the ids of other nodes.
            tracing::error!("{error}: ending, so that the kubelet starts the agent again");
            self.ending = true;
            return;
        }
        let reason = match &outcome {
            Ok(reason) => reason.clone(),
            Err(error) => {
                let text = chain(error);
                tracing::error!(error = %text, "the node is not as it should be; trying again");
                text
            }
        };
        let ready = reason.is_empty();
        {
            let mut plan = self.plan.write();
            // A repair that fails later leaves pods and new pods working.
            if !self.started || outcome.is_ok() {
                plan.not_ready.clone_from(&reason);
            }
            plan.decommission = false;
        }
        let concerns = &self.converger.concerns;
        let (why, degraded) = if ready {
            let texts: Vec<&str> = concerns.iter().map(|(_, text)| text.as_str()).collect();
            let first = concerns.first().map_or("", |(reason, _)| reason);
            (first, texts.join("; "))
        } else {
            ("RepairFailed", reason)
        };
        self.tell_degraded(&degraded);
        self.converger.degraded = degraded;
        self.converger.degraded_reason = why;
        if ready && !self.started {
            gc::collect(&self.pods);
            gc::work_queue(&self.pods);
            tracing::info!("ready");
        }
        let mut done = RoundLog::default();
        self.ending |= self.files.converge(&mut done, ready, self.started);
        self.started |= ready;
        self.objects.converge(&self.pods, &mut done);
        self.repairs.take_in(done);
        self.repairs.tell();
        if let Err(error) = self.local.persist_released() {
            tracing::warn!(%error, "cannot record released addresses");
        }
        self.report();
    }

    /// Returns why ADD cannot be served; empty: it can.
    fn try_round(&mut self, full: bool) -> Result<String, Error> {
        let epoch = self.wanted_epoch();
        let wanted = {
            let index = self.index.read();
            let cluster = index.cluster.as_ref().map(|(_, c)| c);
            blocks::for_new_pods(self.wanted_blocks(), cluster)
        };
        if wanted.is_empty() {
            // Devices and programs can be made ready before the block is known.
            self.run_round(epoch.as_ref(), full)?;
            return Ok("the node has no pod CIDR yet: is veer-operator running?".into());
        }
        let blocks = self.local.store().set_blocks(&wanted);
        self.hold(blocks.clone(), None)?;
        self.run_round(epoch.as_ref(), full)?;
        self.hold(blocks.clone(), epoch)?;
        Ok(blocks::waits_for_pods(&wanted, &blocks))
    }

    /// One round of the [`Converger`].
    fn run_round(&mut self, epoch: Option<&Epoch>, full: bool) -> Result<(), Error> {
        let mut done = RoundLog::default();
        let index = self.index.read();
        let outcome = self
            .converger
            .run(&index, &mut self.plan, &mut done, epoch, full);
        drop(index);
        self.repairs.take_in(done);
        outcome
    }

    /// Writes the checkpoint: what the next start needs without the API server.
    fn hold(&mut self, blocks: Vec<IpNet>, epoch: Option<Epoch>) -> Result<(), Error> {
        let cluster = self.index.read().cluster.clone();
        let held = Checkpoint {
            pod_cidrs: blocks,
            cluster,
            epoch: epoch.or_else(|| self.held.get().epoch.clone()),
            applied: self.converger.switch.applied.clone(),
            pairs: self.converger.switch.pairs.clone(),
            decommissioned: false,
        };
        self.held.set(held).map_err(Error::State)
    }

    /// Gives local pods the identities that their labels have now.
    fn identities(&mut self) {
        identities::name_the_nameless(&self.pods);
        self.noticed.bandwidth(&self.pods, &self.events);
        identities::converge(&self.pods);
    }

    /// Writes the ipcache rows of these addresses.
    fn rows(&self, addresses: &HashSet<IpAddr>) {
        if let Err(error) = self.pods.converge_rows(addresses) {
            let error = Error::from(error);
            tracing::error!(error = %chain(&error), "cannot write rows; the next round will");
        }
    }
}
