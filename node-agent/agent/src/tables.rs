//! The maps against what they should hold: what differs is written, and what
//! differs from what this agent wrote is somebody else's work and told.

use std::{collections::HashMap, hash::Hash};

use veer_bpf_common::{
    key::IpKey,
    maps::{CONFIG, ENDPOINTS, INTERFACES, IPCACHE, NODES, REMOTES},
    value::Remote,
};

use crate::{
    datapath::{self, Datapath, Difference, Maps, Prefix, difference, read_all},
    desired::Desired,
};

/// What a list that the desired state was made from lets the comparison do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope {
    /// Every node is known: the others' entries go.
    pub(crate) nodes: bool,
    /// Every node and every pod is known.
    pub(crate) rows: bool,
    /// Compare the ipcache too, the one map that grows with the cluster.
    pub(crate) ipcache: bool,
}

/// The entries of other nodes as this agent wrote them; before it has written
/// any, as an earlier one left them.
pub(crate) fn own_remotes(maps: &Maps, found: &HashMap<u32, Remote>) -> HashMap<u32, Remote> {
    if maps.shadow.begun {
        maps.shadow.remotes.clone()
    } else {
        found.clone()
    }
}

/// Compares and writes. Targets come before what points to them, and go after.
/// `tell` hears of each entry that somebody else changed.
pub(crate) fn converge(
    datapath: &mut Datapath,
    wanted: &Desired,
    remotes: HashMap<u32, Remote>,
    scope: Scope,
    mut tell: impl FnMut(String),
) -> Result<(), datapath::Error> {
    let maps = &mut datapath.maps;
    let config = maps.present_config()?;
    let interfaces = read_all(&maps.interfaces, INTERFACES)?;
    let endpoints = read_all(&maps.endpoints, ENDPOINTS)?;
    let nodes = read_all(&maps.nodes, NODES)?;
    let rows = if scope.ipcache {
        Some(maps.ipcache_rows()?)
    } else {
        None
    };
    let shadow = &mut maps.shadow;
    let begun = shadow.begun;
    if shadow.config.is_some_and(|own| begun && own != config) {
        tell(format!("the entry of map {CONFIG} was changed"));
    }
    let mut told = |map: &'static str, key: String, how| {
        tell(format!("entry {key} of map {map} was {how}"));
    };
    let remotes = compare(
        remotes,
        &mut shadow.remotes,
        &wanted.remotes,
        scope.nodes,
        begun,
    );
    remotes.tell(|k, how| told(REMOTES, k.to_string(), how));
    let nodes = compare(nodes, &mut shadow.nodes, &wanted.nodes, scope.nodes, begun);
    nodes.tell(|k, how| told(NODES, address(k), how));
    let interfaces = compare(
        interfaces,
        &mut shadow.interfaces,
        &wanted.interfaces,
        true,
        begun,
    );
    interfaces.tell(|k, how| told(INTERFACES, k.to_string(), how));
    let endpoints = compare(
        endpoints,
        &mut shadow.endpoints,
        &wanted.endpoints,
        true,
        begun,
    );
    endpoints.tell(|k, how| told(ENDPOINTS, address(k), how));
    let rows = rows.map(|r| compare(r, &mut shadow.ipcache, &wanted.ipcache, scope.rows, begun));
    if let Some(rows) = &rows {
        rows.tell(|k, how| told(IPCACHE, prefix(k), how));
    }
    shadow.begun = true;

    if config != wanted.config {
        maps.set_config(wanted.config)?;
    }
    maps.shadow.config = Some(wanted.config);
    for (id, remote) in remotes.todo.write {
        maps.set_remote(id, remote)?;
    }
    for (address, id) in nodes.todo.write {
        maps.set_node(address, Some(id))?;
    }
    for (index, interface) in interfaces.todo.write {
        maps.set_interface(index, Some(interface))?;
    }
    for (address, endpoint) in endpoints.todo.write {
        maps.set_endpoint(address, Some(endpoint))?;
    }
    let rows = rows.map_or_else(Difference::default, |r| r.todo);
    for (prefix, entry) in rows.write {
        maps.set_ipcache(prefix, Some(entry))?;
    }
    for prefix in rows.remove {
        maps.set_ipcache(prefix, None)?;
    }
    for address in endpoints.todo.remove {
        maps.set_endpoint(address, None)?;
    }
    for index in interfaces.todo.remove {
        maps.set_interface(index, None)?;
    }
    for address in nodes.todo.remove {
        maps.set_node(address, None)?;
    }
    for id in remotes.todo.remove {
        maps.set_remote(id, Remote::default())?;
    }
    Ok(())
}

