//! What the table holds: a pure function of the index and the facts.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use veer_bpf_common::mark;

use super::{
    content::{Chain, Elements, HookPoint, Ruleset, Set},
    expr::Expr,
    host_ports::{self, HostPorts},
};
use crate::netlink::{VXLAN, conntrack::Flow};
use veer_agent_core::{desired::tunnel_port, facts::Facts, index::Index, switch::RoutingStep};

/// Addresses of nodes.
const NODES: &str = "nodes4";
/// Blocks of pods of the whole cluster.
const PODS: &str = "pods4";
/// Destinations that see pods' own addresses.
const EXCLUDED: &str = "excluded4";
/// Devices other than veer's own that have its programs.
const UPLINKS: &str = "uplinks";

/// All sets, but those of hostPorts.
pub(super) const SETS: [&str; 4] = [NODES, PODS, EXCLUDED, UPLINKS];

/// What all devices of veer are named like, pods' and the tunnel's.
pub(super) const OWN_DEVICES: &str = "veer";

/// A pod's address came from where no pod is.
const POD_ELSEWHERE: &str = "pod-source-by-foreign-device";
/// Another node's address came from where that node is not.
const NODE_ELSEWHERE: &str = "node-source-by-foreign-device";
/// Part of a translated connection that connection tracking did not know.
const INVALID: &str = "invalid-in-translated-flow";
/// A pod's packet to an address of pods that no node has, on its way out.
const POD_NOWHERE: &str = "unassigned-pod-address";
/// A pod's packet to a node's tunnel port.
const TUNNEL_FROM_POD: &str = "tunnel-from-pod";

/// kube-proxy's mark on what it wants translated (`--iptables-masquerade-bit`).
const KUBE_PROXY_MASQUERADE: u32 = 0x4000;
/// `NF_IP_PRI_RAW`.
const RAW: i32 = -300;
/// Before everything else that looks at a packet.
const FIRST: i32 = RAW - 10;
/// `NF_IP_PRI_FILTER`.
const FILTER: i32 = 0;
/// Before kube-proxy's chains at `NF_IP_PRI_NAT_SRC` (100).
const BEFORE_SOURCE_NAT: i32 = 99;

pub(super) fn v4(nets: impl IntoIterator<Item = IpNet>) -> Vec<Ipv4Net> {
    let all: Vec<Ipv4Net> = nets
        .into_iter()
        .filter_map(|n| match n {
            IpNet::V4(n) => Some(n.trunc()),
            IpNet::V6(_) => None,
        })
        .collect();
    // Intervals of one set must not overlap.
    Ipv4Net::aggregate(&all)
}

/// What the table follows from.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    /// What the API server said.
    pub(super) index: &'a Index,
    /// The node.
    pub(super) facts: &'a Facts,
    /// What the epoch asks.
    pub(super) step: &'a RoutingStep,
    /// The own block of pod addresses.
    pub(super) block: Option<Ipv4Net>,
    /// Devices other than veer's own that have its programs.
    pub(super) uplinks: &'a BTreeSet<String>,
    /// Whether the kernel can ask its routes in a rule.
    pub(super) fib: bool,
    /// Ports of the node that lead to pods.
    pub(super) host_ports: &'a HostPorts,
}

