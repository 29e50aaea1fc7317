//! Flows to Services that the programs translate, with sockets: datagrams and streams come
//! back from the frontend, wherever its backend is, and the receiving kernels find their
//! checksums right, with offloads and without.

#![forbid(unsafe_code)]
#![allow(
    clippy::cast_possible_truncation,
    clippy::similar_names,
    reason = "patterns of bytes; forms and where packets come from"
)]

use anyhow::{Context as _, Result, ensure};
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
};
use veer_bpf_common::tables::{FORM_NATIVE, FORM_TUNNEL};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    family::Family,
    in_and_over_both_families,
    lab::{ETH0, Pod, TwoNodes, exchange, gateway},
    netns::DEADLINE,
};

in_and_over_both_families! {
    datagrams_and_streams_come_back_from_the_frontend,
    a_stream_survives_a_switch_of_the_form,
    a_datagram_socket_follows_its_service_to_another_backend,
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const FRONTEND: u16 = 80;
const BACKEND: u16 = 2222;
const FORMS: [u8; 2] = [FORM_TUNNEL, FORM_NATIVE];

/// Bytes of a stream in each direction: many segments of the largest size.
const STREAM: u32 = 1 << 20;

/// Two nodes whose pods have the MTU that the CNI plugin gives them while there is a tunnel.
fn lab(family: Family, outer: Family) -> Result<TwoNodes> {
    let lab = TwoNodes::new(family, outer)?;
    let mtu = lab.link.tunnel_mtu().to_string();
    for pod in [&lab.a, &lab.b, &lab.c] {
        pod.namespace.ip(&["link", "set", ETH0, "mtu", &mtu])?;
    }
    Ok(lab)
}

/// Makes the frontend, UDP and TCP, lead to this backend alone on node 1.
fn serve(lab: &mut TwoNodes, family: Family, version: u32, backend: IpAddr) -> Result<()> {
    for protocol in [UDP, TCP] {
        let frontend = (family.of(VIP), FRONTEND, protocol);
        let backends = [(backend, BACKEND)];
        let data = &mut lab.one.datapath;
        data.set_service(frontend, protocol.into(), version, &backends, 0)?;
    }
    Ok(())
}

/// No flow stays with this backend: a client's port may be that of an earlier flow.
fn leave(lab: &mut TwoNodes, backend: IpAddr) -> Result<()> {
    for protocol in [UDP, TCP] {
        let data = &mut lab.one.datapath;
        data.remove_member(protocol.into(), (backend, BACKEND))?;
    }
    Ok(())
}

/// Takes one connection, reads all that it carries, and sends it back; who the client was.
fn echo(listener: &TcpListener) -> Result<SocketAddr> {
    let (mut stream, from) = listener.accept()?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .context("the server reads")?;
    stream.write_all(&received).context("the server writes")?;
    Ok(from)
}

fn connect(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let stream = from
        .namespace
        .run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)?))
        .with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends all of it, and what comes back.
fn talk(stream: &mut TcpStream, data: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(data).context("the client writes")?;
    stream.shutdown(Shutdown::Write)?;
    let mut received = Vec::new();
    stream
        .read_to_end(&mut received)
        .context("the client reads")?;
    Ok(received)
}

