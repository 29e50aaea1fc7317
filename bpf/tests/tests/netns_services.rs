//! Flows that the host's stack translates, as kube-proxy makes it do, in both
//! forms: their replies must come back through the stack, direct traffic must
//! not, and one must not spoil the other.

#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use anyhow::{Context as _, Result, ensure};
use std::{
    cell::Cell,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};
use veer_bpf_common::{
    outcome::{Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_bpf_tests::{
    family::Family,
    in_and_over_both_families,
    lab::{Node, SILENCE, TwoNodes, VXLAN, address, any, exchange, prefix},
    netns::{DEADLINE, Namespace, await_condition},
};

in_and_over_both_families! {
    a_cluster_ip_answers_from_itself_wherever_its_backend_is,
    the_host_reaches_a_cluster_ip,
    a_node_port_answers_pods_of_both_nodes_for_backends_on_both,
    direct_traffic_to_the_same_backend_keeps_the_fast_path,
    a_port_first_translated_then_direct_is_believed_direct,
    translated_connections_survive_a_switch_of_the_form,
    a_large_answer_through_a_service_arrives_whole,
    an_icmp_error_comes_back_through_the_service,
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 2222;
const FORMS: [u8; 2] = [FORM_TUNNEL, FORM_NATIVE];

/// Translates `to`, UDP and TCP, on a node: to `backend`, for what it forwards
/// and what it sends itself. What leaves by the tunnel device with another
/// source than a pod's or the node's gets the node's, as in veer's own table.
fn service(node: &Node, to: (IpAddr, u16), backend: IpAddr) -> Result<()> {
    let family = Family::of_address(backend);
    let ip = family.pick("ip", "ip6");
    let rule = |protocol| {
        let (vip, port) = to;
        let backend = SocketAddr::new(backend, PORT);
        format!("{ip} daddr {vip} {protocol} dport {port} dnat to {backend}")
    };
    let (udp, tcp) = (rule("udp"), rule("tcp"));
    let n = node.n;
    let own = address(family, n);
    let pods = prefix(family, (Ipv4Addr::new(10, 0, n, 0), 24));
    let text = format!(
        "table {ip} test {{
           chain in {{ type nat hook prerouting priority dstnat; {udp}; {tcp}; }}
           chain own {{ type nat hook output priority -100; {udp}; {tcp}; }}
           chain post {{ type nat hook postrouting priority srcnat;
             oifname {VXLAN} {ip} saddr != {{ {pods}, {own} }} snat to {own}; }}
         }}"
    );
    node.namespace.command("nft", &[&text])?;
    Ok(())
}

/// One request to `to` and its answer, which must come from there.
fn asked(client: &UdpSocket, server: &UdpSocket, to: (IpAddr, u16)) -> Result<()> {
    let (answer, from) = exchange(client, server, to)?;
    ensure!(answer == b"back", "another answer");
    ensure!(from == SocketAddr::from(to), "the answer came from {from}");
    Ok(())
}

/// A TCP connection with both ends in hand.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn new(
        from: &Namespace,
        source_port: u16,
        to: (IpAddr, u16),
        listener: &TcpListener,
    ) -> Result<Self> {
        let client = from.run(|| connect(source_port, to.into()))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(DEADLINE))?;
            end.set_nodelay(true)?;
        }
        Ok(Self { client, server })
    }

    fn ask(&mut self) -> Result<()> {
        let mut buffer = [0; 5];
        self.client.write_all(b"there")?;
        self.server.read_exact(&mut buffer).context("the request")?;
        self.server.write_all(&buffer)?;
        self.client.read_exact(&mut buffer).context("the reply")?;
        ensure!(&buffer == b"there", "another reply");
        Ok(())
    }
}

/// Asks until twenty requests in a row add nothing to what a node's stack forwarded.
/// An acknowledgement or a reset of another connection may still come in between; one
/// that the stack carries adds some with each request.
fn passes_the_stack_by(connection: &mut Connection, node: &Node) -> Result<()> {
    let added = Cell::new(0);
    await_condition(
        "twenty requests past the stack",
        || {
            let before = node.forwarded()?;
            for _ in 0..20 {
                connection.ask()?;
            }
            added.set(node.forwarded()? - before);
            Ok((added.get() == 0).then_some(()))
        },
        || {
            let added = added.get();
            format!("the stack forwarded {added} packets of the last twenty requests")
        },
    )
}

