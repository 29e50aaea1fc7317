//! Nodes by name: their blocks, addresses and epochs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use veer_crds::v1alpha1::{Epoch, NodeNetworkStatus};

use super::Change;
use crate::{family::Family, mtu::Mtu};

/// What counts of a NodeNetwork.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeRecord {
    /// Name of node and object.
    pub name: String,
    /// Seconds since 1970 at which the object was created, and its UID: which of
    /// two nodes is newer.
    pub born: (i64, String),
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// `spec.addresses`, the primary first: what the operator has found in the
    /// Node. What the node itself says is believed by nobody. Where there are none,
    /// `peers::Ids` knows those of before.
    pub addresses: Vec<IpAddr>,
    /// `spec.epoch`; kept of the own node only.
    pub epoch: Option<Epoch>,
    /// Its agent has written no status into the object yet.
    pub silent: bool,
    /// `status.applied`: number, phase and mode decide what it accepts.
    pub applied: Option<Epoch>,
    /// Number of the epoch in which the node reports that it keeps the old form
    /// to this node.
    pub keeps_form_to_us: Option<i64>,
    /// `status.pathMtu`; `None`: not known.
    pub path_mtu: Option<Mtu>,
    /// `spec.decommission`; kept of the own node only.
    pub decommission: bool,
    /// The Node is deleted; pods may still run there.
    pub gone: bool,
    /// What the status was seen to be; of the own node only.
    pub seen: Option<Box<OwnNode>>,
}

/// The own NodeNetwork as the API server has it: what the agent writes there is
/// compared with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnNode {
    /// UID of the object; one that was made again has another.
    pub uid: String,
    /// resourceVersion; 0: of its order nothing is known.
    pub version: u64,
    /// Its status.
    pub status: NodeNetworkStatus,
}

/// How much of the desired state a change of a node makes stale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Extent {
    /// Nothing that counts.
    #[default]
    Nothing,
    /// The pair with it: its entry and its route.
    Pair,
    /// Its addresses or blocks, and so rows of the ipcache.
    Rows,
}

/// Networks, to be asked whether they hold an address. As many look-ups as there
/// are different prefix lengths, however many networks there are.
#[derive(Clone, Debug, Default)]
pub struct Networks {
    count: HashMap<IpNet, usize>,
    /// How many networks there are of each family and length.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl Networks {
    fn add(&mut self, net: IpNet) {
        let net = net.trunc();
        *self.count.entry(net).or_default() += 1;
        *self.lengths.entry(family_and_length(&net)).or_default() += 1;
    }

    fn remove(&mut self, net: IpNet) {
        let net = net.trunc();
        if let Some(count) = self.count.get_mut(&net) {
            *count -= 1;
            if *count == 0 {
                self.count.remove(&net);
            }
        }
        let key = family_and_length(&net);
        if let Some(count) = self.lengths.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key);
            }
        }
    }

    /// Whether a network lies in one of these. An address is a network too.
    pub fn cover(&self, net: &IpNet) -> bool {
        let family = Family::of_net(net);
        self.lengths
            .range((family, 0)..=(family, net.prefix_len()))
            .filter_map(|((_, length), _)| IpNet::new(net.addr(), *length).ok())
            .any(|wider| self.count.contains_key(&wider.trunc()))
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut networks = Self::default();
        for net in nets {
            networks.add(net);
        }
        networks
    }
}

