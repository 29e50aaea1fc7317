//! The routing epoch: which step every node has to be in. Pure.
//!
//! A change of mode goes Preflight → Prepare → Switch → Finalize → Ready. The cluster
//! takes the next step once every ready node has acknowledged the current one. A node
//! takes the steps one after the other, even if it is late and the others have
//! finished. Nodes that are not ready delay no step but Finalize, after which the old
//! form is no longer accepted; a node on which no agent ever ran does not delay that
//! either. Every change by the user, also a reversal half-way, gets a higher number.
//!
//! Pairs of ready nodes that fail in the target form stop the change before Prepare
//! and before Finalize, unless the user chose to keep them as they are. The nodes
//! that report them get a higher attempt from time to time.

mod attempt;
mod order;
mod view;

use k8s_openapi::jiff::Timestamp;
use veer_crds::v1alpha1::{
    Epoch, FailedPair, FailedPairs, NodeCounts, NodeReason, Phase, ProbeReport, RolloutPolicy,
    RoutingMode,
};

use attempt::Next;
use view::EpochProgress;

/// How many failed pairs are listed.
const PAIRS: usize = 32;

/// A node as the epoch sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
    /// Why it is not ready; `None`: kubelet and agent are, in its present boot.
    pub(crate) absent: Option<&'static str>,
    /// No agent has ever run on it, so there is nothing that a change could cut off.
    pub(crate) bare: bool,
    /// Whether it is to switch before the others.
    pub(crate) canary: bool,
    /// Its last order.
    pub(crate) told: Option<Epoch>,
    /// What it acknowledged.
    pub(crate) applied: Option<Epoch>,
    /// The results of its probes.
    pub(crate) probes: Option<ProbeReport>,
}

impl Member {
    fn ready(&self) -> bool {
        self.absent.is_none()
    }
}

/// Where the cluster is and where it has to go.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    /// UID of the ClusterNetwork.
    pub(crate) uid: &'a str,
    /// The mode that its spec asks for.
    pub(crate) mode: RoutingMode,
    /// The rollout policy of its spec.
    pub(crate) rollout: &'a RolloutPolicy,
    /// The epoch of its status.
    pub(crate) current: Option<&'a Epoch>,
    /// The mode that its status calls active.
    pub(crate) active: Option<RoutingMode>,
    /// When the epoch's present phase or attempt began.
    pub(crate) since: Option<Timestamp>,
    /// When the change began.
    pub(crate) began: Option<Timestamp>,
}

/// A ready node that has not acknowledged the epoch's step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Awaited {
    /// The node.
    pub(crate) node: String,
    /// The order that it has not acknowledged; `None`: it has no order to go further
    /// yet.
    pub(crate) owes: Option<Epoch>,
    /// The last step of this change that it acknowledged.
    pub(crate) done: Option<Phase>,
}

/// The result of the plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The cluster's epoch.
    pub(crate) epoch: Epoch,
    /// When its phase or attempt began.
    pub(crate) since: Timestamp,
    /// When the change began.
    pub(crate) began: Timestamp,
    /// The mode traffic moves by.
    pub(crate) active: RoutingMode,
    /// The order of each node.
    pub(crate) orders: Vec<(String, Epoch)>,
    /// Nodes by what they acknowledged.
    pub(crate) counts: NodeCounts,
    /// How many have done the epoch's step.
    pub(crate) done: i32,
    /// Ready nodes that have not; those with an unacknowledged order first.
    pub(crate) awaited: Vec<Awaited>,
    /// Nodes that are not ready, and why.
    pub(crate) excluded: Vec<NodeReason>,
    /// Nodes that fell back, and from whom.
    pub(crate) fell_back: Vec<NodeReason>,
    /// The first pairs of ready nodes that fail.
    pub(crate) failed: Vec<FailedPair>,
    /// How many do.
    pub(crate) failed_count: usize,
    /// How many pairs of ready nodes there are, each direction by itself.
    pub(crate) pairs: usize,
    /// Nodes wait for a ready canary, and there is none.
    pub(crate) lacks_canary: bool,
    /// When the pairs that fail are tried again.
    pub(crate) retry_at: Option<Timestamp>,
}

