//! The switch of one node: takes up the epoch it is told, has its pairs probed,
//! and acknowledges a step once all of it is done here.

pub mod entry;
mod epoch;
mod pairs;
mod paths;

use std::{collections::HashMap, net::IpAddr};

use veer_bpf_common::tables::{Form, Remote};
use veer_crds::v1alpha1::{Epoch, KeptForm, Phase, ProbeReport};

use crate::{
    endpoint::Store,
    facts::Facts,
    family::{Families, Family},
    index::Index,
    mtu::Mtu,
    peers::Peers,
    repair::RoundLog,
};

pub use epoch::{RoutingStep, overhead, pair_mtu, peer_accepts, step, target};
pub use pairs::{PairInputs, PairState, Pairs, Peer};
pub use paths::{Leg, Paths};

/// One peer to be probed in one form and one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The peer's name.
    pub node: String,
    /// The peer's health address in the family.
    pub to: IpAddr,
    /// The form.
    pub form: Form,
    /// Largest IP packet that the form carries.
    pub full: Mtu,
    /// Whether the pair has switched to the form and waits to be confirmed.
    pub confirms: bool,
}

/// What an [`Ask`] came to: `Err` says what failed and what to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What was asked.
    pub ask: Ask,
    /// What came of it.
    pub outcome: Result<(), String>,
}

/// The switch of one node.
#[derive(Debug)]
pub struct Switch {
    /// What probes of other nodes found.
    pub pairs: Pairs,
    /// What the epoch asks, as of the last round.
    pub step: RoutingStep,
    /// The epoch acknowledged.
    pub applied: Option<Epoch>,
    /// What was last known of all pairs of one attempt.
    pub probes: Option<ProbeReport>,
    /// The peers to which the form was kept then: they go on to accept it.
    pub kept: Option<KeptForm>,
}

/// What the node and the maps are at this moment.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// What the API server said.
    pub index: &'a Index,
    /// Other nodes.
    pub peers: &'a Peers,
    /// This node.
    pub facts: &'a Facts,
    /// The families of its pods.
    pub families: Families,
    /// Entries of other nodes, by id.
    pub present: &'a HashMap<u32, Remote>,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub clock: u64,
}

impl Switch {
    /// As an earlier agent left it: what it knew of pairs, and the epoch that it
    /// acknowledged.
    pub fn new(pairs: Pairs, applied: Option<Epoch>) -> Self {
        Self {
            step: RoutingStep::default(),
            applied,
            probes: None,
            kept: pairs.kept().and_then(kept_form),
            pairs,
        }
    }

    /// Takes up the epoch: what it asks, and which pairs have fallen back.
    /// `pods_mtu` is what pods have; `None`: nothing yet.
    pub fn take_up(
        &mut self,
        done: &mut RoundLog,
        now: Now<'_>,
        epoch: Option<&Epoch>,
        underlay: Mtu,
        pods_mtu: Option<Mtu>,
    ) {
        let index = now.index;
        self.pairs.enter(epoch);
        if index.complete.nodes {
            let known = &now.peers.by_name;
            self.pairs.retain(|name| known.contains_key(name));
        }
        let confirm = confirm_timeout(index);
        let overhead = overhead(now.facts.primary);
        let asked = |kept| step(epoch, underlay, overhead, pods_mtu, kept, confirm);
        let before = asked(false);
        let seen = seen(now, &before);
        let fell = self.pairs.expire(PairInputs {
            peers: &seen,
            step: &before,
            now: now.clock,
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
        self.step = asked(self.pairs.any_kept(|name| !gone(name)));
    }

    /// Acknowledges the epoch's step once all of it is done here.
    pub fn acknowledge(&mut self, now: Now<'_>) {
        let seen = seen(now, &self.step);
        let inputs = PairInputs {
            peers: &seen,
            step: &self.step,
            now: now.clock,
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

    /// What is to be probed now, from which addresses, one of each family, and in which
    /// round of probes.
    pub fn asks(&mut self, store: &Store, now: Now<'_>) -> Option<(Vec<IpAddr>, u64, Vec<Ask>)> {
        let from: Vec<IpAddr> = store.health_addresses().collect();
        if from.is_empty() {
            return None;
        }
        let seen = seen(now, &self.step);
        let asks = self.pairs.asks(PairInputs {
            peers: &seen,
            step: &self.step,
            now: now.clock,
        });
        (!asks.is_empty()).then_some((from, self.pairs.round, asks))
    }

    /// Takes in what probes found.
    pub fn probed(&mut self, now: Now<'_>, round: u64, answers: Vec<Answer>) {
        let seen = seen(now, &self.step);
        let inputs = PairInputs {
            peers: &seen,
            step: &self.step,
            now: now.clock,
        };
        self.pairs.take(round, answers, inputs);
    }
}

/// Which of the epoch told and the one held is to be followed: the held one where
/// the other is older. An API server restored from a backup tells what was
/// true once, until the operator has made a higher number.
pub fn newest(told: Option<Epoch>, held: Option<Epoch>) -> Option<Epoch> {
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
fn seen(now: Now<'_>, step: &RoutingStep) -> Vec<Peer> {
    let Now {
        index,
        peers,
        facts,
        families,
        present,
        clock: _,
    } = now;
    peers
        .by_name
        .iter()
        .filter_map(|(name, id)| {
            let node = index.nodes.get(name)?;
            let address = *peers.primaries.get(name)?;
            let paths = Paths::to(node, address, families, facts, peers);
            let target = target(step.mode(), &paths);
            let health = peers.health.get(name)?.iter().copied();
            let in_common = |health: &IpAddr| paths.families.has(Family::of(*health));
            let health: Vec<IpAddr> = health.filter(in_common).collect();
            if health.is_empty() {
                return None;
            }
            let local = facts.misplaced.iter().find(|(a, _)| health.contains(a));
            Some(Peer {
                name: name.clone(),
                health,
                target,
                no_path: paths.obstacle(name),
                blind: local.map(|(a, device)| {
                    format!(
                        "{a} is its health address, but {device} of this node has it too, so that \
                         this node would answer itself: remove it from {device}"
                    )
                }),
                entry: *present.get(&id.get())?,
                mtu: pair_mtu(step, facts, node),
                accepts: target.is_some_and(|form| {
                    peer_accepts(form, step.epoch.as_ref(), node.applied.as_ref())
                }),
                applied: node.applied.clone(),
            })
        })
        .collect()
}

/// The peers to which the node keeps the old form, as others read it.
pub fn kept_form((number, peers): (i64, Vec<String>)) -> Option<KeptForm> {
    let all = peers.len() > KEPT_NAMED;
    (!peers.is_empty()).then(|| KeptForm {
        number,
        peers: if all { Vec::new() } else { peers },
        all,
    })
}

/// Peers that `status.keptForm` names.
const KEPT_NAMED: usize = 256;

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

    #[test]
    fn peers_to_which_the_form_is_kept_are_named_up_to_a_number() {
        let names = |n: usize| (0..n).map(|i| format!("n{i}")).collect::<Vec<_>>();
        assert_eq!(kept_form((3, names(0))), None);
        let few = kept_form((3, names(256))).unwrap();
        assert_eq!((few.number, few.peers.len(), few.all), (3, 256, false));
        let many = kept_form((3, names(257))).unwrap();
        assert_eq!((many.peers.len(), many.all), (0, true));
    }
}