/// What the table is to hold.
pub(super) fn ruleset(inputs: Inputs<'_>) -> Ruleset {
    let Inputs {
        index,
        facts,
        step,
        block,
        uplinks,
        fib,
        host_ports,
    } = inputs;
    let cluster = index.cluster.as_ref().map(|(_, c)| c);
    let port = tunnel_port(cluster);
    let of_cluster = cluster
        .into_iter()
        .flat_map(|c| &c.pod_cidrs)
        .map(|e| e.cidr);
    let of_nodes = index.nodes.iter().flat_map(|n| n.pod_cidrs.iter().copied());
    let pods = v4(of_cluster.chain(of_nodes).chain(block.map(IpNet::V4)));
    let nodes: BTreeSet<Ipv4Addr> = index
        .nodes
        .iter()
        .flat_map(|n| n.addresses.iter().copied())
        .chain(facts.addresses.iter().copied())
        .filter(|a| !pods.iter().any(|p| IpNet::V4(*p).contains(a)))
        .filter_map(|a| match a {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        })
        .collect();
    // What the underlay routes to pods answers them, too.
    let excluded = v4(cluster.into_iter().flat_map(|c| {
        let routed = c.routing.native.cidr;
        c.masquerade.exclude.iter().copied().chain(routed)
    }));
    let masquerade = cluster.is_none_or(|c| c.masquerade.enabled);
    let primary = facts.primary.and_then(|p| match p {
        IpAddr::V4(p) => Some(p),
        IpAddr::V6(_) => None,
    });
    let set = |name, elements| Set { name, elements };
    let mut sets = vec![
        set(NODES, Elements::Addresses(nodes)),
        set(PODS, Elements::Blocks(pods)),
        set(EXCLUDED, Elements::Blocks(excluded)),
        set(UPLINKS, Elements::Devices(uplinks.clone())),
    ];
    sets.extend(host_ports.sets(facts));
    let [prerouting, output] = host_ports::chains(fib);
    Ruleset {
        sets,
        counters: vec![
            POD_ELSEWHERE,
            NODE_ELSEWHERE,
            INVALID,
            POD_NOWHERE,
            TUNNEL_FROM_POD,
        ],
        chains: vec![
            sources(fib),
            Chain::new("raw_prerouting", "filter", HookPoint::Prerouting, RAW).rule([
                Expr::SourceIn(NODES),
                Expr::UdpTo(port),
                Expr::NoTrack,
            ]),
            Chain::new("raw_output", "filter", HookPoint::Output, RAW).rule([
                Expr::DestinationIn(NODES),
                Expr::UdpTo(port),
                Expr::NoTrack,
            ]),
            // Pods' blocks lead into veer_vxlan, and the own block ends here: what
            // leaves by an uplink nobody has been given, and a router would send
            // it back or on.
            filter("forward", HookPoint::Forward, port).rule([
                Expr::OutDeviceOf(UPLINKS),
                Expr::SourceIn(PODS),
                Expr::DestinationIn(PODS),
                Expr::Count(POD_NOWHERE),
                Expr::Drop,
            ]),
            filter("input", HookPoint::Input, port),
            prerouting,
            output,
            postrouting(block, primary, masquerade, !step.all_native()),
        ],
    }
}

impl Ruleset {
    /// Whether a pod's flow is translated to an address of the node whomever it
    /// reaches in the world: `answers`.
    pub(super) fn translates(&self, facts: &Facts, block: Option<Ipv4Net>, flow: &Flow) -> bool {
        let exempt = [PODS, NODES, EXCLUDED];
        let masquerade = |rule: &Vec<Expr>| *rule == [Expr::Ipv4, Expr::Masquerade];
        self.chains.iter().any(|c| c.rules.iter().any(masquerade))
            && block.is_some_and(|b| b.contains(&flow.source))
            && !facts.addresses.contains(&IpAddr::V4(flow.answers))
            && !exempt.iter().any(|set| self.holds(set, flow.answers))
    }
}

/// Devices without programs: no pod is behind them, and a node only where the
/// way back to it says so. Before connection tracking, so that what is dropped
/// here is no flow; and before every translation, so whatever its destination.
fn sources(fib: bool) -> Chain {
    let c = Chain::new("sources", "filter", HookPoint::Prerouting, FIRST)
        .rule([Expr::InDevice("lo"), Expr::Return])
        .rule([Expr::InDevices(OWN_DEVICES), Expr::Return])
        .rule([Expr::InDeviceOf(UPLINKS), Expr::Return])
        .rule([Expr::SourceIn(PODS), Expr::Count(POD_ELSEWHERE), Expr::Drop]);
    if !fib {
        return c;
    }
    c.rule([
        Expr::SourceIn(NODES),
        Expr::NoWayBack,
        Expr::Count(NODE_ELSEWHERE),
        Expr::Drop,
    ])
}

/// A pod that reached a node's tunnel port by way of a translation would be one
/// that sends tunnel packets in the node's name. And what connection tracking
/// does not take for part of a connection (a segment outside the window) it does
/// not translate back either: whoever got it would answer with a reset.
fn filter(name: &'static str, hook: HookPoint, port: u16) -> Chain {
    Chain::new(name, "filter", hook, FILTER)
        .rule([
            Expr::SourceIn(PODS),
            Expr::DestinationIn(NODES),
            Expr::UdpTo(port),
            Expr::Count(TUNNEL_FROM_POD),
            Expr::Drop,
        ])
        .rule([
            Expr::Mark(mark::MASK, mark::TO_STACK),
            Expr::Tcp,
            Expr::Invalid,
            Expr::Count(INVALID),
            Expr::Drop,
        ])
}

