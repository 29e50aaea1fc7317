//! Frontends without backends: what clients behind the node, and the node's own, are told.

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket},
};
use veer_agent_core::services::Refusal;
use veer_bpf_common::tables::Frontend;

use super::*;
use crate::nft::content::Elements;

/// The pod's device.
const DEVICE: &str = "veer0123456789";
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Ports of the service: without backends, without one on this node, and one that is none
/// of its frontends.
const EMPTY: u16 = 80;
const ELSEWHERE: u16 = 81;
const OTHER: u16 = 82;
/// Of UDP alone.
const NAMES: u16 = 53;
const REFUSED: &str = "service-without-endpoints";
const DROPPED: &str = "service-without-local-endpoint";

fn content(unserved: &Unserved, reject: bool) -> Ruleset {
    let can = Abilities {
        reject,
        ..Abilities::ALL
    };
    with_all(&blocks(), &["far0"], &[], can, unserved)
}

fn unserved() -> Unserved {
    let mut all = Unserved::new();
    for e in &ENDS {
        let frontend = |port, protocol| Frontend::new(parsed(e.service), port, protocol);
        all.insert(frontend(NAMES, UDP), Refusal::Refuse);
        for protocol in [TCP, UDP] {
            all.insert(frontend(EMPTY, protocol), Refusal::Refuse);
            all.insert(frontend(ELSEWHERE, protocol), Refusal::Drop);
        }
    }
    all
}

/// A lab whose node has a pod, and routes what it does not know to the other node, which
/// has the service's address.
fn with_pod() -> (Lab, Netns) {
    let (lab, pod) = with_pod_at(DEVICE);
    for e in &ENDS {
        let by = format!("{} route add default via {}", e.family, e.other);
        lab.node.command("ip", &by);
        own(&lab.outside, e.service);
        // The kernel sends what a device loses that has just come up again.
        let closed = SocketAddr::new(parsed(e.node), OTHER);
        assert_eq!(tcp(&pod, closed), Err(io::ErrorKind::ConnectionRefused));
    }
    (lab, pod)
}

/// Connects. A kernel that hears nothing asks again after a second.
fn tcp(from: &Netns, to: SocketAddr) -> Result<(), io::ErrorKind> {
    let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE));
    stream.map(drop).map_err(|e| e.kind())
}

fn datagram(from: &Netns, to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = from.run(|| UdpSocket::bind(SocketAddr::new(parsed(any), 0)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(to).unwrap();
    // The node's own hears from its own hook that nothing leaves, besides any answer.
    match socket.send(b"?") {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
    }
    socket
}

/// Sends a datagram that is refused.
fn refused(from: &Netns, to: SocketAddr) {
    let answer = receive(&datagram(from, to), &mut [0; 8]);
    let error = answer.expect_err("a refusal");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}");
}

/// Waits until a counter has this or more.
fn counted(lab: &Lab, name: &str, least: u64) {
    let begin = Instant::now();
    while lab.counts()[name] < least {
        assert!(begin.elapsed() < PATIENCE, "{name}: {:?}", lab.counts());
        std::thread::yield_now();
    }
}

/// A datagram and the beginning of a connection to a port that answers neither, which
/// `counter` tells; a datagram that is refused comes after them.
fn silent(lab: &Lab, from: &Netns, service: IpAddr, port: u16, counter: &str) {
    let to = SocketAddr::new(service, port);
    let before = lab.counts()[counter];
    let socket = datagram(from, to);
    counted(lab, counter, before + 1);
    let stream = from.run(|| begun(to));
    counted(lab, counter, before + 2);
    // Of a port that nobody has.
    refused(from, SocketAddr::new(service, OTHER));
    socket.set_nonblocking(true).unwrap();
    let answer = receive(&socket, &mut [0; 8]).map_err(|e| e.kind());
    assert_eq!(answer.err(), Some(io::ErrorKind::WouldBlock), "{to}");
    assert!(stream.take_error().unwrap().is_none(), "{to}");
}

/// A connection that waits for its answer.
fn begun(to: SocketAddr) -> TcpStream {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None).unwrap();
    let connected = connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
    assert_eq!(connected, Err(Errno::EINPROGRESS), "{to}");
    fd.into()
}

