//! Routes in the kernel, of both families.

use super::*;
use crate::netlink::{lab, netns::Netns};

/// A namespace with two devices, `eth0` and `eth1`.
fn node() -> (Netns, [IfIndex; 2]) {
    let node = lab::namespace();
    let devices = [
        ("eth0", "192.0.2.5", "2001:db8::5"),
        ("eth1", "203.0.113.5", "2001:db8:1::5"),
    ];
    let indices = devices.map(|(name, v4, v6)| {
        node.command("ip", &format!("link add {name} type bridge"));
        node.device(name, v4, &format!("{v4}/24"));
        node.device(name, v6, &format!("{v6}/64"))
    });
    (node, indices)
}

fn own(socket: &mut Socket) -> Vec<Route> {
    let all = list(socket).unwrap().into_iter();
    all.filter(|(protocol, _)| *protocol == PROTOCOL)
        .map(|(_, r)| r)
        .collect()
}

#[test]
fn a_route_is_read_as_it_was_written_and_replaced_in_its_place() {
    let (node, [a, b]) = node();
    let mut socket = node.socket().unwrap();
    for (to, gateway, source) in [
        ("10.1.1.0/24", "192.0.2.9", "192.0.2.5"),
        ("fd00:1:1::/64", "fe80::1", "2001:db8::5"),
        // IPv4 by a router with an IPv6 address.
        ("10.1.2.0/24", "fe80::1", "192.0.2.5"),
    ] {
        let to: IpNet = to.parse().unwrap();
        let before = own(&mut socket).len();
        let mut seen = |wanted: &Route| {
            replace(&mut socket, wanted).unwrap();
            let own: Vec<Route> = own(&mut socket);
            assert_eq!(
                own.iter()
                    .filter(|r| r.destination == to)
                    .collect::<Vec<_>>(),
                [wanted]
            );
            assert_eq!(own.len(), before + 1);
        };
        let plain = Route::link(to, a);
        seen(&plain);
        seen(&Route::link(to, b));
        let by_gateway = Route {
            gateway: Some(gateway.parse().unwrap()),
            source: Some(source.parse().unwrap()),
            mtu: Mtu::new(1450),
            onlink: true,
            ..plain.clone()
        };
        seen(&by_gateway);
        seen(&Route {
            mtu: Mtu::new(1400),
            index: Some(b),
            ..by_gateway.clone()
        });
        seen(&Route::unreachable(to));
        seen(&plain);

        // One of somebody else's beside it, of another metric, is not touched.
        let family = if to.addr().is_ipv4() { "-4" } else { "-6" };
        node.command("ip", &format!("{family} route add {to} dev eth1 metric 7"));
        assert!(delete(&mut socket, &plain).unwrap());
        assert!(!delete(&mut socket, &plain).unwrap());
        let left = list(&mut socket).unwrap();
        assert!(
            left.iter()
                .any(|(_, r)| r.destination == to && r.metric == 7),
            "{left:?}"
        );
    }
}

#[test]
fn a_lookup_tells_router_device_and_that_there_is_no_way() {
    let (node, [a, b]) = node();
    let mut socket = node.socket().unwrap();
    for (to, by, near) in [
        ("198.51.100.7", "192.0.2.1", "203.0.113.9"),
        ("2001:db8:9::7", "2001:db8::1", "2001:db8:1::9"),
    ] {
        let to: IpAddr = to.parse().unwrap();
        assert_eq!(lookup(&mut socket, to).unwrap(), None);
        node.command("ip", &format!("route add default via {by} dev eth0"));
        let found = lookup(&mut socket, to).unwrap().unwrap();
        assert_eq!((found.index, found.gateway), (a, Some(by.parse().unwrap())));
        let found = lookup(&mut socket, near.parse().unwrap()).unwrap().unwrap();
        assert_eq!((found.index, found.gateway), (b, None));
    }
}

#[test]
fn every_next_hop_of_a_route_is_read_and_what_routers_tell_of_is_as_any_other() {
    let (node, [a, b]) = node();
    for (to, hops) in [
        ("198.51.100.0/24", ["192.0.2.1", "203.0.113.1"]),
        ("2001:db8:9::/64", ["2001:db8::1", "2001:db8:1::1"]),
        ("198.51.101.0/24", ["inet6 fe80::1", "inet6 fe80::2"]),
    ] {
        let [one, two] = hops;
        let command =
            format!("route add {to} nexthop via {one} dev eth0 nexthop via {two} dev eth1");
        node.command("ip", &command);
        let found = list(&mut node.socket().unwrap()).unwrap();
        let of_route = found
            .iter()
            .filter(|(_, r)| r.destination.to_string() == to);
        let mut seen: Vec<_> = of_route
            .map(|(_, r)| (r.index.unwrap(), r.gateway.unwrap()))
            .collect();
        seen.sort_unstable();
        let hops = hops.map(|h| h.trim_start_matches("inet6 ").parse().unwrap());
        assert_eq!(seen, [(a, hops[0]), (b, hops[1])]);
    }
    let advertised =
        "-6 route add default via fe80::9 dev eth0 proto ra metric 1024 expires 1800 pref high";
    node.command("ip", advertised);
    let found = list(&mut node.socket().unwrap()).unwrap();
    let default: Vec<_> = found
        .iter()
        .filter(|(_, r)| r.destination.prefix_len() == 0)
        .collect();
    let wanted = Route {
        gateway: Some("fe80::9".parse().unwrap()),
        ..Route::link("::/0".parse().unwrap(), a)
    };
    assert_eq!(default, [&(9, wanted)]);
}
