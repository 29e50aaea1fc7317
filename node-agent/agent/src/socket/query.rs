//! Answers for the `veer` command, read from the maps where there is a map.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use veer_agent_api::{
    EndpointRow, IdentityRow, IpcacheRow, MAX_ADDRESSES, NodeStatus, PodName, RemoteRow, mac_text,
};
use veer_bpf_common::{
    address::{IP_KEY_TAG_BITS, PrefixKey, to_ip},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    tables::{Form, Remote},
};

use crate::report::sources::Sources;
use veer_agent_core::facts::Uplink;
use veer_agent_kernel::datapath::Error;
use veer_crds::names::pod_of_endpoint;

/// Nanoseconds of a second.
pub(super) const SECOND: u64 = 1_000_000_000;

pub(crate) fn node_status(sources: &Sources) -> NodeStatus {
    let (attach, index) = (sources.maps.attach_kind().to_owned(), sources.index.read());
    let plan = sources.plan.read();
    let store = sources.store.read();
    NodeStatus {
        node: index.own().to_owned(),
        ready: plan.not_ready.is_empty(),
        reason: plan.not_ready.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .map(|s| s.trim().to_owned())
            .unwrap_or_default(),
        mode: format!("{:?}", plan.step.mode()),
        phase: format!("{:?}", plan.step.phase()),
        epoch: plan.step.epoch.as_ref().map_or(0, |e| e.number),
        host_routing: "BPF".into(),
        services: translators(sources).into(),
        pod_cidrs: store.blocks().map(|block| block.to_string()).collect(),
        gateways: store.health_addresses().collect(),
        addresses: plan.facts.addresses.clone(),
        uplinks: plan.facts.uplinks.iter().map(|u| u.name.clone()).collect(),
        mtu: plan.step.mtu.get(),
        attach,
        endpoints: store.len(),
        lacking: store.lacking(),
        remote_endpoints: index.endpoints.remote_len(),
        remotes: plan.peers.by_name.len(),
        identities: index.identities.len(),
        repairs: sources.repairs.counts().into_iter().collect(),
    }
}

/// Who translates what is sent to Services, by what the programs do.
fn translators(sources: &Sources) -> &'static str {
    match sources.maps.translates() {
        (false, _) => "kube-proxy",
        (true, false) => "veer for pods, kube-proxy for the node's own processes",
        (true, true) => "veer, for pods and the node's own processes",
    }
}

pub(crate) fn endpoints(sources: &Sources) -> Vec<EndpointRow> {
    let rows = sources.maps.endpoints().unwrap_or_default();
    let store = sources.store.read();
    let mut found: Vec<EndpointRow> = rows
        .into_iter()
        .filter_map(|(key, value)| {
            let address = key.to_ip()?;
            let known = store.by_address(address);
            Some(EndpointRow {
                address,
                id: value.endpoint_id,
                identity: value.identity,
                pod: known
                    .map(veer_agent_core::endpoint::LocalEndpoint::pod)
                    .unwrap_or_default(),
                ifindex: value.ifindex,
                ifname: known.map(|e| e.host_ifname.clone()).unwrap_or_default(),
                mac: mac_text(value.mac),
                node_mac: mac_text(value.node_mac),
            })
        })
        .collect();
    found.sort_by_key(|row| row.address);
    found
}

pub(crate) fn identities(sources: &Sources) -> Vec<IdentityRow> {
    let reserved = Identity::RESERVED.iter().map(|(number, name)| IdentityRow {
        identity: number.get(),
        state: "Reserved".into(),
        labels: vec![format!("reserved:{name}")],
    });
    let index = sources.index.read();
    let others = index.identities.iter().map(|record| IdentityRow {
        identity: record.number.get(),
        state: if record.active { "Active" } else { "Retiring" }.into(),
        labels: record
            .labels
            .iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect(),
    });
    reserved.chain(others).collect()
}

/// The pods that have these addresses, here or on other nodes.
pub(crate) fn who(sources: &Sources, addresses: &[IpAddr]) -> Vec<PodName> {
    let index = sources.index.read();
    let store = sources.store.read();
    let name = |address: &IpAddr| {
        if let Some(own) = store.by_address(*address) {
            return Some(PodName {
                address: *address,
                pod: own.pod(),
                node: index.own().to_owned(),
            });
        }
        let pod = index.remote_pod(*address)?;
        let (namespace, name) = pod.key.split_once('/')?;
        Some(PodName {
            address: *address,
            pod: format!("{namespace}/{}", pod_of_endpoint(name)),
            node: pod.node.to_owned(),
        })
    };
    addresses
        .iter()
        .take(MAX_ADDRESSES)
        .filter_map(name)
        .collect()
}

/// Addresses of nodes by the agent's numbers for them.
fn tunnel_endpoints(sources: &Sources) -> BTreeMap<u32, IpAddr> {
    let plan = sources.plan.read();
    let mut found: BTreeMap<u32, IpAddr> = BTreeMap::new();
    for (name, id) in &plan.peers.by_name {
        if let Some(address) = plan.peers.primaries.get(name) {
            found.insert(id.get(), *address);
        }
    }
    found
}

