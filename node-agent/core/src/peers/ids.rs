//! The agent's own numbers for other nodes, kept over restarts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use veer_bpf_common::{
    address::{IpKey, PrefixKey, to_ip},
    identity::Identity,
    node::NodeId,
    tables::{IpcacheEntry, Remote},
};

use crate::{
    index::{NodeRecord, Nodes},
    prefix::prefix,
};

/// What an earlier agent left in the maps of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// Entries of other nodes by id.
    pub remotes: &'a HashMap<u32, Remote>,
    /// Ids by address.
    pub nodes: &'a HashMap<IpKey, u32>,
    /// Rows of the ipcache; those of blocks say whose an id is.
    pub rows: &'a HashMap<PrefixKey, IpcacheEntry>,
}

/// Which node has which id.
#[derive(Clone, Debug, Default)]
pub struct Ids {
    by_name: BTreeMap<String, NodeId>,
    /// All in use, those not yet claimed included.
    taken: BTreeSet<NodeId>,
    /// Ids of an earlier agent that no node has claimed yet.
    earlier: Earlier,
    /// Where nodes were when the operator or an earlier agent's maps said it last: by
    /// name, the primary first.
    places: BTreeMap<String, Vec<Place>>,
    /// Of which state of the index these are.
    generation: Option<u64>,
}

/// An address at which a node was last known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    address: IpAddr,
    /// The operator has said it of another node since.
    taken: bool,
}

#[derive(Clone, Debug, Default)]
struct Earlier {
    /// By the node's tunnel address.
    by_address: HashMap<IpAddr, NodeId>,
    /// By the node's block.
    by_block: HashMap<PrefixKey, NodeId>,
    /// All addresses of a node, the tunnel's first.
    addresses: HashMap<NodeId, Vec<IpAddr>>,
}

impl Place {
    fn at(address: &IpAddr) -> Self {
        Self {
            address: *address,
            taken: false,
        }
    }
}

/// The address in a remote's entry.
pub(super) fn tunnel_address(remote: &Remote) -> Option<IpAddr> {
    to_ip(remote.tunnel_family, remote.tunnel_address)
}

impl Ids {
    /// Takes over the numbers that are in the maps.
    pub fn from_present(left: Left<'_>) -> Self {
        let mut earlier = Earlier::default();
        for (id, remote) in left.remotes {
            if let (Some(id), Some(address)) = (NodeId::remote(*id), tunnel_address(remote)) {
                earlier.by_address.insert(address, id);
                earlier.addresses.insert(id, vec![address]);
            }
        }
        for (address, id) in left.nodes {
            let known = NodeId::remote(*id).and_then(|id| earlier.addresses.get_mut(&id));
            if let (Some(address), Some(all)) = (address.to_ip(), known)
                && !all.contains(&address)
            {
                all.push(address);
            }
        }
        for (prefix, row) in left.rows {
            if row.identity == Identity::INIT.get()
                && let Some(id) = NodeId::remote(row.node_id)
                && earlier.addresses.contains_key(&id)
            {
                earlier.by_block.insert(*prefix, id);
            }
        }
        Self {
            taken: earlier.addresses.keys().copied().collect(),
            earlier,
            ..Self::default()
        }
    }

    /// Takes in what the operator says of where nodes are. An operator that names no
    /// address of a node is older than this agent, has just made the object again, or
    /// believes that another node has them: then the node stays where it was. It does
    /// until that other node is somewhere else; whose the address is then is not known.
    pub fn update(&mut self, nodes: &Nodes) {
        if self.generation.replace(nodes.generation()) == Some(nodes.generation()) {
            return;
        }
        let mut silent = false;
        for node in nodes.iter() {
            self.recover(&node.name, &node.pod_cidrs);
            if node.addresses.is_empty() {
                silent |= self.places.contains_key(&node.name);
            } else {
                self.place(node);
            }
        }
        if !silent {
            return;
        }
        let said: HashSet<IpAddr> = nodes.iter().flat_map(|n| &n.addresses).copied().collect();
        let is_silent = |name: &String| nodes.get(name).is_none_or(|n| n.addresses.is_empty());
        for (_, places) in self.places.iter_mut().filter(|(name, _)| is_silent(name)) {
            places.retain_mut(|place| {
                let elsewhere = said.contains(&place.address);
                let keep = elsewhere || !place.taken;
                place.taken |= elsewhere;
                keep
            });
        }
    }

