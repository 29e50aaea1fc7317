//! What is known of each pair with another node: plain data, told by probes,
//! read by the desired state.
//!
//! It belongs to one attempt of one epoch. A higher number forgets it all; a
//! higher attempt forgets what failed. It is kept on disk, because peers accept
//! the old form from this node for as long as it says that a pair keeps it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use veer_bpf_common::tables::{Form, Remote};
use veer_crds::v1alpha1::{Epoch, NodeReason, Phase, ProbeReport, RoutingMode};

use super::{Answer, Ask, RoutingStep, paths::named};
use crate::{
    family::{self, Families, Family},
    mtu::Mtu,
};

/// Nanoseconds after which a pair that failed is probed again.
const AGAIN: u64 = 30_000_000_000;

/// What probes of a peer in the target form came to.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing is known.
    #[default]
    Untried,
    /// It answers.
    Passed,
    /// It does not, for this reason: the pair keeps its form.
    Failed(String),
    /// It did, but once traffic had switched it did not: the pair has its old
    /// form back until the next attempt.
    FellBack(String),
}

/// Which attempt of which epoch findings belong to.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
struct Key {
    uid: String,
    number: i64,
    attempt: i32,
    mode: RoutingMode,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Pairs {
    key: Key,
    found: BTreeMap<String, Finding>,
    /// The families that were probed of pairs that passed; absent: IPv4 alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    families: BTreeMap<String, Families>,
    /// Every peer has been probed in this attempt.
    complete: bool,
    /// Pairs that answered in the form they have switched to.
    #[serde(skip)]
    confirmed: HashSet<(String, Form)>,
    /// When a peer that failed was last asked, and what it had acknowledged.
    #[serde(skip)]
    tried: HashMap<String, (u64, Option<Epoch>)>,
    /// Counts attempts seen by this agent, to know answers that come too late.
    #[serde(skip)]
    pub round: u64,
}

/// What outlives the agent counts.
impl PartialEq for Pairs {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            key,
            found,
            families,
            complete,
            confirmed: _,
            tried: _,
            round: _,
        } = self;
        (key, found, families, *complete)
            == (&other.key, &other.found, &other.families, other.complete)
    }
}

/// A peer as probing sees it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its health addresses, one of each family that both nodes have pods in.
    pub health: Vec<IpAddr>,
    /// The form that the epoch leads to; `None`: there is no path for it.
    pub target: Option<Form>,
    /// Why there is no path for bare packets, where more is known than that.
    pub no_path: Option<String>,
    /// Why an answer would say nothing, so that none is asked for.
    pub blind: Option<String>,
    /// Its entry in the maps.
    pub entry: Remote,
    /// Largest packet of the underlay to it.
    pub mtu: Mtu,
    /// Whether it takes the target form from us now.
    pub accepts: bool,
    /// What it acknowledged.
    pub applied: Option<Epoch>,
}

impl Peer {
    /// It has switched, waits to be confirmed, and still may be.
    fn pending(&self, now: u64) -> bool {
        self.entry.revert_at != 0 && !self.entry.has_reverted(|| now)
    }

    fn arrived(&self) -> bool {
        self.target
            .is_some_and(|form| form.byte() == self.entry.form)
    }

    /// The families that both nodes have pods in.
    fn families(&self) -> Families {
        family::of_addresses(&self.health)
    }
}

/// The peers and the time, for one look.
#[derive(Clone, Copy, Debug)]
pub struct PairInputs<'a> {
    /// The peers that are in the maps.
    pub peers: &'a [Peer],
    /// What the epoch asks.
    pub step: &'a RoutingStep,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
}

/// What the desired state reads of one pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairState {
    /// The families in which the peer answers in the target form.
    pub passed: Families,
    /// The peer answers in the form that the pair has switched to.
    pub confirmed: Option<Form>,
}

impl Pairs {
    /// Takes up an epoch. Returns whether it is another attempt than before.
    pub fn enter(&mut self, epoch: Option<&Epoch>) -> bool {
        let Some(epoch) = epoch else {
            return false;
        };
        let key = Key {
            uid: epoch.cluster_network_uid.clone(),
            number: epoch.number,
            attempt: epoch.attempt,
            mode: epoch.mode,
        };
        if key == self.key {
            return false;
        }
        if key.uid == self.key.uid && key.number == self.key.number {
            self.found.retain(|_, f| *f == Finding::Passed);
        } else {
            self.found.clear();
        }
        self.families
            .retain(|name, _| self.found.contains_key(name));
        self.key = key;
        self.complete = false;
        self.tried.clear();
        self.round += 1;
        true
    }