/// Connects from a chosen port; 0: any.
fn connect(source_port: u16, to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
            sockopt::{ReuseAddr, SendTimeout},
        },
        time::TimeVal,
    };
    let fd = socket(
        Family::of_address(to.ip()).pick(AddressFamily::Inet, AddressFamily::Inet6),
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    setsockopt(&fd, ReuseAddr, &true)?;
    setsockopt(
        &fd,
        SendTimeout,
        &TimeVal::new(DEADLINE.as_secs().cast_signed(), 0),
    )?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    let own = SocketAddr::new(any(to.ip()), source_port);
    bind(raw, &SockaddrStorage::from(own))?;
    connect(raw, &SockaddrStorage::from(to)).context("connect")?;
    Ok(fd.into())
}

fn a_cluster_ip_answers_from_itself_wherever_its_backend_is(
    family: Family,
    outer: Family,
) -> Result<()> {
    let vip = family.of(VIP);
    for on_other_node in [false, true] {
        let mut lab = TwoNodes::new(family, outer)?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (vip, 80), backend.address)?;
        let (server, listener) = (backend.udp(PORT)?, backend.tcp(PORT)?);
        for form in FORMS {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            let what = format!("other node {on_other_node}, form {form}");
            let client = lab.a.udp(0)?;
            for _ in 0..3 {
                asked(&client, &server, (vip, 80)).with_context(|| what.clone())?;
            }
            let mut tcp = Connection::new(&lab.a.namespace, 0, (vip, 80), &listener)
                .with_context(|| what.clone())?;
            for _ in 0..3 {
                tcp.ask().with_context(|| what.clone())?;
            }
        }
    }
    Ok(())
}

fn the_host_reaches_a_cluster_ip(family: Family, outer: Family) -> Result<()> {
    let vip = family.of(VIP);
    let vips = prefix(family, (Ipv4Addr::new(10, 96, 0, 0), 16));
    let mut lab = TwoNodes::new(family, outer)?;
    service(&lab.one, (vip, 80), lab.c.address)?;
    let (server, listener) = (lab.c.udp(PORT)?, lab.c.tcp(PORT)?);
    lab.one
        .namespace
        .ip(&["route", "add", &vips, "dev", "eth0"])?;
    for form in FORMS {
        lab.set_form(form)?;
        let client = lab.one.namespace.run(|| {
            let socket = UdpSocket::bind((any(vip), 0))?;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(socket)
        })?;
        asked(&client, &server, (vip, 80)).with_context(|| format!("form {form}"))?;
        Connection::new(&lab.one.namespace, 0, (vip, 80), &listener)?.ask()?;
    }
    Ok(())
}

fn a_node_port_answers_pods_of_both_nodes_for_backends_on_both(
    family: Family,
    outer: Family,
) -> Result<()> {
    for backend_on_two in [true, false] {
        let mut lab = TwoNodes::new(family, outer)?;
        let backend = if backend_on_two { &lab.c } else { &lab.b };
        let to = (address(family, 2), 30_080);
        service(&lab.two, to, backend.address)?;
        let (server, listener) = (backend.udp(PORT)?, backend.tcp(PORT)?);
        for form in FORMS {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            let what = format!("backend on node 2 {backend_on_two}, form {form}");
            let client = lab.a.udp(0)?;
            asked(&client, &server, to).with_context(|| what.clone())?;
            let mut tcp = Connection::new(&lab.a.namespace, 0, to, &listener)
                .with_context(|| what.clone())?;
            tcp.ask().with_context(|| what.clone())?;
        }
    }
    Ok(())
}

fn direct_traffic_to_the_same_backend_keeps_the_fast_path(
    family: Family,
    outer: Family,
) -> Result<()> {
    let vip = family.of(VIP);
    let mut lab = TwoNodes::new(family, outer)?;
    service(&lab.one, (vip, 80), lab.c.address)?;
    let listener = lab.c.tcp(PORT)?;
    let mut translated = Connection::new(&lab.a.namespace, 40_001, (vip, 80), &listener)?;
    let direct_to = (lab.c.address, PORT);
    let mut direct = Connection::new(&lab.a.namespace, 40_002, direct_to, &listener)?;
    for form in FORMS {
        lab.set_form(form)?;
        for _ in 0..20 {
            translated
                .ask()
                .with_context(|| format!("translated, form {form}"))?;
            direct
                .ask()
                .with_context(|| format!("direct, form {form}"))?;
        }
    }
    passes_the_stack_by(&mut direct, &lab.one)?;
    let forwarded = lab.one.forwarded()?;
    translated.ask()?;
    assert!(lab.one.forwarded()? > forwarded);
    Ok(())
}

