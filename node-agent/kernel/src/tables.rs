//! The maps against what they should hold: what differs is written, and what
//! differs from what this agent wrote is somebody else's work and told.

use std::collections::HashMap;

use veer_bpf_common::{
    key::IpKey,
    maps::{CONFIG, ENDPOINTS, INTERFACES, IPCACHE, NODES, REMOTES},
    value::Remote,
};

use crate::datapath::{self, Datapath, Maps, read_all};
use veer_agent_core::{
    desired::Desired,
    diff::{Difference, compare},
    prefix::Prefix,
};

/// What a list that the desired state was made from lets the comparison do.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Every node is known: the others' entries go.
    pub nodes: bool,
    /// Every node and every pod is known.
    pub rows: bool,
    /// Compare the ipcache too, the one map that grows with the cluster.
    pub ipcache: bool,
}

/// The entries of other nodes as this agent wrote them; before it has written
/// any, as an earlier one left them.
pub fn own_remotes(maps: &Maps, found: &HashMap<u32, Remote>) -> HashMap<u32, Remote> {
    if maps.shadow.begun {
        maps.shadow.remotes.clone()
    } else {
        found.clone()
    }
}

/// Compares and writes. Targets come before what points to them, and go after.
/// `tell` hears of each entry that somebody else changed.
pub fn converge(
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
