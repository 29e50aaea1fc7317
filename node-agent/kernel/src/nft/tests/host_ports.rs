//! hostPorts at work: a pod on one side of the node, the world on the other.

use std::thread;

use super::*;
use veer_agent_core::endpoint::LocalEndpoint;

/// The pod's device.
const DEVICE: &str = "veer0123456789";
/// What the pod listens on.
const TO: u16 = 8080;

/// A pod with an address of each family that ends in `last`, to whose port [`TO`] a port
/// of the node leads. Its record is of a release that knew of no hostPorts.
pub(crate) fn pod_with_port(last: u8, protocol: &str, ip: &str, port: u16) -> LocalEndpoint {
    let mut endpoint: LocalEndpoint = serde_json::from_value(serde_json::json!({
        "container_id": format!("c{last}"), "ifname": "eth0", "netns": "", "netns_inode": 0,
        "namespace": "shop", "pod_name": format!("cart-{last}"), "pod_uid": format!("u{last}"),
        "address": format!("10.1.0.{last}"), "gateway": "10.1.0.1", "endpoint_id": last,
        "second": {"address": format!("fd00:1::{last}"), "gateway": "fd00:1::1"},
        "serial": 1, "identity": 5, "host_ifname": DEVICE, "ifindex": 7,
        "mac": [2, 0, 0, 0, 0, 2], "node_mac": [2, 0, 0, 0, 0, 1],
    }))
    .unwrap();
    assert!(endpoint.host_ports.is_none() && endpoint.host_ports().is_empty());
    let mapping = serde_json::json!([{
        "hostPort": port, "containerPort": TO, "protocol": protocol, "hostIP": ip}]);
    endpoint.host_ports = Some(veer_agent_api::host_port::parse(&mapping).unwrap());
    endpoint
}

/// A lab with a pod that tells everybody by whom it was asked.
fn with_pod() -> (Lab, Netns) {
    let (lab, pod) = with_pod_at(DEVICE);
    for e in &ENDS {
        let socket = pod.run(|| bound(e.any, TO));
        answer(socket);
    }
    lab.node
        .sysctl(&format!("ipv4/conf/{DEVICE}/route_localnet"), "1");
    (lab, pod)
}

/// A socket for the family of `any` alone.
fn bound(any: &str, port: u16) -> UdpSocket {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket,
        sockopt::Ipv6V6Only,
    };
    use std::os::fd::AsRawFd;
    let address = SocketAddr::new(parsed(any), port);
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &true).unwrap();
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    fd.into()
}

