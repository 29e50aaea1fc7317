use veer_bpf_common::device::IfIndex;

use super::*;
use crate::endpoint::former_ifname;
use std::collections::HashSet;

fn attachment(n: u32) -> Attachment {
    Attachment {
        container_id: format!("c{n}"),
        ifname: "eth0".into(),
    }
}

/// As the next agent reads what this one has written.
fn restarted(store: &mut Store) -> Store {
    let recorded = store.iter().filter(|e| store.is_recorded(&e.attachment));
    let records: Vec<_> = recorded.cloned().collect();
    Store::new(records, store.released_to_write().unwrap_or_default())
}

fn forget(store: &mut Store, attachment: &Attachment) {
    store.leave(attachment).unwrap();
    store.remove(attachment);
}

fn endpoint(n: u32, r: Reservation) -> LocalEndpoint {
    LocalEndpoint {
        attachment: attachment(n),
        netns: String::new(),
        netns_inode: 0,
        namespace: "default".into(),
        pod_name: format!("p{n}"),
        pod_uid: format!("u{n}"),
        object_uid: None,
        address: r.first.address,
        gateway: r.first.gateway,
        second: r.second,
        endpoint_id: r.endpoint_id,
        serial: r.serial,
        identity: Identity::INIT,
        host_ifname: String::new(),
        ifindex: IfIndex::new(n),
        mac: [0; 6],
        node_mac: [0; 6],
        host_ports: None,
    }
}

