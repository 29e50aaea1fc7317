//! Flows that the host's stack translates, as kube-proxy makes it do, in both
//! forms: their replies must come back through the stack, direct traffic must
//! not, and one must not spoil the other.

#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "patterns of bytes")]

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};
use veer_bpf_common::{
    outcome::{Program, Verdict},
    tables::{FORM_NATIVE, FORM_TUNNEL},
};
use veer_bpf_tests::{
    lab::{Node, TwoNodes, VXLAN, address, exchange},
    netns::{DEADLINE, Namespace},
};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 2222;
const FORMS: [u8; 2] = [FORM_TUNNEL, FORM_NATIVE];

/// Translates `to`, UDP and TCP, on a node: to `backend`, for what it forwards
/// and what it sends itself. What leaves by the tunnel device with another
/// source than a pod's or the node's gets the node's, as in veer's own table.
fn service(node: &Node, to: (Ipv4Addr, u16), backend: Ipv4Addr) -> Result<()> {
    let rule = |protocol| {
        let (vip, port) = to;
        format!("ip daddr {vip} {protocol} dport {port} dnat to {backend}:{PORT}")
    };
    let (udp, tcp) = (rule("udp"), rule("tcp"));
    let n = node.n;
    let own = address(n);
    let text = format!(
        "table ip test {{
           chain in {{ type nat hook prerouting priority dstnat; {udp}; {tcp}; }}
           chain own {{ type nat hook output priority -100; {udp}; {tcp}; }}
           chain post {{ type nat hook postrouting priority srcnat;
             oifname {VXLAN} ip saddr != {{ 10.0.{n}.0/24, {own} }} snat to {own}; }}
         }}"
    );
    node.namespace.command("nft", &[&text])?;
    Ok(())
}

/// One request to `to` and its answer, which must come from there.
fn asked(client: &UdpSocket, server: &UdpSocket, to: (Ipv4Addr, u16)) -> Result<()> {
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
        to: (Ipv4Addr, u16),
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

/// Connects from a chosen port; 0: any.
fn connect(source_port: u16, to: SocketAddr) -> Result<TcpStream> {
    use nix::sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt::{ReuseAddr, SendTimeout},
        },
        time::TimeVal,
    };
    let fd = socket(
        AddressFamily::Inet,
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
    bind(raw, &SockaddrIn::new(0, 0, 0, 0, source_port))?;
    let SocketAddr::V4(to) = to else {
        anyhow::bail!("IPv4 only");
    };
    connect(raw, &SockaddrIn::from(to)).context("connect")?;
    Ok(fd.into())
}

#[test]
fn a_cluster_ip_answers_from_itself_wherever_its_backend_is() -> Result<()> {
    for on_other_node in [false, true] {
        let mut lab = TwoNodes::new()?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (VIP, 80), backend.address)?;
        let (server, listener) = (backend.udp(PORT)?, backend.tcp(PORT)?);
        for form in FORMS {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            let what = format!("other node {on_other_node}, form {form}");
            let client = lab.a.udp(0)?;
            for _ in 0..3 {
                asked(&client, &server, (VIP, 80)).with_context(|| what.clone())?;
            }
            let mut tcp = Connection::new(&lab.a.namespace, 0, (VIP, 80), &listener)
                .with_context(|| what.clone())?;
            for _ in 0..3 {
                tcp.ask().with_context(|| what.clone())?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_host_reaches_a_cluster_ip() -> Result<()> {
    let mut lab = TwoNodes::new()?;
    service(&lab.one, (VIP, 80), lab.c.address)?;
    let (server, listener) = (lab.c.udp(PORT)?, lab.c.tcp(PORT)?);
    lab.one
        .namespace
        .ip(&["route", "add", "10.96.0.0/16", "dev", "eth0"])?;
    for form in FORMS {
        lab.set_form(form)?;
        let client = lab.one.namespace.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(DEADLINE))?;
            Ok(socket)
        })?;
        asked(&client, &server, (VIP, 80)).with_context(|| format!("form {form}"))?;
        Connection::new(&lab.one.namespace, 0, (VIP, 80), &listener)?.ask()?;
    }
    Ok(())
}

#[test]
fn a_node_port_answers_pods_of_both_nodes_for_backends_on_both() -> Result<()> {
    for backend_on_two in [true, false] {
        let mut lab = TwoNodes::new()?;
        let backend = if backend_on_two { &lab.c } else { &lab.b };
        let to = (address(2), 30_080);
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

#[test]
fn direct_traffic_to_the_same_backend_keeps_the_fast_path() -> Result<()> {
    let mut lab = TwoNodes::new()?;
    service(&lab.one, (VIP, 80), lab.c.address)?;
    let listener = lab.c.tcp(PORT)?;
    let mut translated = Connection::new(&lab.a.namespace, 40_001, (VIP, 80), &listener)?;
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
    let forwarded = lab.one.forwarded()?;
    for _ in 0..20 {
        direct.ask()?;
    }
    assert_eq!(
        lab.one.forwarded()?,
        forwarded,
        "packets of the direct flow"
    );
    translated.ask()?;
    assert!(lab.one.forwarded()? > forwarded);
    Ok(())
}

#[test]
fn a_port_first_translated_then_direct_is_believed_direct() -> Result<()> {
    let mut lab = TwoNodes::new()?;
    for backend in [&lab.b, &lab.c] {
        service(&lab.one, (VIP, 80), backend.address)?;
        let listener = backend.tcp(PORT)?;
        // The same source port twice, closed in between.
        let mut translated = Connection::new(&lab.a.namespace, 40_003, (VIP, 80), &listener)?;
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
        direct.ask()?;
        let forwarded = lab.one.forwarded()?;
        direct.ask()?;
        assert_eq!(lab.one.forwarded()?, forwarded);
        reset_on_close(&direct.client)?;
        lab.one
            .namespace
            .command("nft", &["delete table ip test"])?;
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

#[test]
fn translated_connections_survive_a_switch_of_the_form() -> Result<()> {
    let mut lab = TwoNodes::new()?;
    service(&lab.one, (VIP, 80), lab.c.address)?;
    service(&lab.two, (address(2), 30_080), lab.c.address)?;
    let listener = lab.c.tcp(PORT)?;
    let mut by_cluster_ip = Connection::new(&lab.a.namespace, 0, (VIP, 80), &listener)?;
    let to = (address(2), 30_080);
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

#[test]
fn a_large_answer_through_a_service_arrives_whole() -> Result<()> {
    for on_other_node in [false, true] {
        let lab = TwoNodes::new()?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (VIP, 80), backend.address)?;
        let (client, server) = (lab.a.udp(0)?, backend.udp(PORT)?);
        let answer: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
        let mut buffer = vec![0; 65_536];
        client.send_to(b"?", (VIP, 80))?;
        let (_, from) = server.recv_from(&mut buffer)?;
        server.send_to(&answer, from)?;
        let (n, from) = client
            .recv_from(&mut buffer)
            .with_context(|| format!("other node {on_other_node}"))?;
        assert_eq!(from, (VIP, 80).into());
        assert!(buffer[..n] == answer, "other bytes arrived");
    }
    Ok(())
}

#[test]
fn an_icmp_error_comes_back_through_the_service() -> Result<()> {
    for on_other_node in [false, true] {
        let mut lab = TwoNodes::new()?;
        let backend = if on_other_node { &lab.c } else { &lab.b };
        service(&lab.one, (VIP, 80), backend.address)?;
        for form in FORMS {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            // Nobody listens: the pod answers "port unreachable".
            let client = lab.a.udp(0)?;
            client.connect((VIP, 80))?;
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
