//! Services for the node's own sockets: a process is given a backend by its connect or its
//! datagram, and is told what it asked for.

#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, bail, ensure};
use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
};
use veer_bpf_common::{identity::Identity, node::NodeId};
use veer_bpf_net::ip::{TCP, UDP};
use veer_bpf_tests::{
    datapath::Datapath,
    family::Family,
    host_sockets::connected,
    in_both_families,
    netns::{DEADLINE, Namespace},
    world::{B_IDENTITY, ID_2},
};

in_both_families! {
    a_stream_goes_to_the_backend_and_its_peer_is_the_frontend,
    datagrams_go_to_the_backend_and_come_from_the_frontend,
    sockets_of_another_namespace_are_left_alone,
    datagrams_leave_a_backend_that_is_gone_and_no_other,
    a_client_with_affinity_keeps_its_backend,
    what_nobody_serves_goes_as_it_is,
    once_others_translate_only_flows_that_were_go_on,
    what_a_node_or_a_pod_has_is_theirs_whoever_names_it,
}

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const PORT: u16 = 80;
/// Of the Services: TCP's and UDP's.
const IDS: [u32; 2] = [6, 17];
/// Two backends, both the node's own addresses.
const BACKENDS: [(Ipv4Addr, u16); 2] = [
    (Ipv4Addr::new(192, 0, 2, 1), 2221),
    (Ipv4Addr::new(192, 0, 2, 2), 2222),
];

/// A node whose sockets are translated. Nothing leads to the Service but the programs.
struct Node {
    namespace: Namespace,
    datapath: Datapath,
    family: Family,
}

/// Gives a namespace's loopback an address, which is there at once.
fn add_address(namespace: &Namespace, family: Family, address: IpAddr) -> Result<()> {
    let address = format!("{address}/{}", family.bits());
    let mut add = vec!["addr", "add", &address, "dev", "lo"];
    add.extend(family.pick(None, Some("nodad")));
    namespace.ip(&add)
}

impl Node {
    fn new(family: Family) -> Result<Self> {
        let namespace = Namespace::new("host")?;
        for (address, _) in BACKENDS {
            add_address(&namespace, family, family.of(address))?;
        }
        let mut datapath = Datapath::load(&[])?;
        datapath.serve_sockets(&namespace)?;
        Ok(Self {
            namespace,
            datapath,
            family,
        })
    }

    fn vip(&self) -> SocketAddr {
        SocketAddr::from((self.family.of(VIP), PORT))
    }

    fn backends(&self) -> [(IpAddr, u16); 2] {
        BACKENDS.map(|(address, port)| (self.family.of(address), port))
    }

    /// Has both protocols' frontend lead to these.
    fn serve(&mut self, version: u32, backends: &[(IpAddr, u16)], affinity: u32) -> Result<()> {
        for (protocol, id) in [TCP, UDP].into_iter().zip(IDS) {
            let frontend = (self.family.of(VIP), PORT, protocol);
            self.datapath
                .set_service(frontend, id, version, backends, affinity)?;
        }
        Ok(())
    }

    /// A socket of the node that hears within the deadline.
    fn datagrams(&self, at: (IpAddr, u16)) -> Result<UdpSocket> {
        let socket = self.namespace.run(|| Ok(UdpSocket::bind(at)?))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(socket)
    }

    /// One of no address.
    fn client(&self) -> Result<UdpSocket> {
        self.datagrams((self.family.of(Ipv4Addr::UNSPECIFIED), 0))
    }

    /// Connects to the frontend.
    fn connect(&self) -> Result<io::Result<TcpStream>> {
        let to = self.vip();
        self.namespace
            .run(|| Ok(TcpStream::connect_timeout(&to, DEADLINE)))
    }
}

/// Sends from one to the other, which answers; from where the answer came.
fn ask(client: &UdpSocket, to: Option<SocketAddr>, server: &UdpSocket) -> Result<SocketAddr> {
    let mut buffer = [0; 64];
    match to {
        Some(to) => client.send_to(b"there", to)?,
        None => client.send(b"there")?,
    };
    let (length, from) = server.recv_from(&mut buffer).context("the server hears")?;
    ensure!(&buffer[..length] == b"there", "another request");
    server.send_to(b"back", from)?;
    let (length, from) = client.recv_from(&mut buffer).context("the client hears")?;
    ensure!(&buffer[..length] == b"back", "another answer");
    Ok(from)
}

