//! The table at work in the kernel, as root: what becomes of packets.

pub(crate) mod host_ports;
mod sources;
mod table;
mod unserved;

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use etherparse::{IpHeaders, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep, ip_number};
use veer_bpf_common::device::IfIndex;

use super::{content::Ruleset, ruleset::RulesetInputs, *};
use crate::netlink::{
    address,
    lab::{self, FAR, NEAR},
    link,
    netns::Netns,
};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    facts::Facts,
    index::{Change, Event, Index, NodeRecord},
};

/// Longer than anything here takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 4000;
/// Packets of each kind.
const MANY: usize = 10_000;

/// The same ends in each family.
struct Ends {
    /// For ip(8).
    family: &'static str,
    /// The node, the whole of its address, the other node, their link.
    node: &'static str,
    node_single: &'static str,
    other: &'static str,
    link: &'static str,
    /// An address of the other node that another way leads to.
    elsewhere: &'static str,
    /// A pod of this node, the whole of its address, its gateway, and the own block.
    pod: &'static str,
    single: &'static str,
    gateway: &'static str,
    block: &'static str,
    /// Pods of the other node, the first a health address, and one that nobody has.
    pods: [&'static str; 2],
    nobody: &'static str,
    service: &'static str,
    /// Two addresses of the world, and their block.
    world: [&'static str; 2],
    world_block: &'static str,
    any: &'static str,
}

const ENDS: [Ends; 2] = [
    Ends {
        family: "-4",
        node: "192.0.2.1",
        node_single: "192.0.2.1/32",
        other: "192.0.2.2",
        link: "192.0.2.0/24",
        elsewhere: "203.0.113.5",
        pod: "10.1.0.5",
        single: "10.1.0.5/32",
        gateway: "169.254.9.1",
        block: "10.1.0.0/24",
        pods: ["10.1.1.1", "10.1.1.7"],
        nobody: "10.1.9.9",
        service: "10.96.0.10",
        world: ["198.51.100.1", "198.51.100.9"],
        world_block: "198.51.100.0/24",
        any: "0.0.0.0",
    },
    Ends {
        family: "-6",
        node: "2001:db8::1",
        node_single: "2001:db8::1/128",
        other: "2001:db8::2",
        link: "2001:db8::/64",
        elsewhere: "2001:db8:5::5",
        pod: "fd00:1::5",
        single: "fd00:1::5/128",
        gateway: "2001:db8:a9::1",
        block: "fd00:1::/64",
        pods: ["fd00:1:0:1::1", "fd00:1:0:1::7"],
        nobody: "fd00:1:0:9::9",
        service: "fd00:96::a",
        world: ["2001:db8:51::1", "2001:db8:51::9"],
        world_block: "2001:db8:51::/64",
        any: "::",
    },
];

fn parsed(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn blocks() -> [IpNet; 2] {
    ENDS.map(|e| e.block.parse().unwrap())
}

/// A node with pods and an address of each family on `far0`, whose other end is the
/// second namespace's, with the other node's; that has pods and two addresses more.
struct Lab {
    node: Netns,
    outside: Netns,
    /// `far0`, outside.
    device: IfIndex,
}

fn content(uplinks: &[&str]) -> Ruleset {
    with_ports(uplinks, &[], true)
}

/// A lab whose node has a pod behind a device of this name.
fn with_pod_at(device: &str) -> (Lab, Netns) {
    let lab = Lab::new();
    let pod = lab::namespace();
    lab::pair(&lab.node, &pod, device);
    for e in &ENDS {
        let bits = e.single.split_once('/').unwrap().1;
        lab.node.device(device, e.gateway, e.single);
        pod.device(device, e.pod, &format!("{}/{bits}", e.gateway));
        let (family, gateway) = (e.family, e.gateway);
        pod.command("ip", &format!("{family} route add default via {gateway}"));
    }
    (lab, pod)
}

fn with_ports(uplinks: &[&str], endpoints: &[LocalEndpoint], fib: bool) -> Ruleset {
    let can = Abilities {
        fib,
        ..Abilities::ALL
    };
    let none = Unserved::new();
    with_all(&blocks(), uplinks, endpoints, can, &none)
}

fn with_blocks(blocks: &[IpNet], uplinks: &[&str]) -> Ruleset {
    with_all(blocks, uplinks, &[], Abilities::ALL, &Unserved::new())
}

fn with_all(
    blocks: &[IpNet],
    uplinks: &[&str],
    endpoints: &[LocalEndpoint],
    can: Abilities,
    unserved: &Unserved,
) -> Ruleset {
    let mut index = Index::new("a");
    let of_pods = [
        "10.1.1.0/24",
        "10.1.9.0/24",
        "fd00:1:0:1::/64",
        "fd00:1:0:9::/64",
    ];
    let of_pods = of_pods.map(|c| c.parse().unwrap()).into_iter();
    let has = |c: &IpNet| {
        blocks
            .iter()
            .any(|b| b.addr().is_ipv4() == c.addr().is_ipv4())
    };
    index.handle(Event::Node(Change::Apply(NodeRecord {
        name: "b".into(),
        pod_cidrs: of_pods.filter(has).collect(),
        addresses: ENDS
            .iter()
            .flat_map(|e| [e.other, e.elsewhere])
            .map(parsed)
            .collect(),
        ..NodeRecord::default()
    })));
    ruleset::ruleset(RulesetInputs {
        index: &index,
        facts: &facts(),
        step: &RoutingStep::default(),
        blocks,
        uplinks: &uplinks.iter().map(ToString::to_string).collect(),
        can,
        host_ports: &HostPorts::of(endpoints.iter()),
        unserved: Some(unserved),
    })
}

fn facts() -> Facts {
    let own = ENDS.map(|e| parsed(e.node));
    Facts {
        primary: Some(own[0]),
        addresses: own.into(),
        ..Facts::default()
    }
}

impl Lab {
    fn new() -> Self {
        let (node, outside) = (lab::namespace(), lab::namespace());
        lab::pair(&node, &outside, "far0");
        let [device, _] = ENDS.each_ref().map(|e| {
            node.device("far0", e.node, e.link);
            outside.device("far0", e.other, e.link)
        });
        Self {
            node,
            outside,
            device,
        }
    }

    fn write(&self, content: &Ruleset) {
        self.node.run(|| {
            let mut socket = Socket::netfilter().unwrap();
            let counts = counts_by(&mut socket).unwrap_or_default();
            let count = |name: &str| counts.get(name).copied().unwrap_or_default();
            commit(&mut socket, content.messages(count)).unwrap();
        });
    }

    fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.node.run(|| counts().unwrap());
        counts
            .into_iter()
            .map(|(name, c)| (name, c.packets))
            .collect()
    }

    fn send(&self, frames: &[Vec<u8>]) {
        let frames = frames.iter().map(Vec::as_slice);
        lab::send_frames(&self.outside, self.device, frames);
    }
}

/// Gives a namespace an address on `lo`.
fn own(at: &Netns, address: &str) {
    let mut socket = at.socket().unwrap();
    address::add(&mut socket, link::LOOPBACK, parsed(address)).unwrap();
}

fn listen(on: &Netns, any: &str) -> UdpSocket {
    let socket = on.run(|| UdpSocket::bind(SocketAddr::new(parsed(any), PORT)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A packet to be: a frame to the node with these addresses.
fn ip(source: IpAddr, destination: IpAddr, tagged: bool) -> PacketBuilderStep<IpHeaders> {
    let headers = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let (source, destination) = (source.octets(), destination.octets());
            let ip = Ipv4Header::new(0, 64, ip_number::UDP, source, destination).unwrap();
            IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let ip = Ipv6Header {
                hop_limit: 64,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default())
        }
        _ => panic!("{source} to {destination}"),
    };
    let ethernet = PacketBuilder::ethernet2(FAR, NEAR);
    if tagged {
        ethernet.single_vlan(0.try_into().unwrap()).ip(headers)
    } else {
        ethernet.ip(headers)
    }
}

/// A datagram that says who sent it.
fn udp(source: &str, destination: &str, tagged: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(parsed(source), parsed(destination), tagged)
        .udp(PORT, PORT)
        .write(&mut frame, source.as_bytes())
        .unwrap();
    frame
}

/// The next datagram: its length and where it came from. The kernel does not resume a
/// wait with a timeout that a signal ended (signal(7)).
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// What the first datagram that arrives says of its source.
fn first(socket: &UdpSocket) -> String {
    let mut payload = [0; 64];
    let (length, _) = receive(socket, &mut payload).expect("a datagram");
    String::from_utf8_lossy(&payload[..length]).into_owned()
}

#[test]
fn pods_addresses_by_a_device_without_programs_are_dropped_and_counted() {
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&[]));
        let listener = listen(&lab.node, e.any);
        let destinations = [e.node, e.pod, e.service, e.world[0]];
        let sources = [e.pods[1], e.pods[0], e.pod];
        let mut sent = 0;
        for tagged in [false, true] {
            for (source, destination) in sources.iter().flat_map(|s| destinations.map(|d| (*s, d)))
            {
                let frame = udp(source, destination, tagged);
                let frames = std::iter::repeat_n(frame.as_slice(), MANY);
                lab::send_frames(&lab.outside, lab.device, frames);
                sent += MANY;
            }
            // In order over one device, so this one is the first only if all others
            // were dropped.
            lab.send(&[udp(e.world[1], e.node, tagged)]);
            assert_eq!(first(&listener), e.world[1], "tagged: {tagged}");
        }
        let counted = lab.counts()["pod-source-by-foreign-device"];
        assert_eq!(counted, u64::try_from(sent).unwrap());

        // A device with programs judges for itself, and counts go on.
        lab.write(&content(&["far0"]));
        lab.send(&[udp(e.pods[1], e.node, false)]);
        assert_eq!(first(&listener), e.pods[1]);
        assert_eq!(lab.counts()["pod-source-by-foreign-device"], counted);
    }
}

