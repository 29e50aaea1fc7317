//! The facts of nodes, of either family and of both.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::netlink::{lab, netns::Netns};

fn at(index: u32, ip: &str) -> Address {
    Address {
        index: IfIndex::from_kernel(index),
        ip: ip.parse().unwrap(),
        global: true,
        host: false,
        passing: false,
    }
}

/// A default route of the family of `by`, by it and a device.
fn default(by: &str, index: u32) -> Route {
    let gateway: IpAddr = by.parse().unwrap();
    let any = if gateway.is_ipv4() {
        "0.0.0.0/0"
    } else {
        "::/0"
    };
    Route {
        gateway: Some(gateway),
        ..Route::link(any.parse().unwrap(), IfIndex::from_kernel(index))
    }
}

#[test]
fn the_kubelets_address_stands_for_the_node_else_one_that_the_world_is_reached_from() {
    let (a, b) = (at(2, "192.0.2.5"), at(3, "10.9.9.9"));
    let (c, d) = (at(3, "2001:db8::5"), at(4, "2001:db8:1::5"));
    let by = [default("192.0.2.1", 2), default("2001:db8:1::1", 4)];
    for (own, hint, defaults, expected) in [
        (&[b, a][..], "10.9.9.9", &by[..], b),
        (&[b, a], "192.0.2.77", &by, a),
        (&[b, a], "", &[], b),
        // In either family, and where there is one alone.
        (&[b, a, c, d], "2001:db8::5", &by, c),
        (&[b, a, c, d], "", &by, a),
        (&[c, d, b], "", &by, b),
        (&[c, d], "", &by, d),
        (&[c, d], "192.0.2.5", &[], c),
    ] {
        let own: Vec<&Address> = own.iter().collect();
        let found = primary(
            &own,
            hint.parse().ok(),
            &defaults.iter().collect::<Vec<_>>(),
        );
        assert_eq!(found, Some(expected.ip), "{own:?} {hint}");
    }
}

#[test]
fn a_kubelet_started_anew_with_another_address_of_the_node_is_followed() {
    let [a, b, gone] = ["192.0.2.5", "10.9.9.9", "192.0.2.77"].map(|a| a.parse().unwrap());
    let at_start = Some(a);
    assert_eq!(hint(&[b], &[a, b], at_start), Some(b));
    assert_eq!(
        hint(&[b, a], &[a, b], at_start),
        at_start,
        "it was told first once"
    );
    assert_eq!(hint(&[gone, b], &[a, b], at_start), Some(b));
    assert_eq!(hint(&[gone], &[a, b], at_start), at_start);
    assert_eq!(hint(&[], &[a, b], at_start), at_start);
    let [v6, w6] = ["2001:db8::5", "2001:db8::6"].map(|a| a.parse().unwrap());
    assert_eq!(hint(&[v6, b], &[v6, a, b], None), Some(b));
    assert_eq!(hint(&[v6], &[v6, a, b], None), Some(v6));
    // Told an IPv6 address it stays with that family while there is one.
    assert_eq!(hint(&[b, w6], &[v6, w6, b], Some(v6)), Some(w6));
    assert_eq!(hint(&[b, v6], &[v6, b], Some(v6)), Some(v6));
}

#[test]
fn a_node_on_the_link_is_its_own_next_hop_unless_a_router_is_asked_for() {
    let found = Lookup {
        index: IfIndex::from_kernel(2),
        gateway: None,
        source: None,
    };
    let routers = ["192.0.2.1", "fe80::1"];
    let defaults = routers.map(|by| default(by, 2));
    let defaults: Vec<&Route> = defaults.iter().collect();
    for (peer, router) in ["192.0.2.9", "2001:db8::9"].into_iter().zip(routers) {
        let (peer, router): (IpAddr, IpAddr) = (peer.parse().unwrap(), router.parse().unwrap());
        assert_eq!(path(peer, found, true, &defaults).next_hop, peer);
        assert_eq!(path(peer, found, false, &defaults).next_hop, router);
    }
}

