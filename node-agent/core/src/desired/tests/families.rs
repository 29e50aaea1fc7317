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
const DEVICE: u32 = 20;

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
        ifindex: DEVICE,
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
            assert_eq!(d.endpoints[&IpKey::from(*address)].ifindex, DEVICE);
            match address {
                IpAddr::V4(a) => v4 = a.octets(),
                IpAddr::V6(a) => v6 = a.octets(),
            }
        }
        let row = d.interfaces[&DEVICE];
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
        let to_pod: Vec<&Route> = d.routes.iter().filter(|r| r.index == DEVICE).collect();
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
                assert_eq!(interface, d.interfaces.get(&device).copied());
            }
        }
    }
}