    /// Forgets peers that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.found.retain(|name, _| exists(name));
        self.families.retain(|name, _| exists(name));
        self.tried.retain(|name, _| exists(name));
        self.confirmed.retain(|(name, _)| exists(name));
    }

    fn finding(&self, name: &str) -> &Finding {
        self.found.get(name).unwrap_or(&Finding::Untried)
    }

    /// The families in which a pair has passed.
    fn passed(&self, name: &str) -> Families {
        match self.finding(name) {
            Finding::Passed => self.families.get(name).copied().unwrap_or(Families::V4),
            Finding::Untried | Finding::Failed(_) | Finding::FellBack(_) => Families::default(),
        }
    }

    /// What is known of a pair in all families of its pods.
    fn known(&self, peer: &Peer) -> &Finding {
        let found = self.finding(&peer.name);
        let is_partial = !self.passed(&peer.name).cover(peer.families());
        if *found == Finding::Passed && is_partial {
            return &Finding::Untried;
        }
        found
    }

    /// What the desired state reads of a pair.
    pub fn view(&self, name: &str) -> PairState {
        let is = |form| self.confirmed.contains(&(name.to_owned(), form));
        PairState {
            passed: self.passed(name),
            confirmed: Form::ALL.into_iter().find(|f| is(*f)),
        }
    }

    /// Why a pair does not have the target form; `None`: it has, or nothing is
    /// known.
    pub fn trouble(&self, name: &str) -> Option<&str> {
        match self.finding(name) {
            Finding::Untried | Finding::Passed => None,
            Finding::Failed(why) | Finding::FellBack(why) => Some(why),
        }
    }

    /// All of [`Pairs::trouble`], by name.
    pub fn troubles(&self) -> BTreeMap<String, String> {
        let named = |name: &String| Some((name.clone(), self.trouble(name)?.to_owned()));
        self.found.keys().filter_map(named).collect()
    }

    /// Whether any pair with a peer that `counts` keeps the old form.
    pub fn any_kept(&self, counts: impl Fn(&str) -> bool) -> bool {
        let kept = |name: &String| self.trouble(name).is_some() && counts(name);
        self.found.keys().any(kept)
    }

    /// Notes the pairs that were not confirmed in time; the program has fallen
    /// back by itself. Returns their names.
    pub fn expire(&mut self, inputs: PairInputs<'_>) -> Vec<String> {
        let mut fell = Vec::new();
        for peer in inputs.peers {
            let late = peer.entry.has_reverted(|| inputs.now);
            // What an earlier epoch began is not this one's failure.
            if late && i64::from(peer.entry.epoch) == self.key.number & 0xffff_ffff {
                let why = "it did not answer in the new form before the confirm timeout";
                self.found
                    .insert(peer.name.clone(), Finding::FellBack(why.to_owned()));
                fell.push(peer.name.clone());
            }
            if peer.entry.revert_at == 0 || late {
                for form in Form::ALL {
                    self.confirmed.remove(&(peer.name.clone(), form));
                }
            }
        }
        fell
    }

    /// What is to be asked now.
    pub fn asks(&mut self, inputs: PairInputs<'_>) -> Vec<Ask> {
        let phase = inputs.step.phase();
        let mut asks = Vec::new();
        for peer in inputs.peers {
            if let Some(why) = &peer.blind {
                let why = Finding::Failed(why.clone());
                self.found.insert(peer.name.clone(), why);
                continue;
            }
            if peer.pending(inputs.now) {
                let form = Form::of(peer.entry.form).into_iter();
                asks.extend(form.flat_map(|form| ask(peer, form, inputs.step, true)));
                if phase != Phase::Preflight {
                    continue;
                }
            }
            let Some(target) = peer.target else {
                let why = peer.no_path.clone().unwrap_or_else(|| {
                    format!("this node has no path to {} for bare packets", peer.name)
                });
                self.found.insert(peer.name.clone(), Finding::Failed(why));
                continue;
            };
            let wanted = match self.known(peer) {
                Finding::Passed | Finding::FellBack(_) => false,
                Finding::Untried => {
                    phase == Phase::Preflight || (phase >= Phase::Switch && !peer.arrived())
                }
                Finding::Failed(_) => phase >= Phase::Switch && self.is_due(peer, inputs.now),
            };
            if wanted {
                asks.extend(ask(peer, target, inputs.step, false));
            }
        }
        asks
    }

    fn is_due(&self, peer: &Peer, now: u64) -> bool {
        self.tried.get(&peer.name).is_none_or(|(at, applied)| {
            now.saturating_sub(*at) >= AGAIN || *applied != peer.applied
        })
    }

    /// Takes answers in. Those to an earlier attempt say nothing any more.
    pub fn take(&mut self, round: u64, answers: Vec<Answer>, inputs: PairInputs<'_>) {
        let peers: HashMap<&str, &Peer> =
            inputs.peers.iter().map(|p| (p.name.as_str(), p)).collect();
        for (ask, families, outcome) in of_pairs(answers) {
            if ask.confirms {
                if outcome.is_ok() {
                    self.confirmed.insert((ask.node, ask.form));
                }
                continue;
            }
            let Some(peer) = peers.get(ask.node.as_str()) else {
                continue;
            };
            if round != self.round || peer.target != Some(ask.form) {
                continue;
            }
            self.families.remove(&ask.node);
            let finding = match outcome {
                Ok(()) => {
                    if families != Families::V4 {
                        self.families.insert(ask.node.clone(), families);
                    }
                    Finding::Passed
                }
                Err(why) => {
                    let tried = (inputs.now, peer.applied.clone());
                    self.tried.insert(ask.node.clone(), tried);
                    Finding::Failed(why)
                }
            };
            self.found.insert(ask.node, finding);
        }
    }

    /// Whether all of this node's pairs have done the phase. A peer that does
    /// not accept the target form yet holds nothing up: it follows when it does.
    pub fn settle(&mut self, inputs: PairInputs<'_>) -> bool {
        let phase = inputs.step.phase();
        let tried = |p: &Peer| *self.known(p) != Finding::Untried;
        let settled = inputs.peers.iter().all(|peer| match phase {
            Phase::Preflight => tried(peer),
            Phase::Prepare => true,
            Phase::Switch | Phase::Finalize | Phase::Ready => {
                let due = *self.known(peer) == Finding::Passed && peer.accepts;
                peer.entry.revert_at == 0
                    && (peer.arrived() || (tried(peer) && (!due || peer.target.is_none())))
            }
        });
        self.complete |= settled && (phase == Phase::Preflight || phase >= Phase::Switch);
        settled
    }

    /// Number of the epoch, and the peers to which its old form is kept; `None`: not
    /// every pair has been probed yet.
    pub fn kept(&self) -> Option<(i64, Vec<String>)> {
        let troubled = |name: &&String| self.trouble(name).is_some();
        let peers = self.found.keys().filter(troubled).cloned();
        self.complete.then(|| (self.key.number, peers.collect()))
    }

    /// What to report; `None`: not every pair has been probed yet.
    pub fn report(&self, inputs: PairInputs<'_>) -> Option<ProbeReport> {
        if !self.complete {
            return None;
        }
        let mut report = ProbeReport {
            number: self.key.number,
            attempt: self.key.attempt,
            mode: self.key.mode,
            ..ProbeReport::default()
        };
        for peer in inputs.peers {
            let named = |why: &String| NodeReason {
                node: peer.name.clone(),
                reason: why.clone(),
            };
            match self.finding(&peer.name) {
                Finding::Failed(why) => report.add_failed(named(why)),
                Finding::FellBack(why) => report.add_fell_back(named(why)),
                Finding::Passed => report.passed += 1,
                Finding::Untried => report.passed += i32::from(peer.arrived()),
            }
        }
        Some(report)
    }
}

