//! What the table holds: a pure function of the index and the facts.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use veer_bpf_common::mark;

use super::{
    abilities::Abilities,
    content::{Chain, Elements, HookPoint, Ruleset, Set},
    expr::{Expr, Names},
    host_ports::{self, HostPorts},
    unserved,
};
use crate::netlink::{VXLAN, conntrack::Flow};
use veer_agent_core::{
    desired::tunnel_port, facts::Facts, family::Family, index::Index, services::Unserved,
    switch::RoutingStep,
};

/// Addresses of nodes.
const NODES: Names = ["nodes4", "nodes6"];
/// Blocks of pods of the whole cluster.
const PODS: Names = ["pods4", "pods6"];
/// Destinations that see pods' own addresses.
const EXCLUDED: Names = ["excluded4", "excluded6"];
/// Devices other than veer's own that have its programs.
const UPLINKS: &str = "uplinks";

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

/// Those of a family, joined: intervals of one set must not overlap.
pub(super) fn joined(family: Family, nets: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let nets = nets.into_iter().filter(|n| family.has(n.addr()));
    IpNet::aggregate(&nets.map(|n| n.trunc()).collect())
}

/// What the table's ruleset follows from: [`TableInputs`](super::TableInputs), and what
/// the kernel can and pods ask for.
#[derive(Clone, Copy)]
pub(super) struct RulesetInputs<'a> {
    /// What the API server said.
    pub(super) index: &'a Index,
    /// The node.
    pub(super) facts: &'a Facts,
    /// What the epoch asks.
    pub(super) step: &'a RoutingStep,
    /// The own blocks of pod addresses.
    pub(super) blocks: &'a [IpNet],
    /// Devices other than veer's own that have its programs.
    pub(super) uplinks: &'a BTreeSet<String>,
    /// What rules can do in this kernel.
    pub(super) can: Abilities,
    /// Ports of the node that lead to pods.
    pub(super) host_ports: &'a HostPorts,
    /// Frontends that no backend serves.
    pub(super) unserved: Option<&'a Unserved>,
}

/// What the table is to hold.
pub(super) fn ruleset(inputs: RulesetInputs<'_>) -> Ruleset {
    let RulesetInputs {
        index,
        facts,
        step,
        blocks,
        can: Abilities { fib, reject },
        uplinks: _,
        host_ports: _,
        unserved: refused,
    } = inputs;
    let cluster = index.cluster.as_ref().map(|(_, c)| c);
    let port = tunnel_port(cluster);
    let masquerade = cluster.is_none_or(|c| c.masquerade.enabled);
    let pods = blocks_of_pods(inputs);
    // Without pods and tunnel packets of IPv6 there is nothing to say of it.
    let used = |f: &Family| {
        let mut nets = pods.iter().map(IpNet::addr).chain(facts.primary);
        *f == Family::V4 || nets.any(|a| f.has(a))
    };
    let families: Vec<Family> = Family::ALL.into_iter().filter(used).collect();
    let of_families = families.iter().map(|f| sets(inputs, &pods, *f));
    let each = |chain: Chain, rules: &dyn Fn(Chain, Family) -> Chain| {
        families.iter().fold(chain, |chain, f| rules(chain, *f))
    };
    let outer = |name, hook, peer: Expr| {
        let chain = Chain::new(name, "filter", hook, RAW);
        each(chain, &|chain, f| {
            chain.rule(f, [peer.clone(), Expr::UdpTo(port), Expr::NoTrack])
        })
    };
    let filter = |name, hook| Chain::new(name, "filter", hook, FILTER);
    let answered = |chain, family| match refused {
        Some(_) => unserved::answered(chain, family, reject),
        None => chain,
    };
    // Pods' blocks lead into veer_vxlan, and the own block ends here: what leaves by an
    // uplink nobody has been given, and a router would send it back or on.
    let forward = |chain, family| {
        filtered(answered(chain, family), family, port).rule(
            family,
            [
                Expr::OutDeviceOf(UPLINKS),
                Expr::SourceIn(PODS),
                Expr::DestinationIn(PODS),
                Expr::Count(POD_NOWHERE),
                Expr::Drop,
            ],
        )
    };
    let postrouting = |chain, family: Family| {
        let block = blocks.iter().find(|b| family.has(b.addr()));
        let own = facts.first(family);
        let Some((block, own)) = block.copied().zip(own) else {
            return chain;
        };
        translated(chain, family, block, own, masquerade, !step.all_native())
    };
    let [prerouting, output] = host_ports::hooks();
    let before_source_nat = Chain::new(
        "postrouting",
        "nat",
        HookPoint::Postrouting,
        BEFORE_SOURCE_NAT,
    );
    let mut chains = vec![
        each(
            Chain::new("sources", "filter", HookPoint::Prerouting, FIRST),
            &|chain, f| sources(chain, f, fib),
        ),
        outer(
            "raw_prerouting",
            HookPoint::Prerouting,
            Expr::SourceIn(NODES),
        ),
        outer("raw_output", HookPoint::Output, Expr::DestinationIn(NODES)),
        each(filter("forward", HookPoint::Forward), &forward),
        each(filter("input", HookPoint::Input), &|chain, f| {
            filtered(chain, f, port)
        }),
        each(prerouting, &|chain, f| host_ports::led(chain, f, fib)),
        each(output, &|chain, f| host_ports::led(chain, f, fib)),
        each(before_source_nat, &postrouting),
    ];
    if refused.is_some() {
        chains.insert(0, each(filter("output", HookPoint::Output), &answered));
    }
    Ruleset {
        sets: of_families.flatten().collect(),
        counters: vec![
            POD_ELSEWHERE,
            NODE_ELSEWHERE,
            INVALID,
            POD_NOWHERE,
            TUNNEL_FROM_POD,
            unserved::WITHOUT_ENDPOINTS,
            unserved::WITHOUT_LOCAL_ENDPOINT,
        ],
        chains,
    }
}

