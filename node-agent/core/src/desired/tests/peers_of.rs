//! Who other nodes are, and where.

use super::*;

/// What a new agent finds in the maps.
fn left(before: &Desired) -> Ids {
    Ids::from_present(Left {
        remotes: &before.remotes,
        nodes: &before.nodes,
        rows: &before.ipcache,
    })
}

#[test]
fn a_node_that_does_not_say_where_it_is_keeps_all_that_the_maps_hold_of_it() {
    let mut world = World::new();
    let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
    b.addresses.push(ip("172.16.0.2"));
    world.index.handle(Event::Node(Change::Apply(b.clone())));
    let before = world.desired(None);
    // A new agent, which knows of b only that it exists.
    world.ids = left(&before);
    world.index = Index::new("a");
    let silent = NodeRecord {
        addresses: Vec::new(),
        ..b.clone()
    };
    let a = node("a", "10.1.0.0/24", "192.0.2.1");
    world
        .index
        .handle(Event::Node(Change::Snapshot(vec![a, silent])));
    for said in [false, true] {
        if said {
            world.index.handle(Event::Node(Change::Apply(b.clone())));
        }
        let after = world.desired(None);
        assert_eq!(after.remotes, before.remotes, "{said}");
        assert_eq!(after.ipcache, before.ipcache, "{said}");
        assert_eq!(after.nodes, before.nodes, "{said}");
        assert_eq!(after.routes, before.routes, "{said}");
    }
}

#[test]
fn a_node_that_never_says_where_it_is_keeps_nothing_of_others_in_place() {
    let mut world = World::new();
    let c = node("c", "10.1.2.0/24", "192.0.2.3");
    world.index.handle(Event::Node(Change::Apply(c)));
    let before = world.desired(None);
    let gone = before.nodes[&IpKey::from(ip("192.0.2.3"))];
    // While the agent is away c is deleted, and a node comes that has no agent.
    world.ids = left(&before);
    world.index = Index::new("a");
    let silent = NodeRecord {
        name: "windows".into(),
        ..NodeRecord::default()
    };
    let all = vec![
        node("a", "10.1.0.0/24", "192.0.2.1"),
        node("b", "10.1.1.0/24", "192.0.2.2"),
        silent,
    ];
    world.index.handle(Event::Node(Change::Snapshot(all)));
    let after = world.desired(None);
    assert!(world.index.complete.nodes, "what is not wanted is removed");
    assert!(!after.remotes.contains_key(&gone));
    assert!(after.ipcache.values().all(|row| row.node_id != gone));
    assert!(after.nodes.values().all(|id| *id != gone));
    assert_eq!(after.remotes.len(), 1);
}

#[test]
fn an_address_that_the_operator_takes_from_a_node_is_the_other_ones_at_once() {
    let mut world = World::new();
    let mut older = node("worker2", "10.1.2.0/24", "192.0.2.3");
    older.born = (5, "a".into());
    let mut newer = node("blade", "10.1.3.0/24", "192.0.2.3");
    newer.born = (9, "z".into());
    for n in [older, newer.clone()] {
        world.index.handle(Event::Node(Change::Apply(n)));
    }
    let owner = |d: &Desired| d.nodes[&IpKey::from(ip("192.0.2.3"))];
    let d = world.desired(None);
    let blade = d.ipcache[&net(24, "10.1.3.0")].node_id;
    assert_eq!(owner(&d), blade, "the younger of two");
    let nodes = d.remotes.len();
    newer.addresses.clear();
    world.index.handle(Event::Node(Change::Apply(newer)));
    let d = world.desired(None);
    let worker = d.ipcache[&net(24, "10.1.2.0")].node_id;
    assert_eq!(owner(&d), worker);
    assert_eq!(d.remotes.len(), nodes, "the other keeps its place");
}

#[test]
fn an_address_given_anew_is_the_living_nodes_whatever_the_names() {
    for names in [["blade", "worker2"], ["worker2", "blade"]] {
        let mut world = World::new();
        let [living, gone] = names;
        let mut old = node(gone, "10.1.2.0/24", "192.0.2.3");
        old.gone = true;
        // Its object is younger, and still the Node is gone.
        old.born = (9, "z".into());
        let mut new = node(living, "10.1.3.0/24", "192.0.2.3");
        new.born = (5, "a".into());
        for n in [old, new] {
            world.index.handle(Event::Node(Change::Apply(n)));
        }
        let d = world.desired(None);
        let owner = d.nodes[&IpKey::from(ip("192.0.2.3"))];
        assert_eq!(d.ipcache[&net(24, "10.1.3.0")].node_id, owner);
        assert_eq!(d.ipcache[&host_prefix(ip("192.0.2.3"))].node_id, owner);
    }
}