/// Plans the next step, at the time `now`.
pub(crate) fn plan(wish: &Wish<'_>, members: &[Member], now: Timestamp) -> Plan {
    let current = wish
        .current
        .filter(|e| e.cluster_network_uid == wish.uid && !is_overtaken(e, members));
    let mut epoch = current.cloned().unwrap_or_else(|| first(wish, members));
    let mut retry_at = None;
    if !wish.rollout.paused {
        let view = EpochProgress::new(&epoch, members);
        let since = wish.since.unwrap_or(now);
        if epoch.mode != wish.mode {
            epoch = change(wish, members, epoch.number);
        } else if may_advance(wish.rollout, &view) {
            epoch.phase = next(epoch.phase);
        } else {
            match attempt::next(wish.rollout, &view, since, now) {
                Next::Now => epoch.attempt = epoch.attempt.saturating_add(1),
                Next::At(time) => retry_at = Some(time),
                Next::None => {}
            }
        }
    }
    let same_change = wish.current.is_some_and(|c| view::same(c, &epoch));
    let since = wish.since.filter(|_| wish.current == Some(&epoch));
    let began = wish.began.or(wish.since).filter(|_| same_change);
    let view = EpochProgress::new(&epoch, members);
    let failed = failed_pairs(&view);
    let counts = counts(&view);
    Plan {
        since: since.unwrap_or(now),
        began: began.unwrap_or(now),
        active: active(wish, &view),
        orders: order::orders(wish.rollout, &view),
        counts,
        done: count(&view, |m| view.done(m, epoch.phase)),
        awaited: awaited(&view),
        excluded: excluded(members),
        fell_back: fell_back(&view),
        failed_count: failed.len() + view.ready().map(|m| view.unnamed(m)).sum::<usize>(),
        failed: failed.into_iter().take(PAIRS).collect(),
        pairs: view.ready().count().pow(2) - view.ready().count(),
        lacks_canary: order::lacks_canary(wish.rollout, &view),
        retry_at,
        epoch,
    }
}

/// Whether a node was ordered, or has done, a later change than this. Either etcd was
/// restored from a backup, and only the nodes know where they are; or this is an
/// outdated view of the ClusterNetwork, and the write of its status fails before any
/// node gets an order to go back.
fn is_overtaken(epoch: &Epoch, members: &[Member]) -> bool {
    let epochs = members.iter().flat_map(|m| [&m.told, &m.applied]);
    let mut numbers = epochs.flatten().map(|e| e.number);
    numbers.any(|number| number > epoch.number && is_credible(number, epoch.number))
}

/// How many changes of mode a backup of etcd may lack.
const FORGOTTEN: i64 = 1 << 16;

/// Whether a node may have seen an epoch of this number if the highest known one is
/// `known`. The report of one node must not use the numbers up, or start a change on
/// every node at will.
fn is_credible(number: i64, known: i64) -> bool {
    number.saturating_sub(known) <= FORGOTTEN
}

/// The first epoch of a ClusterNetwork. If no node runs in another mode or is on its
/// way to one, there is nothing to move, and the epoch begins as finished.
fn first(wish: &Wish<'_>, members: &[Member]) -> Epoch {
    let moving = members
        .iter()
        .filter_map(|m| m.applied.as_ref())
        .any(|a| a.mode != wish.mode || a.phase != Phase::Ready);
    let phase = if moving {
        Phase::Preflight
    } else {
        Phase::Ready
    };
    let number = wish.current.map_or(0, |e| e.number);
    Epoch {
        phase,
        ..change(wish, members, number)
    }
}

/// The epoch of a change: its number is higher than any seen.
fn change(wish: &Wish<'_>, members: &[Member], number: i64) -> Epoch {
    let seen = members.iter().flat_map(|m| {
        let epochs = [&m.told, &m.applied].into_iter().flatten();
        let probed = m.probes.iter().map(|report| report.number);
        epochs.map(|e| e.number).chain(probed)
    });
    let seen = seen.filter(|seen| is_credible(*seen, number));
    Epoch {
        cluster_network_uid: wish.uid.to_owned(),
        number: seen.max().unwrap_or_default().max(number) + 1,
        mode: wish.mode,
        phase: Phase::Preflight,
        attempt: 0,
    }
}

fn next(phase: Phase) -> Phase {
    match phase {
        Phase::Preflight => Phase::Prepare,
        Phase::Prepare => Phase::Switch,
        Phase::Switch => Phase::Finalize,
        Phase::Finalize | Phase::Ready => Phase::Ready,
    }
}

