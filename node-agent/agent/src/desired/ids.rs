//! The agent's own numbers for other nodes, kept over restarts.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use veer_bpf_common::{
    key::{FAMILY_V4, FAMILY_V6},
    maps::REMOTES_MAX,
    value::{NODE_ID_FIRST_REMOTE, Remote},
};

/// Which node has which id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ids {
    by_name: BTreeMap<String, u32>,
    /// Ids of an earlier agent, by the node's tunnel address, not yet claimed.
    earlier: HashMap<IpAddr, u32>,
}

/// The address in a remote's entry.
pub(crate) fn tunnel_address(remote: &Remote) -> Option<IpAddr> {
    let a = remote.tunnel_address;
    match remote.tunnel_family {
        FAMILY_V4 => Some(IpAddr::from([a[0], a[1], a[2], a[3]])),
        FAMILY_V6 => Some(IpAddr::from(a)),
        _ => None,
    }
}

impl Ids {
    /// Takes over the numbers that are in the maps.
    pub(crate) fn from_present(present: &HashMap<u32, Remote>) -> Self {
        let earlier = present
            .iter()
            .filter(|(id, _)| **id >= NODE_ID_FIRST_REMOTE)
            .filter_map(|(id, remote)| Some((tunnel_address(remote)?, *id)))
            .collect();
        Self {
            by_name: BTreeMap::new(),
            earlier,
        }
    }

    /// The node's id, a new one if need be. `None` when all are in use.
    pub(crate) fn of(&mut self, name: &str, address: Option<IpAddr>) -> Option<u32> {
        if let Some(id) = self.by_name.get(name) {
            return Some(*id);
        }
        let id = address
            .and_then(|a| self.earlier.remove(&a))
            .or_else(|| self.unused())?;
        self.by_name.insert(name.to_owned(), id);
        Some(id)
    }

    /// Whether the node has an id.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn unused(&self) -> Option<u32> {
        let taken: BTreeSet<u32> = self
            .by_name
            .values()
            .chain(self.earlier.values())
            .copied()
            .collect();
        let last = u32::try_from(REMOTES_MAX).unwrap_or(u32::MAX);
        (NODE_ID_FIRST_REMOTE..last).find(|id| !taken.contains(id))
    }

    /// Forgets nodes that are gone. Only with a complete list of nodes: then
    /// what an earlier agent left unclaimed is gone too.
    pub(crate) fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| exists(name));
        self.earlier.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: [u8; 4]) -> Remote {
        let mut tunnel_address = [0; 16];
        tunnel_address[..4].copy_from_slice(&address);
        Remote {
            tunnel_address,
            tunnel_family: FAMILY_V4,
            ..Remote::default()
        }
    }

    #[test]
    fn a_node_keeps_its_id_over_a_restart_and_nobody_else_gets_it() {
        let present = HashMap::from([(2, at([10, 0, 0, 2])), (3, at([10, 0, 0, 3]))]);
        let mut ids = Ids::from_present(&present);
        let address = |s: &str| Some(s.parse().unwrap());
        assert_eq!(ids.of("new", address("10.0.0.9")), Some(4));
        assert_eq!(ids.of("three", address("10.0.0.3")), Some(3));
        assert_eq!(ids.of("two", address("10.0.0.2")), Some(2));
        assert_eq!(ids.of("three", address("10.0.0.77")), Some(3));
    }

    #[test]
    fn an_id_is_free_again_after_its_node_is_gone() {
        let mut ids = Ids::default();
        ids.of("a", None);
        ids.of("b", None);
        ids.retain(|name| name != "a");
        assert_eq!(ids.of("c", None), Some(2));
        assert_eq!(ids.of("b", None), Some(3));
    }
}