/// One for each family.
fn ask(peer: &Peer, form: Form, step: &RoutingStep, confirms: bool) -> impl Iterator<Item = Ask> {
    let full = if form == Form::Native {
        step.native_mtu.min(peer.mtu)
    } else {
        let in_tunnel = peer.mtu.less(peer.entry.overhead());
        step.tunnel_mtu.min(in_tunnel)
    };
    peer.health.iter().map(move |to| Ask {
        node: peer.name.clone(),
        to: *to,
        form,
        full,
        confirms,
    })
}

/// The answers of each pair together: it passes if those of all its families do.
fn of_pairs(answers: Vec<Answer>) -> Vec<(Ask, Families, Result<(), String>)> {
    let mut pairs: Vec<Vec<Answer>> = Vec::new();
    let mut places = HashMap::new();
    for answer in answers {
        let Ask {
            node,
            form,
            confirms,
            ..
        } = &answer.ask;
        let place = *places
            .entry((node.clone(), *form, *confirms))
            .or_insert(pairs.len());
        match pairs.get_mut(place) {
            Some(pair) => pair.push(answer),
            None => pairs.push(vec![answer]),
        }
    }
    let merged = pairs.into_iter().filter_map(|pair| {
        let families: Families = pair.iter().map(|a| Family::of(a.ask.to)).collect();
        let failed: Vec<String> = pair
            .iter()
            .filter_map(|a| {
                Some(named(
                    families,
                    Family::of(a.ask.to),
                    a.outcome.as_ref().err()?,
                ))
            })
            .collect();
        let outcome = if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("; "))
        };
        Some((pair.into_iter().next()?.ask, families, outcome))
    });
    merged.collect()
}

#[cfg(test)]
mod tests;
