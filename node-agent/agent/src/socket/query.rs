//! Answers for the `veer` command, read from the maps where there is a map.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use veer_agent_api::{
    EndpointRow, FlowRow, IdentityRow, IpcacheRow, MAX_ADDRESSES, NodeStatus, PodName, RemoteRow,
    flow_state, mac_text, packet::protocol,
};
use veer_bpf_common::{
    address::{IP_KEY_TAG_BITS, PrefixKey, to_ip},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    tables::{FlowEntry, FlowKey, Form, Remote, Tuple},
};

use crate::report::sources::Sources;
use veer_agent_core::facts::Uplink;
use veer_agent_kernel::datapath::Error;
use veer_crds::names::pod_of_endpoint;

/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

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

/// Flows that have an entry, by protocol and ends.
pub(crate) fn flows(sources: &Sources) -> Result<Vec<FlowRow>, Error> {
    let mut entries = sources.maps.flows()?;
    let now = veer_agent_kernel::clock::monotonic();
    entries.sort_by_cached_key(|(key, entry)| order(&key.tuple_from(entry.opener())));
    // An entry that a program replaces meanwhile may be read twice.
    entries.dedup_by_key(|(key, _)| *key);
    let rows = entries.iter();
    Ok(rows
        .filter_map(|(key, entry)| row(key, entry, now))
        .collect())
}

/// A tuple as people look for it.
type Order = (u8, u8, [u8; 16], [u8; 2], [u8; 16], [u8; 2], u8);

const fn order(tuple: &Tuple) -> Order {
    (
        tuple.protocol,
        tuple.family,
        tuple.source,
        tuple.source_port,
        tuple.destination,
        tuple.destination_port,
        tuple.asker,
    )
}

/// A flow at `now`, nanoseconds of `CLOCK_MONOTONIC`. `None`: the entry is void, or it is
/// another flow's by now.
fn row(key: &FlowKey, entry: &FlowEntry, now: u64) -> Option<FlowRow> {
    if entry.expires_at <= now || entry.tag != key.hash() {
        return None;
    }
    let tuple = key.tuple_from(entry.opener());
    let protocol = protocol(tuple.protocol);
    Some(FlowRow {
        state: state(&protocol, entry).into(),
        protocol,
        source: end(&tuple, tuple.source, tuple.source_port),
        destination: end(&tuple, tuple.destination, tuple.destination_port),
        translation: "host".into(),
        age: (entry.began != 0).then(|| now.saturating_sub(began(entry)) / SECOND),
        expires_in: (entry.expires_at - now) / SECOND,
    })
}

/// When a flow began, in nanoseconds; 67 ms too early at most.
fn began(entry: &FlowEntry) -> u64 {
    u64::from(entry.began) << 26
}

fn state(protocol: &str, entry: &FlowEntry) -> &'static str {
    let has = |bits: u16| entry.state & bits != 0;
    match protocol {
        "tcp" if has(FlowEntry::CLOSING) => flow_state::CLOSED,
        "tcp" if has(FlowEntry::FIN_THERE | FlowEntry::FIN_BACK) => flow_state::HALF_CLOSED,
        "tcp" if has(FlowEntry::CONFIRMED) => flow_state::ESTABLISHED,
        "tcp" if has(FlowEntry::REPLIED) => flow_state::SYN_RECEIVED,
        "tcp" => flow_state::SYN_SENT,
        _ if !has(FlowEntry::REPLIED) => flow_state::UNREPLIED,
        "udp" if is_stream(entry) => flow_state::STREAM,
        _ => flow_state::REPLIED,
    }
}

/// Whether the last packet of an answered UDP flow made it a stream: one that came at
/// least 31 × 67 ms after the first (`veer_bpf_net::conntrack`). The entry does not say
/// when that was, but a stream lasts 120 s after it and any other such flow 30 s.
fn is_stream(entry: &FlowEntry) -> bool {
    entry.expires_at >= began(entry) + (31 << 26) + 30 * SECOND
}

