//! From what is known to what should be: pure functions of the index, the
//! wired pods and the node's facts. Nothing here reads or writes the kernel.

mod denied;
mod unassigned;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use veer_bpf_common::{
    address::{IpKey, PrefixKey},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    tables::{CONFIG_PAD, Config, Endpoint, Form, Interface, IpcacheEntry, Remote},
};
use veer_crds::v1alpha1::ClusterNetworkSpec;

use crate::{
    endpoint::{LocalEndpoint, Store, gateway_of},
    facts::Facts,
    family::{self, Family},
    index::{Index, NodeRecord},
    mtu::Mtu,
    peers::Peers,
    prefix::{host_prefix, prefix},
    route::{Route, host_route},
    switch::{Pairs, Paths, RoutingStep, entry, overhead, pair_mtu},
};

/// Everything the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The one configuration entry.
    pub config: Config,
    /// Node ids by address.
    pub nodes: HashMap<IpKey, u32>,
    /// Other nodes by id.
    pub remotes: HashMap<u32, Remote>,
    /// Rows of the ipcache.
    pub ipcache: HashMap<PrefixKey, IpcacheEntry>,
    /// Local pods by address.
    pub endpoints: HashMap<IpKey, Endpoint>,
    /// Local pods by device.
    pub interfaces: HashMap<u32, Interface>,
    /// Routes of the main table.
    pub routes: Vec<Route>,
    /// MTU of pods' default routes.
    pub mtu: Mtu,
}

/// What the functions here look at.
#[derive(Clone, Copy)]
pub struct DesiredInputs<'a> {
    /// What the API server said.
    pub index: &'a Index,
    /// Wired pods.
    pub store: &'a Store,
    /// The node.
    pub facts: &'a Facts,
    /// Other nodes with their ids and addresses.
    pub peers: &'a Peers,
    /// What the epoch asks.
    pub step: &'a RoutingStep,
    /// Remotes as they are now, by id.
    pub present: &'a HashMap<u32, Remote>,
    /// What probes found.
    pub pairs: &'a Pairs,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub now: u64,
    /// Work out the ipcache's rows of single addresses too; they are as many as
    /// the cluster has pods.
    pub rows: bool,
}

/// The ipcache row of one address; `None`: no row of its own. The last are whether it is a
/// health address of the node, and the identity of its pod at the address, if there is one.
fn row_of(
    index: &Index,
    facts: &Facts,
    peers: &Peers,
    address: IpAddr,
    (is_health, pod): (bool, Option<Identity>),
) -> Option<IpcacheEntry> {
    let local = |identity| IpcacheEntry::new(identity, NodeId::LOCAL);
    if facts.addresses.contains(&address) {
        return Some(local(Identity::HOST));
    }
    if is_health {
        return Some(local(Identity::HEALTH));
    }
    if let Some(node_id) = peers.health_ids.get(&address) {
        return Some(IpcacheEntry::new(Identity::HEALTH, *node_id));
    }
    if let Some(identity) = pod {
        return Some(local(identity));
    }
    if let Some(node_id) = peers.by_address.get(&address) {
        return Some(IpcacheEntry::new(Identity::REMOTE_NODE, *node_id));
    }
    let pod = index.remote_pod(address);
    let pod = pod.and_then(|pod| {
        let node = peers.by_name.get(pod.node)?;
        Some(IpcacheEntry::new(pod.identity, *node))
    });
    pod.or_else(|| denied::row(index, address))
}

/// What the maps are to hold of one address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AddressRows {
    /// The address.
    pub address: IpAddr,
    /// The local pod that has it.
    pub endpoint: Option<Endpoint>,
    /// Devices that the pod has or had, and what is to be held of each; `None`: nothing.
    pub interfaces: [Option<(IfIndex, Option<Interface>)>; 2],
    /// Its row in the ipcache; `None`: no row of its own.
    pub row: Option<IpcacheEntry>,
}

