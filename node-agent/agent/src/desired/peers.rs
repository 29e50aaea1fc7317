//! Other nodes: who has which id and which address.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

use super::{Facts, Ids};
use crate::{
    endpoint::gateway_of,
    index::{Index, NodeRecord},
};

/// Other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    /// Ids by name.
    pub(crate) by_name: BTreeMap<String, u32>,
    /// Addresses that stand for nodes (tunnel, next hop), by name.
    pub(crate) primaries: BTreeMap<String, IpAddr>,
    /// Ids by each believed address.
    pub(crate) by_address: HashMap<IpAddr, u32>,
    /// Health addresses by name.
    pub(crate) health: BTreeMap<String, Ipv4Addr>,
    /// Ids by health address.
    pub(crate) health_ids: HashMap<IpAddr, u32>,
    /// Whether every node has said where it is. While one has not, an entry that
    /// an earlier agent wrote may be that node's, and nothing is removed.
    pub(crate) all_known: bool,
}

/// The address that stands for a node: its first IPv4 one.
fn primary(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(IpAddr::is_ipv4)
}

/// The address that a node is probed at.
fn health(node: &NodeRecord) -> Option<Ipv4Addr> {
    node.pod_cidrs
        .iter()
        .find_map(|cidr| match gateway_of(cidr) {
            Some(IpAddr::V4(address)) => Some(address),
            Some(IpAddr::V6(_)) | None => None,
        })
}

/// Who the other nodes are. Not believed: an address inside a pod CIDR, one of
/// the own node, and one that two nodes name unless it is the primary of just
/// one of them (an address on every node, such as a bridge's, is nobody's).
pub(crate) fn peers(index: &Index, facts: &Facts, ids: &mut Ids) -> Peers {
    let mut peers = Peers {
        all_known: true,
        ..Peers::default()
    };
    let mut named: HashMap<IpAddr, u32> = HashMap::new();
    let mut twice: HashSet<IpAddr> = HashSet::new();
    let mut primaries: HashMap<IpAddr, u32> = HashMap::new();
    for node in index.nodes.iter().filter(|n| n.name != index.own()) {
        let believed = |a: &IpAddr| {
            !facts.addresses.contains(a)
                && !index.nodes.in_any_block(*a)
                && !a.is_loopback()
                && !a.is_unspecified()
                && !a.is_multicast()
        };
        let first = primary(&node.addresses).filter(believed);
        if first.is_none() && !ids.knows(&node.name) {
            // A new id now would leave the entry it had without an owner.
            peers.all_known = false;
            continue;
        }
        let Some(id) = ids.of(&node.name, first) else {
            tracing::error!(node = %node.name, "more nodes than the datapath has entries for");
            continue;
        };
        peers.by_name.insert(node.name.clone(), id);
        if let Some(health) = health(node) {
            peers.health.insert(node.name.clone(), health);
            peers.health_ids.insert(IpAddr::V4(health), id);
        }
        if let Some(first) = first {
            if primaries.insert(first, id).is_some() {
                twice.insert(first);
            }
            peers.primaries.insert(node.name.clone(), first);
        }
        for address in node.addresses.iter().filter(|a| believed(a)) {
            if Some(*address) != first && named.insert(*address, id).is_some() {
                twice.insert(*address);
            }
        }
    }
    // Only now: before, a node may not yet have claimed its earlier id.
    if index.complete.nodes && peers.all_known {
        ids.retain(|name| index.nodes.get(name).is_some());
    }
    for (address, id) in named {
        if !twice.contains(&address) {
            peers.by_address.insert(address, id);
        }
    }
    peers.by_address.extend(primaries);
    peers
}
