//! A wired pod, with addresses of either family and of both.

use super::*;
use crate::netlink::lab;

const DEVICE: &str = "veer0123456789";
const V4: (&str, &str) = ("10.1.0.5", "10.1.0.1");
const V6: (&str, &str) = ("fd00:1::5", "fd00:1::1");
/// Which addresses a pod can have.
const EACH: [&[(&str, &str)]; 3] = [&[V4], &[V6], &[V4, V6]];

fn addresses(all: &[(&str, &str)]) -> Vec<PodAddress> {
    let parse = |text: &str| text.parse().unwrap();
    all.iter()
        .map(|(address, gateway)| PodAddress {
            address: parse(address),
            gateway: parse(gateway),
        })
        .collect()
}

/// `-4` or `-6` of ip(8).
fn family(of_pod: &PodAddress) -> &'static str {
    if of_pod.address.is_ipv4() { "-4" } else { "-6" }
}

/// A node's namespace and a wired pod's, with MTUs of 1400 and 1350 bytes. New devices of
/// both have the host's worst settings.
fn wired(all: &[PodAddress]) -> (Netns, Netns, IfIndex) {
    let (node, pod) = (lab::namespace(), lab::namespace());
    // As a host that forwards by a switch of the node's, not of each device.
    node.sysctl("ipv4/conf/default/forwarding", "0");
    for ns in [&node, &pod] {
        ns.sysctl("ipv6/conf/all/disable_ipv6", "1");
        ns.sysctl("ipv6/conf/all/forwarding", "0");
        ns.sysctl("ipv6/conf/default/addr_gen_mode", "2");
        ns.sysctl("ipv6/conf/default/accept_dad", "1");
        ns.sysctl("ipv6/conf/default/accept_ra", "1");
    }
    let index = wire(&node, &pod, all);
    (node, pod, index)
}

fn mtu(bytes: u32) -> Mtu {
    Mtu::new(bytes).unwrap()
}

fn wire(node: &Netns, pod: &Netns, all: &[PodAddress]) -> IfIndex {
    let wiring = Wiring {
        host_ifname: DEVICE,
        host_mac: lab::NEAR,
        pod_ifname: "eth0",
        pod_mac: lab::FAR,
        addresses: all,
        link_mtu: mtu(1400),
        route_mtu: mtu(1350),
        host_sources: &[],
        host_ports: true,
    };
    node.run(|| {
        let mut host = Socket::route().unwrap();
        let link = create(&mut host, pod, &wiring).unwrap();
        let sysctls = Path::new("/proc/sys/net");
        configure(&mut host, pod, &wiring, link.index, sysctls).unwrap();
        link.index
    })
}

#[test]
fn a_pods_device_forwards_and_validates_loosely_whatever_new_devices_do() {
    let (node, _pod, _) = wired(&addresses(&[V4]));
    for (key, value) in sysctl::DEVICE.into_iter().chain([sysctl::LOOPBACK]) {
        let found = node.sysctl_of(&format!("ipv4/conf/{DEVICE}/{key}"));
        assert_eq!(found, value, "{key}");
    }
}

#[test]
fn a_pod_has_its_addresses_routes_and_neighbours_whatever_the_hosts_defaults_are() {
    for all in EACH.map(addresses) {
        let (node, pod, index) = wired(&all);
        let seen = pod.run(|| check(&pod, "eth0", &all).unwrap());
        assert!(seen.is_empty(), "{seen:?}");
        let mut host = node.socket().unwrap();
        let neighbours = neighbour::list(&mut host).unwrap();
        let routes = route::list(&mut host).unwrap();
        for of_pod in &all {
            let entry = (index, of_pod.address, lab::FAR);
            assert!(neighbours.contains(&entry), "{neighbours:?}");
            let to_pod = (PROTOCOL, host_route(index, of_pod.address, None));
            assert!(routes.contains(&to_pod), "{routes:?}");
            // What cannot be sent at all gets nowhere near this far.
            let own = of_pod.address.to_string();
            pod.command("ping", &format!("{} -c 1 -W 5 {own}", family(of_pod)));
        }
        let v6 = all.iter().any(|a| a.address.is_ipv6());
        let seen = pod.command("ip", "-o -6 addr show dev eth0");
        assert_eq!(seen.contains("fe80::ff:fe00:2/64"), v6, "{seen}");
        assert!(!seen.contains("tentative"), "{seen}");
        let seen = node.command("ip", &format!("-o -6 addr show dev {DEVICE}"));
        assert_eq!(seen, "", "the host's end has none");
        let of_pods = routes.iter().filter(|(_, r)| r.index == Some(index));
        assert_eq!(of_pods.count(), all.len(), "{routes:?}");
        if v6 {
            for (key, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
                assert_eq!(pod.sysctl_of(&format!("ipv6/conf/eth0/{key}")), value);
            }
        } else {
            // Nothing of IPv6 is touched for a pod without.
            for (ns, device) in [(&pod, "eth0"), (&pod, "lo"), (&node, DEVICE)] {
                let found = ns.sysctl_of(&format!("ipv6/conf/{device}/disable_ipv6"));
                assert_eq!(found, "1", "{device}");
            }
        }
    }
}

