//! Nodes with pods of one family or of both.

use veer_agent_api::Attachment;

use super::*;
use crate::endpoint::{Claims, PodAddress};

/// The blocks of this node and of the other one, the primary family's first.
const NODES: [[&[&str]; 2]; 4] = [
    [&["10.1.0.0/24"], &["10.1.1.0/24"]],
    [&["fd00:1::/64"], &["fd00:2::/64"]],
    [
        &["10.1.0.0/24", "fd00:1::/64"],
        &["10.1.1.0/24", "fd00:2::/64"],
    ],
    [
        &["fd00:1::/64", "10.1.0.0/24"],
        &["fd00:2::/64", "10.1.1.0/24"],
    ],
];

/// Interface index of the pod's veth.
const DEVICE: IfIndex = IfIndex::from_kernel(20);

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// This node with one pod, beside another node. The pod's addresses come with it.
fn world([own, other]: [&[&str]; 2]) -> (World, Vec<PodAddress>) {
    let mut world = World::new();
    let of = |name, blocks: &[&str], address| NodeRecord {
        pod_cidrs: nets(blocks),
        ..node(name, blocks[0], address)
    };
    world.index.handle(Event::Node(Change::Snapshot(vec![
        of("a", own, "192.0.2.1"),
        of("b", other, "192.0.2.2"),
    ])));
    world.store = Store::new([], Vec::new());
    world.store.set_blocks(&nets(own));
    let taken = world.store.reserve("u", &Claims::new(), 1).unwrap();
    let pod = LocalEndpoint {
        attachment: Attachment {
            container_id: "c".into(),
            ifname: "eth0".into(),
        },
        netns: String::new(),
        netns_inode: 0,
        namespace: "shop".into(),
        pod_name: "cart-0".into(),
        pod_uid: "u".into(),
        object_uid: None,
        address: taken.first.address,
        gateway: taken.first.gateway,
        second: taken.second,
        endpoint_id: taken.endpoint_id,
        serial: taken.serial,
        identity: Identity::new(300).unwrap(),
        host_ifname: String::new(),
        ifindex: Some(DEVICE),
        mac: [2; 6],
        node_mac: [6; 6],
        host_ports: None,
    };
    world.store.insert(pod.clone());
    (world, pod.addresses().collect())
}

#[test]
fn every_block_and_address_has_its_rows_and_a_family_without_a_block_has_none() {
    for blocks in NODES {
        let (mut world, addresses) = world(blocks);
        let d = world.desired(None);
        let get = |key| {
            let row: Option<&IpcacheEntry> = d.ipcache.get(&key);
            row.map(|row| (row.identity, row.node_id))
        };
        for (id, blocks) in (1..).zip(blocks) {
            for block in nets(blocks) {
                let init = (Identity::INIT.get(), id);
                assert_eq!(get(prefix(&block)), Some(init), "{block}");
                let health = (Identity::HEALTH.get(), id);
                let gateway = gateway_of(&block).unwrap();
                assert_eq!(get(host_prefix(gateway)), Some(health), "{gateway}");
            }
        }
        let (mut v4, mut v6) = ([0; 4], [0; 16]);
        for PodAddress { address, .. } in &addresses {
            assert_eq!(get(host_prefix(*address)), Some((300, 1)), "{address}");
            assert_eq!(d.endpoints[&IpKey::from(*address)].ifindex, DEVICE.get());
            match address {
                IpAddr::V4(a) => v4 = a.octets(),
                IpAddr::V6(a) => v6 = a.octets(),
            }
        }
        let row = d.interfaces[&DEVICE.get()];
        assert_eq!((row.v4, row.v6), (v4, v6));
        assert_eq!(d.endpoints.len(), addresses.len());
        // Beside the blocks and pods of both nodes there are the nodes' own addresses.
        assert_eq!(d.ipcache.len(), 5 * addresses.len() + 3);
    }
}

#[test]
fn the_configuration_has_the_gateway_of_each_family_with_a_block() {
    for blocks in NODES {
        let (mut world, addresses) = world(blocks);
        let config = world.desired(None).config;
        let mut expected = Config {
            gateway_v4: [0; 4],
            block_bits_v4: 0,
            gateway_v6: [0; 16],
            block_bits_v6: 0,
            ..config
        };
        for PodAddress { gateway, .. } in addresses {
            match gateway {
                IpAddr::V4(a) => (expected.gateway_v4, expected.block_bits_v4) = (a.octets(), 24),
                IpAddr::V6(a) => (expected.gateway_v6, expected.block_bits_v6) = (a.octets(), 64),
            }
        }
        assert_eq!(config, expected);
    }
}