#[test]
fn every_path_is_asked_for_within_a_minute_however_many_nodes_there_are() {
    for peers in [0, 1, 64, 127, 128, 5000] {
        for place in 0..peers {
            let asked = (7..7 + TURNS).filter(|turn| Share::new(peers, *turn).has(place));
            assert!(asked.count() >= 1, "{place} of {peers}");
        }
        let most = (0..TURNS).map(|turn| {
            let share = Share::new(peers, turn);
            (0..peers).filter(|place| share.has(*place)).count()
        });
        assert!(most.max() <= Some((2 * ASKED).max(peers.div_ceil(TURNS))));
    }
}

/// What is seen inside of a node whose cluster has these blocks of pods.
fn look(node: &Netns, peers: &[IpAddr], pods: &[IpNet], previous: &Facts) -> Facts {
    let wanted = FactsWanted {
        uplinks: &[],
        hint: None,
        said: &[],
        peers,
        direct: true,
        pods,
    };
    node.run(|| gather(&mut Socket::route().unwrap(), wanted, previous).unwrap())
}

/// A node with an uplink for each family, and no address.
fn node() -> Netns {
    let node = lab::namespace();
    for device in ["eth0", "eth1"] {
        node.command("ip", &format!("link add {device} type bridge"));
        node.command("ip", &format!("link set {device} up"));
    }
    node
}

fn names(facts: &Facts) -> Vec<&str> {
    facts.uplinks.iter().map(|u| u.name.as_str()).collect()
}

#[test]
fn a_changed_route_is_seen_at_once_also_among_hundreds_of_known_paths() {
    for (own, link, gateways, block, peer) in [
        (
            "192.0.2.5",
            "192.0.2.0/24",
            ["192.0.2.1", "192.0.2.2"],
            "198.51.100.0/24",
            "198.51.100.0",
        ),
        (
            "2001:db8::5",
            "2001:db8::/64",
            ["fe80::1", "2001:db8::2"],
            "2001:db8:1::/64",
            "2001:db8:1::",
        ),
    ] {
        let node = node();
        node.device("eth0", own, link);
        let [before, after] = gateways;
        let family = if own.contains(':') { "-6" } else { "-4" };
        node.command(
            "ip",
            &format!("{family} route add default via {before} dev eth0"),
        );
        let mut peers: Vec<IpAddr> = vec![peer.parse().unwrap(); 250];
        for (n, peer) in (0..).zip(&mut peers) {
            *peer = match *peer {
                IpAddr::V4(a) => (a | Ipv4Addr::from_bits(n)).into(),
                IpAddr::V6(a) => (a | Ipv6Addr::from_bits(n.into())).into(),
            };
        }
        let known = look(&node, &peers, &[], &Facts::default());
        let by = |facts: &Facts, gateway: &str| {
            let gateway: IpAddr = gateway.parse().unwrap();
            assert_eq!(facts.paths.len(), peers.len());
            assert!(
                facts.paths.values().all(|p| p.next_hop == gateway),
                "{gateway}"
            );
        };
        by(&known, before);
        node.command("ip", &format!("route add {block} via {after} dev eth0"));
        by(&look(&node, &peers, &[], &known), after);
    }
}

#[test]
fn a_node_with_addresses_of_both_families_has_both_and_paths_in_both() {
    let node = node();
    node.device("eth0", "192.0.2.5", "192.0.2.0/24");
    node.device("eth1", "2001:db8::5", "2001:db8::/64");
    node.command("ip", "route add default via 192.0.2.1 dev eth0");
    node.command("ip", "-6 route add default via fe80::1 dev eth1");
    let peers = ["192.0.2.9", "2001:db8::9", "2001:db8:9::9"].map(|a| a.parse().unwrap());
    let pods = ["10.1.0.0/16", "fd00:1::/48"].map(|b| b.parse().unwrap());
    let facts = look(&node, &peers, &pods, &Facts::default());
    let own: [IpAddr; 2] = ["192.0.2.5", "2001:db8::5"].map(|a| a.parse().unwrap());
    assert_eq!((facts.primary, &*facts.addresses), (Some(own[0]), &own[..]));
    assert_eq!(names(&facts), ["eth0", "eth1"]);
    let router: IpAddr = "fe80::1".parse().unwrap();
    let hops = peers.map(|p| facts.paths[&p].next_hop);
    assert_eq!(hops, [peers[0], peers[1], router]);

    // Where pods have IPv4 alone, the way of IPv6 carries nothing of theirs.
    let facts = look(&node, &peers, &pods[..1], &Facts::default());
    assert_eq!(names(&facts), ["eth0"]);
    assert_eq!(facts.ways_v6, ["eth1"]);
    assert!(facts.unfit[&peers[1]].contains("eth1"), "{:?}", facts.unfit);
    // A node of IPv6 alone.
    node.command("ip", "addr flush dev eth0");
    let facts = look(&node, &peers, &pods[1..], &Facts::default());
    assert_eq!((facts.primary, names(&facts)), (Some(own[1]), vec!["eth1"]));
}