fn wire(store: &mut Store, n: u32) -> LocalEndpoint {
    let e = endpoint(
        n,
        store.reserve(&format!("u{n}"), &Claims::new(), 1).unwrap(),
    );
    store.insert(e.clone());
    store.record(&e.attachment);
    e
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// A node's blocks: of one family, of the other, of both in either order.
const NODES: [&[&str]; 4] = [
    &["10.1.0.0/24"],
    &["fd00:1::/120"],
    &["10.1.0.0/24", "fd00:1::/120"],
    &["fd00:1::/120", "10.1.0.0/24"],
];

fn addresses(endpoint: &LocalEndpoint) -> Vec<IpAddr> {
    endpoint.addresses().map(|a| a.address).collect()
}

#[test]
fn addresses_numbers_and_serials_are_unique_and_survive_a_restart() {
    for blocks in NODES.map(nets) {
        let mut store = Store::new([], Vec::new());
        assert_eq!(
            store.reserve("x", &Claims::new(), 1),
            Err(StoreError::NoBlock)
        );
        assert_eq!(store.set_blocks(&blocks), blocks);
        let all: Vec<_> = (0..252).map(|n| wire(&mut store, n)).collect();
        let held: HashSet<_> = all.iter().flat_map(addresses).collect();
        let ids: HashSet<_> = all.iter().map(|e| e.endpoint_id).collect();
        assert_eq!((held.len(), ids.len()), (252 * blocks.len(), 252));
        assert!(all.windows(2).all(|w| w[0].serial < w[1].serial));
        for (address, block) in all[0].addresses().zip(&blocks) {
            assert!(block.contains(&address.address));
            assert_eq!(Some(address.gateway), gateway_of(block));
        }

        let mut again = restarted(&mut store);
        again.set_blocks(&blocks);
        assert_eq!(again.len(), 252);
        for pod in &all {
            for address in addresses(pod) {
                assert_eq!(again.by_address(address), Some(pod));
                assert_eq!(again.wired_at(address), Some(pod));
            }
        }
        let r = again.reserve("new", &Claims::new(), 1).unwrap();
        assert!(!held.contains(&r.first.address));
        assert!(r.serial > all[251].serial);
        // IPv6 has one address more, the broadcast address of IPv4.
        let more = again.reserve("more", &Claims::new(), 1);
        let full = blocks.iter().find(|b| b.addr().is_ipv4());
        match (full, more) {
            (Some(full), Err(StoreError::Exhausted { block, capacity })) => {
                assert_eq!((block, capacity), (*full, 253));
            }
            (None, Ok(_)) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn where_one_family_has_no_address_left_none_is_taken_of_the_other() {
    for blocks in [
        ["10.1.0.0/29", "fd00:1::/64"],
        ["10.1.0.0/24", "fd00:1::7ff8/126"],
        ["fd00:1::7ff8/126", "10.1.0.0/24"],
    ] {
        let mut store = Store::new([], Vec::new());
        store.set_blocks(&nets(&blocks));
        let mut wired = 0;
        let error = loop {
            match store.reserve(&format!("u{wired}"), &Claims::new(), 1) {
                Ok(r) => {
                    store.insert(endpoint(wired, r));
                    wired += 1;
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Exhausted { .. }));
        let held: usize = store.pools.iter().map(Pool::held).sum();
        assert_eq!(held, store.len() * 2);
        forget_all(&mut store);
        assert!(store.reserve("again", &Claims::new(), 1).is_ok());
    }
}

fn forget_all(store: &mut Store) {
    let all: Vec<_> = store.iter().map(|e| e.attachment.clone()).collect();
    for attachment in all {
        forget(store, &attachment);
    }
}

#[test]
fn an_add_that_fails_gives_back_all_that_it_had() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(NODES[2]));
    let taken = store.reserve("u", &Claims::new(), 1).unwrap();
    store.cancel(&taken, "u");
    let again = store.reserve("u", &Claims::new(), 1).unwrap();
    assert_eq!((again.first, again.second), (taken.first, taken.second));
}

#[test]
fn a_family_that_comes_is_for_new_pods_and_one_that_goes_stays_for_those_that_have_it() {
    for [first, second] in [
        ["10.1.0.0/24", "fd00:1::/64"],
        ["fd00:1::/64", "10.1.0.0/24"],
    ] {
        let (one, both) = (nets(&[first]), nets(&[first, second]));
        let mut store = Store::new([], Vec::new());
        store.set_blocks(&one);
        let old = wire(&mut store, 1);
        assert_eq!(old.second, None);
        assert_eq!(store.set_blocks(&both), both);
        assert_eq!(
            store.get(&old.attachment),
            Some(&old),
            "it keeps what it has"
        );
        let new = wire(&mut store, 2);
        assert!(both[1].contains(&new.second.unwrap().address));
        assert_eq!(store.lacking(), 1, "the old one");
        assert_eq!(store.health_addresses().count(), 2);

        // The first family goes.
        let other = nets(&[second]);
        assert_eq!(store.set_blocks(&other), nets(&[second, first]));
        let third = wire(&mut store, 3);
        assert!(both[1].contains(&third.address));
        assert_eq!(third.second, None);
        assert_eq!(store.lacking(), 1, "still");
        let mut again = restarted(&mut store);
        again.set_blocks(&nets(&[second, first]));
        assert_eq!(again.set_blocks(&other).len(), 2);
        for pod in [&old, &new] {
            forget(&mut again, &pod.attachment);
        }
        assert_eq!(again.set_blocks(&other), other);
    }
}

#[test]
fn removing_what_is_not_there_succeeds() {
    let mut store = Store::new([], Vec::new());
    assert_eq!(store.leave(&attachment(1)), None);
    store.remove(&attachment(1));
}

#[test]
fn a_new_block_waits_for_the_pods_of_the_old_one() {
    for (old, new) in [
        (["10.1.0.0/24"], ["10.2.0.0/24"]),
        (["fd00:1::/64"], ["fd00:2::/64"]),
    ] {
        let (old, new) = (nets(&old), nets(&new));
        let mut store = Store::new([], Vec::new());
        store.set_blocks(&old);
        let e = wire(&mut store, 1);
        assert_eq!(store.set_blocks(&new), old);
        forget(&mut store, &e.attachment);
        assert_eq!(store.set_blocks(&new), new);
    }
}

#[test]
fn a_new_block_of_one_family_does_not_wait_for_pods_of_the_other() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(&["10.1.0.0/24"]));
    wire(&mut store, 1);
    store.set_blocks(&nets(&["10.1.0.0/24", "fd00:1::/64"]));
    let both = nets(&["10.1.0.0/24", "fd00:2::/64"]);
    assert_eq!(store.set_blocks(&both), both);
    wire(&mut store, 2);
    let third = nets(&["10.3.0.0/24", "fd00:3::/64"]);
    assert_eq!(store.set_blocks(&third), both);
}

#[test]
fn a_change_of_identity_does_not_bring_the_record_of_a_pod_that_goes_back() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(NODES[0]));
    let e = wire(&mut store, 1);
    assert!(store.leave(&e.attachment).is_some());
    // The engine comes between, and writes late.
    assert!(
        store
            .set_identity(&e.attachment, Identity::WORLD, None)
            .is_some()
    );
    assert!(store.record_of(&e.attachment).is_none());
    let taken = store.reserve("new", &Claims::new(), 1).unwrap();
    assert_ne!(taken.first.address, e.address, "still held");
    store.remove(&e.attachment);
    assert_eq!(store.len(), 0);
}