fn may_advance(rollout: &RolloutPolicy, view: &EpochProgress<'_>) -> bool {
    let phase = view.epoch.phase;
    let keep = rollout.failed_pairs == FailedPairs::Keep;
    let works = || keep || !view.ready().any(|m| view.fails(m));
    // No ready node means no consent.
    let somebody = view.members.is_empty() || view.ready().next().is_some();
    let may = match phase {
        Phase::Preflight => works(),
        Phase::Switch => works() && view.members.iter().all(|m| m.ready() || m.bare),
        Phase::Prepare | Phase::Finalize => true,
        Phase::Ready => false,
    };
    may && somebody && view.all_ready_done(phase)
}

/// The active mode: the target once all ready nodes have switched, the previous mode
/// until then.
fn active(wish: &Wish<'_>, view: &EpochProgress<'_>) -> RoutingMode {
    let epoch = view.epoch;
    let switched = view.all_ready_done(Phase::Switch)
        && view.ready().next().is_some()
        && (wish.rollout.failed_pairs == FailedPairs::Keep || !view.ready().any(|m| view.fails(m)));
    if epoch.phase > Phase::Switch || (epoch.phase == Phase::Switch && switched) {
        return epoch.mode;
    }
    let modes = view.members.iter().filter_map(|m| m.applied.as_ref());
    let old = modes.map(|a| a.mode).find(|mode| *mode != epoch.mode);
    wish.active.or(old).unwrap_or(epoch.mode)
}

fn awaited(view: &EpochProgress<'_>) -> Vec<Awaited> {
    let phase = view.epoch.phase;
    let late = view.ready().filter(|m| !view.done(m, phase));
    let mut awaited: Vec<Awaited> = late
        .map(|m| Awaited {
            node: m.name.clone(),
            owes: view.told(m).filter(|t| !view.done(m, t.phase)).cloned(),
            done: view.last_done(m),
        })
        .collect();
    awaited.sort_by_key(|a| a.owes.is_none());
    awaited
}

fn excluded(members: &[Member]) -> Vec<NodeReason> {
    let absent = members.iter().filter_map(|m| Some((m, m.absent?)));
    absent
        .map(|(member, why)| NodeReason {
            node: member.name.clone(),
            reason: why.to_owned(),
        })
        .collect()
}

fn fell_back(view: &EpochProgress<'_>) -> Vec<NodeReason> {
    view.ready()
        .filter_map(|member| {
            let mut peers = view.fell_back(member);
            let first = peers.next()?;
            let more = match peers.count() {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            Some(NodeReason {
                node: member.name.clone(),
                reason: clip(format!(
                    "fell back towards {}{more}: {}",
                    first.node, first.reason
                )),
            })
        })
        .collect()
}

fn failed_pairs(view: &EpochProgress<'_>) -> Vec<FailedPair> {
    let mut pairs = Vec::new();
    for member in view.ready() {
        let pair = |peer: &NodeReason, what: &str| FailedPair {
            from: member.name.clone(),
            to: peer.node.clone(),
            reason: clip(format!("{what}{}", peer.reason)),
        };
        pairs.extend(view.fell_back(member).map(|p| pair(p, "fell back: ")));
        pairs.extend(view.failed(member).map(|p| pair(p, "")));
    }
    // Sorted without the reason, so that the first of two equal pairs remains.
    pairs.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    pairs.dedup_by(|b, a| (&a.from, &a.to) == (&b.from, &b.to));
    pairs
}

/// A reason as long as the schema allows.
fn clip(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(512) {
        text.truncate(end);
    }
    text
}

fn count(view: &EpochProgress<'_>, keep: impl Fn(&Member) -> bool) -> i32 {
    i32::try_from(view.members.iter().filter(|m| keep(m)).count()).unwrap_or(i32::MAX)
}

fn counts(view: &EpochProgress<'_>) -> NodeCounts {
    let done = |phase| count(view, |m| view.done(m, phase));
    NodeCounts {
        total: count(view, |_| true),
        ready: count(view, Member::ready),
        probed: done(Phase::Preflight),
        prepared: done(Phase::Prepare),
        switched: done(Phase::Switch),
        finalized: done(Phase::Finalize),
        failed: count(view, |m| view.fell_back(m).next().is_some()),
        excluded: count(view, |m| !m.ready()),
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
