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
        address: r.address.into(),
        gateway: r.gateway,
        second: None,
        endpoint_id: r.endpoint_id,
        serial: r.serial,
        identity: Identity::INIT,
        host_ifname: String::new(),
        ifindex: n,
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

#[test]
fn addresses_numbers_and_serials_are_unique_and_survive_a_restart() {
    let block: Ipv4Net = "10.1.0.0/24".parse().unwrap();
    let mut store = Store::new([], Vec::new());
    assert_eq!(
        store.reserve("x", &Claims::new(), 1),
        Err(StoreError::NoBlock)
    );
    store.set_block(block);
    let all: Vec<_> = (0..252).map(|n| wire(&mut store, n)).collect();
    let addresses: HashSet<_> = all.iter().map(|e| e.address).collect();
    let ids: HashSet<_> = all.iter().map(|e| e.endpoint_id).collect();
    assert_eq!((addresses.len(), ids.len()), (252, 252));
    assert!(all.windows(2).all(|w| w[0].serial < w[1].serial));

    let mut again = restarted(&mut store);
    again.set_block(block);
    assert_eq!(again.len(), 252);
    let r = again.reserve("new", &Claims::new(), 1).unwrap();
    assert!(!addresses.contains(&IpAddr::from(r.address)));
    assert!(r.serial > all[251].serial);
    assert!(matches!(
        again.reserve("more", &Claims::new(), 1),
        Err(StoreError::Exhausted { capacity: 253, .. })
    ));
}

#[test]
fn removing_what_is_not_there_succeeds() {
    let mut store = Store::new([], Vec::new());
    assert_eq!(store.leave(&attachment(1)), None);
    store.remove(&attachment(1));
}

#[test]
fn a_new_block_waits_for_the_pods_of_the_old_one() {
    let (old, new): (Ipv4Net, Ipv4Net) = (
        "10.1.0.0/24".parse().unwrap(),
        "10.2.0.0/24".parse().unwrap(),
    );
    let mut store = Store::new([], Vec::new());
    store.set_block(old);
    let e = wire(&mut store, 1);
    assert_eq!(store.set_block(new), old);
    forget(&mut store, &e.attachment);
    assert_eq!(store.set_block(new), new);
}

#[test]
fn a_change_of_identity_does_not_bring_the_record_of_a_pod_that_goes_back() {
    let mut store = Store::new([], Vec::new());
    store.set_block("10.1.0.0/24".parse().unwrap());
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
    assert_ne!(IpAddr::from(taken.address), e.address, "still held");
    store.remove(&e.attachment);
    assert_eq!(store.len(), 0);
}

#[test]
fn the_runtimes_del_finds_a_record_that_was_rebuilt_without_its_sandboxs_id() {
    let mut store = Store::new([], Vec::new());
    store.set_block("10.1.0.0/24".parse().unwrap());
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
    assert_ne!(IpAddr::from(other.address), e.address);
}

#[test]
fn a_port_that_another_pod_has_is_found_and_the_own_earlier_sandbox_is_no_other() {
    let mut store = Store::new([], Vec::new());
    store.set_block("10.0.1.0/24".parse().unwrap());
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
