//! What the stack of a node holds, with pods of either family and of both.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

use super::*;
use crate::{
    error::Error,
    netlink::{
        lab::{self, FAR, NEAR},
        link,
        message::Socket,
        neighbour,
        netns::Netns,
        route,
        sysctl::Sysctls,
    },
};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    facts::{Facts, Uplink},
    family::Family,
    mtu::Mtu,
    repair::RoundLog,
};

const BLOCKS: [&str; 2] = ["10.1.0.0/24", "fd00:1::/64"];
const FORWARDING: &str = "ipv6/conf/all/forwarding";
const ACCEPT_RA: &str = "ipv6/conf/eth0/accept_ra";

fn blocks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|b| b.parse().unwrap()).collect()
}

fn facts() -> Facts {
    Facts {
        uplinks: vec![Uplink {
            name: "eth0".into(),
            index: IfIndex::from_kernel(2),
            mtu: Some(Mtu::ETHERNET),
            kind: String::new(),
            ethernet: true,
        }],
        ways_v6: vec!["mgmt0".into()],
        ..Facts::default()
    }
}

/// A node with an uplink as hosts have it that no router is for.
fn node() -> (Netns, Netns) {
    let (node, router) = (lab::namespace(), lab::namespace());
    node.sysctl(FORWARDING, "0");
    lab::pair(&node, &router, "eth0");
    lab::pair(&node, &router, "veer_vxlan");
    for (near, far) in [("192.0.2.5", "192.0.2.1"), ("2001:db8::5", "2001:db8::1")] {
        node.device("eth0", near, &format!("{far}/24"));
        router.device("eth0", far, &format!("{near}/24"));
    }
    (node, router)
}

/// All sysctls below `net/ipv6`, in order.
fn all_ipv6(node: &Netns) -> String {
    let all = node.command("sysctl", "-a -r ^net.ipv6");
    assert!(all.contains("forwarding"), "{all}");
    all
}

struct Round<'a> {
    node: &'a Netns,
    host: Host,
    pods: Vec<Arc<LocalEndpoint>>,
    blocks: Vec<IpNet>,
}

impl<'a> Round<'a> {
    fn new(node: &'a Netns, memory: &Path, texts: &[&str]) -> Self {
        let sysctls = Sysctls::open(Path::new("/proc/sys/net"), memory);
        Self {
            node,
            host: Host::new(sysctls),
            pods: Vec::new(),
            blocks: blocks(texts),
        }
    }

    /// Does it, and says how much it repaired.
    fn run(&mut self) -> usize {
        let Self {
            node,
            host,
            pods,
            blocks,
        } = self;
        let mut done = RoundLog::default();
        node.run(|| {
            host.enable_ipv6(&mut done, pods, blocks).unwrap();
            host.sysctls(&mut done, &facts(), pods, blocks).unwrap();
        });
        done.take().0.len()
    }
}

/// A router's advertisement of itself as the way to everywhere.
fn advertisement() -> Vec<u8> {
    let source = "fe80::9".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let all_nodes = "ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(FAR, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(source, all_nodes, 255)
        // Hop limit, flags, and 1800 seconds.
        .icmpv6_raw(134, 0, [64, 0, 0x07, 0x08])
        .write(&mut frame, &[0; 8])
        .unwrap();
    frame
}

/// Whether the node has a default route by the router.
fn by_router(node: &Netns) -> bool {
    node.command("ip", "-6 route show default")
        .contains("fe80::9")
}

/// Sends until it has.
fn advertise(node: &Netns, router: &Netns) {
    let mut socket = router.socket().unwrap();
    let device = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    let frame = advertisement();
    let begin = Instant::now();
    while !by_router(node) {
        assert!(begin.elapsed() < Duration::from_secs(30), "no route");
        lab::send_frames(router, device, [frame.as_slice()]);
    }
}

#[test]
fn ipv6_is_forwarded_without_the_loss_of_a_default_route_and_all_is_as_before_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (node, router) = node();
    node.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    // One that is no uplink.
    node.command("ip", "link add mgmt0 type bridge");
    advertise(&node, &router);
    let before = all_ipv6(&node);
    let memory = dir.path().join("sysctl.json");
    let mut round = Round::new(&node, &memory, &BLOCKS);
    let as_wanted = || {
        for (key, value) in [
            (FORWARDING, "1"),
            (ACCEPT_RA, "2"),
            ("ipv6/conf/mgmt0/accept_ra", "2"),
            ("ipv6/conf/lo/disable_ipv6", "0"),
        ] {
            assert_eq!(node.sysctl_of(key), value, "{key}");
        }
        assert!(by_router(&node));
    };
    assert_eq!(round.run(), 0);
    as_wanted();
    assert_eq!(round.run(), 0);
    // Somebody's tool for networks.
    node.sysctl(ACCEPT_RA, "1");
    node.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    assert_eq!(round.run(), 2);
    as_wanted();
    // Another agent takes it back.
    let mut later = Round::new(&node, &memory, &BLOCKS);
    later.run();
    node.run(|| later.host.restore().unwrap());
    assert_eq!(all_ipv6(&node), before);
    assert!(by_router(&node));
}