/// The part of [`desired`] that concerns one address. `before` is the device of the
/// local pod that the maps know there.
pub fn address_rows_of(
    index: &Index,
    store: &Store,
    facts: &Facts,
    peers: &Peers,
    address: IpAddr,
    before: Option<IfIndex>,
) -> AddressRows {
    let pod = store.wired_at(address);
    let of_device = |device: IfIndex| {
        let pod = store.wired().find(|pod| pod.ifindex == Some(device));
        (device, pod.map(LocalEndpoint::interface_value))
    };
    let now = pod.and_then(|pod| pod.ifindex);
    AddressRows {
        address,
        endpoint: pod.map(LocalEndpoint::endpoint_value),
        interfaces: [now, before.filter(|device| Some(*device) != now)].map(|d| d.map(of_device)),
        row: row_of(
            index,
            facts,
            peers,
            address,
            (
                store.health_addresses().any(|own| own == address),
                pod.map(|pod| pod.identity),
            ),
        ),
    }
}

/// Everything.
pub fn desired(inputs: DesiredInputs<'_>) -> Desired {
    let DesiredInputs {
        index,
        store,
        facts,
        peers,
        step,
        present,
        pairs,
        now,
        rows,
    } = inputs;
    let blocks: Vec<IpNet> = store.blocks().collect();
    let families = family::of_nets(&blocks);
    let mut d = Desired {
        config: config(facts, index, &blocks, step),
        // First, since all others are stronger where they are the same prefix.
        ipcache: unassigned::rows(index, facts, peers)
            .chain(denied::rows(index))
            .collect(),
        mtu: step.mtu,
        ..Desired::default()
    };

    let init = |node| IpcacheEntry::new(Identity::INIT, node);
    for block in &blocks {
        d.ipcache.insert(prefix(block), init(NodeId::LOCAL));
    }
    for (name, id) in &peers.by_name {
        let Some(node) = index.nodes.get(name) else {
            continue;
        };
        for cidr in &node.pod_cidrs {
            if !blocks.contains(cidr) {
                d.ipcache.insert(prefix(cidr), init(*id));
            }
        }
        let Some(address) = peers.primaries.get(name) else {
            continue;
        };
        let paths = Paths::to(node, *address, families, facts, peers);
        let pair_mtu = pair_mtu(step, facts, node);
        let remote = entry::remote(&entry::Pair {
            step,
            node,
            address: *address,
            paths: &paths,
            mtu: pair_mtu,
            present: present.get(&id.get()),
            view: pairs.view(name),
            now,
        });
        let mtu = step
            .mtu
            .min(if Form::of(remote.form) == Some(Form::Tunnel) {
                pair_mtu.less(overhead(Some(*address)))
            } else {
                pair_mtu
            });
        let serves = |family: Family| families.has(family) || facts.first(family).is_some();
        let cidrs = node.pod_cidrs.iter();
        let cidrs = cidrs.filter(|c| !blocks.contains(c) && serves(Family::of_net(c)));
        let routes = cidrs.filter_map(|cidr| remote_route(*cidr, node, *id, facts, peers));
        d.routes.extend(routes.map(|route| Route {
            mtu: Some(mtu),
            ..route
        }));
        d.remotes.insert(id.get(), remote);
    }
    for address in &facts.addresses {
        d.nodes.insert(IpKey::from(*address), NodeId::LOCAL.get());
    }
    for (address, id) in &peers.by_address {
        d.nodes.insert(IpKey::from(*address), id.get());
    }
    if rows {
        d.ipcache.extend(address_rows(index, store, facts, peers));
    }
    d.local_pods(store, facts);
    d.routes.extend(blocks.into_iter().map(Route::unreachable));
    d
}

impl Desired {
    /// What the wired pods of this node need beside their rows.
    fn local_pods(&mut self, store: &Store, facts: &Facts) {
        for endpoint in store.wired() {
            let rows = endpoint.keys().map(|key| (key, endpoint.endpoint_value()));
            self.endpoints.extend(rows);
            let Some(device) = endpoint.ifindex else {
                continue;
            };
            self.interfaces
                .insert(device.get(), endpoint.interface_value());
            let routes = endpoint.addresses().map(|of_pod| {
                let source = facts.source(of_pod.address);
                host_route(device, of_pod.address, source)
            });
            self.routes.extend(routes);
        }
    }
}