fn address(key: &IpKey) -> String {
    key.to_ip()
        .map_or_else(|| "of no family".into(), |ip| ip.to_string())
}

fn prefix((length, key): &Prefix) -> String {
    format!("{}/{length}", address(key))
}

/// What is to be done with one map, and what somebody else did to it.
#[derive(Debug, PartialEq, Eq)]
struct Compared<K, V> {
    todo: Difference<K, V>,
    strange: Vec<(K, &'static str)>,
}

impl<K, V> Compared<K, V> {
    fn tell(&self, mut to: impl FnMut(&K, &'static str)) {
        for (key, how) in &self.strange {
            to(key, how);
        }
    }
}

/// Compares what a map holds with what this agent wrote and with what it should
/// hold. The shadow becomes what the map holds; what is written then notes itself.
fn compare<K, V>(
    have: HashMap<K, V>,
    shadow: &mut HashMap<K, V>,
    want: &HashMap<K, V>,
    complete: bool,
    begun: bool,
) -> Compared<K, V>
where
    K: Copy + Eq + Hash,
    V: Copy + PartialEq,
{
    let mut todo = difference(&have, want, complete);
    let mut strange = Vec::new();
    if begun {
        for (key, own) in &*shadow {
            let how = match have.get(key) {
                Some(found) if found == own => continue,
                Some(_) => "changed",
                None => "removed",
            };
            strange.push((*key, how));
            // What an earlier agent left is kept while the list is not complete,
            // and so put back as well.
            if !complete && !want.contains_key(key) {
                todo.write.push((*key, *own));
            }
        }
        let added = have.keys().filter(|k| complete && !shadow.contains_key(k));
        strange.extend(added.map(|k| (*k, "added")));
    }
    *shadow = have;
    Compared { todo, strange }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted<K: Ord, V: Ord>(mut c: Compared<K, V>) -> Compared<K, V> {
        c.strange.sort_unstable();
        c.todo.write.sort_unstable();
        c.todo.remove.sort_unstable();
        c
    }

    #[test]
    fn what_somebody_else_did_is_told_and_put_back() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let have = HashMap::from([(1, 'x'), (3, 'c'), (9, 'z')]);
        let want = shadow.clone();
        let got = sorted(compare(have.clone(), &mut shadow, &want, true, true));
        assert_eq!(got.strange, [(1, "changed"), (2, "removed"), (9, "added")]);
        assert_eq!(got.todo.write, [(1, 'a'), (2, 'b')]);
        assert_eq!(got.todo.remove, [9]);
        assert_eq!(shadow, have, "until it is written");
    }

    #[test]
    fn what_the_agent_itself_wants_otherwise_is_no_repair() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b')]);
        let want = HashMap::from([(1, 'n'), (3, 'c')]);
        let got = sorted(compare(shadow.clone(), &mut shadow, &want, true, true));
        assert!(got.strange.is_empty());
        assert_eq!(got.todo.write, [(1, 'n'), (3, 'c')]);
        assert_eq!(got.todo.remove, [2]);
    }

    #[test]
    fn while_the_list_is_incomplete_an_earlier_agents_entry_is_put_back_too() {
        let mut shadow = HashMap::from([(1, 'a'), (2, 'b')]);
        let want = HashMap::from([(1, 'a')]);
        let have = HashMap::from([(1, 'a')]);
        let got = compare(have, &mut shadow, &want, false, true);
        assert_eq!(got.strange, [(2, "removed")]);
        assert_eq!(got.todo.write, [(2, 'b')]);
    }

    #[test]
    fn what_a_new_agent_finds_is_nobodys_fault() {
        let want = HashMap::from([(1, 'a')]);
        let have = HashMap::from([(1, 'x'), (5, 'e')]);
        let got = compare(have, &mut HashMap::new(), &want, true, false);
        assert!(got.strange.is_empty());
        assert_eq!((got.todo.write, got.todo.remove), (vec![(1, 'a')], vec![5]));
    }
}