    fn place(&mut self, node: &NodeRecord) {
        let places = self.places.entry(node.name.clone()).or_default();
        let kept = places.iter().filter(|p| !p.taken).map(|p| &p.address);
        if !kept.eq(&node.addresses) {
            places.clear();
            places.extend(node.addresses.iter().map(Place::at));
        }
    }

    /// Gives a node the number under which the maps hold its block, if they do.
    fn recover(&mut self, name: &str, blocks: &[IpNet]) {
        if self.earlier.by_block.is_empty() || self.by_name.contains_key(name) {
            return;
        }
        let Some(id) = blocks
            .iter()
            .find_map(|block| self.earlier.by_block.get(&prefix(block)))
            .copied()
        else {
            return;
        };
        if let Some(addresses) = self.earlier.addresses.remove(&id) {
            self.by_name.insert(name.to_owned(), id);
            let places = addresses.iter().map(Place::at).collect();
            self.places.insert(name.to_owned(), places);
        }
    }

    /// Where a node is, as far as anybody has said it.
    pub fn addresses(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        let places = self.places.get(name).map_or(&[][..], Vec::as_slice);
        places.iter().map(|place| place.address)
    }

    /// The node's id, a new one if need be. `None` when all are in use.
    pub fn of(&mut self, name: &str, address: Option<IpAddr>) -> Option<NodeId> {
        if let Some(id) = self.by_name.get(name) {
            return Some(*id);
        }
        let earlier = &mut self.earlier;
        let id = address
            .and_then(|a| earlier.by_address.remove(&a))
            .filter(|id| earlier.addresses.remove(id).is_some())
            .or_else(|| self.unused())?;
        self.taken.insert(id);
        self.by_name.insert(name.to_owned(), id);
        Some(id)
    }

    /// Whether the node has an id.
    pub fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The lowest that is free: where those taken leave the first gap.
    fn unused(&self) -> Option<NodeId> {
        let first = NodeId::FIRST_REMOTE.get();
        let count = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        // Without gaps, the common case, no look at each is needed.
        let next = NodeId::remote(first.saturating_add(count));
        let above = |id: &NodeId| self.taken.last().is_none_or(|highest| highest < id);
        next.filter(above).or_else(|| {
            let all = (first..).map_while(NodeId::remote);
            all.into_iter().find(|id| !self.taken.contains(id))
        })
    }

    /// Forgets nodes that are gone. Only with a complete list of nodes: then
    /// what an earlier agent left unclaimed is gone too.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| exists(name));
        self.places.retain(|name, _| exists(name));
        self.earlier = Earlier::default();
        if self.taken.len() != self.by_name.len() {
            self.taken = self.by_name.values().copied().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Change, Event, Index};

    fn at(address: [u8; 4]) -> Remote {
        let key = IpKey::v4(address);
        Remote {
            tunnel_address: *key.addr(),
            tunnel_family: key.family(),
            ..Remote::default()
        }
    }

    #[test]
    fn a_node_keeps_its_id_over_a_restart_and_nobody_else_gets_it() {
        let remotes = HashMap::from([(2, at([10, 0, 0, 2])), (3, at([10, 0, 0, 3]))]);
        let mut ids = Ids::from_present(Left {
            remotes: &remotes,
            nodes: &HashMap::new(),
            rows: &HashMap::new(),
        });
        let address = |s: &str| Some(s.parse().unwrap());
        assert_eq!(ids.of("new", address("10.0.0.9")), NodeId::remote(4));
        assert_eq!(ids.of("three", address("10.0.0.3")), NodeId::remote(3));
        assert_eq!(ids.of("two", address("10.0.0.2")), NodeId::remote(2));
        assert_eq!(ids.of("three", address("10.0.0.77")), NodeId::remote(3));
    }