#[test]
fn an_address_that_is_not_for_good_does_not_stand_for_the_node() {
    let node = node();
    node.device("eth0", "2001:db8::5", "2001:db8::/64");
    node.sysctl("ipv6/conf/eth0/accept_dad", "1");
    let own: IpAddr = "2001:db8::5".parse().unwrap();
    node.command(
        "ip",
        "addr add 2001:db8::3/64 dev eth0 preferred_lft 0 nodad",
    );
    node.command("ip", "addr add 2001:db8::4/64 dev eth0");
    // The health address of the node, and what another network left.
    node.command("ip", "addr add fd00:1::1/128 dev lo preferred_lft 0");
    node.command("ip", "addr add fd00:1:0:1::1/64 dev eth1 nodad");
    let pods = ["fd00:1::/48".parse().unwrap()];
    let before = look(&node, &[], &pods, &Facts::default());
    assert_eq!(before.addresses, [own]);
    let left: IpAddr = "fd00:1:0:1::1".parse().unwrap();
    assert_eq!(before.misplaced, [(left, "eth1".to_owned())]);
    // What was the node's before stays while the kernel looks at it again, or when no
    // router names it any more, and is used only where there is nothing else.
    for stays in ["2001:db8::4", "2001:db8::3"].map(|a| a.parse().unwrap()) {
        let known = Facts {
            addresses: vec![stays],
            ..Facts::default()
        };
        assert_eq!(look(&node, &[], &pods, &known).addresses, [own, stays]);
    }
}

#[test]
fn an_address_that_other_nodes_know_goes_before_a_virtual_one() {
    let all = [
        at(2, "192.0.2.5"),
        at(2, "2001:db8::9"),
        at(2, "2001:db8::5"),
    ];
    let own: Vec<&Address> = all.iter().collect();
    let [v4, known, virtual_one] = all.map(|a| a.ip);
    let order = |said: &[IpAddr]| in_order(&own, v4, said);
    assert_eq!(order(&[]), [v4, virtual_one, known]);
    assert_eq!(order(&[known, v4]), [v4, known, virtual_one]);
}

#[test]
fn link_local_addresses_do_not_stand_for_the_node() {
    assert!(!is_usable("169.254.20.10".parse().unwrap()));
    assert!(!is_usable("127.0.0.1".parse().unwrap()));
    assert!(!is_usable("::1".parse().unwrap()));
    assert!(!is_usable("fe80::5".parse().unwrap()));
    assert!(is_usable("fd00::5".parse().unwrap()));
    assert!(is_usable("172.17.0.1".parse().unwrap()));
}