/// With `to_nodes` a pod's flow that the stack forwards to a node's address (the
/// API server behind its service address) is translated: wherever a peer might
/// not take the bare packet.
fn postrouting(
    block: Option<Ipv4Net>,
    primary: Option<Ipv4Addr>,
    masquerade: bool,
    to_nodes: bool,
) -> Chain {
    let mut c = Chain::new(
        "postrouting",
        "nat",
        HookPoint::Postrouting,
        BEFORE_SOURCE_NAT,
    );
    let (Some(block), Some(primary)) = (block, primary) else {
        return c;
    };
    c = host_ports::clients(c, primary);
    let by_vxlan = || Expr::OutDevice(VXLAN);
    // veer_vxlan has no address, so a masquerade there would take just any.
    c = c
        .rule([
            by_vxlan(),
            Expr::Mark(KUBE_PROXY_MASQUERADE, KUBE_PROXY_MASQUERADE),
            Expr::SourceNat(primary),
        ])
        .rule([by_vxlan(), Expr::Source(block, true), Expr::Return])
        .rule([
            by_vxlan(),
            Expr::Source(Ipv4Net::from(primary), true),
            Expr::Return,
        ])
        // What the world sends to a pod by way of this node did not begin here,
        // and is not to arrive in this node's name.
        .rule([by_vxlan(), Expr::InDeviceOf(UPLINKS), Expr::Return])
        .rule([by_vxlan(), Expr::SourceNat(primary)])
        .rule([Expr::Source(block, false), Expr::Return])
        .rule([Expr::DestinationIn(PODS), Expr::Return])
        .rule([
            Expr::DestinationIn(NODES),
            if to_nodes {
                Expr::Masquerade
            } else {
                Expr::Return
            },
        ])
        .rule([Expr::DestinationIn(EXCLUDED), Expr::Return]);
    if masquerade {
        c = c.rule([Expr::Masquerade]);
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_agent_core::index::{Change, Event, NodeRecord};
    use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

    fn built(step: &RoutingStep) -> Ruleset {
        let mut index = Index::new("a");
        index.handle(Event::Node(Change::Apply(NodeRecord {
            name: "b".into(),
            pod_cidrs: vec!["10.1.1.0/24".parse().unwrap()],
            addresses: ["192.0.2.2", "10.1.0.9"].map(|a| a.parse().unwrap()).into(),
            ..NodeRecord::default()
        })));
        let facts = Facts {
            primary: Some("192.0.2.1".parse().unwrap()),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            ..Facts::default()
        };
        ruleset(Inputs {
            index: &index,
            facts: &facts,
            step,
            block: Some("10.1.0.0/24".parse().unwrap()),
            uplinks: &BTreeSet::new(),
            fib: true,
            host_ports: &HostPorts::default(),
        })
    }

    fn to_node(set: &Ruleset) -> Expr {
        let rules = &set.chains.last().unwrap().rules;
        let rule = rules
            .iter()
            .find(|r| r.contains(&Expr::DestinationIn(NODES)))
            .unwrap();
        rule.last().cloned().unwrap()
    }

    #[test]
    fn an_address_inside_a_pod_block_is_no_nodes() {
        let set = built(&RoutingStep::default());
        let nodes = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().unwrap());
        assert_eq!(set.sets[0].elements, Elements::Addresses(nodes.into()));
        // Two halves are one interval.
        let pods = vec!["10.1.0.0/23".parse().unwrap()];
        assert_eq!(set.sets[1].elements, Elements::Blocks(pods));
    }

    #[test]
    fn a_pods_flow_to_a_node_is_translated_until_native_is_through() {
        let step = |mode, phase| RoutingStep {
            epoch: Some(Epoch {
                mode,
                phase,
                ..Epoch::default()
            }),
            ..RoutingStep::default()
        };
        let (tunnel, native) = (RoutingMode::Tunnel, RoutingMode::Native);
        for (mode, phase, expected) in [
            (tunnel, Phase::Ready, Expr::Masquerade),
            (native, Phase::Switch, Expr::Masquerade),
            (native, Phase::Ready, Expr::Return),
            (tunnel, Phase::Prepare, Expr::Masquerade),
        ] {
            assert_eq!(to_node(&built(&step(mode, phase))), expected, "{phase:?}");
        }
    }
}
