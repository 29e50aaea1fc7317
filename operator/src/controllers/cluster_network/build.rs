//! The inputs of the plan and of the status.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::{Selector, SelectorExt};
use veer_crds::condition::is_true;
use veer_crds::v1alpha1::{ClusterNetwork, ClusterNetworkSpec, NodeNetwork, PodCIDR};

use super::epoch::{Member, Wish};
use crate::context::Context;
use crate::selection::{Part, Selection};
use crate::slim::{SlimNode, SlimReport};
use crate::spoken::spoken;

/// The objects in the cluster.
pub(crate) struct ClusterObjects {
    /// The Nodes that take part.
    pub(crate) nodes: Vec<Arc<SlimNode>>,
    /// The NodeNetworks, by name.
    pub(crate) networks: BTreeMap<String, Arc<NodeNetwork>>,
    /// The NodeReports, by name.
    pub(crate) reports: BTreeMap<String, Arc<SlimReport>>,
    /// The claims.
    pub(crate) claims: Vec<Arc<PodCIDR>>,
    /// Ready nodes whose agents have not reported in this term.
    pub(crate) unheard: Vec<String>,
}

impl ClusterObjects {
    /// Reads the caches in an order in which a block can be judged drained: holding
    /// the ledger's lock excludes allocations, and a later allocation reads a
    /// ClusterNetwork at least as new as the one being judged.
    pub(crate) async fn read(context: &Context, spec: &ClusterNetworkSpec) -> Self {
        let claims = context.ledger.lock().await.claims(context.claims.all());
        let networks = context.node_networks.all();
        let selection = Selection::of(Some(spec));
        let takes = |node: &Arc<SlimNode>| {
            let known = context.node_networks.get(node.name()).is_some();
            selection.part(node, known) == Part::Takes
        };
        let name = |n: &NodeNetwork| n.metadata.name.clone().unwrap_or_default();
        let reports = context.reports.all();
        let of = |r: &SlimReport| r.metadata.name.clone().unwrap_or_default();
        Self {
            nodes: context.nodes.all().into_iter().filter(takes).collect(),
            reports: reports.into_iter().map(|r| (of(&r), r)).collect(),
            networks: networks.into_iter().map(|n| (name(&n), n)).collect(),
            claims,
            unheard: context.unheard(),
        }
    }

    /// Why a node is not ready; `None`: kubelet and agent are ready, and the agent's
    /// report is from the node's current boot.
    pub(crate) fn absent(&self, node: &SlimNode) -> Option<&'static str> {
        if !node.is_ready() {
            return Some("the kubelet is not ready");
        }
        let network = self.networks.get(node.name()).map(Arc::as_ref);
        let said = spoken(self.reports.get(node.name()).map(Arc::as_ref));
        let status = network.and_then(|n| n.status.as_ref());
        if said.boot_id.is_empty() {
            Some("the agent has not reported")
        } else if said.boot_id != node.status.node_info.boot_id {
            Some("the agent has not reported since the node booted")
        } else if status.is_some_and(|s| s.decommissioned) {
            Some("veer was removed from the node")
        } else if is_true(&said.conditions, "Ready") {
            None
        } else {
            Some("the agent is not ready")
        }
    }
}

/// What the ClusterNetwork asks for.
pub(crate) fn wish(network: &ClusterNetwork) -> Wish<'_> {
    let status = network.status.as_ref();
    Wish {
        uid: network.metadata.uid.as_deref().unwrap_or_default(),
        mode: network.spec.routing.mode,
        rollout: &network.spec.rollout,
        current: status.and_then(|s| s.epoch.as_ref()),
        active: status.and_then(|s| s.active_mode),
        since: status.and_then(|s| s.since.as_ref()).map(|t| t.0),
        began: status.and_then(|s| s.began.as_ref()).map(|t| t.0),
    }
}

/// The nodes as the epoch sees them. A Node without a NodeNetwork gets no orders yet;
/// a NodeNetwork without a Node is no member.
pub(crate) fn members(network: &ClusterNetwork, seen: &ClusterObjects) -> Vec<Member> {
    // An unreadable selector selects no node and is listed among the problems.
    let canary = network.spec.rollout.canary.clone();
    let canary = canary.and_then(|labels| Selector::try_from(labels).ok());
    let mut members: Vec<Member> = seen
        .nodes
        .iter()
        .filter_map(|node| {
            let network = seen.networks.get(node.name())?;
            let status = network.status.as_ref();
            let report = seen.reports.get(node.name()).map(Arc::as_ref);
            let said = spoken(report);
            Some(Member {
                name: node.name().to_owned(),
                absent: seen.absent(node),
                // The kubelet runs and no agent ever has, so the node has no pod of
                // veer's.
                bare: node.is_ready() && status.is_none() && said.boot_id.is_empty(),
                canary: canary.as_ref().is_some_and(|c| c.matches(&node.labels())),
                told: network.spec.epoch.clone(),
                applied: status.and_then(|s| s.applied.clone()),
                probes: said.probes.clone(),
            })
        })
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}