/// Blocks of pods of the whole cluster.
fn blocks_of_pods(inputs: RulesetInputs<'_>) -> Vec<IpNet> {
    let cluster = inputs.index.cluster.iter();
    let of_cluster = cluster.flat_map(|(_, c)| &c.pod_cidrs).map(|e| e.cidr);
    let of_nodes = inputs.index.nodes.iter();
    let of_nodes = of_nodes.flat_map(|n| n.pod_cidrs.iter().copied());
    let own = inputs.blocks.iter().copied();
    of_cluster.chain(of_nodes).chain(own).collect()
}

/// The sets of a family. That of devices is made with the first.
fn sets(inputs: RulesetInputs<'_>, pods: &[IpNet], family: Family) -> Vec<Set> {
    let RulesetInputs { index, facts, .. } = inputs;
    let pods = joined(family, pods.iter().copied());
    let of_nodes = index.nodes.iter().flat_map(|n| n.addresses.iter().copied());
    let nodes: BTreeSet<IpAddr> = of_nodes
        .chain(facts.addresses.iter().copied())
        .filter(|a| family.has(*a) && !pods.iter().any(|p| p.contains(a)))
        .collect();
    let is_taken = |a| nodes.contains(&a) || pods.iter().any(|p| p.contains(&a));
    let unserved = inputs.unserved;
    let unserved = unserved.map(|all| unserved::sets(all, family, is_taken));
    // What the underlay routes to pods answers them, too.
    let excluded = index.cluster.iter().flat_map(|(_, c)| {
        let routed = c.routing.native.cidr;
        c.masquerade.exclude.iter().copied().chain(routed)
    });
    let excluded = joined(family, excluded);
    let set = |names: Names, elements| Set {
        name: family.pick(names),
        family,
        elements,
    };
    let mut all = vec![
        set(NODES, Elements::Addresses(nodes)),
        set(PODS, Elements::Blocks(pods)),
        set(EXCLUDED, Elements::Blocks(excluded)),
    ];
    if family == Family::V4 {
        all.push(set([UPLINKS; 2], Elements::Devices(inputs.uplinks.clone())));
    }
    all.extend(inputs.host_ports.sets(family, facts));
    all.extend(unserved.into_iter().flatten());
    all
}

