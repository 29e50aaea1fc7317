//! Nodes by name: their blocks, addresses and epochs.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use veer_crds::v1alpha1::Epoch;

use super::Change;

/// What counts of a NodeNetwork.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct NodeRecord {
    /// Name of node and object.
    pub(crate) name: String,
    /// `spec.podCIDRs`.
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// `status.addresses`, the primary first.
    pub(crate) addresses: Vec<IpAddr>,
    /// `spec.epoch`; kept of the own node only.
    pub(crate) epoch: Option<Epoch>,
    /// `status.applied`: number, phase and mode decide what it accepts.
    pub(crate) applied: Option<Epoch>,
    /// Number of the epoch in which the node reports that it keeps the old form
    /// to this node, by its `status.probes`.
    pub(crate) keeps_form_to_us: Option<i64>,
    /// `spec.decommission`; kept of the own node only.
    pub(crate) decommission: bool,
    /// The Node is deleted; pods may still run there.
    pub(crate) gone: bool,
    /// UID of the object, of the own node only and while it holds a report of an
    /// agent's; one that was deleted and made again does not.
    pub(crate) reported: String,
}

/// All nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    by_name: BTreeMap<String, NodeRecord>,
}

impl Nodes {
    /// Takes a change in. Returns whether anything that counts changed.
    pub(super) fn handle(&mut self, change: Change<String, NodeRecord>, own: &str) -> bool {
        match change {
            Change::Apply(node) => self.apply(node),
            // The own object may be deleted by mistake; the pods stay.
            Change::Delete(name) => name != own && self.by_name.remove(&name).is_some(),
            Change::Doubted(nodes, gone) => {
                let mut changed = true;
                for name in gone.iter().filter(|name| *name != own) {
                    self.by_name.remove(name);
                }
                for node in nodes {
                    changed |= self.apply(node);
                }
                changed
            }
            Change::Snapshot(nodes) => {
                let gone: Vec<String> = self
                    .by_name
                    .keys()
                    .filter(|name| *name != own && !nodes.iter().any(|n| n.name == **name))
                    .cloned()
                    .collect();
                let mut changed = true;
                for name in gone {
                    self.by_name.remove(&name);
                }
                for node in nodes {
                    changed |= self.apply(node);
                }
                changed
            }
        }
    }

    fn apply(&mut self, mut node: NodeRecord) -> bool {
        let known = self.by_name.get(&node.name);
        // A node without an address cannot be reached at all; one that reports
        // none has only lost its status.
        if node.addresses.is_empty()
            && let Some(known) = known
        {
            node.addresses.clone_from(&known.addresses);
        }
        if known == Some(&node) {
            return false;
        }
        self.by_name.insert(node.name.clone(), node);
        true
    }

    /// One node.
    pub(crate) fn get(&self, name: &str) -> Option<&NodeRecord> {
        self.by_name.get(name)
    }

    /// All nodes in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &NodeRecord> {
        self.by_name.values()
    }

    /// Whether an address lies in a node's block.
    pub(crate) fn claims(&self, node: &str, address: IpAddr) -> bool {
        self.get(node)
            .is_some_and(|n| n.pod_cidrs.iter().any(|c| c.contains(&address)))
    }

    /// Whether an address lies in any node's block.
    pub(crate) fn in_any_block(&self, address: IpAddr) -> bool {
        self.iter()
            .any(|n| n.pod_cidrs.iter().any(|c| c.contains(&address)))
    }
}