fn family_and_length(net: &IpNet) -> (Family, u8) {
    (Family::of_net(net), net.prefix_len())
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Nodes {
    by_name: BTreeMap<String, NodeRecord>,
    blocks: Networks,
    generation: u64,
    own: Option<Box<OwnNode>>,
}

impl Nodes {
    /// Takes a change in. Returns what it makes stale.
    pub(super) fn handle(&mut self, change: Change<String, NodeRecord>, own: &str) -> Extent {
        let extent = match change {
            Change::Apply(node) => self.apply(node),
            Change::Delete(name) => self.remove(&name, own),
            Change::Doubted(nodes, gone) => {
                for name in &gone {
                    self.remove(name, own);
                }
                self.apply_all(nodes)
            }
            Change::Snapshot(nodes) => {
                let there: HashSet<&str> = nodes.iter().map(|n| n.name.as_str()).collect();
                let gone: Vec<String> = self
                    .by_name
                    .keys()
                    .filter(|name| !there.contains(name.as_str()))
                    .cloned()
                    .collect();
                for name in gone {
                    self.remove(&name, own);
                }
                self.apply_all(nodes)
            }
        };
        if extent != Extent::Nothing {
            self.generation += 1;
        }
        extent
    }

    /// A list tells that all is known, even where it tells nothing new.
    fn apply_all(&mut self, nodes: Vec<NodeRecord>) -> Extent {
        for node in nodes {
            self.apply(node);
        }
        Extent::Rows
    }

    fn remove(&mut self, name: &str, own: &str) -> Extent {
        if name == own {
            // It may be deleted by mistake; the pods stay.
            self.own = None;
            return Extent::Nothing;
        }
        let Some(old) = self.by_name.remove(name) else {
            return Extent::Nothing;
        };
        for block in old.pod_cidrs {
            self.blocks.remove(block);
        }
        Extent::Rows
    }

    fn apply(&mut self, mut node: NodeRecord) -> Extent {
        if let Some(seen) = node.seen.take() {
            self.own = Some(seen);
        }
        let known = self.by_name.get(&node.name);
        // An object that was made again says nothing until the node's agent has.
        if node.silent
            && let Some(known) = known
        {
            node.applied.clone_from(&known.applied);
            node.keeps_form_to_us = known.keeps_form_to_us;
            node.path_mtu = known.path_mtu;
        }
        let extent = match known {
            Some(known) if *known == node => return Extent::Nothing,
            Some(known)
                if (&known.addresses, &known.pod_cidrs, &known.born)
                    == (&node.addresses, &node.pod_cidrs, &node.born)
                    && known.gone == node.gone =>
            {
                Extent::Pair
            }
            Some(_) | None => Extent::Rows,
        };
        for block in &node.pod_cidrs {
            self.blocks.add(*block);
        }
        if let Some(old) = self.by_name.insert(node.name.clone(), node) {
            for block in old.pod_cidrs {
                self.blocks.remove(block);
            }
        }
        extent
    }

    /// One node.
    pub fn get(&self, name: &str) -> Option<&NodeRecord> {
        self.by_name.get(name)
    }

    /// The own NodeNetwork as it was last seen; `None`: it is not there.
    pub fn own_seen(&self) -> Option<&OwnNode> {
        self.own.as_deref()
    }

    /// Rises with every change that counts.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All nodes in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &NodeRecord> {
        self.by_name.values()
    }

    /// Whether an address lies in a node's block.
    pub fn claims(&self, node: &str, address: IpAddr) -> bool {
        self.get(node)
            .is_some_and(|n| n.pod_cidrs.iter().any(|c| c.contains(&address)))
    }

    /// Whether an address lies in any node's block.
    pub fn in_any_block(&self, address: IpAddr) -> bool {
        self.blocks.cover(&IpNet::from(address))
    }

    /// The blocks of all nodes.
    pub fn blocks(&self) -> &Networks {
        &self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    #[test]
    fn blocks_of_different_lengths_and_both_families_are_found_by_what_lies_in_them() {
        let mut all: Networks = ["10.1.0.0/24", "10.2.0.0/16", "10.2.0.0/16", "fd00::/64"]
            .map(net)
            .into_iter()
            .collect();
        for inside in ["10.1.0.7/32", "10.1.0.0/24", "10.2.3.0/24", "fd00::1/128"] {
            assert!(all.cover(&net(inside)), "{inside}");
        }
        for outside in ["10.1.1.7/32", "10.1.0.0/23", "0.0.0.0/0", "fd01::1/128"] {
            assert!(!all.cover(&net(outside)), "{outside}");
        }
        all.remove(net("10.2.0.0/16"));
        assert!(all.cover(&net("10.2.0.1/32")), "one of two is left");
        all.remove(net("10.2.0.0/16"));
        assert!(!all.cover(&net("10.2.0.1/32")));
    }

    #[test]
    fn a_nodes_former_block_is_no_block_any_more() {
        let mut nodes = Nodes::default();
        let node = |block: &str| NodeRecord {
            name: "b".into(),
            pod_cidrs: vec![net(block)],
            ..NodeRecord::default()
        };
        let inside = |nodes: &Nodes, a: &str| nodes.in_any_block(a.parse().unwrap());
        nodes.handle(Change::Apply(node("10.1.0.0/24")), "a");
        assert!(inside(&nodes, "10.1.0.9"));
        nodes.handle(Change::Apply(node("10.1.5.0/24")), "a");
        assert!(!inside(&nodes, "10.1.0.9") && inside(&nodes, "10.1.5.9"));
        nodes.handle(Change::Snapshot(Vec::new()), "a");
        assert!(!inside(&nodes, "10.1.5.9"));
    }

    #[test]
    fn an_object_made_again_keeps_what_its_node_said_until_it_says_something() {
        let mut nodes = Nodes::default();
        let before = NodeRecord {
            name: "b".into(),
            born: (1, "one".into()),
            applied: Some(Epoch::default()),
            keeps_form_to_us: Some(3),
            path_mtu: Mtu::new(1400),
            ..NodeRecord::default()
        };
        nodes.handle(Change::Apply(before.clone()), "a");
        let again = NodeRecord {
            name: "b".into(),
            born: (2, "two".into()),
            silent: true,
            ..NodeRecord::default()
        };
        nodes.handle(Change::Apply(again.clone()), "a");
        let kept = nodes.get("b").unwrap();
        assert_eq!(
            (&kept.applied, kept.keeps_form_to_us, kept.path_mtu),
            (&before.applied, before.keeps_form_to_us, before.path_mtu)
        );
        let silent = NodeRecord {
            silent: false,
            ..again
        };
        nodes.handle(Change::Apply(silent.clone()), "a");
        assert_eq!(nodes.get("b"), Some(&silent));
    }

    #[test]
    fn what_only_the_pair_depends_on_makes_no_rows_stale() {
        let mut nodes = Nodes::default();
        let node = NodeRecord {
            name: "b".into(),
            addresses: vec!["192.0.2.2".parse().unwrap()],
            ..NodeRecord::default()
        };
        let mut take = |node: &NodeRecord| nodes.handle(Change::Apply(node.clone()), "a");
        assert_eq!(take(&node), Extent::Rows);
        assert_eq!(take(&node), Extent::Nothing);
        let applied = NodeRecord {
            applied: Some(Epoch::default()),
            path_mtu: Mtu::new(1400),
            ..node.clone()
        };
        assert_eq!(take(&applied), Extent::Pair);
        let moved = NodeRecord {
            addresses: vec!["192.0.2.3".parse().unwrap()],
            ..applied
        };
        assert_eq!(take(&moved), Extent::Rows);
    }
}