fn a_port_first_translated_then_direct_is_believed_direct(
    family: Family,
    outer: Family,
) -> Result<()> {
    let vip = family.of(VIP);
    let mut lab = TwoNodes::new(family, outer)?;
    for backend in [&lab.b, &lab.c] {
        service(&lab.one, (vip, 80), backend.address)?;
        let listener = backend.tcp(PORT)?;
        // The same source port twice, closed in between.
        let mut translated = Connection::new(&lab.a.namespace, 40_003, (vip, 80), &listener)?;
        translated.ask()?;
        let Connection { client, server } = translated;
        // Reset, so that neither end remembers the ports.
        for end in [&server, &client] {
            reset_on_close(end)?;
        }
        drop(client);
        drop(server);
        let to = (backend.address, PORT);
        let mut direct = Connection::new(&lab.a.namespace, 40_003, to, &listener)
            .with_context(|| format!("to {}", backend.address))?;
        passes_the_stack_by(&mut direct, &lab.one)?;
        reset_on_close(&direct.client)?;
        lab.one.namespace.command(
            "nft",
            &[&format!("delete table {} test", family.pick("ip", "ip6"))],
        )?;
    }
    let counted = lab
        .one
        .datapath
        .packets(Program::PodEgress, Verdict::ToStackNoted as u32)?;
    assert!(counted > 0, "{}", lab.counted()?);
    Ok(())
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?;
    Ok(())
}

fn translated_connections_survive_a_switch_of_the_form(
    family: Family,
    outer: Family,
) -> Result<()> {
    let vip = family.of(VIP);
    let mut lab = TwoNodes::new(family, outer)?;
    service(&lab.one, (vip, 80), lab.c.address)?;
    service(&lab.two, (address(family, 2), 30_080), lab.c.address)?;
    let listener = lab.c.tcp(PORT)?;
    let mut by_cluster_ip = Connection::new(&lab.a.namespace, 0, (vip, 80), &listener)?;
    let to = (address(family, 2), 30_080);
    let mut by_node_port = Connection::new(&lab.a.namespace, 0, to, &listener)?;
    let to = (lab.c.address, PORT);
    let mut from_host = Connection::new(&lab.one.namespace, 0, to, &listener)?;
    for i in 0..40 {
        lab.set_form(FORMS[i % 2])?;
        for _ in 0..5 {
            by_cluster_ip
                .ask()
                .with_context(|| format!("ClusterIP, toggle {i}"))?;
            by_node_port
                .ask()
                .with_context(|| format!("NodePort, toggle {i}"))?;
            from_host
                .ask()
                .with_context(|| format!("host, toggle {i}"))?;
        }
    }
    Ok(())
}

fn a_large_answer_through_a_service_arrives_whole(family: Family, outer: Family) -> Result<()> {
    let vip = family.of(VIP);
    for on_other_node in [false, true] {
        let lab = TwoNodes::new(family, outer)?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (vip, 80), backend.address)?;
        let (client, server) = (lab.a.udp(0)?, backend.udp(PORT)?);
        let answer: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let mut buffer = vec![0; 65_536];
        // A sender of IPv6 has to learn from a lost answer what the path takes.
        client.set_read_timeout(Some(family.pick(DEADLINE, SILENCE)))?;
        let (n, from) = await_condition(
            &format!("the answer arrives, other node {on_other_node}"),
            || {
                client.send_to(b"?", (vip, 80))?;
                let (_, from) = server.recv_from(&mut buffer)?;
                server.send_to(&answer, from)?;
                let received = client.recv_from(&mut buffer);
                ensure!(family == Family::V6 || received.is_ok(), "it did not");
                Ok(received.ok())
            },
            String::new,
        )?;
        assert_eq!(from, (vip, 80).into());
        assert!(buffer[..n] == answer, "other bytes arrived");
    }
    Ok(())
}

fn an_icmp_error_comes_back_through_the_service(family: Family, outer: Family) -> Result<()> {
    let vip = family.of(VIP);
    for on_other_node in [false, true] {
        let mut lab = TwoNodes::new(family, outer)?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (vip, 80), backend.address)?;
        for form in FORMS {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            // Nobody listens: the pod answers "port unreachable".
            let client = lab.a.udp(0)?;
            client.connect((vip, 80))?;
            client.send(b"?")?;
            let error = client.recv(&mut [0; 8]).err().map(|e| e.kind());
            assert_eq!(
                error,
                Some(ErrorKind::ConnectionRefused),
                "other node {on_other_node}, form {form}"
            );
        }
    }
    Ok(())
}