#[test]
fn of_two_living_nodes_at_one_address_the_newer_has_it_whatever_the_names() {
    for (first, second) in [(1, 2), (2, 1)] {
        let mut world = World::new();
        for (name, block, born) in [("c", "10.1.2.0/24", first), ("d", "10.1.3.0/24", second)] {
            let mut n = node(name, block, "192.0.2.3");
            n.born = (born, String::new());
            world.index.handle(Event::Node(Change::Apply(n)));
        }
        let d = world.desired(None);
        let newer = if first > second {
            "10.1.2.0"
        } else {
            "10.1.3.0"
        };
        let owner = d.nodes[&IpKey::from(ip("192.0.2.3"))];
        assert_eq!(d.ipcache[&net(24, newer)].node_id, owner);
    }
}

#[test]
fn an_address_that_is_not_confirmed_any_more_has_no_row() {
    let mut world = World::new();
    let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
    b.addresses.push(ip("10.96.0.10"));
    world.index.handle(Event::Node(Change::Apply(b.clone())));
    assert!(
        world
            .desired(None)
            .ipcache
            .contains_key(&host_prefix(ip("10.96.0.10")))
    );
    b.addresses.pop();
    world.index.handle(Event::Node(Change::Apply(b)));
    // A node without addresses changes nothing about that.
    let silent = NodeRecord {
        name: "silent".into(),
        ..NodeRecord::default()
    };
    world.index.handle(Event::Node(Change::Apply(silent)));
    let d = world.desired(None);
    assert!(!d.ipcache.contains_key(&host_prefix(ip("10.96.0.10"))));
    assert!(!d.nodes.contains_key(&IpKey::from(ip("10.96.0.10"))));
}

#[test]
fn between_two_nodes_the_smaller_mtu_of_both_ends_counts_and_to_others_it_does_not() {
    let mut world = World::new();
    let mut c = node("c", "10.1.2.0/24", "192.0.2.3");
    c.path_mtu = Mtu::new(1400);
    world.index.handle(Event::Node(Change::Apply(c)));
    let mtus = |d: &Desired| {
        let of = |block: &str| {
            let to: IpNet = block.parse().unwrap();
            let route = d.routes.iter().find(|r| r.destination == to);
            route.unwrap().mtu.unwrap().get()
        };
        (of("10.1.1.0/24"), of("10.1.2.0/24"))
    };
    let d = world.desired(None);
    assert_eq!(mtus(&d), (1450, 1350));
    let id = |address: &str| d.nodes[&IpKey::from(ip(address))];
    assert_eq!(d.remotes[&id("192.0.2.2")].path_mtu, 0, "the usual one");
    assert_eq!(d.remotes[&id("192.0.2.3")].path_mtu, 1400);
    // The odd one is this node itself.
    world.facts.uplinks[0].mtu = Mtu::new(1300);
    assert_eq!(mtus(&world.desired(None)), (1250, 1250));
}

#[test]
fn a_peer_with_a_new_address_keeps_its_id_and_leaves_nothing_at_the_old_one() {
    let mut world = World::new();
    let before = world.desired(None);
    let id = before.nodes[&IpKey::from(ip("192.0.2.2"))];
    let moved = node("b", "10.1.1.0/24", "192.0.2.77");
    world.index.handle(Event::Node(Change::Apply(moved)));
    let after = world.desired(None);
    let key = |a: &str| IpKey::from(ip(a));
    assert_eq!(after.nodes.get(&key("192.0.2.77")), Some(&id));
    assert_eq!(after.nodes.get(&key("192.0.2.2")), None);
    assert!(!after.ipcache.contains_key(&host_prefix(ip("192.0.2.2"))));
    assert_eq!(
        after.remotes[&id].tunnel_address[..4],
        [192, 0, 2, 77],
        "the same entry, so the rows of its pods need no change"
    );
    assert_eq!(after.remotes.len(), 1);
    let to_pods = "10.1.1.0/24".parse().unwrap();
    let route = after.routes.iter().find(|r| r.destination == to_pods);
    assert_eq!(route.unwrap().gateway, Some(ip("192.0.2.77")));
}

#[test]
fn a_node_deleted_and_added_under_its_name_is_served_again() {
    let mut world = World::new();
    let before = world.desired(None);
    world.index.handle(Event::Node(Change::Delete("b".into())));
    let without = world.desired(None);
    assert!(without.remotes.is_empty());
    // Made again by the operator, its agent has not reported yet.
    let mut anew = node("b", "10.1.1.0/24", "192.0.2.2");
    anew.addresses.clear();
    world.index.handle(Event::Node(Change::Apply(anew)));
    assert!(world.desired(None).remotes.is_empty());
    let reported = node("b", "10.1.1.0/24", "192.0.2.2");
    world.index.handle(Event::Node(Change::Apply(reported)));
    let after = world.desired(None);
    assert_eq!(after.remotes, before.remotes);
    assert_eq!(after.ipcache, before.ipcache);
}