#[test]
fn what_a_pod_lacks_is_named_by_address() {
    for all in EACH.map(addresses) {
        let (_node, pod, _) = wired(&all);
        for PodAddress { address, gateway } in &all {
            pod.command("ip", &format!("route del default via {gateway}"));
            let bits = IpNet::from(*address);
            pod.command("ip", &format!("addr del {bits} dev eth0"));
        }
        let wrong = check(&pod, "eth0", &all).unwrap();
        assert_eq!(wrong.len(), 2 * all.len(), "{wrong:?}");
    }
}

#[test]
fn both_mtus_of_a_running_pod_are_raised_and_lowered_again() {
    for all in EACH.map(addresses) {
        let (_node, pod, _) = wired(&all);
        for (link, route) in [(1500, 1450), (1500, 1500), (1300, 1290), (1400, 1300)] {
            set_mtus(&pod, "eth0", &all, mtu(link), mtu(route)).unwrap();
            for of_pod in &all {
                let seen = pod.command("ip", &format!("{} route show default", family(of_pod)));
                assert!(seen.contains(&format!("mtu {route} ")), "{seen}");
            }
            let seen = pod.command("ip", "link show eth0");
            assert!(seen.contains(&format!("mtu {link} ")), "{seen}");
        }
    }
}

#[test]
fn a_default_route_of_the_pods_own_stays() {
    for of_pod in addresses(&[V4, V6]) {
        let all = [of_pod];
        let (_node, pod, _) = wired(&all);
        let routes = || {
            let seen = pod.command("ip", &format!("-o {} route show default", family(&of_pod)));
            seen.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        pod.command("ip", "link add tun9 type bridge");
        pod.command("ip", "link set tun9 up");
        pod.sysctl("ipv6/conf/tun9/disable_ipv6", "0");

        // Beside veer's, before it.
        let before = if of_pod.address.is_ipv4() {
            "-4 route prepend default dev tun9"
        } else {
            "-6 route add default dev tun9 metric 1"
        };
        pod.command("ip", before);
        set_mtus(&pod, "eth0", &all, mtu(1400), mtu(1300)).unwrap();
        let seen = routes();
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert!(seen[0].contains("tun9"), "{seen:?}");
        assert!(seen[1].contains("mtu 1300"), "{seen:?}");

        // Instead of it.
        pod.command(
            "ip",
            &format!("{} route del default dev eth0", family(&of_pod)),
        );
        let before = routes();
        set_mtus(&pod, "eth0", &all, mtu(1400), mtu(1290)).unwrap();
        assert_eq!(routes(), before);
    }
}

#[test]
fn a_default_route_that_was_there_first_stays_in_force() {
    for of_pod in addresses(&[V4, V6]) {
        let all = [of_pod];
        let (node, pod) = (lab::namespace(), lab::namespace());
        pod.command("ip", "link add tun9 type bridge");
        let (ip, by, any) = if of_pod.address.is_ipv4() {
            ("192.0.2.5", "192.0.2.1", "198.51.100.1")
        } else {
            ("2001:db8::5", "2001:db8::1", "2001:db8:1::1")
        };
        pod.device(
            "tun9",
            ip,
            &format!("{by}/{}", IpNet::from(of_pod.address).prefix_len()),
        );
        pod.command("ip", &format!("route add default via {by} dev tun9"));
        wire(&node, &pod, &all);
        for route_mtu in [1350, 1300] {
            set_mtus(&pod, "eth0", &all, mtu(1400), mtu(route_mtu)).unwrap();
            let seen = pod.command("ip", &format!("-o {} route show default", family(&of_pod)));
            assert!(!seen.contains("nexthop"), "{seen}");
            assert!(seen.contains(&format!("mtu {route_mtu} ")), "{seen}");
            let found = route::lookup(&mut pod.socket().unwrap(), any.parse().unwrap());
            assert_eq!(found.unwrap().unwrap().gateway, Some(by.parse().unwrap()));
        }
    }
}
