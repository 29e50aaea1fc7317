//! The switch of one node: takes up the epoch it is told, has its pairs probed,
//! and acknowledges a step once all of it is done here.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use veer_bpf_common::value::Remote;
use veer_crds::v1alpha1::{Epoch, KeptForm, Phase, ProbeReport};

use crate::{
    clock::monotonic,
    desired::{self, Facts, Peers, Step},
    endpoint::Store,
    held::Held,
    index::Index,
    probe::{self, Answer, Ask, Inputs, Pairs},
    repair::RoundLog,
    status::kept_form,
};

#[derive(Debug)]
pub(crate) struct Switch {
    /// What probes of other nodes found.
    pub(crate) pairs: Pairs,
    /// What the epoch asks, as of the last round.
    pub(crate) step: Step,
    /// The epoch acknowledged.
    pub(crate) applied: Option<Epoch>,
    /// What was last known of all pairs of one attempt.
    pub(crate) probes: Option<ProbeReport>,
    /// The peers to which the form was kept then: they go on to accept it.
    pub(crate) kept: Option<KeptForm>,
}

/// What the node and the maps are at this moment.
#[derive(Clone, Copy)]
pub(crate) struct Now<'a> {
    /// What the API server said.
    pub(crate) index: &'a Index,
    /// Other nodes.
    pub(crate) peers: &'a Peers,
    /// This node.
    pub(crate) facts: &'a Facts,
    /// Entries of other nodes, by id.
    pub(crate) present: &'a HashMap<u32, Remote>,
}

impl Switch {
    /// As an earlier agent left it.
    pub(crate) fn new(held: &Held) -> Self {
        Self {
            pairs: held.pairs.clone(),
            step: Step::default(),
            applied: held.applied.clone(),
            probes: None,
            kept: held.pairs.kept().and_then(kept_form),
        }
    }

    /// Takes up the epoch: what it asks, and which pairs have fallen back.
    /// `underlay` and `pods_mtu` are bytes.
    pub(crate) fn take_up(
        &mut self,
        done: &mut RoundLog,
        now: Now<'_>,
        epoch: Option<&Epoch>,
        underlay: u32,
        pods_mtu: u32,
    ) {
        let index = now.index;
        self.pairs.enter(epoch);
        if index.complete.nodes {
            let known = &now.peers.by_name;
            self.pairs.retain(|name| known.contains_key(name));
        }
        let confirm = confirm_timeout(index);
        let step = |kept| desired::step(epoch, underlay, pods_mtu, kept, confirm);
        let before = step(false);
        let seen = seen(now, &before);
        let fell = self.pairs.expire(Inputs {
            peers: &seen,
            step: &before,
            now: monotonic(),
        });
        if !fell.is_empty() {
            let note = format!(
                "fell back to the old form towards {}: no answer in the new one before the \
                 confirm timeout",
                fell.join(", ")
            );
            done.warn("FellBack", note);
        }
        // Nobody waits with the larger MTU for a node that was taken away.
        let gone = |name: &str| index.nodes.get(name).is_some_and(|n| n.gone);
        self.step = step(self.pairs.any_kept(|name| !gone(name)));
    }

    /// Acknowledges the epoch's step once all of it is done here.
    pub(crate) fn acknowledge(&mut self, now: Now<'_>) {
        let seen = seen(now, &self.step);
        let inputs = Inputs {
            peers: &seen,
            step: &self.step,
            now: monotonic(),
        };
        let settled = self.pairs.settle(inputs);
        if let Some(report) = self.pairs.report(inputs) {
            self.probes = Some(report);
            self.kept = self.pairs.kept().and_then(kept_form);
        }
        let waits = matches!(self.step.phase(), Phase::Preflight | Phase::Switch);
        if settled || !waits {
            self.applied.clone_from(&self.step.epoch);
        }
    }

    /// What is to be probed now, from which address, and in which round of
    /// probes.
    pub(crate) fn asks(
        &mut self,
        store: &Store,
        now: Now<'_>,
    ) -> Option<(Ipv4Addr, u64, Vec<Ask>)> {
        let from = match desired::health_address(store)? {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => return None,
        };
        let seen = seen(now, &self.step);
        let asks = self.pairs.asks(Inputs {
            peers: &seen,
            step: &self.step,
            now: monotonic(),
        });
        (!asks.is_empty()).then_some((from, self.pairs.round, asks))
    }

    /// Takes in what probes found.
    pub(crate) fn probed(&mut self, now: Now<'_>, round: u64, answers: Vec<Answer>) {
        let seen = seen(now, &self.step);
        self.pairs.take(round, answers, &seen);
    }
}

/// Which of the epoch told and the one held is to be followed: the held one where
/// the other is older. An API server restored from a backup tells what was
/// true once, until the operator has made a higher number.
pub(crate) fn newest(told: Option<Epoch>, held: Option<Epoch>) -> Option<Epoch> {
    match (told, held) {
        (Some(told), Some(held))
            if told.cluster_network_uid == held.cluster_network_uid
                && (told.number, told.phase) < (held.number, held.phase) =>
        {
            Some(held)
        }
        (told, held) => told.or(held),
    }
}

/// Nanoseconds that a switched pair has to be confirmed in.
fn confirm_timeout(index: &Index) -> u64 {
    let seconds = index
        .cluster
        .as_ref()
        .map(|(_, c)| c.rollout.confirm_timeout_seconds);
    u64::try_from(seconds.unwrap_or_default()).unwrap_or(0) * 1_000_000_000
}

/// The other nodes as probing sees them.
fn seen(now: Now<'_>, step: &Step) -> Vec<probe::Peer> {
    let Now {
        index,
        peers,
        facts,
        present,
    } = now;
    peers
        .by_name
        .iter()
        .filter_map(|(name, id)| {
            let node = index.nodes.get(name)?;
            let address = peers.primaries.get(name)?;
            let path = facts.paths.get(address).copied();
            let target = desired::target(step.mode(), path);
            let health = *peers.health.get(name)?;
            let local = facts.misplaced.iter().find(|(a, _)| *a == health);
            Some(probe::Peer {
                name: name.clone(),
                health,
                target,
                no_path: facts.unfit.get(address).cloned(),
                blind: local.map(|(a, device)| {
                    format!(
                        "{a} is its health address, but {device} of this node has it too, so that \
                         this node would answer itself: remove it from {device}"
                    )
                }),
                entry: *present.get(id)?,
                mtu: desired::pair_mtu(step, facts, node),
                accepts: target.is_some_and(|form| {
                    desired::peer_accepts(form, step.epoch.as_ref(), node.applied.as_ref())
                }),
                applied: node.applied.clone(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_api_server_takes_no_node_back_to_an_older_epoch() {
        let epoch = |uid: &str, number, phase| {
            Some(Epoch {
                cluster_network_uid: uid.into(),
                number,
                phase,
                ..Epoch::default()
            })
        };
        let held = epoch("a", 4, Phase::Switch);
        for older in [epoch("a", 3, Phase::Ready), epoch("a", 4, Phase::Prepare)] {
            assert_eq!(newest(older, held.clone()), held);
        }
        for newer in [
            epoch("a", 4, Phase::Finalize),
            epoch("a", 5, Phase::Preflight),
            epoch("b", 1, Phase::Ready),
        ] {
            assert_eq!(newest(newer.clone(), held.clone()), newer);
        }
        assert_eq!(newest(None, held.clone()), held);
    }
}
