//! Sockets of processes (`include/uapi/linux/sock_diag.h`, `inet_diag.h`): some are to
//! be ended, since one that was connected to a service stays with the backend that it
//! got, even a backend that is gone.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::libc::ENOENT;

use super::message::{Message, Socket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Since Linux 4.5, for UDP since 4.9, both with `CONFIG_INET_DIAG_DESTROY`.
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_UDP: u8 = 17;
/// The bit of `TCP_ESTABLISHED`, which is also the state of UDP sockets with a peer.
const CONNECTED: u32 = 1 << 1;
/// Both halves of a cookie that stands for any socket.
const INET_DIAG_NOCOOKIE: u32 = u32::MAX;
/// Bytes of `struct inet_diag_msg`.
const ANSWER: usize = 72;
/// Bytes before `struct inet_diag_sockid` in `struct inet_diag_msg`.
const BEFORE_ID: usize = 4;
/// Bytes of `struct inet_diag_sockid`.
const ID: usize = 48;

/// A datagram socket with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagrams {
    /// Its number in the kernel, as `bpf_get_socket_cookie` tells it.
    pub cookie: u64,
    /// Whom it is connected to. IPv4 in an IPv6 socket (`::ffff:0:0/96`) is given as IPv4.
    pub peer: SocketAddr,
}

/// `struct inet_diag_sockid`: ports, addresses, device and cookie.
type Id = [u8; ID];

/// A `struct inet_diag_req_v2` for UDP.
fn message(kind: u16, family: u8, states: u32, id: &Id) -> Message {
    let mut message = Message::new(kind, 0, &[family, IPPROTO_UDP, 0, 0]);
    message.raw(&states.to_ne_bytes()).raw(id);
    message
}

/// Family, identity and description of the socket in a `struct inet_diag_msg`.
fn parse(body: &[u8]) -> Option<(u8, Id, Datagrams)> {
    let body: &[u8; ANSWER] = body.first_chunk()?;
    let family = body[0];
    let id: Id = *body[BEFORE_ID..].first_chunk()?;
    let port = u16::from_be_bytes(*id[2..].first_chunk()?);
    let peer: IpAddr = if family == AF_INET {
        Ipv4Addr::from(*id[20..].first_chunk::<4>()?).into()
    } else if family == AF_INET6 {
        Ipv6Addr::from(*id[20..].first_chunk::<16>()?).to_canonical()
    } else {
        return None;
    };
    let low = u32::from_ne_bytes(*id[40..].first_chunk()?);
    let high = u32::from_ne_bytes(*id[44..].first_chunk()?);
    // With it whatever socket has the ports by then would be ended.
    if low == INET_DIAG_NOCOOKIE && high == INET_DIAG_NOCOOKIE {
        return None;
    }
    let datagrams = Datagrams {
        cookie: u64::from(high) << 32 | u64::from(low),
        peer: SocketAddr::new(peer, port),
    };
    Some((family, id, datagrams))
}