#[test]
fn a_pod_has_a_route_per_address_from_the_nodes_address_of_that_family() {
    for blocks in NODES {
        let (mut world, addresses) = world(blocks);
        world.facts.addresses.push(ip("2001:db8::1"));
        let d = world.desired(None);
        let to_pod: Vec<&Route> = d
            .routes
            .iter()
            .filter(|r| r.index == Some(DEVICE))
            .collect();
        assert_eq!(to_pod.len(), addresses.len());
        for (route, of_pod) in to_pod.into_iter().zip(addresses) {
            let is_ipv4 = of_pod.address.is_ipv4();
            let source = if is_ipv4 { "192.0.2.1" } else { "2001:db8::1" };
            assert_eq!(route.destination, IpNet::from(of_pod.address));
            assert_eq!(route.source, Some(ip(source)));
        }
        let unreachable = d.routes.iter().filter(|r| r.unreachable);
        let unreachable: Vec<IpNet> = unreachable.map(|r| r.destination).collect();
        assert_eq!(unreachable, nets(blocks[0]));
    }
}

#[test]
fn a_round_of_one_address_gives_the_rows_that_a_round_of_all_gives() {
    for blocks in NODES {
        let (mut world, addresses) = world(blocks);
        let d = world.desired(None);
        let peers = peers(&world.index, &world.facts, &mut world.ids);
        for address in addresses.iter().flat_map(|a| [a.address, a.gateway]) {
            let (index, store) = (&world.index, &world.store);
            let rows = address_rows_of(index, store, &world.facts, &peers, address, None);
            let row = d.ipcache.get(&host_prefix(address)).copied();
            assert_eq!(rows.row, row, "{address}");
            let endpoint = d.endpoints.get(&IpKey::from(address)).copied();
            assert_eq!(rows.endpoint, endpoint, "{address}");
            for (device, interface) in rows.interfaces.into_iter().flatten() {
                assert_eq!(interface, d.interfaces.get(&device.get()).copied());
            }
        }
    }
}

/// The other node's health addresses.
fn healths([_, other]: [&[&str]; 2]) -> Vec<String> {
    let gateways = nets(other).into_iter().filter_map(|b| gateway_of(&b));
    gateways.map(|a| a.to_string()).collect()
}

const OWN_V6: &str = "2001:db8::1";
const PEER_V6: &str = "2001:db8::2";
const ROUTER_V6: &str = "fe80::1";

/// The nodes have IPv6 addresses too, and a path to them.
fn with_v6_underlay(world: &mut World) {
    let mut b = world.index.nodes.get("b").unwrap().clone();
    b.addresses.push(ip(PEER_V6));
    world.index.handle(Event::Node(Change::Apply(b)));
    world.facts.addresses.push(ip(OWN_V6));
    let path = Path {
        index: IfIndex::from_kernel(8),
        next_hop: ip(ROUTER_V6),
        same_link: false,
    };
    world.facts.paths.insert(ip(PEER_V6), path);
}

fn applied(world: &mut World, epoch: &Epoch) {
    let mut b = world.index.nodes.get("b").unwrap().clone();
    b.applied = Some(epoch.clone());
    world.index.handle(Event::Node(Change::Apply(b)));
}

/// What an entry says of the way of each family: uplink, next hop, the node's address.
fn ways(remote: &Remote) -> [Option<(u32, IpAddr, IpAddr)>; 2] {
    let v4 = veer_bpf_common::address::to_ip(remote.next_hop_family, remote.next_hop);
    let v4 = v4.map(|hop| (remote.ifindex, hop, remote.address_v4.into()));
    let v6 = (
        remote.ifindex_v6,
        remote.next_hop_v6.into(),
        remote.address_v6.into(),
    );
    [v4, (remote.ifindex_v6 != 0).then_some(v6)]
}

#[test]
fn an_entry_has_the_way_of_each_family_of_pods_and_goes_native_with_all_of_them() {
    let v4 = Some((7, ip("192.0.2.2"), ip("192.0.2.2")));
    let v6 = Some((8, ip(ROUTER_V6), ip(PEER_V6)));
    let native = epoch(2, RoutingMode::Native, Phase::Ready);
    for (blocks, expected) in NODES
        .into_iter()
        .zip([[v4, None], [None, v6], [v4, v6], [v4, v6]])
    {
        let (mut world, _) = world(blocks);
        with_v6_underlay(&mut world);
        applied(&mut world, &native);
        let before = world.desired(Some(&native)).remotes[&2];
        assert_eq!((before.form, ways(&before)), (T, expected), "{blocks:?}");
        let healths = healths(blocks);
        let healths: Vec<&str> = healths.iter().map(String::as_str).collect();
        world.answers_at(&healths[..1], &native, N, false, Ok(()));
        let one = world.desired(Some(&native)).remotes[&2];
        assert_eq!(one.form == N, healths.len() == 1, "{blocks:?}");
        world.answers_at(&healths, &native, N, false, Ok(()));
        let after = world.desired(Some(&native)).remotes[&2];
        assert_eq!((after.form, ways(&after)), (N, expected), "{blocks:?}");
        assert_eq!(after.tunnel_address[..4], [192, 0, 2, 2]);
        // A new agent that knows nothing of the probes keeps the entry.
        world.pairs = Pairs::default();
        let again = world.desired(Some(&native)).remotes[&2];
        assert_eq!((again.form, ways(&again)), (N, expected), "{blocks:?}");
        // The way of one family goes.
        let last = nets(blocks[1]).last().unwrap().addr().is_ipv4();
        let to = if last { "192.0.2.2" } else { PEER_V6 };
        world.facts.paths.remove(&ip(to));
        assert_eq!(world.desired(Some(&native)).remotes[&2].form, T);
    }
}

