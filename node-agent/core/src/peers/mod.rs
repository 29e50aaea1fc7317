//! Other nodes: who has which id and which address.

mod ids;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::{IpAddr, Ipv4Addr},
};

use veer_bpf_common::node::NodeId;

use crate::{
    endpoint::gateway_of,
    facts::Facts,
    index::{Index, NodeRecord},
};

pub use ids::{Ids, Left};

/// Other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Ids by name. A node of which nobody has said where it is, and of which the
    /// maps hold nothing, is not there.
    pub by_name: BTreeMap<String, NodeId>,
    /// Addresses that stand for nodes (tunnel, next hop), by name.
    pub primaries: BTreeMap<String, IpAddr>,
    /// Ids by each believed address.
    pub by_address: HashMap<IpAddr, NodeId>,
    /// Health addresses by name: those that nodes are probed at.
    pub health: BTreeMap<String, Ipv4Addr>,
    /// Ids by health address.
    pub health_ids: HashMap<IpAddr, NodeId>,
}

/// The address that stands for a node: its first IPv4 one.
fn primary(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(IpAddr::is_ipv4)
}

/// The health addresses of a node, one of each family that it has a block of.
fn healths(node: &NodeRecord) -> impl Iterator<Item = IpAddr> {
    let all = || node.pod_cidrs.iter().filter_map(gateway_of);
    let v4 = all().find(IpAddr::is_ipv4);
    v4.into_iter().chain(all().find(IpAddr::is_ipv6))
}

/// A node's claim of an address. Of two, the stronger counts, field by field.
#[expect(clippy::struct_excessive_bools, reason = "each is a right of its own")]
#[derive(Clone, Copy, Debug)]
struct Claim<'a> {
    /// The operator names the address now; it is not only remembered.
    said: bool,
    /// The Node exists. A NodeNetwork outlives its Node for its block, and another Node
    /// may get the address meanwhile.
    living: bool,
    /// It is the one that stands for the node.
    primary: bool,
    /// When the node came to be.
    born: &'a (i64, String),
    id: NodeId,
    /// Two nodes claim it with the same right, so neither has it: an address that is on
    /// every node, such as a bridge's.
    contested: bool,
}

impl Claim<'_> {
    fn compare(&self, other: &Self) -> Ordering {
        let right = |c: &Self| (c.said, c.living, c.primary);
        right(self).cmp(&right(other)).then_with(|| {
            // One machine at most answers at the address that stands for a node:
            // the one that was there last.
            if self.primary {
                self.born.cmp(other.born)
            } else {
                Ordering::Equal
            }
        })
    }
}

/// Who the other nodes are. Not believed: an address inside a pod CIDR, one of
/// the own node, and one that two nodes claim with the same right.
pub fn peers(index: &Index, facts: &Facts, ids: &mut Ids) -> Peers {
    let mut peers = Peers::default();
    let mut claims: HashMap<IpAddr, Claim<'_>> = HashMap::new();
    let others = || index.nodes.iter().filter(|n| n.name != index.own());
    let believed = |a: &IpAddr| {
        !facts.addresses.contains(a)
            && !index.nodes.in_any_block(*a)
            && !a.is_loopback()
            && !a.is_unspecified()
            && !a.is_multicast()
    };
    // First all of them: the block says for sure whose a number was, the address
    // may be another node's now.
    for node in others() {
        ids.recover(&node.name, &node.pod_cidrs);
    }
    for node in others() {
        let said = !node.addresses.is_empty() && !node.remembered;
        let addresses = if node.addresses.is_empty() {
            ids.recovered(&node.name).to_vec()
        } else {
            node.addresses.clone()
        };
        let first = primary(&addresses).filter(believed);
        if first.is_none() && !ids.knows(&node.name) {
            continue;
        }
        let Some(id) = ids.of(&node.name, first) else {
            tracing::error!(node = %node.name, "more nodes than the datapath has entries for");
            continue;
        };
        peers.by_name.insert(node.name.clone(), id);
        for health in healths(node) {
            peers.health_ids.insert(health, id);
            if let IpAddr::V4(health) = health {
                peers.health.insert(node.name.clone(), health);
            }
        }
        if let Some(first) = first {
            peers.primaries.insert(node.name.clone(), first);
        }
        for address in addresses.into_iter().filter(believed) {
            let claim = Claim {
                said,
                living: !node.gone,
                primary: Some(address) == first,
                born: &node.born,
                id,
                contested: false,
            };
            match claims.entry(address) {
                Entry::Vacant(free) => {
                    free.insert(claim);
                }
                Entry::Occupied(held) => {
                    let held = held.into_mut();
                    match claim.compare(held) {
                        Ordering::Greater => *held = claim,
                        Ordering::Equal => held.contested |= held.id != id,
                        Ordering::Less => {}
                    }
                }
            }
        }
    }
    // Only now: before, a node may not yet have claimed its earlier id.
    if index.complete.nodes {
        ids.retain(|name| index.nodes.get(name).is_some());
    }
    let sure = claims.into_iter().filter(|(_, claim)| !claim.contested);
    peers.by_address = sure.map(|(address, claim)| (address, claim.id)).collect();
    peers
}