/// Ends the UDP sockets with a peer that `which` chooses, of both families, in the calling
/// thread's network namespace. Who waits at one gets `ECONNABORTED`, and it has no peer any
/// more. Returns how many.
///
/// A kernel without `CONFIG_INET_DIAG_DESTROY` answers `EOPNOTSUPP` as soon as one is chosen.
pub fn end_datagrams(which: impl Fn(Datagrams) -> bool) -> io::Result<usize> {
    let mut socket = Socket::sock_diag()?;
    // By cookie: the kernel may show one twice while others come. Ended twice, a process
    // would get a second error after it took the first.
    let mut chosen: BTreeMap<u64, Message> = BTreeMap::new();
    for family in [AF_INET, AF_INET6] {
        let all = message(SOCK_DIAG_BY_FAMILY, family, CONNECTED, &[0; ID]);
        socket.dump_each(&all, |_, body| {
            if let Some((family, id, datagrams)) = parse(body)
                && which(datagrams)
            {
                let end = message(SOCK_DESTROY, family, 0, &id);
                chosen.insert(datagrams.cookie, end);
            }
        })?;
    }
    let mut ended = 0;
    loop {
        let before = ended;
        let mut missed = BTreeMap::new();
        for (cookie, end) in chosen {
            match socket.request(end.clone()) {
                Ok(()) => ended += 1,
                Err(e) if e.raw_os_error() == Some(ENOENT) => {
                    missed.insert(cookie, end);
                }
                Err(e) => return Err(e),
            }
        }
        // Gone, or hidden by one with the same ends (`SO_REUSEPORT`): the kernel looks for
        // the ends, and only then at the cookie.
        if missed.is_empty() || ended == before {
            return Ok(ended);
        }
        chosen = missed;
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, net::UdpSocket, os::fd::AsRawFd, thread, time::Duration};

    use nix::{
        libc,
        sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockopt, setsockopt,
            socket,
            sockopt::{GetStruct, ReusePort},
        },
    };

    use super::super::lab;
    use super::*;

    /// `SO_COOKIE` (`socket(7)`).
    #[derive(Clone, Copy, Debug)]
    struct Cookie;

    nix::getsockopt_impl!(
        Cookie,
        libc::SOL_SOCKET,
        libc::SO_COOKIE,
        u64,
        GetStruct<u64>
    );

    /// Longer than any answer takes; a test that waits so long has failed.
    const PATIENCE: Duration = Duration::from_secs(5);
    const IPV4: &str = "127.0.0.1";
    const IPV6: &str = "::1";
    const MAPPED: &str = "::ffff:127.0.0.1";

    fn bound(ip: &str) -> UdpSocket {
        let socket = UdpSocket::bind((ip, 0)).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    }

    fn address(socket: &UdpSocket) -> SocketAddr {
        socket.local_addr().expect("an address")
    }

    /// A socket of `ip`'s family whose peer is `ip` with the port of `peer`.
    fn connected(ip: &str, peer: &UdpSocket) -> UdpSocket {
        let ip: IpAddr = ip.parse().expect("an address");
        let socket = bound(if ip.is_ipv4() { "0.0.0.0" } else { "::" });
        let to = (ip, address(peer).port());
        socket.connect(to).expect("connected");
        socket
    }

    fn cookie(socket: &UdpSocket) -> u64 {
        getsockopt(socket, Cookie).expect("a cookie")
    }

    /// What a process that waits at the socket gets.
    fn error(socket: &UdpSocket) -> Option<i32> {
        let got = socket.recv(&mut [0; 8]);
        got.expect_err("an error").raw_os_error()
    }

    /// The socket still gets what is sent to it.
    fn works(socket: &UdpSocket, from: &UdpSocket, to: SocketAddr) {
        from.send_to(b"still", to).expect("sent");
        let mut got = [0; 8];
        assert_eq!(socket.recv(&mut got).expect("received"), 5);
    }

    /// Two servers of `server`'s family and, at `ip`, a client of each: only the first
    /// one's is ended.
    fn only_the_chosen_peers_socket_is_ended(server: &str, ip: &str) {
        lab::namespace().run(|| {
            let (gone, stays) = (bound(server), bound(server));
            let (ended, other) = (connected(ip, &gone), connected(ip, &stays));
            let unconnected = bound(server);
            let peer = address(&gone);
            assert_eq!(end_datagrams(|d| d.peer == peer).expect("ended"), 1);

            assert_eq!(error(&ended), Some(libc::ECONNABORTED));
            assert!(ended.peer_addr().is_err());
            let client = SocketAddr::new(peer.ip(), address(&other).port());
            works(&other, &stays, client);
            works(&unconnected, &stays, address(&unconnected));

            // The process connects again.
            let to = other.peer_addr().expect("a peer");
            ended.connect(to).expect("connected");
            let client = SocketAddr::new(peer.ip(), address(&ended).port());
            works(&ended, &stays, client);
        });
    }

    #[test]
    fn an_ipv4_socket_whose_backend_is_gone_is_ended() {
        only_the_chosen_peers_socket_is_ended(IPV4, IPV4);
    }

    #[test]
    fn an_ipv6_socket_whose_backend_is_gone_is_ended() {
        only_the_chosen_peers_socket_is_ended(IPV6, IPV6);
    }

    #[test]
    fn an_ipv6_socket_whose_ipv4_backend_is_gone_is_ended() {
        only_the_chosen_peers_socket_is_ended(IPV4, MAPPED);
    }

    #[test]
    fn sockets_with_a_peer_are_shown_with_their_cookie() {
        lab::namespace().run(|| {
            let (v4, v6) = (bound(IPV4), bound(IPV6));
            let sockets = [
                (connected(IPV4, &v4), address(&v4)),
                (connected(IPV6, &v6), address(&v6)),
                (connected(MAPPED, &v4), address(&v4)),
            ];
            let seen = RefCell::new(Vec::new());
            let ended = end_datagrams(|d| {
                seen.borrow_mut().push((d.cookie, d.peer));
                false
            });
            assert_eq!(ended.expect("asked"), 0);
            let mut seen = seen.into_inner();
            seen.sort_unstable();
            let mut expected = sockets.each_ref().map(|(s, peer)| (cookie(s), *peer));
            expected.sort_unstable();
            assert_eq!(seen, expected);
        });
    }

    #[test]
    fn a_process_that_already_waits_is_woken() {
        lab::namespace().run(|| {
            let gone = bound(IPV4);
            let client = connected(IPV4, &gone);
            thread::scope(|scope| {
                let waiting = scope.spawn(|| error(&client));
                assert_eq!(end_datagrams(|_| true).expect("ended"), 1);
                let got = waiting.join().expect("the thread that waits");
                assert_eq!(got, Some(libc::ECONNABORTED));
            });
        });
    }

    #[test]
    fn a_socket_that_took_the_ports_meanwhile_stays() {
        lab::namespace().run(|| {
            let server = bound(IPV4);
            let old = connected(IPV4, &server);
            let (client, of_old) = (address(&old), cookie(&old));
            let (old, new) = (RefCell::new(Some(old)), RefCell::new(None));
            let ended = end_datagrams(|d| {
                assert_eq!(d.cookie, of_old);
                drop(old.take());
                let socket = UdpSocket::bind(client).expect("the port");
                socket.connect(d.peer).expect("connected");
                new.replace(Some(socket));
                true
            });
            assert_eq!(ended.expect("asked"), 0);
            let new = new.take().expect("chosen");
            new.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            works(&new, &server, client);
        });
    }

    #[test]
    fn sockets_that_share_both_ends_are_all_ended() {
        lab::namespace().run(|| {
            let server = bound(IPV4);
            let mut client: SocketAddr = "127.0.0.1:0".parse().expect("an address");
            let sockets: Vec<UdpSocket> = (0..4)
                .map(|_| {
                    let fd = socket(
                        AddressFamily::Inet,
                        SockType::Datagram,
                        SockFlag::SOCK_CLOEXEC,
                        None,
                    )
                    .expect("a socket");
                    setsockopt(&fd, ReusePort, &true).expect("a shared port");
                    bind(fd.as_raw_fd(), &SockaddrStorage::from(client)).expect("the port");
                    let socket = UdpSocket::from(fd);
                    client = address(&socket);
                    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    socket
                })
                .collect();
            for socket in &sockets {
                socket.connect(address(&server)).expect("connected");
            }
            assert_eq!(end_datagrams(|_| true).expect("ended"), sockets.len());
            for socket in &sockets {
                assert_eq!(error(socket), Some(libc::ECONNABORTED));
                // Each once: a second error would end what the process began anew.
                assert!(socket.take_error().expect("asked").is_none());
            }
        });
    }

    #[test]
    fn more_sockets_than_one_answer_holds_are_all_ended() {
        lab::namespace().run(|| {
            let server = bound(IPV4);
            let sockets: Vec<UdpSocket> = (0..600).map(|_| connected(IPV4, &server)).collect();
            assert_eq!(end_datagrams(|_| true).expect("ended"), sockets.len());
            assert_eq!(end_datagrams(|_| true).expect("asked"), 0);
        });
    }

    /// The kernel's message for a socket.
    fn answer(family: u8, peer: &[u8], cookie: [u32; 2]) -> [u8; ANSWER] {
        let mut body = [0; ANSWER];
        body[0] = family;
        body[4..8].copy_from_slice(&[0x9c, 0x40, 0, 53]);
        body[24..24 + peer.len()].copy_from_slice(peer);
        body[44..48].copy_from_slice(&cookie[0].to_ne_bytes());
        body[48..52].copy_from_slice(&cookie[1].to_ne_bytes());
        body
    }

    #[test]
    fn a_message_tells_peer_cookie_and_identity() {
        let whole = answer(AF_INET, &[10, 0, 0, 7], [2, 1]);
        let (family, id, datagrams) = parse(&whole).expect("a socket");
        assert_eq!(family, AF_INET);
        assert_eq!(id, whole[4..52]);
        assert_eq!(datagrams.cookie, 0x1_0000_0002);
        assert_eq!(datagrams.peer, "10.0.0.7:53".parse().unwrap());
        let mapped = "::ffff:10.0.0.7".parse::<Ipv6Addr>().unwrap().octets();
        let (family, _, datagrams) = parse(&answer(AF_INET6, &mapped, [2, 1])).expect("a socket");
        assert_eq!(family, AF_INET6);
        assert_eq!(datagrams.peer, "10.0.0.7:53".parse().unwrap());
    }

    #[test]
    fn a_cut_message_tells_of_no_socket() {
        for family in [AF_INET, AF_INET6] {
            let whole = answer(family, &[10, 0, 0, 7], [2, 1]);
            for length in 0..whole.len() {
                assert_eq!(parse(&whole[..length]), None, "{length} octets");
            }
        }
    }

    #[test]
    fn a_socket_of_another_family_or_without_a_cookie_is_left_alone() {
        assert_eq!(parse(&answer(1, &[10, 0, 0, 7], [2, 1])), None);
        let any = [INET_DIAG_NOCOOKIE; 2];
        assert_eq!(parse(&answer(AF_INET, &[10, 0, 0, 7], any)), None);
        // Half of one is a cookie like any other.
        let half = [INET_DIAG_NOCOOKIE, 0];
        assert!(parse(&answer(AF_INET, &[10, 0, 0, 7], half)).is_some());
    }
}