/// The rows of all single addresses.
fn address_rows(
    index: &Index,
    store: &Store,
    facts: &Facts,
    peers: &Peers,
) -> impl Iterator<Item = (PrefixKey, IpcacheEntry)> {
    let pods: HashMap<IpAddr, Identity> = store
        .wired()
        .flat_map(|e| e.addresses().map(|a| (a.address, e.identity)))
        .collect();
    let health: Vec<IpAddr> = store.health_addresses().collect();
    let own = facts.addresses.iter().copied();
    let all = own
        .chain(
            store
                .wired()
                .flat_map(LocalEndpoint::addresses)
                .map(|a| a.address),
        )
        .chain(peers.by_address.keys().copied())
        .chain(health.clone())
        .chain(peers.health_ids.keys().copied())
        .chain(index.endpoints.addresses());
    all.filter_map(move |address| {
        let own = (health.contains(&address), pods.get(&address).copied());
        let entry = row_of(index, facts, peers, address, own)?;
        Some((host_prefix(address), entry))
    })
}

/// The route of the host's stack to a block of another node, `None` while there is no
/// device. The program on the device looks at the destination alone; the next hop makes
/// all pods there one neighbour.
fn remote_route(
    cidr: IpNet,
    node: &NodeRecord,
    id: NodeId,
    facts: &Facts,
    peers: &Peers,
) -> Option<Route> {
    let gateway = match cidr.addr() {
        // Nodes that have no IPv4 between them have their gateways for pods.
        IpAddr::V4(_) => peers
            .address_of(&node.name, Family::V4)
            .or_else(|| gateway_of(&cidr))?,
        IpAddr::V6(_) => on_device(id),
    };
    facts.vxlan_index.map(|device| Route {
        gateway: Some(gateway),
        source: facts.source(gateway),
        onlink: true,
        ..Route::link(cidr, device)
    })
}

/// The next hop to a node on the tunnel's device: of IPv6 addresses the kernel takes a
/// global one only where no route leads to it by another device, and a link-local one
/// always.
fn on_device(id: NodeId) -> IpAddr {
    Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(id.get())).into()
}

fn config(facts: &Facts, index: &Index, blocks: &[IpNet], step: &RoutingStep) -> Config {
    let cluster = index.cluster.as_ref().map(|(_, c)| c);
    let denies = cluster.is_some_and(|c| !c.denied_prefixes.is_empty());
    let mut config = Config {
        vxlan_ifindex: facts.vxlan_index.map_or(0, IfIndex::get),
        tunnel_mtu: step.tunnel_mtu.get(),
        native_mtu: step.native_mtu.get(),
        flags: if denies { Config::DENIES } else { 0 },
        gateway_v4: [0; 4],
        gateway_v6: [0; 16],
        tunnel_port: tunnel_port(cluster).to_be_bytes(),
        block_bits_v4: 0,
        block_bits_v6: 0,
        pad: [0; CONFIG_PAD],
    };
    for block in blocks {
        let bits = block.prefix_len();
        match gateway_of(block) {
            Some(IpAddr::V4(gateway)) => {
                (config.gateway_v4, config.block_bits_v4) = (gateway.octets(), bits);
            }
            Some(IpAddr::V6(gateway)) => {
                (config.gateway_v6, config.block_bits_v6) = (gateway.octets(), bits);
            }
            None => {}
        }
    }
    config
}

/// UDP port of the tunnel.
pub fn tunnel_port(cluster: Option<&ClusterNetworkSpec>) -> u16 {
    cluster
        .and_then(|c| u16::try_from(c.routing.tunnel.port).ok())
        .filter(|p| *p != 0)
        .unwrap_or(veer_bpf_common::DEFAULT_TUNNEL_PORT)
}

#[cfg(test)]
mod tests;
