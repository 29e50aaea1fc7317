//! The routing epoch: which step every node is to be in. Pure.
//!
//! A change of mode goes Prepare → Switch → Finalize → Ready. The cluster takes
//! the next step once every ready node has acknowledged the present one; a node
//! takes the steps one after the other even if it comes late and the others
//! have long finished. Nodes that are not ready hold nobody up, except at
//! Finalize, after which the old form is no longer accepted. Every change by
//! the user, turning round half-way included, makes a higher number.

use veer_crds::v1alpha1::{Epoch, NodeCounts, Phase, RoutingMode};

/// A node as the epoch sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    /// Its name.
    pub(crate) name: String,
    /// Kubelet and agent are ready.
    pub(crate) ready: bool,
    /// What it was told.
    pub(crate) told: Option<Epoch>,
    /// What it acknowledged.
    pub(crate) applied: Option<Epoch>,
}

/// Where the cluster is and should go.
#[derive(Clone, Debug)]
pub(crate) struct Wish<'a> {
    /// UID of the ClusterNetwork.
    pub(crate) uid: &'a str,
    /// The mode that its spec asks for.
    pub(crate) mode: RoutingMode,
    /// Stay where the rollout is.
    pub(crate) paused: bool,
    /// The epoch of its status.
    pub(crate) current: Option<&'a Epoch>,
    /// The mode that its status calls active.
    pub(crate) active: Option<RoutingMode>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The cluster's epoch.
    pub(crate) epoch: Epoch,
    /// The mode traffic moves by.
    pub(crate) active: RoutingMode,
    /// What each node is to be told.
    pub(crate) orders: Vec<(String, Epoch)>,
    /// Nodes by what they acknowledged.
    pub(crate) counts: NodeCounts,
    /// Ready nodes that have not acknowledged the epoch's step.
    pub(crate) awaited: Vec<String>,
    /// Nodes that are not ready.
    pub(crate) excluded: Vec<String>,
}

/// Plans the next step.
pub(crate) fn plan(wish: &Wish<'_>, members: &[Member]) -> Plan {
    let mut epoch = match wish.current {
        Some(epoch) if epoch.cluster_network_uid == wish.uid => epoch.clone(),
        Some(_) | None => first(wish, members),
    };
    if !wish.paused {
        if epoch.mode != wish.mode {
            epoch = change(wish, members, epoch.number);
        } else if may_advance(&epoch, members) {
            epoch.phase = next(epoch.phase);
        }
    }
    let ready: Vec<&Member> = members.iter().filter(|m| m.ready).collect();
    let switched = ready.iter().all(|m| acknowledged(m, &epoch, Phase::Switch));
    let moved = epoch.phase > Phase::Switch || (epoch.phase == Phase::Switch && switched);
    let names = |list: Vec<&Member>| list.into_iter().map(|m| m.name.clone()).collect();
    Plan {
        active: if moved {
            epoch.mode
        } else {
            wish.active.unwrap_or(epoch.mode)
        },
        orders: members
            .iter()
            .map(|m| (m.name.clone(), order(m, &epoch)))
            .collect(),
        counts: counts(members, &epoch),
        awaited: names(
            ready
                .into_iter()
                .filter(|m| !acknowledged(m, &epoch, epoch.phase))
                .collect(),
        ),
        excluded: names(members.iter().filter(|m| !m.ready).collect()),
        epoch,
    }
}

/// The first epoch of a ClusterNetwork. Where no node runs in another mode there
/// is nothing to move, and it begins as finished.
fn first(wish: &Wish<'_>, members: &[Member]) -> Epoch {
    let other = members
        .iter()
        .filter_map(|m| m.applied.as_ref())
        .any(|a| a.mode != wish.mode);
    let phase = if other { Phase::Prepare } else { Phase::Ready };
    Epoch {
        phase,
        ..change(wish, members, 0)
    }
}

/// The epoch of a change: its number is higher than any seen.
fn change(wish: &Wish<'_>, members: &[Member], number: i64) -> Epoch {
    let seen = members
        .iter()
        .flat_map(|m| [&m.told, &m.applied])
        .flatten()
        .map(|e| e.number);
    Epoch {
        cluster_network_uid: wish.uid.to_owned(),
        number: seen.max().unwrap_or_default().max(number) + 1,
        mode: wish.mode,
        phase: Phase::Prepare,
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

fn same(a: &Epoch, b: &Epoch) -> bool {
    a.cluster_network_uid == b.cluster_network_uid && a.number == b.number
}

fn acknowledged(member: &Member, epoch: &Epoch, phase: Phase) -> bool {
    member
        .applied
        .as_ref()
        .is_some_and(|a| same(a, epoch) && a.phase >= phase)
}

fn may_advance(epoch: &Epoch, members: &[Member]) -> bool {
    let all = members
        .iter()
        .filter(|m| m.ready)
        .all(|m| acknowledged(m, epoch, epoch.phase));
    let whole = epoch.phase != Phase::Switch || members.iter().all(|m| m.ready);
    epoch.phase != Phase::Ready && all && whole
}

/// Whether a node of an earlier number is where a finished epoch leads to.
fn arrived(applied: &Epoch, epoch: &Epoch) -> bool {
    applied.mode == epoch.mode && applied.phase == Phase::Ready && epoch.phase == Phase::Ready
}

/// What a node is to be told: the step after its last, up to the cluster's.
fn order(member: &Member, epoch: &Epoch) -> Epoch {
    let phase = match &member.applied {
        // A new node has no traffic that could be lost.
        None => epoch.phase,
        Some(applied) if same(applied, epoch) => next(applied.phase),
        // It is where all others are, by the way of an earlier number.
        Some(applied) if arrived(applied, epoch) => epoch.phase,
        Some(_) => Phase::Prepare,
    };
    // Never back within a number: an agent may acknowledge late.
    let told = member
        .told
        .as_ref()
        .filter(|t| same(t, epoch))
        .map(|t| t.phase);
    let phase = told.map_or(phase, |told| told.max(phase)).min(epoch.phase);
    Epoch {
        phase,
        ..epoch.clone()
    }
}

fn counts(members: &[Member], epoch: &Epoch) -> NodeCounts {
    let count = |keep: &dyn Fn(&Member) -> bool| {
        i32::try_from(members.iter().filter(|m| keep(m)).count()).unwrap_or(i32::MAX)
    };
    NodeCounts {
        total: count(&|_| true),
        ready: count(&|m| m.ready),
        prepared: count(&|m| acknowledged(m, epoch, Phase::Prepare)),
        switched: count(&|m| acknowledged(m, epoch, Phase::Switch)),
        excluded: count(&|m| !m.ready),
        ..NodeCounts::default()
    }
}

#[cfg(test)]
#[path = "epoch_tests.rs"]
mod tests;
