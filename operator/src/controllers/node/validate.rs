//! What a Node should have, given what it has: pure.

use std::collections::BTreeSet;

use ipnet::IpNet;
use veer_crds::v1alpha1::{ClusterNetworkSpec, NodeNetwork, PodCidrEntry, PodCidrState};

use super::held::{self, Held};
use crate::slim::{SlimNode, SlimReportStatus};

/// A Node, with what it holds and what it should get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValidatedNode {
    /// Its name.
    pub(crate) name: String,
    /// Its UID.
    pub(crate) uid: String,
    /// Blocks that its agent holds, as far as they count, or that its NodeNetwork
    /// has; claimed or not.
    pub(crate) holds: Vec<IpNet>,
    /// Those of them that its NodeNetwork has.
    pub(crate) told: Vec<IpNet>,
    /// Blocks that its agent reports as held and that do not count.
    pub(crate) refused: BTreeSet<IpNet>,
    /// Families it should have a block of, IPv4 first.
    pub(crate) families: Vec<Family>,
    /// Entries whose blocks it should give up: those that drain, once it has no pod.
    pub(crate) leaves: Vec<IpNet>,
}

impl ValidatedNode {
    /// Whether it should have another block than this.
    pub(crate) fn leaves(&self, block: &IpNet) -> bool {
        self.leaves.iter().any(|entry| entry.contains(block))
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// That of a block.
    pub(crate) fn of(block: &IpNet) -> Self {
        match block {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

impl Family {
    /// Whether the cluster gives it up.
    pub(crate) fn is_given_up(self, spec: &ClusterNetworkSpec) -> bool {
        spec.gives_up(self == Self::V4)
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Collects what a Node holds and should have. What the agent holds comes before what
/// the NodeNetwork has. `claimed`: whether a block is the node's by a claim.
pub(crate) fn validate(
    node: &SlimNode,
    network: Option<&NodeNetwork>,
    said: &SlimReportStatus,
    spec: &ClusterNetworkSpec,
    claimed: impl Fn(&IpNet) -> bool,
) -> ValidatedNode {
    let Held { counts, refused } = held::judge(network, &spec.pod_cidrs, claimed);
    let told = network
        .map(|n| n.spec.pod_cidrs.as_slice())
        .unwrap_or_default();
    let mut holds = counts;
    for block in told {
        if !holds.contains(block) {
            holds.push(*block);
        }
    }
    let mut families: Vec<Family> = spec
        .pod_cidrs
        .iter()
        .map(|entry| Family::of(&entry.cidr))
        .filter(|family| !family.is_given_up(spec))
        .chain(holds.iter().map(Family::of))
        .collect();
    families.sort();
    families.dedup();
    let boot = &node.status.node_info.boot_id;
    let empty = said.endpoints == 0 && !boot.is_empty() && said.boot_id == *boot;
    // An agent keeps a block of a family that is given up until its last pod goes.
    let held = network.and_then(|n| n.status.as_ref());
    let held = held.map(|status| status.held_pod_cidrs.as_slice());
    let unused = |entry: &PodCidrEntry| {
        held.is_some_and(|held| !held.is_empty() && !held.iter().any(|b| entry.cidr.contains(b)))
    };
    let draining = spec.pod_cidrs.iter().filter(|entry| {
        let over = if Family::of(&entry.cidr).is_given_up(spec) {
            unused(entry)
        } else {
            empty
        };
        over && entry.state == PodCidrState::Draining
    });
    let leaves = draining.map(|entry| entry.cidr).collect();
    ValidatedNode {
        name: node.name().to_owned(),
        uid: node.uid().to_owned(),
        holds,
        told: told.to_vec(),
        refused,
        families,
        leaves,
    }
}