#[test]
fn a_native_pair_to_which_a_family_comes_uses_the_tunnel_until_that_was_probed() {
    for has_path in [true, false] {
        let (mut world, _) = world(NODES[0]);
        if has_path {
            with_v6_underlay(&mut world);
        }
        let native = epoch(2, RoutingMode::Native, Phase::Ready);
        applied(&mut world, &native);
        world.answers(&native, N, false, Ok(()));
        world.desired(Some(&native));
        world.answers(&native, N, true, Ok(()));
        let of_v4 = world.desired(Some(&native)).remotes[&2];
        assert_eq!((of_v4.form, of_v4.revert_at), (N, 0));

        world.store.set_blocks(&nets(NODES[2][0]));
        assert_eq!(world.desired(Some(&native)).remotes[&2], of_v4);
        let mut b = world.index.nodes.get("b").unwrap().clone();
        b.pod_cidrs = nets(NODES[2][1]);
        world.index.handle(Event::Node(Change::Apply(b)));
        let both = ["10.1.1.1", "fd00:2::1"];
        for (outcome, form) in [
            (None, T),
            (Some(Err("IPv6: silent".to_owned())), T),
            (Some(Ok(())), if has_path { N } else { T }),
        ] {
            if let Some(outcome) = outcome {
                world.answers_at(&both, &native, N, false, outcome);
            }
            let after = world.desired(Some(&native)).remotes[&2];
            assert_eq!(after.form, form);
            // A probe goes by the entry's way whatever the form.
            assert_eq!(ways(&after)[1].is_some(), has_path);
            assert!(after.accepts_native());
        }
    }
}

#[test]
fn packets_of_ipv4_take_the_way_of_ipv6_where_nodes_have_no_other() {
    let (mut world, _) = world(NODES[2]);
    let mut b = world.index.nodes.get("b").unwrap().clone();
    b.addresses = vec![ip(PEER_V6)];
    world.index.handle(Event::Node(Change::Apply(b)));
    let hop = Path {
        index: IfIndex::from_kernel(8),
        next_hop: ip(PEER_V6),
        same_link: true,
    };
    world.facts = Facts {
        primary: Some(ip(OWN_V6)),
        addresses: vec![ip(OWN_V6)],
        paths: HashMap::from([(ip(PEER_V6), hop)]),
        ..world.facts
    };
    let d = world.desired(None);
    let remote = d.remotes[&2];
    let [v4, v6] = ways(&remote);
    assert_eq!(v4, Some((8, ip(PEER_V6), ip("0.0.0.0"))));
    assert_eq!(v6, Some((8, ip(PEER_V6), ip(PEER_V6))));
    assert_eq!(IpAddr::from(remote.tunnel_address), ip(PEER_V6));
    let mtus: Vec<u32> = d
        .routes
        .iter()
        .filter(|r| r.onlink)
        .filter_map(|r| r.mtu.map(Mtu::get))
        .collect();
    assert_eq!(mtus, [1430, 1430], "IPv6 outside is larger");
}

#[test]
fn the_routes_to_another_nodes_blocks_have_one_next_hop_in_each_family() {
    for blocks in NODES {
        let (mut world, _) = world(blocks);
        with_v6_underlay(&mut world);
        let d = world.desired(None);
        let routes: Vec<&Route> = d.routes.iter().filter(|r| r.onlink).collect();
        for (route, block) in routes.iter().zip(nets(blocks[1])) {
            let (gateway, source) = if block.addr().is_ipv4() {
                ("192.0.2.2", "192.0.2.1")
            } else {
                ("fe80::2", OWN_V6)
            };
            assert_eq!(route.destination, block);
            assert_eq!(
                (route.gateway, route.source),
                (Some(ip(gateway)), Some(ip(source)))
            );
            assert_eq!((route.index, route.mtu), (Some(TUNNEL), Mtu::new(1450)));
        }
        assert_eq!(routes.len(), blocks[1].len());
        // Of what this node has no addresses and no pods, it needs no routes.
        let own = nets(&blocks[0][..1]);
        world.store = Store::new([], Vec::new());
        world.store.set_blocks(&own);
        world.facts.addresses = vec![ip("192.0.2.1")];
        let d = world.desired(None);
        let routes = d.routes.iter().filter(|r| r.onlink);
        let is_needed = |block: &&IpNet| block.addr().is_ipv4() || !own[0].addr().is_ipv4();
        assert_eq!(
            routes.count(),
            nets(blocks[1]).iter().filter(is_needed).count()
        );
    }
}