#[test]
fn a_device_without_programs_is_named_also_behind_one_of_several_next_hops() {
    let [eth, wg, tun] = [2, 3, 4].map(IfIndex::from_kernel);
    let link = |index, name: &str| Link {
        name: name.into(),
        ..Link::new(index)
    };
    let links = [link(eth, "eth0"), link(wg, "wg0"), link(tun, "tun0")];
    let names: HashMap<IfIndex, &Link> = links.iter().map(|l| (l.index, l)).collect();
    let uplink = |index, ethernet| Uplink {
        index,
        name: String::new(),
        mtu: None,
        kind: String::new(),
        ethernet,
    };
    let uplinks = [uplink(eth, true), uplink(tun, false)];
    assert_eq!(obstacle(Some(eth), &uplinks, &names), None);
    let why = |index| obstacle(index, &uplinks, &names).unwrap();
    assert!(why(Some(wg)).contains("wg0") && why(Some(wg)).contains("spec.uplinks"));
    assert!(why(Some(tun)).contains("tun0") && why(Some(tun)).contains("no Ethernet"));
    assert!(why(None).contains("gone"));

    for (block, other) in [
        ("198.51.100.0/24", "203.0.113.0/24"),
        ("2001:db8:1::/64", "2001:db8:2::/64"),
    ] {
        let [block, other]: [IpNet; 2] = [block, other].map(|b| b.parse().unwrap());
        let routes = [
            (3, Route::link(block, eth)),
            (3, Route::link(block, wg)),
            (3, Route::link(other, eth)),
            (PROTOCOL, Route::link(other, wg)),
        ];
        let several: Vec<_> = several(&routes).iter().map(|r| r.index).collect();
        assert_eq!(several, [Some(eth), Some(wg)]);
    }
}

#[test]
fn a_peer_that_one_of_several_next_hops_leads_to_past_the_programs_is_unfit() {
    for (own, links, peer, hops) in [
        (
            ["192.0.2.5", "203.0.113.5"],
            ["192.0.2.0/24", "203.0.113.0/24"],
            "198.51.100.9",
            ["192.0.2.1", "203.0.113.1"],
        ),
        (
            ["2001:db8::5", "2001:db8:1::5"],
            ["2001:db8::/64", "2001:db8:1::/64"],
            "2001:db8:9::9",
            ["fe80::1", "fe80::2"],
        ),
    ] {
        let node = node();
        for (device, (own, link)) in ["eth0", "eth1"].iter().zip(own.iter().zip(links)) {
            node.device(device, own, link);
        }
        let family = if peer.contains(':') { "-6" } else { "-4" };
        let [near, far] = hops;
        node.command(
            "ip",
            &format!("{family} route add default via {near} dev eth0"),
        );
        let peers = [peer.parse().unwrap()];
        let look = || look(&node, &peers, &[], &Facts::default());
        assert!(look().unfit.is_empty());
        let both = format!("nexthop via {near} dev eth0 nexthop via {far} dev eth1");
        node.command(
            "ip",
            &format!(
                "route add {}/{} {both}",
                peer,
                IpNet::from(peers[0]).prefix_len()
            ),
        );
        assert!(look().unfit[&peers[0]].contains("eth1"));
    }
}

#[test]
fn a_bridge_with_another_nodes_gateway_does_not_speak_for_this_node() {
    let node = lab::namespace();
    node.command("ip", "link add eth0 type bridge");
    node.device("eth0", "192.0.2.5", "192.0.2.0/24");
    node.command(
        "ip",
        "route add default nexthop dev eth0 nexthop via 192.0.2.1 dev eth0",
    );
    node.command("ip", "link add cni0 type bridge");
    node.device("cni0", "10.1.1.1", "10.1.1.0/24");
    let facts = node.run(|| {
        let wanted = FactsWanted {
            uplinks: &[],
            hint: None,
            said: &[],
            peers: &["192.0.2.9".parse().unwrap()],
            direct: true,
            pods: &["10.1.1.0/24".parse().unwrap()],
        };
        gather(&mut Socket::route().unwrap(), wanted, &Facts::default()).unwrap()
    });
    let own: IpAddr = "192.0.2.5".parse().unwrap();
    assert_eq!((facts.primary, &*facts.addresses), (Some(own), &[own][..]));
    let gateway: IpAddr = "10.1.1.1".parse().unwrap();
    assert_eq!(facts.misplaced, [(gateway, "cni0".to_owned())]);
    let uplinks: Vec<&str> = facts.uplinks.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(uplinks, ["eth0"]);
    assert_eq!(facts.paths.len(), 1, "{:?}", facts.unfit);
}