#[test]
fn a_nodes_address_counts_by_the_device_that_leads_back_to_it() {
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&[]));
        let listener = listen(&lab.node, e.any);
        lab.send(&[e.elsewhere, e.other].map(|source| udp(source, e.node, false)));
        assert_eq!(first(&listener), e.other);
        assert_eq!(lab.counts()["node-source-by-foreign-device"], 1);
    }
}

#[test]
fn a_pods_datagram_to_a_nodes_tunnel_port_is_dropped_and_the_tunnels_own_are_not_tracked() {
    const TUNNEL: u16 = veer_bpf_common::DEFAULT_TUNNEL_PORT;
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&["far0"]));
        let listener = listen(&lab.node, e.any);
        let frame = |source| {
            let mut frame = Vec::new();
            ip(parsed(source), parsed(e.node), false)
                .udp(TUNNEL, TUNNEL)
                .write(&mut frame, &[])
                .unwrap();
            frame
        };
        lab.send(&[
            frame(e.pods[1]),
            frame(e.other),
            udp(e.world[1], e.node, false),
        ]);
        first(&listener);
        assert_eq!(lab.counts()["tunnel-from-pod"], 1);
        let seen = std::sync::Mutex::new(Vec::new());
        let ended = lab.node.run(|| {
            conntrack::end(|flow| {
                seen.lock().unwrap().push((flow.source, flow.port));
                false
            })
        });
        assert_eq!(ended.unwrap(), 0);
        let seen = seen.into_inner().unwrap();
        assert!(seen.contains(&(parsed(e.world[1]), PORT)), "{seen:?}");
        assert!(!seen.contains(&(parsed(e.other), TUNNEL)), "{seen:?}");
    }
}

