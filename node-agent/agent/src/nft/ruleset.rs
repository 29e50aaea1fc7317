//! What the table holds: a pure function of the index and the facts.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};

use super::{
    DELETE_TABLE, NEW_CHAIN, NEW_ELEMENT, NEW_RULE, NEW_SET, NEW_TABLE, TABLE, TABLE_NAME,
    expr::Expr, message, table,
};
use crate::{
    desired::{Facts, Step, tunnel_port},
    index::Index,
    netlink::{
        VXLAN,
        wire::{CREATE, Message},
    },
};

/// Addresses of nodes.
const NODES: &str = "nodes4";
/// Blocks of pods of the whole cluster.
const PODS: &str = "pods4";
/// Destinations that see pods' own addresses.
const EXCLUDED: &str = "excluded4";
/// All sets.
pub(super) const SETS: [&str; 3] = [NODES, PODS, EXCLUDED];

/// kube-proxy's mark on what it wants translated (`--iptables-masquerade-bit`).
const KUBE_PROXY_MASQUERADE: u32 = 0x4000;
/// `NF_IP_PRI_RAW`.
const RAW: i32 = -300;
/// `NF_IP_PRI_FILTER`.
const FILTER: i32 = 0;
/// Before kube-proxy's chains at `NF_IP_PRI_NAT_SRC` (100).
const BEFORE_SOURCE_NAT: i32 = 99;
/// Elements in one message, whose attributes hold 64 KiB at most.
const ELEMENTS_PER_MESSAGE: usize = 1000;

/// A hook of netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: HookPoint,
    priority: i32,
    rules: Vec<Vec<Expr>>,
}

/// The table's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    chains: Vec<Chain>,
    nodes: BTreeSet<Ipv4Addr>,
    pods: Vec<Ipv4Net>,
    excluded: Vec<Ipv4Net>,
}