impl Ruleset {
    /// Whether a pod's flow is translated to an address of the node whomever it
    /// reaches in the world: `answers`.
    pub(super) fn translates(&self, facts: &Facts, blocks: &[IpNet], flow: &Flow) -> bool {
        let exempt = [PODS, NODES, EXCLUDED].concat();
        let masquerade = |rule: &Vec<Expr>| match rule[..] {
            [Expr::Family(family), Expr::Masquerade] => family.has(flow.source),
            _ => false,
        };
        self.chains.iter().any(|c| c.rules.iter().any(masquerade))
            && blocks.iter().any(|b| b.contains(&flow.source))
            && !facts.addresses.contains(&flow.answers)
            && !exempt.iter().any(|set| self.holds(set, flow.answers))
    }
}

/// Devices without programs: no pod is behind them, and a node only where the
/// way back to it says so. Before connection tracking, so that what is dropped
/// here is no flow; and before every translation, so whatever its destination.
fn sources(chain: Chain, family: Family, fib: bool) -> Chain {
    let pod = [Expr::SourceIn(PODS), Expr::Count(POD_ELSEWHERE), Expr::Drop];
    let c = chain
        .rule(family, [Expr::InDevice("lo"), Expr::Return])
        .rule(family, [Expr::InDevices(OWN_DEVICES), Expr::Return])
        .rule(family, [Expr::InDeviceOf(UPLINKS), Expr::Return])
        .rule(family, pod);
    if !fib {
        return c;
    }
    c.rule(
        family,
        [
            Expr::SourceIn(NODES),
            Expr::NoWayBack,
            Expr::Count(NODE_ELSEWHERE),
            Expr::Drop,
        ],
    )
}

/// A pod that reached a node's tunnel port by way of a translation would be one
/// that sends tunnel packets in the node's name. And what connection tracking
/// does not take for part of a connection (a segment outside the window) it does
/// not translate back either: whoever got it would answer with a reset.
fn filtered(chain: Chain, family: Family, port: u16) -> Chain {
    let tunnel = [
        Expr::SourceIn(PODS),
        Expr::DestinationIn(NODES),
        Expr::UdpTo(port),
        Expr::Count(TUNNEL_FROM_POD),
        Expr::Drop,
    ];
    let invalid = [
        Expr::Mark(mark::MASK, mark::TO_STACK),
        Expr::Tcp,
        Expr::Invalid,
        Expr::Count(INVALID),
        Expr::Drop,
    ];
    chain.rule(family, tunnel).rule(family, invalid)
}

/// With `to_nodes` a pod's flow that the stack forwards to a node's address (the
/// API server behind its service address) is translated: wherever a peer might
/// not take the bare packet.
fn translated(
    chain: Chain,
    family: Family,
    block: IpNet,
    own: IpAddr,
    masquerade: bool,
    to_nodes: bool,
) -> Chain {
    let by_vxlan = || Expr::OutDevice(VXLAN);
    let to_node = if to_nodes {
        Expr::Masquerade
    } else {
        Expr::Return
    };
    let kube_proxy = Expr::Mark(KUBE_PROXY_MASQUERADE, KUBE_PROXY_MASQUERADE);
    // veer_vxlan has no address, so a masquerade there would take just any.
    let c = host_ports::clients(chain, family, own)
        .rule(family, [by_vxlan(), kube_proxy, Expr::SourceNat(own)])
        .rule(
            family,
            [by_vxlan(), Expr::Source(block, true), Expr::Return],
        )
        .rule(
            family,
            [by_vxlan(), Expr::Source(own.into(), true), Expr::Return],
        )
        // What the world sends to a pod by way of this node did not begin here,
        // and is not to arrive in this node's name.
        .rule(
            family,
            [by_vxlan(), Expr::InDeviceOf(UPLINKS), Expr::Return],
        )
        .rule(family, [by_vxlan(), Expr::SourceNat(own)])
        .rule(family, [Expr::Source(block, false), Expr::Return])
        .rule(family, [Expr::DestinationIn(PODS), Expr::Return])
        .rule(family, [Expr::DestinationIn(NODES), to_node])
        .rule(family, [Expr::DestinationIn(EXCLUDED), Expr::Return]);
    if masquerade {
        c.rule(family, [Expr::Masquerade])
    } else {
        c
    }
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
        ruleset(RulesetInputs {
            index: &index,
            facts: &facts,
            step,
            blocks: &["10.1.0.0/24".parse().unwrap()],
            uplinks: &BTreeSet::new(),
            can: Abilities::ALL,
            host_ports: &HostPorts::default(),
            unserved: None,
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
