//! Denied prefixes as rows of the ipcache.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_bpf_common::{address::PrefixKey, identity::Identity, node::NodeId, tables::IpcacheEntry};

use crate::{
    index::{Index, Networks},
    prefix::{host_prefix, prefix},
};

const DENIED: IpcacheEntry = IpcacheEntry::new(Identity::WORLD, NodeId::DENIED);

/// The row of a single address that the user denies.
pub(super) fn row(index: &Index, address: IpAddr) -> Option<IpcacheEntry> {
    let (_, cluster) = index.cluster.as_ref()?;
    let denied = cluster.denied_prefixes.iter();
    let mut single = denied.filter(|net| **net == IpNet::from(address));
    single.next()?;
    let host = host_prefix(address);
    rows(index).find_map(|(prefix, row)| (prefix == host).then_some(row))
}

/// The rows of what the user denies. The longest prefix decides, so one that lies
/// within pods' blocks is left out: pods are never denied. One that holds pods or
/// nodes is not, for their own rows are longer.
pub(super) fn rows(index: &Index) -> impl Iterator<Item = (PrefixKey, IpcacheEntry)> {
    let cluster = index.cluster.as_ref().map(|(_, c)| c);
    let of_cluster: Networks = cluster
        .into_iter()
        .flat_map(|c| c.pod_cidrs.iter().map(|e| e.cidr))
        .collect();
    let of_nodes = index.nodes.blocks();
    cluster
        .into_iter()
        .flat_map(|c| &c.denied_prefixes)
        .filter(move |denied| !of_cluster.cover(denied) && !of_nodes.cover(denied))
        .map(|denied| (prefix(denied), DENIED))
}