/// Sends a stream to the frontend and compares what comes back; who the server took for
/// its client.
fn stream(client: &Pod, listener: &TcpListener, to: SocketAddr) -> Result<SocketAddr> {
    let data: Vec<u8> = (0..STREAM).map(|i| (i % 251) as u8).collect();
    let mut stream = connect(client, to)?;
    ensure!(stream.peer_addr()? == to, "it is connected elsewhere");
    thread::scope(|scope| {
        let server = scope.spawn(|| echo(listener));
        let talked = talk(&mut stream, &data);
        let from = match server.join() {
            Ok(from) => from,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        ensure!(talked? == data, "other bytes came back");
        from
    })
}

fn set_offloads(lab: &TwoNodes, state: &str) -> Result<()> {
    let features = ["tx", "rx", "tso", "gso", "gro"];
    for pod in [&lab.a, &lab.b, &lab.c] {
        let mut arguments = vec!["-K", ETH0];
        arguments.extend(features.iter().flat_map(|f| [*f, state]));
        pod.namespace.command("ethtool", &arguments)?;
    }
    Ok(())
}

fn datagrams_and_streams_come_back_from_the_frontend(family: Family, outer: Family) -> Result<()> {
    let mut lab = lab(family, outer)?;
    let to = SocketAddr::new(family.of(VIP), FRONTEND);
    let own = lab.a.address;
    let backends = [
        ("a pod of the same node", lab.b.address, own),
        ("a pod of the other node", lab.c.address, own),
        ("the client itself", own, gateway(family, 1)),
    ];
    for (version, (place, backend, client)) in (1..).zip(backends) {
        serve(&mut lab, family, version, backend)?;
        let server = [&lab.a, &lab.b, &lab.c]
            .into_iter()
            .find(|pod| pod.address == backend)
            .context("a pod")?;
        let (datagrams, listener) = (server.udp(BACKEND)?, server.tcp(BACKEND)?);
        for (form, offloads) in FORMS.into_iter().flat_map(|f| [(f, "on"), (f, "off")]) {
            lab.one.set_form(2, form)?;
            lab.two.set_form(1, form)?;
            set_offloads(&lab, offloads)?;
            let what = format!("{place}, form {form}, offloads {offloads}");
            let forwarded = lab.one.forwarded()?;
            let socket = lab.a.udp(0)?;
            for _ in 0..3 {
                let (answer, from) = exchange(&socket, &datagrams, (to.ip(), to.port()))
                    .with_context(|| what.clone())?;
                assert_eq!((answer.as_slice(), from), (&b"back"[..], to), "{what}");
            }
            assert_eq!(lab.one.forwarded()?, forwarded, "{what}: past the stack");
            let from = stream(&lab.a, &listener, to).with_context(|| what.clone())?;
            assert_eq!(from.ip(), client, "{what}");
        }
        leave(&mut lab, backend)?;
    }
    Ok(())
}

fn a_stream_survives_a_switch_of_the_form(family: Family, outer: Family) -> Result<()> {
    let mut lab = lab(family, outer)?;
    let to = SocketAddr::new(family.of(VIP), FRONTEND);
    let backend = lab.c.address;
    serve(&mut lab, family, 1, backend)?;
    let listener = lab.c.tcp(BACKEND)?;
    let mut client = connect(&lab.a, to)?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(DEADLINE))?;
    for (nth, form) in FORMS.into_iter().cycle().take(20).enumerate() {
        lab.set_form(form)?;
        let mut buffer = [0; 5];
        client.write_all(b"there")?;
        server
            .read_exact(&mut buffer)
            .with_context(|| format!("request {nth}"))?;
        server.write_all(&buffer)?;
        client
            .read_exact(&mut buffer)
            .with_context(|| format!("reply {nth}"))?;
        assert_eq!(&buffer, b"there", "reply {nth}");
    }
    Ok(())
}

fn a_datagram_socket_follows_its_service_to_another_backend(
    family: Family,
    outer: Family,
) -> Result<()> {
    let mut lab = lab(family, outer)?;
    let to = (family.of(VIP), FRONTEND);
    let (first, second) = (lab.b.udp(BACKEND)?, lab.c.udp(BACKEND)?);
    let (b, c) = (lab.b.address, lab.c.address);
    let socket = lab.a.udp(0)?;
    serve(&mut lab, family, 1, b)?;
    assert_eq!(exchange(&socket, &first, to)?.1, to.into());
    serve(&mut lab, family, 2, c)?;
    lab.one.datapath.remove_member(UDP.into(), (b, BACKEND))?;
    assert_eq!(exchange(&socket, &second, to)?.1, to.into());
    Ok(())
}