#[test]
fn a_segment_that_conntrack_does_not_know_of_ends_here_if_its_flow_is_translated() {
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&["far0"]));
        let mut frame = Vec::new();
        // The answer to no question.
        ip(parsed(e.world[1]), parsed(e.node), false)
            .tcp(80, 4000, 1, 100)
            .syn()
            .ack(1)
            .write(&mut frame, &[])
            .unwrap();
        let frame = [frame];
        lab.send(&frame);
        assert_eq!(lab.counts()["invalid-in-translated-flow"], 0);
        // As the programs mark what goes up for such a flow.
        lab.node.command("nft", "add table inet t");
        lab.node.command(
            "nft",
            "add chain inet t c { type filter hook prerouting priority -400 ; }",
        );
        let mark = veer_bpf_common::mark::TO_STACK;
        lab.node
            .command("nft", &format!("add rule inet t c meta mark set {mark}"));
        lab.send(&frame);
        assert_eq!(lab.counts()["invalid-in-translated-flow"], 1);
    }
}

#[test]
fn an_address_of_pods_that_no_route_leads_to_does_not_leave_by_an_uplink() {
    for e in &ENDS {
        let lab = Lab::new();
        lab.write(&content(&["far0"]));
        // The way to the world; a pod's device is `veer` and ten digits.
        let (family, other) = (e.family, e.other);
        lab.node
            .command("ip", &format!("{family} route add default via {other}"));
        own(&lab.outside, e.world[0]);
        let pod = lab::namespace();
        lab::pair(&lab.node, &pod, "veer0123456789");
        lab.node.device("veer0123456789", e.gateway, e.single);
        let device = pod.device("veer0123456789", e.pod, e.world_block);
        let world = listen(&lab.outside, e.any);
        let frames = [e.nobody, e.world[0]].map(|to| udp(e.pod, to, false));
        lab::send_frames(&pod, device, frames.iter().map(Vec::as_slice));
        first(&world);
        assert_eq!(lab.counts()["unassigned-pod-address"], 1);
    }
}