pub(crate) fn ipcache(sources: &Sources) -> Result<Vec<IpcacheRow>, Error> {
    let rows = sources.maps.ipcache()?;
    let nodes = tunnel_endpoints(sources);
    let mut found: Vec<(IpAddr, u32, IpcacheRow)> = rows
        .into_iter()
        .filter_map(|(PrefixKey { bits, ip }, entry)| {
            let (length, address) = (bits.saturating_sub(IP_KEY_TAG_BITS), ip.to_ip()?);
            let none = if address.is_ipv4() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            } else {
                IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            };
            let row = IpcacheRow {
                prefix: format!("{address}/{length}"),
                identity: entry.identity,
                tunnel_endpoint: nodes.get(&entry.node_id).copied().unwrap_or(none),
                node_id: entry.node_id,
            };
            Some((address, length, row))
        })
        .collect();
    found.sort_by_key(|(address, length, _)| (*address, *length));
    Ok(found.into_iter().map(|(_, _, row)| row).collect())
}

pub(crate) fn remotes(sources: &Sources) -> Result<Vec<RemoteRow>, Error> {
    let entries = sources.maps.remotes()?;
    let index = sources.index.read();
    let plan = sources.plan.read();
    let cidrs = |name: &str| {
        index.nodes.get(name).map_or_else(Vec::new, |n| {
            n.pod_cidrs.iter().map(ToString::to_string).collect()
        })
    };
    let none = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let own = RemoteRow {
        node: index.own().to_owned(),
        node_id: NodeId::LOCAL.get(),
        pod_cidrs: sources
            .store
            .read()
            .blocks()
            .map(|block| block.to_string())
            .collect(),
        address: plan.facts.primary.unwrap_or(none),
        form: "local".into(),
        next_hop: None,
        uplink: String::new(),
        next_hop_v6: None,
        uplink_v6: String::new(),
        accept_native: false,
        epoch: 0,
        falls_back_in: None,
        trouble: String::new(),
    };
    let now = veer_agent_kernel::clock::monotonic();
    let mut rows = vec![own];
    for (name, id) in &plan.peers.by_name {
        let entry = entries.get(&id.get()).copied().unwrap_or_default();
        let form = match Form::of(entry.form_now(|| now)) {
            Some(Form::Tunnel) => "tunnel",
            Some(Form::Native) => "native",
            None => "none",
        };
        let [(next_hop, uplink), (next_hop_v6, uplink_v6)] = ways(&entry, &plan.facts.uplinks);
        rows.push(RemoteRow {
            node: name.clone(),
            node_id: id.get(),
            pod_cidrs: cidrs(name),
            address: plan.peers.primaries.get(name).copied().unwrap_or(none),
            form: form.into(),
            next_hop,
            uplink,
            next_hop_v6,
            uplink_v6,
            accept_native: entry.flags & Remote::ACCEPT_NATIVE != 0,
            epoch: entry.epoch,
            falls_back_in: (entry.revert_at != 0)
                .then(|| entry.revert_at.saturating_sub(now) / SECOND),
            trouble: plan.troubles.get(name).cloned().unwrap_or_default(),
        });
    }
    Ok(rows)
}

/// Next hop and uplink of the native form, of IPv6 packets the second, where both
/// families have one.
fn ways(entry: &Remote, uplinks: &[Uplink]) -> [(Option<IpAddr>, String); 2] {
    let way = |index: Option<IfIndex>, hop: Option<IpAddr>| {
        let uplink = uplinks.iter().find(|u| Some(u.index) == index);
        (hop, uplink.map(|u| u.name.clone()).unwrap_or_default())
    };
    let v4 = to_ip(entry.next_hop_family, entry.next_hop);
    let [device_v4, device_v6] = [entry.ifindex, entry.ifindex_v6].map(IfIndex::new);
    let v6 = device_v6.map(|_| IpAddr::from(entry.next_hop_v6));
    let (v4, v6) = (way(device_v4, v4), way(device_v6, v6));
    let none = || (None, String::new());
    match v4.0 {
        // IPv4 packets may go by the hop of IPv6, too.
        Some(_) if v4 == v6 => [v4, none()],
        Some(_) => [v4, v6],
        None => [v6, none()],
    }
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::address::IpKey;

    use super::*;

    #[test]
    fn the_ways_of_a_remote_are_told_by_family_and_the_only_one_comes_first() {
        let uplinks = [(7, "eth0"), (8, "eth1")].map(|(index, name)| Uplink {
            name: name.into(),
            index: IfIndex::from_kernel(index),
            mtu: None,
            kind: String::new(),
            ethernet: true,
        });
        let hops: [IpAddr; 2] = ["192.0.2.2", "fe80::1"].map(|a| a.parse().unwrap());
        let [v4, v6] = hops.map(IpKey::from);
        for (of_v4, of_v6, expected) in [
            (
                true,
                true,
                [(Some(hops[0]), "eth0"), (Some(hops[1]), "eth1")],
            ),
            (true, false, [(Some(hops[0]), "eth0"), (None, "")]),
            (false, true, [(Some(hops[1]), "eth1"), (None, "")]),
            (false, false, [(None, ""), (None, "")]),
        ] {
            let mut entry = Remote::default();
            if of_v4 {
                (entry.next_hop, entry.next_hop_family) = (*v4.addr(), v4.family());
                entry.ifindex = 7;
            }
            if of_v6 {
                (entry.next_hop_v6, entry.ifindex_v6) = (*v6.addr(), 8);
            }
            let expected = expected.map(|(hop, name)| (hop, name.to_owned()));
            assert_eq!(ways(&entry, &uplinks), expected);
        }
        // Two nodes that have no IPv4 between them.
        let one = Remote {
            next_hop: *v6.addr(),
            next_hop_family: v6.family(),
            ifindex: 8,
            next_hop_v6: *v6.addr(),
            ifindex_v6: 8,
            ..Remote::default()
        };
        let [first, second] = ways(&one, &uplinks);
        assert_eq!(first, (Some(hops[1]), "eth1".to_owned()));
        assert_eq!(second, (None, String::new()));
    }
}