#[test]
fn what_a_node_says_of_routers_is_left_where_it_is_none_of_veers() {
    let dir = tempfile::tempdir().unwrap();
    for (forwarding, accept_ra) in [("0", "0"), ("0", "2"), ("1", "1")] {
        let (node, _router) = node();
        node.sysctl(FORWARDING, forwarding);
        node.sysctl(ACCEPT_RA, accept_ra);
        let memory = dir.path().join("sysctl.json");
        let mut round = Round::new(&node, &memory, &BLOCKS[1..]);
        round.run();
        assert_eq!(node.sysctl_of(FORWARDING), "1");
        assert_eq!(
            node.sysctl_of(ACCEPT_RA),
            accept_ra,
            "forwarding {forwarding}"
        );
        node.run(|| round.host.restore().unwrap());
        assert_eq!(node.sysctl_of(FORWARDING), forwarding);
        assert_eq!(node.sysctl_of(ACCEPT_RA), accept_ra);
    }
}

#[test]
fn a_node_without_pods_of_ipv6_has_none_of_its_sysctls_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _router) = node();
    node.sysctl("ipv6/conf/all/disable_ipv6", "1");
    node.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    let before = all_ipv6(&node);
    let mut round = Round::new(&node, &dir.path().join("sysctl.json"), &BLOCKS[..1]);
    round.run();
    assert_eq!(all_ipv6(&node), before);
    assert_eq!(node.sysctl_of("ipv4/conf/eth0/rp_filter"), "2");
}

#[test]
fn a_kernel_without_ipv6_serves_ipv4_and_says_what_to_do_where_more_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let v4 = dir.path().join("ipv4");
    for device in ["eth0", "veer_vxlan"] {
        let conf = v4.join("conf").join(device);
        fs::create_dir_all(&conf).unwrap();
        for (key, _) in crate::netlink::sysctl::DEVICE {
            fs::write(conf.join(key), "0\n").unwrap();
        }
    }
    for (texts, asked) in [(&BLOCKS[..1], false), (&BLOCKS, true)] {
        fs::write(v4.join("ip_forward"), "0\n").unwrap();
        let mut host = Host::new(Sysctls::open(dir.path(), &dir.path().join("sysctl.json")));
        let mut done = RoundLog::default();
        let enabled = host.enable_ipv6(&mut done, &[], &blocks(texts));
        assert_eq!(enabled.is_err(), asked);
        if let Err(error) = enabled {
            assert!(matches!(error, Error::NoIpv6), "{error}");
            let text = error.to_string();
            assert!(
                text.contains("ipv6.disable=1") && text.contains("podCIDRs"),
                "{text}"
            );
        }
        host.sysctls(&mut done, &facts(), &[], &blocks(texts))
            .unwrap();
        assert_eq!(fs::read_to_string(v4.join("ip_forward")).unwrap(), "1");
    }
}

