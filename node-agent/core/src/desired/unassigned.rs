//! The cluster's pod CIDRs as rows of the ipcache. Addresses in them that no node has
//! been given are unassigned, and packets from them are dropped.

use std::net::{IpAddr, Ipv6Addr};

use veer_bpf_common::{address::PrefixKey, identity::Identity, node::NodeId, tables::IpcacheEntry};

use super::Peers;
use crate::{facts::Facts, index::Index, prefix::prefix};

const UNASSIGNED: IpcacheEntry = IpcacheEntry::new(Identity::UNMANAGED, NodeId::NONE);

/// One row per pod CIDR; those of nodes, pods and denied prefixes are longer or
/// stronger. A CIDR in which nodes live holds their network too, routers and all, and
/// gets none.
pub(super) fn rows(
    index: &Index,
    facts: &Facts,
    peers: &Peers,
) -> impl Iterator<Item = (PrefixKey, IpcacheEntry)> {
    let nodes: Vec<IpAddr> = facts
        .primary
        .into_iter()
        .chain(peers.primaries.values().copied())
        .chain(facts.source(Ipv6Addr::UNSPECIFIED.into()))
        // None of these stands for its node; bridges of IPv6 have link-local addresses.
        .chain(peers.by_address.keys().copied().filter(IpAddr::is_ipv6))
        .collect();
    let cluster = index.cluster.as_ref().map(|(_, c)| c);
    cluster
        .into_iter()
        .flat_map(|c| c.pod_cidrs.iter().map(|entry| entry.cidr))
        .filter(move |cidr| !nodes.iter().any(|node| cidr.contains(node)))
        .map(|cidr| (prefix(&cidr), UNASSIGNED))
}
