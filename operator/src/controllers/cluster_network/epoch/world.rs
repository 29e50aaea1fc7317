//! A cluster that the plan is tried on: nodes that do what they were told when
//! the test says so, pairs that do not work, and a clock.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::view::same;
use super::*;

/// Why a node of a test is not ready.
pub(super) const AWAY: &str = "away";

/// The ClusterNetwork: what the user asks, and the status.
#[derive(Clone)]
pub(super) struct Network {
    pub(super) mode: RoutingMode,
    pub(super) rollout: RolloutPolicy,
    pub(super) current: Option<Epoch>,
    pub(super) active: Option<RoutingMode>,
    pub(super) since: Option<Timestamp>,
    pub(super) began: Option<Timestamp>,
    /// Its resourceVersion.
    pub(super) version: u64,
}

impl Network {
    pub(super) fn plan(&self, nodes: &[Member], now: i64) -> Plan {
        let wish = Wish {
            uid: "uid",
            mode: self.mode,
            rollout: &self.rollout,
            current: self.current.as_ref(),
            active: self.active,
            since: self.since,
            began: self.began,
        };
        plan(&wish, nodes, Timestamp::from_second(now).unwrap())
    }

    /// What of the plan goes into the status.
    pub(super) fn written(&self, plan: &Plan) -> Self {
        Self {
            current: Some(plan.epoch.clone()),
            active: Some(plan.active),
            since: Some(plan.since),
            began: Some(plan.began),
            ..self.clone()
        }
    }
}

/// The cluster.
#[derive(Clone)]
pub(super) struct World {
    pub(super) network: Network,
    pub(super) nodes: Vec<Member>,
    /// Pairs that do not work in the target form, from and to.
    pub(super) broken: BTreeSet<(usize, usize)>,
    /// Seconds.
    pub(super) now: i64,
}

impl World {
    pub(super) fn new(count: usize) -> Self {
        // In the order of their names, as the orders are.
        let width = if count > 10 { 2 } else { 1 };
        let node = |i| Member {
            name: format!("n{i:0width$}"),
            ..Member::default()
        };
        Self {
            network: Network {
                mode: RoutingMode::Tunnel,
                rollout: RolloutPolicy::default(),
                current: None,
                active: None,
                since: None,
                began: None,
                version: 0,
            },
            nodes: (0..count).map(node).collect(),
            broken: BTreeSet::new(),
            now: 1_000_000,
        }
    }

    /// One where epoch 1 is complete and the user has asked for Native.
    pub(super) fn asked_for_native(count: usize) -> Self {
        let mut world = Self::new(count);
        world.settle();
        world.network.mode = RoutingMode::Native;
        world
    }

    /// Makes these the canaries, and has the policy ask for such.
    pub(super) fn canaries(&mut self, canaries: &[usize]) {
        self.network.rollout.canary = Some(LabelSelector::default());
        for (i, node) in self.nodes.iter_mut().enumerate() {
            node.canary = canaries.contains(&i);
        }
    }

    pub(super) fn set_ready(&mut self, node: usize, ready: bool) {
        self.nodes[node].absent = (!ready).then_some(AWAY);
    }

    /// The operator looks once, writes its status and tells the nodes.
    pub(super) fn look(&mut self) -> Plan {
        let plan = self.network.plan(&self.nodes, self.now);
        self.network = self.network.written(&plan);
        for (node, (name, order)) in self.nodes.iter_mut().zip(&plan.orders) {
            assert_eq!(node.name, *name);
            node.told = Some(order.clone());
        }
        plan
    }

    /// A node's agent does what it was told.
    pub(super) fn obey(&mut self, node: usize) {
        let Some(told) = self.nodes[node].told.clone() else {
            return;
        };
        let down = |with: &dyn Fn(&str) -> bool| -> Vec<NodeReason> {
            let broken = self.broken.iter().filter(|(from, _)| *from == node);
            let names = broken.map(|(_, to)| self.nodes[*to].name.clone());
            let reason = |node| NodeReason {
                node,
                reason: "no answer".into(),
            };
            names.filter(|name| with(name)).map(reason).collect()
        };
        let before = self.nodes[node].probes.clone().unwrap_or_default();
        let was = |name: &str| {
            before.number == told.number && before.failed.iter().any(|p| p.node == name)
        };
        let report = |failed: Vec<NodeReason>, fell_back: Vec<NodeReason>| {
            let mut report = ProbeReport {
                number: told.number,
                attempt: told.attempt,
                mode: told.mode,
                ..ProbeReport::default()
            };
            for node in failed {
                report.add_failed(node);
            }
            for node in fell_back {
                report.add_fell_back(node);
            }
            report
        };
        let probes = match told.phase {
            Phase::Preflight | Phase::Ready => Some(report(down(&|_| true), Vec::new())),
            Phase::Switch => Some(report(down(&was), down(&|name| !was(name)))),
            Phase::Prepare | Phase::Finalize => self.nodes[node].probes.clone(),
        };
        let member = &mut self.nodes[node];
        member.probes = probes;
        // The word for Preflight is the report.
        if told.phase != Phase::Preflight {
            member.applied = Some(told);
        }
    }

    /// The ready ones obey.
    pub(super) fn all_obey(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].ready() {
                self.obey(node);
            }
        }
    }

    /// Looks and obeys until there is nothing to do at this time.
    pub(super) fn settle(&mut self) -> Plan {
        for _ in 0..20 {
            self.look();
            self.all_obey();
        }
        self.look()
    }

    /// Who was told to switch in the present change.
    pub(super) fn told_to_switch(&self) -> Vec<&str> {
        let current = self.network.current.as_ref();
        let told = |m: &&Member| {
            let told = m.told.as_ref().zip(current).filter(|(t, e)| same(t, e));
            told.is_some_and(|(t, _)| t.phase >= Phase::Switch)
        };
        let nodes = self.nodes.iter().filter(told);
        nodes.map(|m| m.name.as_str()).collect()
    }

    /// Looks and obeys until the cluster is in a phase.
    pub(super) fn until(&mut self, phase: Phase) -> Plan {
        for _ in 0..20 {
            let plan = self.look();
            if plan.epoch.phase == phase {
                return plan;
            }
            self.all_obey();
        }
        panic!("never in {phase:?}: {:?}", self.network.current);
    }
}