    #[test]
    fn an_id_is_free_again_after_its_node_is_gone() {
        let mut ids = Ids::default();
        ids.of("a", None);
        ids.of("b", None);
        ids.retain(|name| name != "a");
        assert_eq!(ids.of("c", None), NodeId::remote(2));
        assert_eq!(ids.of("b", None), NodeId::remote(3));
        assert_eq!(ids.of("d", None), NodeId::remote(4));
    }

    #[test]
    fn a_silent_node_has_the_number_and_the_addresses_that_the_maps_hold_of_its_block() {
        let block: IpNet = "10.1.1.0/24".parse().unwrap();
        let remotes = HashMap::from([(5, at([10, 0, 0, 5])), (6, at([10, 0, 0, 6]))]);
        let ip = |s: &str| s.parse::<IpAddr>().unwrap();
        let nodes = HashMap::from([
            (IpKey::from(ip("10.0.0.5")), 5),
            (IpKey::from(ip("172.16.0.5")), 5),
            (IpKey::from(ip("10.0.0.6")), 6),
        ]);
        let init = |node_id| IpcacheEntry {
            identity: Identity::INIT.get(),
            node_id,
        };
        let rows = HashMap::from([(prefix(&block), init(5))]);
        let mut ids = Ids::from_present(Left {
            remotes: &remotes,
            nodes: &nodes,
            rows: &rows,
        });
        ids.recover("silent", &[block]);
        ids.recover("other", &["10.1.2.0/24".parse().unwrap()]);
        assert_eq!(ids.of("silent", None), NodeId::remote(5));
        let there = [ip("10.0.0.5"), ip("172.16.0.5")];
        assert!(ids.addresses("silent").eq(there));
        assert!(!ids.knows("other"));
        // Another node at the same address does not take the number away.
        assert_eq!(ids.of("thief", Some(ip("10.0.0.5"))), NodeId::remote(2));
    }

    /// The operator says these addresses of each node, one after the other; where the
    /// agent takes the first node to be after each.
    fn places(steps: &[(&str, &[&str])]) -> Vec<Vec<String>> {
        let mut index = Index::new("own");
        let mut ids = Ids::default();
        let mut after = Vec::new();
        for (name, addresses) in steps {
            let record = NodeRecord {
                name: (*name).into(),
                addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
                ..NodeRecord::default()
            };
            index.handle(Event::Node(Change::Apply(record)));
            ids.update(&index.nodes);
            after.push(ids.addresses(steps[0].0).map(|a| a.to_string()).collect());
        }
        after
    }

    #[test]
    fn a_node_of_which_the_operator_says_nothing_more_is_where_it_was() {
        let both = ["192.0.2.4", "fd00::4"];
        let steps = [
            ("b", &both[..]),
            ("b", &[]),
            ("c", &["192.0.2.5"]),
            ("b", &[]),
        ];
        assert!(places(&steps).iter().all(|there| there == &both));
    }

    #[test]
    fn an_address_that_another_node_took_and_left_does_not_come_back_whatever_the_order() {
        let (v4, v6, new) = ("192.0.2.4", "fd00::4", "192.0.2.104");
        let withdrawn: (_, &[&str]) = ("gone", &[]);
        let claimed: (_, &[&str]) = ("there", &[v4]);
        for [second, third] in [[withdrawn, claimed], [claimed, withdrawn]] {
            let steps = [
                ("gone", &[v4, v6][..]),
                second,
                third,
                ("there", &[new]),
                withdrawn,
            ];
            let after = places(&steps);
            assert!(
                after[..3].iter().all(|there| there == &[v4, v6]),
                "{after:?}"
            );
            assert!(after[3..].iter().all(|there| there == &[v6]), "{after:?}");
        }
        let again = [
            ("gone", &[v4][..]),
            claimed,
            withdrawn,
            ("gone", &[v4]),
            ("there", &[new]),
        ];
        assert!(places(&again).iter().all(|there| there == &[v4]));
    }
}
