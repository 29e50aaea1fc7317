//! Other nodes: who has which id and which address.

mod ids;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
};

use veer_bpf_common::node::NodeId;

use crate::{
    endpoint::gateway_of,
    facts::Facts,
    family::Family,
    index::{Index, NodeRecord},
};

pub use ids::{Ids, Left};

/// Other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Ids by name. A node of which nobody has said where it is, and of which the
    /// maps hold nothing, is not there.
    pub by_name: BTreeMap<String, NodeId>,
    /// Addresses that stand for nodes (outside the tunnel), by name.
    pub primaries: BTreeMap<String, IpAddr>,
    /// The first believed address of each family, by name.
    firsts: BTreeMap<String, Vec<IpAddr>>,
    /// Ids by each believed address.
    pub by_address: HashMap<IpAddr, NodeId>,
    /// Health addresses by name, one of each family of the node's pods.
    pub health: BTreeMap<String, Vec<IpAddr>>,
    /// Ids by health address.
    pub health_ids: HashMap<IpAddr, NodeId>,
}

impl Peers {
    /// The first believed address of a node in a family.
    pub fn address_of(&self, name: &str, family: Family) -> Option<IpAddr> {
        family.first(self.firsts.get(name)?)
    }
}

/// The first address of each family that this node has an address of, before all that
/// which stands for the other node: of the family of the one that stands for this node,
/// IPv4 while that is not known. Packets between two nodes need a family that both have.
pub fn firsts(addresses: &[IpAddr], facts: &Facts) -> impl Iterator<Item = IpAddr> {
    let tunnel = facts.primary.map_or(Family::V4, Family::of);
    let usable = move |f: &Family| *f == tunnel || facts.first(*f).is_some();
    let families = [tunnel, tunnel.other()].into_iter().filter(usable);
    families.filter_map(move |family| family.first(addresses))
}

/// The health addresses of a node, one of each family that it has a block of.
fn healths(node: &NodeRecord) -> impl Iterator<Item = IpAddr> {
    let all: Vec<IpAddr> = node.pod_cidrs.iter().filter_map(gateway_of).collect();
    let families = Family::ALL.into_iter();
    families.filter_map(move |family| family.first(&all))
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
    // Before any node gets a number: the block says for sure whose one was, the address
    // may be another node's now.
    ids.update(&index.nodes);
    for node in others() {
        let said = !node.addresses.is_empty();
        let addresses: Vec<IpAddr> = ids.addresses(&node.name).collect();
        let mut firsts: Vec<IpAddr> = firsts(&addresses, facts).collect();
        let first = firsts.first().copied().filter(believed);
        firsts.retain(believed);
        if first.is_none() && !ids.knows(&node.name) {
            continue;
        }
        let Some(id) = ids.of(&node.name, first) else {
            tracing::error!(node = %node.name, "more nodes than the datapath has entries for");
            continue;
        };
        peers.by_name.insert(node.name.clone(), id);
        let healths: Vec<IpAddr> = healths(node).collect();
        peers.health_ids.extend(healths.iter().map(|a| (*a, id)));
        peers.health.insert(node.name.clone(), healths);
        if let Some(first) = first {
            peers.primaries.insert(node.name.clone(), first);
            peers.firsts.insert(node.name.clone(), firsts);
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