/// Sends from one end of a stream to the other.
fn speak(from: &mut TcpStream, to: &mut TcpStream) -> Result<()> {
    from.write_all(b"there")?;
    let mut buffer = [0; 5];
    to.set_read_timeout(Some(DEADLINE))?;
    to.read_exact(&mut buffer)?;
    ensure!(&buffer == b"there");
    Ok(())
}

fn a_stream_goes_to_the_backend_and_its_peer_is_the_frontend(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let listener = node.namespace.run(|| Ok(TcpListener::bind(backend)?))?;
    let mut client = node.connect()?.context("connect")?;
    let (mut server, from) = listener.accept()?;
    ensure!(
        client.peer_addr()? == node.vip(),
        "{:?}",
        client.peer_addr()
    );
    ensure!(client.local_addr()? == from, "{from}");
    speak(&mut client, &mut server)?;
    speak(&mut server, &mut client)
}

fn datagrams_go_to_the_backend_and_come_from_the_frontend(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let server = node.datagrams(backend)?;
    let vip = node.vip();
    let client = node.client()?;
    for _ in 0..2 {
        ensure!(ask(&client, Some(vip), &server)? == vip, "another peer");
    }
    let connected = node.client()?;
    connected.connect(vip)?;
    ensure!(connected.peer_addr()? == vip, "{:?}", connected.peer_addr());
    ensure!(ask(&connected, None, &server)? == vip, "another peer");
    // A direct datagram is what it is.
    let direct = node.client()?;
    ensure!(ask(&direct, Some(backend.into()), &server)? == backend.into());
    Ok(())
}

#[test]
fn an_ipv4_mapped_address_is_one_of_ipv4() -> Result<()> {
    let mut node = Node::new(Family::V4)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let listener = node.namespace.run(|| Ok(TcpListener::bind(backend)?))?;
    let server = node.datagrams(backend)?;
    let mapped = SocketAddr::from((VIP.to_ipv6_mapped(), PORT));
    let stream = node
        .namespace
        .run(|| Ok(TcpStream::connect_timeout(&mapped, DEADLINE)?))?;
    ensure!(stream.peer_addr()? == mapped, "{:?}", stream.peer_addr());
    listener.accept()?;
    for is_connected in [false, true] {
        let client = node.datagrams((Family::V6.of(Ipv4Addr::UNSPECIFIED), 0))?;
        let to = if is_connected {
            client.connect(mapped)?;
            ensure!(client.peer_addr()? == mapped, "{:?}", client.peer_addr());
            None
        } else {
            Some(mapped)
        };
        let from = ask(&client, to, &server)?;
        ensure!(from == mapped, "{from}");
    }
    Ok(())
}

fn sockets_of_another_namespace_are_left_alone(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let pod = Namespace::new("pod")?;
    // The frontend is an address there: who is left alone reaches it.
    add_address(&pod, family, node.vip().ip())?;
    let vip = node.vip();
    let listener = pod.run(|| Ok(TcpListener::bind(vip)?))?;
    let stream = pod.run(|| Ok(TcpStream::connect_timeout(&vip, DEADLINE)?))?;
    listener.accept()?;
    ensure!(stream.peer_addr()? == vip);
    let server = pod.run(|| Ok(UdpSocket::bind(vip)?))?;
    let client = pod.run(|| Ok(UdpSocket::bind((family.of(Ipv4Addr::UNSPECIFIED), 0))?))?;
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(DEADLINE))?;
    }
    ensure!(ask(&client, Some(vip), &server)? == vip);
    Ok(())
}

fn datagrams_leave_a_backend_that_is_gone_and_no_other(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [first, second] = node.backends();
    node.serve(1, &[first], 0)?;
    let servers = [node.datagrams(first)?, node.datagrams(second)?];
    let (vip, client) = (node.vip(), node.client()?);
    ensure!(ask(&client, Some(vip), &servers[0])? == vip);
    // Another one for new flows: this one stays.
    node.serve(2, &[second], 0)?;
    ensure!(ask(&client, Some(vip), &servers[0])? == vip, "it moved");
    node.datapath.remove_member(IDS[1], first)?;
    ensure!(ask(&client, Some(vip), &servers[1])? == vip, "it stayed");
    Ok(())
}