#[test]
fn the_runtimes_del_finds_a_record_that_was_rebuilt_without_its_sandboxs_id() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(NODES[0]));
    let mut e = wire(&mut store, 1);
    forget(&mut store, &e.attachment);
    let runtimes = e.attachment.clone();
    // As an earlier release named it.
    e.host_ifname = former_ifname(&runtimes);
    e.attachment.container_id = format!("rebuilt-{}", e.host_ifname);
    e.endpoint_id = 0;
    let adopted = store.adopt(e.clone(), 1).unwrap();
    assert_ne!(adopted.endpoint_id, 0);
    assert_eq!(store.adopt(e.clone(), 1), None, "the address is taken");
    assert_eq!(store.known_as(&runtimes), e.attachment);
    assert_eq!(store.known_as(&attachment(2)), attachment(2));
    let other = store.reserve("new", &Claims::new(), 1).unwrap();
    assert_ne!(other.first.address, e.address);
}

#[test]
fn a_port_that_another_pod_has_is_found_and_the_own_earlier_sandbox_is_no_other() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(&["10.0.1.0/24"]));
    let with_port = |mut endpoint: LocalEndpoint, ip: &str| {
        let mapping = serde_json::json!([
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ip}]);
        endpoint.host_ports = Some(veer_agent_api::host_port::parse(&mapping).unwrap());
        endpoint
    };
    let holder = with_port(wire(&mut store, 1), "192.0.2.1");
    store.insert(holder.clone());
    let other = wire(&mut store, 2);
    assert_eq!(store.holder_of_ports(&other), None);
    let elsewhere = with_port(other.clone(), "192.0.2.2");
    assert_eq!(store.holder_of_ports(&elsewhere), None);
    let (port, pod) = store.holder_of_ports(&with_port(other, "")).unwrap();
    assert_eq!(
        (port.to_string().as_str(), pod),
        ("tcp/192.0.2.1:80", holder.pod())
    );
    let again = LocalEndpoint {
        attachment: attachment(3),
        ..holder
    };
    assert_eq!(store.holder_of_ports(&again), None);
}

#[test]
fn a_pod_has_a_share_of_flows_with_no_other_as_long_as_one_is_free() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(&["10.1.0.0/22"]));
    let share = |pod: &LocalEndpoint| Share::of_pod(pod.endpoint_id);
    let all: Vec<_> = (0..256).map(|n| wire(&mut store, n)).collect();
    let shares: HashSet<u16> = all.iter().map(|pod| share(pod).number()).collect();
    assert_eq!(shares.len(), SHARES);
    let mut last = 0;
    for (n, gone) in (1000..).zip([&all[77], &all[200], &all[3]]) {
        forget(&mut store, &gone.attachment);
        let next = wire(&mut store, n);
        assert_eq!(share(&next), share(gone));
        assert_ne!(next.endpoint_id, gone.endpoint_id);
        last = next.endpoint_id;
    }
    // Now none is free.
    assert_eq!(wire(&mut store, 2000).endpoint_id, last + 1);
}

#[test]
fn numbers_begin_again_behind_the_last_and_those_reserved_are_taken() {
    let mut store = Store::new([], Vec::new());
    store.set_blocks(&nets(NODES[0]));
    let reserved = store.reserve("u", &Claims::new(), 1).unwrap();
    assert_eq!(reserved.endpoint_id, 1);
    store.last_id = u16::MAX - 1;
    assert_eq!(wire(&mut store, 1).endpoint_id, u16::MAX);
    assert_eq!(wire(&mut store, 2).endpoint_id, 2, "neither 0 nor 1");
    store.last_id = 256;
    // 257 has the share of the reserved one, 258 that of 2.
    assert_eq!(wire(&mut store, 3).endpoint_id, 259);
}