/// Answers until the test ends.
fn answer(listener: UdpSocket) {
    thread::spawn(move || {
        let mut buffer = [0; 8];
        while let Ok((_, from)) = receive(&listener, &mut buffer) {
            let _ = listener.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}

fn client(from: &Netns, any: &str) -> UdpSocket {
    let socket = from.run(|| UdpSocket::bind(SocketAddr::new(parsed(any), 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// What the answer to a question says; `None`: the port was closed.
fn ask(socket: &UdpSocket, to: &str, port: u16) -> Option<String> {
    let to = SocketAddr::new(parsed(to), port);
    socket.connect(to).unwrap();
    socket.send(b"?").unwrap();
    let mut buffer = [0; 64];
    match receive(socket, &mut buffer) {
        Ok((length, _)) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => None,
        Err(e) => panic!("{to}: {e}"),
    }
}

#[test]
fn a_host_port_answers_world_node_loopback_and_the_pod_itself_also_after_a_flush() {
    for fib in [true, false] {
        let (lab, pod) = with_pod();
        let endpoints = [
            pod_with_port(5, "udp", "", 8088),
            pod_with_port(5, "udp", ENDS[0].node, 8089),
            pod_with_port(5, "udp", ENDS[1].node, 8089),
            pod_with_port(5, "udp", "127.0.0.1", 8087),
            pod_with_port(5, "udp", "::1", 8087),
        ];
        let content = with_ports(&["far0"], &endpoints, fib);
        let mut table = Table::default();
        let mut round = || {
            let mut socket = Socket::netfilter().unwrap();
            table.write(&mut socket, &content).unwrap()
        };
        let answers = |e: &Ends| {
            let asked = |from: &Netns, to, port| ask(&client(from, e.any), to, port);
            for port in [8088, 8089] {
                let seen = |from: &Netns| asked(from, e.node, port).unwrap();
                assert_eq!(seen(&lab.outside), e.other, "the world's own address");
                assert_eq!(seen(&pod), e.node, "not the pod's own");
                seen(&lab.node);
            }
            // The way back to `::1` is by no device but `lo`.
            let (loopback, seen) = match e.family {
                "-4" => ("127.0.0.1", Some(e.node)),
                _ => ("::1", None),
            };
            let by_loopback = |from, port| ask(&client(&lab.node, from), loopback, port);
            assert_eq!(by_loopback(loopback, 8088).as_deref(), seen);
            assert_eq!(by_loopback(e.node, 8088).as_deref(), Some(e.node));
            assert_eq!(by_loopback(e.node, 8087).as_deref(), Some(e.node));
            for from in [loopback, e.node] {
                assert_eq!(by_loopback(from, 8089), None, "of another address");
            }
            assert_eq!(asked(&lab.outside, e.node, 8090), None);
        };
        lab.node.run(&mut round);
        ENDS.iter().for_each(answers);
        lab.node.command("nft", "flush ruleset");
        let wrote = lab.node.run(&mut round);
        assert!(wrote.restored && wrote.changed.is_some());
        ENDS.iter().for_each(answers);
    }
}

#[test]
fn one_pods_host_port_comes_moves_and_goes_by_elements_alone() {
    let node = lab::namespace();
    let of = |pods: &[u8]| {
        let all: Vec<_> = pods
            .iter()
            .map(|last| pod_with_port(*last, "tcp", "", 8000 + u16::from(*last) % 10))
            .collect();
        with_ports(&["far0"], &all, true)
    };
    let mut table = Table::default();
    // 10.1.0.15 has the port that 10.1.0.5 had. Each family has a map and a set of pods.
    for (pods, messages) in [(&[5, 6][..], None), (&[15, 6], Some(8)), (&[6], Some(4))] {
        let content = of(pods);
        let written = table.written.as_ref().map(|w| &w.content);
        let changes = written.and_then(|old| content.changes(old));
        assert_eq!(changes.map(|c| c.len()), messages);
        node.run(|| {
            let mut socket = Socket::netfilter().unwrap();
            assert_eq!(table.write(&mut socket, &content).unwrap().changed, None);
        });
        for (map, block) in [("hostports", "10.1.0."), ("hostports6", "fd00:1::")] {
            let listed = node.command("nft", &format!("list map inet veer {map}"));
            assert_eq!(listed.matches("tcp .").count(), pods.len(), "{listed}");
            for last in pods {
                let to = format!("{block}{last} . {TO}");
                assert!(listed.contains(&to), "{listed}");
            }
        }
    }
    node.command("nft", "flush map inet veer hostports");
    node.run(|| {
        let mut socket = Socket::netfilter().unwrap();
        let wrote = table.write(&mut socket, &of(&[6])).unwrap();
        assert_eq!(wrote.changed.as_deref(), Some("elements"));
    });
}

#[test]
fn datagrams_that_began_before_the_host_port_reach_the_pod_once_it_is_there() {
    let (lab, _pod) = with_pod();
    let mut table = Table::default();
    let mut write = |endpoints: &[LocalEndpoint]| {
        let content = with_ports(&["far0"], endpoints, true);
        lab.node.run(|| {
            let mut socket = Socket::netfilter().unwrap();
            table.write(&mut socket, &content).unwrap();
            table.wrote_host_ports(HostPorts::of(endpoints.iter()), &facts());
        });
    };
    write(&[]);
    for e in &ENDS {
        // One socket, so one flow for connection tracking.
        let one = client(&lab.outside, e.any);
        assert_eq!(ask(&one, e.node, 8088), None);
        write(&[pod_with_port(5, "udp", "", 8088)]);
        assert_eq!(ask(&one, e.node, 8088).as_deref(), Some(e.other));
        write(&[]);
        assert_eq!(ask(&one, e.node, 8088), None);
    }
}

#[test]
fn a_table_of_an_earlier_agent_takes_host_ports_while_the_rest_is_not_known() {
    let node = lab::namespace();
    node.run(|| {
        let mut socket = Socket::netfilter().unwrap();
        let earlier = with_ports(&["far0"], &[pod_with_port(5, "tcp", "", 80)], true);
        commit(&mut socket, earlier.messages(|_| Count::default())).unwrap();
        let mut table = Table::default();
        let now = HostPorts::of([pod_with_port(6, "tcp", "", 80)].iter());
        table
            .host_ports_alone(&mut socket, now.clone(), &facts())
            .unwrap();
        assert_eq!(table.host_ports, now);
    });
    for (map, block) in [("hostports", "10.1.0."), ("hostports6", "fd00:1::")] {
        let listed = node.command("nft", &format!("list map inet veer {map}"));
        let has = |last: u8| listed.contains(&format!("{block}{last} "));
        assert!(has(6) && !has(5), "{listed}");
    }
    // A table without them is of a release that left them to a plugin.
    node.command("nft", "flush ruleset");
    node.command("nft", "add table inet veer");
    node.run(|| {
        let mut socket = Socket::netfilter().unwrap();
        let mut table = Table::default();
        let now = HostPorts::of([pod_with_port(6, "tcp", "", 80)].iter());
        table.host_ports_alone(&mut socket, now, &facts()).unwrap();
    });
}