fn v4(nets: impl IntoIterator<Item = IpNet>) -> Vec<Ipv4Net> {
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

/// What the table is to hold.
pub(super) fn ruleset(
    index: &Index,
    facts: &Facts,
    step: &Step,
    block: Option<Ipv4Net>,
) -> Ruleset {
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
    let excluded = v4(cluster
        .into_iter()
        .flat_map(|c| c.masquerade.exclude.iter().copied()));
    let masquerade = cluster.is_none_or(|c| c.masquerade.enabled);
    let primary = facts.primary.and_then(|p| match p {
        IpAddr::V4(p) => Some(p),
        IpAddr::V6(_) => None,
    });
    Ruleset {
        chains: vec![
            chain("raw_prerouting", "filter", HookPoint::Prerouting, RAW).rule([
                Expr::SourceIn(NODES),
                Expr::UdpTo(port),
                Expr::NoTrack,
            ]),
            chain("raw_output", "filter", HookPoint::Output, RAW).rule([
                Expr::DestinationIn(NODES),
                Expr::UdpTo(port),
                Expr::NoTrack,
            ]),
            no_tunnel_from_pods("forward", HookPoint::Forward, port),
            no_tunnel_from_pods("input", HookPoint::Input, port),
            postrouting(block, primary, masquerade, !step.all_native()),
        ],
        nodes,
        pods,
        excluded,
    }
}

fn chain(name: &'static str, kind: &'static str, hook: HookPoint, priority: i32) -> Chain {
    Chain {
        name,
        kind,
        hook,
        priority,
        rules: Vec::new(),
    }
}

impl Chain {
    /// Adds a rule for IPv4 packets.
    fn rule(mut self, exprs: impl IntoIterator<Item = Expr>) -> Self {
        self.rules
            .push([Expr::Ipv4].into_iter().chain(exprs).collect());
        self
    }
}

/// A pod that reached a node's tunnel port by way of a translation would be one
/// that sends tunnel packets in the node's name.
fn no_tunnel_from_pods(name: &'static str, hook: HookPoint, port: u16) -> Chain {
    chain(name, "filter", hook, FILTER).rule([
        Expr::SourceIn(PODS),
        Expr::DestinationIn(NODES),
        Expr::UdpTo(port),
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
    let mut c = chain(
        "postrouting",
        "nat",
        HookPoint::Postrouting,
        BEFORE_SOURCE_NAT,
    );
    let (Some(block), Some(primary)) = (block, primary) else {
        return c;
    };
    let by_vxlan = || Expr::OutDevice(VXLAN);
    // veer_vxlan has no address, so a masquerade there would take just any.
    c = c
        .rule([
            by_vxlan(),
            Expr::MarkBits(KUBE_PROXY_MASQUERADE),
            Expr::SourceNat(primary),
        ])
        .rule([by_vxlan(), Expr::Source(block, true), Expr::Return])
        .rule([
            by_vxlan(),
            Expr::Source(Ipv4Net::from(primary), true),
            Expr::Return,
        ])
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

impl Ruleset {
    /// The messages of the one transaction that replaces the table.
    pub(super) fn messages(&self) -> Vec<Message> {
        // Making it first lets the deletion succeed where there is none.
        let mut all = vec![
            table(NEW_TABLE, CREATE),
            table(DELETE_TABLE, 0),
            table(NEW_TABLE, CREATE),
        ];
        let nodes: Vec<(Ipv4Addr, bool)> = self.nodes.iter().map(|a| (*a, false)).collect();
        set(&mut all, 1, NODES, false, &nodes);
        set(&mut all, 2, PODS, true, &intervals(&self.pods));
        set(&mut all, 3, EXCLUDED, true, &intervals(&self.excluded));
        for chain in &self.chains {
            let mut m = message(NEW_CHAIN, CREATE);
            m.string(TABLE_NAME, TABLE)
                .string(3, chain.name)
                .nest(4, |m| {
                    m.be32(1, chain.hook as u32)
                        .be32(2, chain.priority.cast_unsigned());
                })
                .string(7, chain.kind);
            all.push(m);
            for rule in &chain.rules {
                let mut m = message(NEW_RULE, CREATE | APPEND);
                m.string(TABLE_NAME, TABLE)
                    .string(2, chain.name)
                    .nest(4, |m| {
                        for expr in rule {
                            expr.write(m);
                        }
                    });
                all.push(m);
            }
        }
        all
    }
}

/// `NLM_F_APPEND`.
const APPEND: u16 = 0x800;
/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// nft's number for IPv4 addresses, so that `nft list` prints them as such.
const TYPE_IPV4: u32 = 7;

/// Beginnings and ends (exclusive) of blocks.
fn intervals(blocks: &[Ipv4Net]) -> Vec<(Ipv4Addr, bool)> {
    blocks
        .iter()
        .flat_map(|b| {
            let end = u32::from(b.broadcast()).checked_add(1).map(Ipv4Addr::from);
            [Some((b.network(), false)), end.map(|e| (e, true))]
        })
        .flatten()
        .collect()
}

fn set(all: &mut Vec<Message>, id: u32, name: &str, interval: bool, elements: &[(Ipv4Addr, bool)]) {
    let mut m = message(NEW_SET, CREATE);
    m.string(TABLE_NAME, TABLE)
        .string(2, name)
        .be32(3, if interval { INTERVAL } else { 0 })
        .be32(4, TYPE_IPV4)
        .be32(5, 4)
        .be32(10, id);
    all.push(m);
    for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
        let mut m = message(NEW_ELEMENT, CREATE);
        m.string(TABLE_NAME, TABLE)
            .string(2, name)
            .be32(4, id)
            .nest(3, |m| {
                for (address, end) in part {
                    m.nest(1, |m| {
                        m.nest(1, |m| {
                            m.attr(1, &address.octets());
                        });
                        if *end {
                            m.be32(3, INTERVAL_END);
                        }
                    });
                }
            });
        all.push(m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Change, Event, NodeRecord};
    use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

    fn built(step: &Step) -> Ruleset {
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
        ruleset(&index, &facts, step, Some("10.1.0.0/24".parse().unwrap()))
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
        let set = built(&Step::default());
        let nodes: Vec<String> = set.nodes.iter().map(ToString::to_string).collect();
        assert_eq!(nodes, ["192.0.2.1", "192.0.2.2"]);
        // Two halves are one interval.
        assert_eq!(set.pods, ["10.1.0.0/23".parse().unwrap()]);
    }

    #[test]
    fn a_pods_flow_to_a_node_is_translated_until_native_is_through() {
        let step = |mode, phase| Step {
            epoch: Some(Epoch {
                mode,
                phase,
                ..Epoch::default()
            }),
            ..Step::default()
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

    #[test]
    fn a_block_up_to_the_last_address_has_no_end() {
        let all = intervals(&["255.255.255.0/24".parse().unwrap()]);
        assert_eq!(all, [("255.255.255.0".parse().unwrap(), false)]);
    }
}