#[test]
fn health_addresses_come_go_and_come_back_and_nothing_leaves_with_one_by_itself() {
    let (node, _router) = node();
    let [old, new]: [Vec<IpAddr>; 2] = [["10.9.0.1", "fd00:9::1"], ["10.1.0.1", "fd00:1::1"]]
        .map(|all| all.map(|a| a.parse().unwrap()).into());
    let of_pods = |a: IpAddr| old.contains(&a) || new.contains(&a);
    let mut health = Health::default();
    let mut round = |wanted: &[IpAddr]| {
        let mut done = RoundLog::default();
        node.run(|| {
            let mut socket = Socket::route().unwrap();
            let links = link::list(&mut socket).unwrap();
            health
                .converge(&mut done, &mut socket, &links, wanted, of_pods)
                .unwrap();
        });
        done.take().0.len()
    };
    let seen = || node.command("ip", "-o addr show dev lo");
    // Somebody's own, which is there first.
    node.command("ip", "addr add 2001:db8:5::5/128 dev lo");
    for wanted in [&old, &new, &new[..1], &new] {
        assert_eq!(round(wanted), 0);
        assert_eq!(round(wanted), 0);
        let seen = seen();
        for health in old.iter().chain(&new) {
            let has = seen.contains(&format!(" {}", IpNet::from(*health)));
            assert_eq!(has, wanted.contains(health), "{health}: {seen}");
        }
        assert!(seen.contains("2001:db8:5::5"), "{seen}");
    }
    for (lost, world) in new.iter().zip(["198.51.100.1", "2001:db8:7::1"]) {
        node.command("ip", &format!("addr del {} dev lo", IpNet::from(*lost)));
        assert_eq!(round(&new), 1, "{lost}");
        node.command("ip", &format!("route add {world} dev eth0"));
        let chosen = node.command("ip", &format!("route get {world}"));
        assert!(!chosen.contains(&format!("src {lost}")), "{chosen}");
    }
    node.run(|| {
        let mut socket = Socket::route().unwrap();
        Health::default().remove(&mut socket, &new).unwrap();
    });
    assert!(!seen().contains(&new[0].to_string()) && !seen().contains(&new[1].to_string()));
}

#[test]
fn neighbours_and_routes_of_both_families_are_put_back_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _router) = node();
    let mut socket = node.socket().unwrap();
    let index = link::by_name(&mut socket, "eth0").unwrap().unwrap().index;
    let mut pod = crate::nft::tests::host_ports::pod_with_port(5, "tcp", "", 80);
    pod.ifindex = Some(index);
    pod.mac = NEAR;
    pod.second = Some(veer_agent_core::endpoint::PodAddress {
        address: "fd00:1::5".parse().unwrap(),
        gateway: "fd00:1::1".parse().unwrap(),
    });
    let addresses: Vec<IpAddr> = pod.addresses().map(|a| a.address).collect();
    let pods = [Arc::new(pod)];
    let mut host = Host::new(Sysctls::open(dir.path(), &dir.path().join("sysctl.json")));
    let mut wanted = veer_agent_core::desired::Desired::default();
    for address in &addresses {
        let route = veer_agent_core::route::host_route(index, *address, None);
        wanted.routes.push(route);
    }
    let unreachable = blocks(&BLOCKS).into_iter().map(route::Route::unreachable);
    wanted.routes.extend(unreachable);
    let mut round = || {
        let mut done = RoundLog::default();
        let links = link::list(&mut socket).unwrap();
        let routes = route::list(&mut socket).unwrap();
        let neighbours = neighbour::list(&mut socket).unwrap();
        host.routes(&mut done, &mut socket, &routes, &links, &wanted, true);
        host.neighbours(&mut done, &mut socket, &neighbours, &links, &pods);
        done.take().0.len()
    };
    assert_eq!(round(), 0);
    assert_eq!(round(), 0);
    for (address, block) in addresses.iter().zip(BLOCKS) {
        let family = if address.is_ipv4() { "-4" } else { "-6" };
        for gone in [
            format!("neigh del {address} dev eth0"),
            format!("{family} route del {address} dev eth0"),
            format!("{family} route del unreachable {block}"),
            format!("neigh replace {address} lladdr 02:00:00:00:00:09 dev eth0 nud permanent"),
            format!("{family} route replace {address} dev eth0 mtu 1300 proto 118"),
        ] {
            node.command("ip", &gone);
            assert_eq!(round(), 1, "{gone}");
            assert_eq!(round(), 0, "{gone}");
        }
    }
}

#[test]
fn a_device_that_takes_no_ipv6_packets_without_checksum_is_made_again_only_where_they_come() {
    let node = lab::namespace();
    let mut vxlan = Vxlan::default();
    let mut round = |outside| {
        let mut done = RoundLog::default();
        node.run(|| {
            let mut socket = Socket::route().unwrap();
            vxlan
                .converge(&mut done, &mut socket, 8472, Mtu::ETHERNET, outside)
                .unwrap()
        })
    };
    // As an earlier release made it.
    node.command(
        "ip",
        "link add veer_vxlan type vxlan external nolearning dstport 8472",
    );
    let old = round(Family::V4);
    assert_eq!(round(Family::V4), old);
    let new = round(Family::V6);
    assert_ne!(old, new);
    assert_eq!(round(Family::V6), new);
    let seen = node.command("ip", "-d link show veer_vxlan");
    assert!(
        seen.contains(" udp6zerocsumrx") && seen.contains("addrgenmode none"),
        "{seen}"
    );
    assert_eq!(node.command("ip", "-o -6 addr show dev veer_vxlan"), "");
}