#[test]
fn a_packet_to_a_frontend_without_backends_is_refused_at_once() {
    let (lab, pod) = with_pod();
    lab.write(&content(&unserved(), true));
    for e in &ENDS {
        let service = |port| SocketAddr::new(parsed(e.service), port);
        for client in [&pod, &lab.node] {
            let before = lab.counts()[REFUSED];
            let answer = tcp(client, service(EMPTY));
            assert_eq!(answer, Err(io::ErrorKind::ConnectionRefused));
            refused(client, service(EMPTY));
            // The first packet of each was answered, or there would be more.
            assert_eq!(lab.counts()[REFUSED], before + 2);
        }
        // Other ports, and the same of another protocol, are no frontends.
        let listener = |port| {
            lab.outside
                .run(|| TcpListener::bind(service(port)).unwrap())
        };
        let _listening = [OTHER, NAMES].map(listener);
        let names = lab.outside.run(|| UdpSocket::bind(service(OTHER)).unwrap());
        names.set_read_timeout(Some(PATIENCE)).unwrap();
        let before = lab.counts()[REFUSED];
        for client in [&pod, &lab.node] {
            assert_eq!(tcp(client, service(OTHER)), Ok(()));
            assert_eq!(tcp(client, service(NAMES)), Ok(()));
            let _asks = datagram(client, service(OTHER));
            assert_eq!(first(&names), "?");
        }
        assert_eq!(lab.counts()[REFUSED], before);
        refused(&pod, service(NAMES));
    }
    assert_eq!(lab.counts()[DROPPED], 0);
}

#[test]
fn what_a_node_or_a_pod_has_is_refused_by_nobody() {
    for (family, taken) in Family::ALL.into_iter().zip(&ENDS) {
        let taken = parsed(taken.service);
        for refusal in [Refusal::Refuse, Refusal::Drop] {
            let all = Unserved::from([(Frontend::new(taken, EMPTY, TCP), refusal)]);
            let count = |is_taken| {
                let sets = crate::nft::unserved::sets(&all, family, |address| {
                    is_taken && address == taken
                });
                let places = sets.into_iter().map(|set| {
                    let Elements::Places(places) = set.elements else {
                        panic!("{} holds no places", set.name);
                    };
                    places.len()
                });
                places.sum::<usize>()
            };
            assert_eq!([count(false), count(true)], [1, 0], "{family:?}");
        }
    }
}

#[test]
fn one_whose_policy_keeps_it_here_is_dropped() {
    let (lab, pod) = with_pod();
    lab.write(&content(&unserved(), true));
    for e in &ENDS {
        for client in [&pod, &lab.node] {
            silent(&lab, client, parsed(e.service), ELSEWHERE, DROPPED);
        }
    }
    assert_eq!(lab.counts()[REFUSED], 0);
}

#[test]
fn a_kernel_that_cannot_answer_in_a_rule_drops_what_it_should_refuse() {
    let (lab, pod) = with_pod();
    lab.write(&content(&unserved(), false));
    for e in &ENDS {
        silent(&lab, &pod, parsed(e.service), EMPTY, REFUSED);
    }
    let listed = lab.node.command("nft", "list table inet veer");
    assert!(!listed.contains("reject"), "{listed}");
}

#[test]
fn one_frontend_comes_changes_and_goes_by_elements_alone() {
    let (lab, pod) = with_pod();
    let service = |port| SocketAddr::new(parsed(ENDS[0].service), port);
    let of = |refusal: Option<Refusal>| {
        let mut all = unserved();
        let frontend = Frontend::new(service(OTHER).ip(), OTHER, TCP);
        all.extend(refusal.map(|refusal| (frontend, refusal)));
        content(&all, true)
    };
    let listener = lab.outside.run(|| TcpListener::bind(service(OTHER)));
    let _listening = listener.unwrap();
    let mut table = Table::default();
    let rules = || {
        let chains = ["forward", "output"];
        chains.map(|c| {
            let with_handles = format!("-a list chain inet veer {c}");
            lab.node.command("nft", &with_handles)
        })
    };
    let mut seen = None;
    // What is in another set is deleted in one and added in the other.
    for (refusal, messages) in [
        (None, None),
        (Some(Refusal::Refuse), Some(1)),
        (Some(Refusal::Drop), Some(2)),
        (None, Some(1)),
    ] {
        let content = of(refusal);
        let written = table.written.as_ref().map(|w| &w.content);
        let changes = written.and_then(|old| content.changes(old));
        assert_eq!(changes.map(|c| c.len()), messages);
        lab.node.run(|| {
            let mut socket = Socket::netfilter().unwrap();
            assert_eq!(table.write(&mut socket, &content).unwrap().changed, None);
        });
        assert_eq!(*seen.get_or_insert_with(rules), rules());
        let to = service(OTHER);
        match refusal {
            None => assert_eq!(tcp(&pod, to), Ok(())),
            Some(Refusal::Refuse) => {
                assert_eq!(tcp(&pod, to), Err(io::ErrorKind::ConnectionRefused));
            }
            Some(Refusal::Drop) => {
                let _waits = pod.run(|| begun(to));
                counted(&lab, DROPPED, 1);
            }
        }
    }
    lab.node.command("nft", "flush set inet veer refused6");
    lab.node.run(|| {
        let mut socket = Socket::netfilter().unwrap();
        let wrote = table.write(&mut socket, &of(None)).unwrap();
        assert_eq!(wrote.changed.as_deref(), Some("elements"));
    });
}
