//! What the plan and the status are made from.

use std::collections::BTreeMap;
use std::sync::Arc;

use veer_crds::v1alpha1::{ClusterNetwork, NodeNetwork, PodCIDR};

use super::epoch::{Member, Wish};
use crate::condition::is_true;
use crate::context::Context;
use crate::slim::SlimNode;

/// What there is in the cluster.
pub(crate) struct Seen {
    /// The Nodes.
    pub(crate) nodes: Vec<Arc<SlimNode>>,
    /// The NodeNetworks, by name.
    pub(crate) networks: BTreeMap<String, Arc<NodeNetwork>>,
    /// The claims.
    pub(crate) claims: Vec<Arc<PodCIDR>>,
    /// Ready nodes whose agents have not reported in this term.
    pub(crate) unheard: Vec<String>,
}

impl Seen {
    /// Reads the caches, in an order that lets a block be judged drained: the
    /// ledger is free only while nobody allocates, and who allocates after that
    /// reads a ClusterNetwork at least as new as the one being judged.
    pub(crate) async fn read(context: &Context) -> Self {
        let claims = context.ledger.lock().await.claims(context.claims.all());
        let networks = context.node_networks.all();
        let name = |n: &NodeNetwork| n.metadata.name.clone().unwrap_or_default();
        Self {
            nodes: context.nodes.all(),
            networks: networks.into_iter().map(|n| (name(&n), n)).collect(),
            claims,
            unheard: context.unheard(),
        }
    }

    /// Whether kubelet and agent of a node are ready, and the agent's word is of
    /// the node's present boot.
    pub(crate) fn ready(&self, node: &SlimNode) -> bool {
        let status = self
            .networks
            .get(node.name())
            .and_then(|n| n.status.as_ref());
        node.is_ready()
            && status.is_some_and(|s| {
                s.boot_id == node.status.node_info.boot_id
                    && is_true(&s.conditions, "Ready")
                    && !s.decommissioned
            })
    }
}

/// What the ClusterNetwork asks for.
pub(crate) fn wish(network: &ClusterNetwork) -> Wish<'_> {
    let status = network.status.as_ref();
    Wish {
        uid: network.metadata.uid.as_deref().unwrap_or_default(),
        mode: network.spec.routing.mode,
        paused: network.spec.rollout.paused,
        current: status.and_then(|s| s.epoch.as_ref()),
        active: status.and_then(|s| s.active_mode),
    }
}

/// The nodes, as the epoch sees them. A Node that has no NodeNetwork yet has
/// nothing to be told; a NodeNetwork without a Node is no member.
pub(crate) fn members(seen: &Seen) -> Vec<Member> {
    let mut members: Vec<Member> = seen
        .nodes
        .iter()
        .filter_map(|node| {
            let network = seen.networks.get(node.name())?;
            Some(Member {
                name: node.name().to_owned(),
                ready: seen.ready(node),
                told: network.spec.epoch.clone(),
                applied: network.status.as_ref().and_then(|s| s.applied.clone()),
            })
        })
        .collect();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}