fn a_client_with_affinity_keeps_its_backend(family: Family) -> Result<()> {
    const TIMES: usize = 16;
    let mut node = Node::new(family)?;
    let backends = node.backends();
    node.serve(1, &backends, 60)?;
    let listeners = backends.map(|at| node.namespace.run(|| Ok(TcpListener::bind(at)?)));
    let [first, second] = listeners;
    let listeners = [first?, second?];
    for listener in &listeners {
        listener.set_nonblocking(true)?;
    }
    let mut open = Vec::new();
    for _ in 0..TIMES {
        open.push(node.connect()?.context("connect")?);
    }
    let count = |listener: &TcpListener| -> Result<usize> {
        let mut count = 0;
        loop {
            match listener.accept() {
                Ok(_) => count += 1,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(e) => bail!(e),
            }
        }
    };
    let counts = [count(&listeners[0])?, count(&listeners[1])?];
    ensure!(counts.contains(&TIMES), "{counts:?}");
    Ok(())
}

fn what_nobody_serves_goes_as_it_is(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let _listener = node.namespace.run(|| Ok(TcpListener::bind(backend)?))?;
    node.connect()?.context("while it is served")?;
    node.serve(2, &[], 0)?;
    // The kernel has no route.
    let error = node.connect()?.err().context("it went somewhere")?;
    ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
    Ok(())
}

fn once_others_translate_only_flows_that_were_go_on(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let server = node.datagrams(backend)?;
    let vip = node.vip();
    let (open, connected) = (node.client()?, node.client()?);
    connected.connect(vip)?;
    ensure!(ask(&open, Some(vip), &server)? == vip);
    node.datapath.set_translates(false)?;
    ensure!(ask(&open, Some(vip), &server)? == vip, "one that is open");
    ensure!(ask(&connected, None, &server)? == vip, "a connected one");
    let error = node.connect()?.err().context("a new stream went there")?;
    ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
    let error = node.client()?.send_to(b"there", vip).err();
    let error = error.context("a new datagram went there")?;
    ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
    Ok(())
}

fn what_a_node_or_a_pod_has_is_theirs_whoever_names_it(family: Family) -> Result<()> {
    let mut node = Node::new(family)?;
    let [backend, _] = node.backends();
    node.serve(1, &[backend], 0)?;
    let server = node.datagrams(backend)?;
    let _listener = node.namespace.run(|| Ok(TcpListener::bind(backend)?))?;
    let (vip, open) = (node.vip(), node.client()?);
    ensure!(ask(&open, Some(vip), &server)? == vip);
    node.connect()?.context("while nobody has it")?;
    for (identity, id) in [
        (Identity::HOST, NodeId::LOCAL),
        (Identity::REMOTE_NODE, ID_2),
        (B_IDENTITY, NodeId::LOCAL),
        (B_IDENTITY, ID_2),
    ] {
        let address = (vip.ip(), family.bits());
        node.datapath.set_prefix(address, identity, id)?;
        let error = node.connect()?.err().context("a stream went elsewhere")?;
        ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
        for client in [&open, &node.client()?] {
            let error = client.send_to(b"there", vip).err();
            let error = error.context("a datagram went elsewhere")?;
            ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
        }
    }
    Ok(())
}

#[test]
fn nobody_else_tells_whose_sockets_are_the_nodes() -> Result<()> {
    let mut node = Node::new(Family::V4)?;
    let told = node.datapath.learn_sockets(&node.namespace)?;
    let own = node.datapath.host_cookie()?;
    ensure!(own != 0, "nothing was learnt");
    let pod = Namespace::new("pod")?;
    // No connect is awaited any more, neither that one nor one to nowhere.
    let nowhere = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    for to in [told, nowhere] {
        let error = connected(&pod, to)?;
        ensure!(error != Some(ErrorKind::PermissionDenied), "{to}");
    }
    ensure!(node.datapath.host_cookie()? == own, "another was learnt");
    let other = Namespace::new("other")?;
    node.datapath.learn_sockets(&other)?;
    ensure!(
        node.datapath.host_cookie()? != own,
        "it cannot be learnt again"
    );
    Ok(())
}