/// Address and port. Where neither end has a port, the address alone.
fn end(tuple: &Tuple, bytes: [u8; 16], port: [u8; 2]) -> String {
    let Some(address) = to_ip(tuple.family, bytes) else {
        return "?".into();
    };
    if [tuple.source_port, tuple.destination_port] == [[0; 2]; 2] {
        return address.to_string();
    }
    SocketAddr::new(address, u16::from_be_bytes(port)).to_string()
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::address::{IpKey, V6};

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

    const NOW: u64 = 1000 * SECOND;

    fn tuple(protocol: u8) -> Tuple {
        let (client, service) = ([10, 0, 1, 5], [10, 96, 0, 10]);
        Tuple::new(
            client,
            service,
            4000_u16.to_be_bytes(),
            53_u16.to_be_bytes(),
            protocol,
        )
    }

    /// The entry of a flow that this tuple opened, with bits of a state; it began now.
    fn opened(tuple: &Tuple, bits: u16, expires_at: u64) -> (FlowKey, FlowEntry) {
        let (key, opener) = tuple.canonical();
        let entry = FlowEntry {
            tag: key.hash(),
            began: u32::try_from(NOW >> 26).unwrap(),
            expires_at,
            state: bits | opener.as_opener(),
            ..FlowEntry::default()
        };
        (key, entry)
    }

    #[test]
    fn the_source_of_a_flow_is_the_end_that_opened_it() {
        let v6 = |last| V6::from_octets([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let port = 7_u16.to_be_bytes();
        let ping = Tuple::new(v6(1), v6(2), port, port, 58).asked_by(Tuple::SOURCE_ASKS);
        let gre = Tuple::new([10, 0, 1, 5], [192, 0, 2, 1], [0; 2], [0; 2], 47);
        for (tuple, protocol, ends) in [
            (tuple(6), "tcp", ["10.0.1.5:4000", "10.96.0.10:53"]),
            (ping, "icmpv6", ["[fd00::1]:7", "[fd00::2]:7"]),
            (gre, "47", ["10.0.1.5", "192.0.2.1"]),
        ] {
            let [source, destination] = ends;
            for (tuple, ends) in [
                (tuple, [source, destination]),
                (tuple.reversed(), [destination, source]),
            ] {
                let (key, entry) = opened(&tuple, FlowEntry::REPLIED, NOW + SECOND);
                let row = row(&key, &entry, NOW).unwrap();
                assert_eq!(row.protocol, protocol);
                assert_eq!([&*row.source, &*row.destination], ends);
                assert_eq!(row.translation, "host");
            }
        }
    }

    #[test]
    fn age_and_expiry_are_whole_seconds_and_void_entries_are_no_flows() {
        let (key, entry) = opened(&tuple(17), 0, NOW + 30 * SECOND);
        let times = |entry: &FlowEntry, now| {
            let row = row(&key, entry, now);
            row.map(|row| (row.age, row.expires_in))
        };
        assert_eq!(times(&entry, NOW), Some((Some(0), 30)));
        let later = NOW + 7 * SECOND + SECOND / 2;
        assert_eq!(times(&entry, later), Some((Some(7), 22)));
        assert_eq!(times(&entry, entry.expires_at), None);
        let unknown = FlowEntry { began: 0, ..entry };
        assert_eq!(times(&unknown, NOW), Some((None, 30)));
        let anothers = FlowEntry {
            tag: entry.tag ^ 1,
            ..entry
        };
        assert_eq!(times(&anothers, NOW), None);
    }

    #[test]
    fn the_state_of_a_flow_is_what_was_seen_of_it() {
        let (replied, closing) = (FlowEntry::REPLIED, FlowEntry::CLOSING);
        let open = replied | FlowEntry::CONFIRMED;
        let (there, back) = (FlowEntry::FIN_THERE, FlowEntry::FIN_BACK);
        // Seconds until it expires, as seen when it began.
        for (protocol, bits, lasts, expected) in [
            (6, 0, 120, flow_state::SYN_SENT),
            (6, replied, 60, flow_state::SYN_RECEIVED),
            (6, open, 432_000, flow_state::ESTABLISHED),
            (6, open | there, 3600, flow_state::HALF_CLOSED),
            (6, open | back, 3600, flow_state::HALF_CLOSED),
            (6, open | there | back | closing, 120, flow_state::CLOSED),
            (6, replied | closing, 120, flow_state::CLOSED),
            (17, 0, 30, flow_state::UNREPLIED),
            (17, 0, 500, flow_state::UNREPLIED),
            (17, replied, 30, flow_state::REPLIED),
            (17, open, 30 + 2, flow_state::REPLIED),
            (17, open, 120 + 3, flow_state::STREAM),
            (17, replied, 120 + 3, flow_state::STREAM),
            (1, 0, 30, flow_state::UNREPLIED),
            (1, open, 300, flow_state::REPLIED),
            (132, open, 600, flow_state::REPLIED),
        ] {
            let (key, entry) = opened(&tuple(protocol), bits, NOW + lasts * SECOND);
            let row = row(&key, &entry, NOW).unwrap();
            assert_eq!(row.state, expected, "{protocol} {bits} {lasts}");
            assert!(flow_state::ALL.contains(&expected));
        }
    }
}
