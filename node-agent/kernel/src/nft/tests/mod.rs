//! The table at work in the kernel, as root.

pub(crate) mod host_ports;

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use etherparse::PacketBuilder;

use super::{
    content::{Elements, Ruleset},
    forward::Changes,
    ruleset::Inputs,
    *,
};
use crate::netlink::{
    lab::{self, FAR, NEAR},
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

/// A node with pods in 10.1.0.0/24 and an address 192.0.2.1 on `far0`, whose other
/// end is the second namespace's, 192.0.2.2; the other node's pods have
/// 10.1.1.0/24, and it has two addresses more.
struct Lab {
    node: Netns,
    outside: Netns,
    /// `far0`, outside.
    device: u32,
}

fn content(uplinks: &[&str]) -> Ruleset {
    with_ports(uplinks, &[], true)
}

fn with_ports(uplinks: &[&str], endpoints: &[LocalEndpoint], fib: bool) -> Ruleset {
    let mut index = Index::new("a");
    index.handle(Event::Node(Change::Apply(NodeRecord {
        name: "b".into(),
        pod_cidrs: ["10.1.1.0/24", "10.1.9.0/24"]
            .map(|c| c.parse().unwrap())
            .into(),
        addresses: ["192.0.2.2", "203.0.113.5"]
            .map(|a| a.parse().unwrap())
            .into(),
        ..NodeRecord::default()
    })));
    ruleset::ruleset(Inputs {
        index: &index,
        facts: &facts(),
        step: &RoutingStep::default(),
        block: Some("10.1.0.0/24".parse().unwrap()),
        uplinks: &uplinks.iter().map(ToString::to_string).collect(),
        fib,
        host_ports: &HostPorts::of(endpoints.iter()),
    })
}

fn facts() -> Facts {
    let own: IpAddr = "192.0.2.1".parse().unwrap();
    Facts {
        primary: Some(own),
        addresses: vec![own],
        ..Facts::default()
    }
}

impl Lab {
    fn new() -> Self {
        let (node, outside) = (lab::namespace(), lab::namespace());
        lab::pair(&node, &outside, "far0");
        node.device("far0", "192.0.2.1", "192.0.2.0/24");
        let device = outside.device("far0", "192.0.2.2", "192.0.2.0/24");
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

    fn listen(&self) -> UdpSocket {
        let socket = self
            .node
            .run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// A frame to the node.
fn udp(source: [u8; 4], destination: [u8; 4], tagged: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(FAR, NEAR);
    if tagged {
        ethernet
            .single_vlan(0.try_into().unwrap())
            .ipv4(source, destination, 64)
            .udp(PORT, PORT)
            .write(&mut frame, &source)
    } else {
        ethernet
            .ipv4(source, destination, 64)
            .udp(PORT, PORT)
            .write(&mut frame, &source)
    }
    .unwrap();
    frame
}

const NODE: [u8; 4] = [192, 0, 2, 1];

/// What the first datagram that arrives says of its source.
fn first(socket: &UdpSocket) -> [u8; 4] {
    let mut payload = [0; 4];
    socket.recv(&mut payload).expect("a datagram");
    payload
}

#[test]
fn pods_addresses_by_a_device_without_programs_are_dropped_and_counted() {
    let lab = Lab::new();
    lab.write(&content(&[]));
    let listener = lab.listen();
    let destinations = [
        NODE,
        [10, 1, 0, 5],     // a pod
        [10, 96, 0, 10],   // a Service
        [198, 51, 100, 1], // the world
    ];
    let sources = [
        [10, 1, 1, 7], // another node's pod
        [10, 1, 1, 1], // its health address
        [10, 1, 0, 9], // a pod of this node
    ];
    let mut sent = 0;
    for tagged in [false, true] {
        for (source, destination) in sources.iter().flat_map(|s| destinations.map(|d| (*s, d))) {
            let frame = udp(source, destination, tagged);
            let frames = std::iter::repeat_n(frame.as_slice(), MANY);
            lab::send_frames(&lab.outside, lab.device, frames);
            sent += MANY;
        }
        // In order over one device, so this one is the first only if all others
        // were dropped.
        let stranger = udp([198, 51, 100, 9], NODE, tagged);
        lab::send_frames(&lab.outside, lab.device, [stranger.as_slice()]);
        assert_eq!(first(&listener), [198, 51, 100, 9], "tagged: {tagged}");
    }
    let counted = lab.counts()["pod-source-by-foreign-device"];
    assert_eq!(counted, u64::try_from(sent).unwrap());

    // A device with programs judges for itself, and counts go on.
    lab.write(&content(&["far0"]));
    let pod = udp([10, 1, 1, 7], NODE, false);
    lab::send_frames(&lab.outside, lab.device, [pod.as_slice()]);
    assert_eq!(first(&listener), [10, 1, 1, 7]);
    assert_eq!(lab.counts()["pod-source-by-foreign-device"], counted);
}

#[test]
fn a_nodes_address_counts_by_the_device_that_leads_back_to_it() {
    let lab = Lab::new();
    lab.write(&content(&[]));
    let listener = lab.listen();
    let frame = |source| udp(source, NODE, false);
    let [elsewhere, here] = [[203, 0, 113, 5], [192, 0, 2, 2]].map(frame);
    lab::send_frames(&lab.outside, lab.device, [elsewhere.as_slice(), &here]);
    assert_eq!(first(&listener), [192, 0, 2, 2]);
    assert_eq!(lab.counts()["node-source-by-foreign-device"], 1);
}

#[test]
fn a_segment_that_conntrack_does_not_know_of_ends_here_if_its_flow_is_translated() {
    let lab = Lab::new();
    lab.write(&content(&["far0"]));
    let mut frame = Vec::new();
    // The answer to no question.
    PacketBuilder::ethernet2(FAR, NEAR)
        .ipv4([198, 51, 100, 9], NODE, 64)
        .tcp(80, 4000, 1, 100)
        .syn()
        .ack(1)
        .write(&mut frame, &[])
        .unwrap();
    let send = || lab::send_frames(&lab.outside, lab.device, [frame.as_slice()]);
    send();
    assert_eq!(lab.counts()["invalid-in-translated-flow"], 0);
    // As the programs mark what goes up for such a flow.
    lab.node.command("nft", "add table ip t");
    lab.node.command(
        "nft",
        "add chain ip t c { type filter hook prerouting priority -400 ; }",
    );
    lab.node.command(
        "nft",
        &format!(
            "add rule ip t c meta mark set {}",
            veer_bpf_common::mark::TO_STACK
        ),
    );
    send();
    assert_eq!(lab.counts()["invalid-in-translated-flow"], 1);
}

#[test]
fn an_address_of_pods_that_no_route_leads_to_does_not_leave_by_an_uplink() {
    let lab = Lab::new();
    lab.write(&content(&["far0"]));
    // The way to the world; a pod's device is `veer` and ten digits.
    lab.node.command("ip", "route add default via 192.0.2.2");
    lab.outside.command("ip", "addr add 198.51.100.1/32 dev lo");
    let pod = lab::namespace();
    lab::pair(&lab.node, &pod, "veer0123456789");
    lab.node
        .device("veer0123456789", "169.254.9.1", "10.1.0.5/32");
    let device = pod.device("veer0123456789", "10.1.0.5", "0.0.0.0/0");
    let world = lab
        .outside
        .run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
    world.set_read_timeout(Some(PATIENCE)).unwrap();
    let from_pod = |to| udp([10, 1, 0, 5], to, false);
    let [nowhere, outside] = [[10, 1, 9, 9], [198, 51, 100, 1]].map(from_pod);
    lab::send_frames(&pod, device, [nowhere.as_slice(), &outside]);
    first(&world);
    assert_eq!(lab.counts()["unassigned-pod-address"], 1);
}

#[test]
fn fifteen_thousand_nodes_are_one_transaction_and_one_more_is_one_element() {
    let node = lab::namespace();
    let many = |last: u32| {
        let mut content = content(&["far0"]);
        let all = (0..last).map(|n| Ipv4Addr::from(0x0a00_0000 + n));
        content.sets[0].elements = Elements::Addresses(all.collect());
        content
    };
    node.run(|| {
        let mut table = Table::default();
        let mut socket = Socket::netfilter().unwrap();
        for (content, restored) in [(many(15_000), true), (many(15_001), false)] {
            let wrote = table.write(&mut socket, &content).unwrap();
            assert_eq!((wrote.restored, wrote.changed), (restored, None));
            let again = table.write(&mut socket, &content).unwrap();
            assert!(!again.restored && again.changed.is_none());
        }
        let fewer = many(10);
        table.write(&mut socket, &fewer).unwrap();
    });
    let listed = node.command("nft", "list set inet veer nodes4");
    assert!(
        listed.contains("10.0.0.9") && !listed.contains("10.0.0.10"),
        "{listed}"
    );
    node.command("nft", "delete element inet veer nodes4 { 10.0.0.9 }");
}

#[test]
fn another_program_that_changes_its_own_table_is_no_reason_to_write_veers() {
    let node = lab::namespace();
    let content = content(&["far0"]);
    let mut table = Table::default();
    let mut round = || {
        let mut socket = Socket::netfilter().unwrap();
        table.write(&mut socket, &content).unwrap()
    };
    node.run(&mut round);
    node.command("nft", "add table ip another");
    assert_eq!(node.run(&mut round).changed, None);
    node.command("nft", "flush set inet veer pods4");
    let changed = node.run(&mut round).changed;
    assert_eq!(changed.as_deref(), Some("elements"));
    node.command("nft", "flush ruleset");
    let wrote = node.run(&mut round);
    assert!(wrote.restored && wrote.changed.is_some());
    assert_eq!(node.run(&mut round).changed, None);
}

#[test]
fn a_flow_that_began_without_the_table_is_translated_once_it_is_back() {
    let lab = Lab::new();
    let pod = {
        lab.node.command("ip", "addr add 10.1.0.5/32 dev lo");
        lab.node
            .command("ip", "route add 198.51.100.0/24 via 192.0.2.2");
        lab.outside.command("ip", "addr add 198.51.100.1/32 dev lo");
        lab.outside
            .command("ip", "route add 10.1.0.0/24 via 192.0.2.1");
        lab.node.run(|| UdpSocket::bind("10.1.0.5:4000").unwrap())
    };
    let world = lab
        .outside
        .run(|| UdpSocket::bind("198.51.100.1:53").unwrap());
    world.set_read_timeout(Some(PATIENCE)).unwrap();
    let seen_from = || {
        pod.send_to(b"?", "198.51.100.1:53").unwrap();
        world
            .recv_from(&mut [0; 8])
            .expect("a datagram")
            .1
            .ip()
            .to_string()
    };
    // Something else has conntrack at work.
    lab.node.command("nft", "add table ip t");
    lab.node.command(
        "nft",
        "add chain ip t c { type filter hook output priority 0 ; }",
    );
    lab.node
        .command("nft", "add rule ip t c ct state new counter");
    assert_eq!(seen_from(), "10.1.0.5");
    let content = content(&["far0"]);
    lab.write(&content);
    assert_eq!(seen_from(), "10.1.0.5", "as it began");
    let block = Some("10.1.0.0/24".parse().unwrap());
    let ended = lab.node.run(|| {
        conntrack::end(|flow| {
            flow.answered == flow.source && content.translates(&facts(), block, &flow)
        })
    });
    assert_eq!(ended.unwrap(), 1);
    assert_eq!(seen_from(), "192.0.2.1");
    // And where the address goes, so does what was translated to it.
    let ended = lab
        .node
        .run(|| conntrack::end(|flow| flow.answered == Ipv4Addr::from(NODE)));
    assert_eq!(ended.unwrap(), 1);
}

/// Chain FORWARD of iptables in a namespace where veer's rules are to be seen.
#[test]
fn a_foreign_forward_chain_gets_veers_rules_before_what_drops_the_rest() {
    let node = lab::namespace();
    let mut forward = Forward::default();
    let mut round = || {
        let changes = node.run(|| forward.converge().unwrap());
        assert_eq!(node.run(|| forward.converge().unwrap()), Changes::default());
        changes
    };
    let rules = || {
        let all = node.command("iptables-nft", "-S FORWARD");
        all.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let is_own = |rule: &String| rule.contains("veer+") && rule.contains("-j ACCEPT");

    node.command("iptables-nft", "-A FORWARD -d 169.254.169.254/32 -j DROP");
    assert_eq!(
        round(),
        Changes::default(),
        "what is accepted needs no rule"
    );
    node.command("iptables-nft", "-P FORWARD DROP");
    assert_eq!(round().opened, ["chain FORWARD of table ip filter"]);
    let seen = rules();
    assert_eq!(seen.len(), 3, "{seen:?}");
    assert!(
        !is_own(&seen[0]) && seen[1..].iter().all(is_own),
        "{seen:?}"
    );

    node.command("iptables-nft", "-F FORWARD");
    assert_eq!(round().again, ["chain FORWARD of table ip filter"]);
    assert_eq!(rules().len(), 2);

    // Its owner accepts by policy, and refuses all by a chain of his own.
    node.command("iptables-nft", "-P FORWARD ACCEPT");
    round();
    assert!(rules().is_empty(), "not needed any more");
    node.command("iptables-nft", "-N LAST");
    node.command("iptables-nft", "-A LAST -j REJECT");
    node.command("iptables-nft", "-A FORWARD -j LAST");
    assert_eq!(round().opened.len(), 1);
    let seen = rules();
    assert!(
        seen[..2].iter().all(is_own) && seen[2] == "-A FORWARD -j LAST",
        "{seen:?}"
    );

    // A firewall that speaks nft.
    node.command("nft", "add table inet fw");
    node.command(
        "nft",
        "add chain inet fw f { type filter hook forward priority 10 ; policy drop ; }",
    );
    assert_eq!(round().opened, ["chain f of table inet fw"]);
    node.run(|| forward.remove().unwrap());
    assert_eq!(rules(), ["-A FORWARD -j LAST"]);
    let left = node.command("nft", "list table inet fw");
    assert!(!left.contains("veer"), "{left}");
}
