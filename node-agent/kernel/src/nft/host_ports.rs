//! hostPorts: ports of the node that lead to pods. Chains that never change, and
//! maps of which one pod's change is some elements.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use ipnet::Ipv4Net;

use super::{
    content::{Chain, Elements, HookPoint, Place, Set},
    expr::Expr,
    ruleset::{OWN_DEVICES, v4},
};
use crate::netlink::conntrack::Flow;
use veer_agent_api::HostAddress;
use veer_agent_core::{endpoint::LocalEndpoint, facts::Facts};

/// Ports of all of the node's addresses.
const ANYWHERE: &str = "hostports";
/// Ports of one address.
const AT: &str = "hostports_at4";
/// Pods with hostPorts, as source and destination.
const ITSELF: &str = "hairpin4";
/// The node's own addresses, for kernels that cannot ask their routes in a rule.
const OWN: &str = "own4";

/// Those that [`HostPorts::sets`] makes.
pub(super) const SETS: [&str; 4] = [ANYWHERE, AT, ITSELF, OWN];

/// Before kube-proxy and the plugin portmap, whose rules for pods of an earlier
/// release lead to the same, at `NF_IP_PRI_NAT_DST` (-100).
const BEFORE_DESTINATION_NAT: i32 = -101;
/// 127.0.0.0/8.
pub(super) const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// What the node's ports lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostPorts {
    anywhere: BTreeMap<Place, SocketAddrV4>,
    at: BTreeMap<Place, SocketAddrV4>,
    pods: BTreeSet<Ipv4Addr>,
}

impl HostPorts {
    /// Those of wired pods. Of two sandboxes of one pod the newer one has them.
    pub(super) fn of<'a>(endpoints: impl Iterator<Item = &'a LocalEndpoint>) -> Self {
        let mut having: Vec<_> = endpoints
            .filter_map(|e| match e.address {
                IpAddr::V4(address) if !e.host_ports().is_empty() => Some((e, address)),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            })
            .collect();
        having.sort_by_key(|(e, _)| e.serial);
        let mut all = Self::default();
        for (endpoint, address) in having {
            all.pods.insert(address);
            for port in endpoint.host_ports() {
                let to = SocketAddrV4::new(address, port.container_port.get());
                let protocol = port.protocol.number();
                let place = |address| Place {
                    address,
                    protocol,
                    port: port.host_port.get(),
                };
                match port.within(true) {
                    HostAddress::Every => drop(all.anywhere.insert(place(None), to)),
                    HostAddress::One(IpAddr::V4(one)) => drop(all.at.insert(place(Some(one)), to)),
                    HostAddress::One(IpAddr::V6(_)) | HostAddress::None => {}
                }
            }
        }
        all
    }

    /// Where a flow goes whose destination is the node.
    fn target(&self, flow: &Flow) -> Option<Ipv4Addr> {
        let place = |address| Place {
            address,
            protocol: flow.protocol,
            port: flow.port,
        };
        let at = self.at.get(&place(Some(flow.destination)));
        at.or_else(|| self.anywhere.get(&place(None)))
            .map(|to| *to.ip())
    }

    /// Whether some are of a protocol whose flows do not end by themselves.
    pub(super) fn outlive_pods(&self) -> bool {
        let mut all = self.anywhere.keys().chain(self.at.keys());
        all.any(|place| place.protocol != TCP)
    }

    /// Whether a flow still goes where `before` or nobody sent it. The ends of a
    /// TCP connection notice.
    pub(super) fn is_stale(&self, before: &Self, facts: &Facts, flow: &Flow) -> bool {
        if flow.protocol == TCP {
            return false;
        }
        let (now, was) = (self.target(flow), before.target(flow));
        let own = facts.addresses.contains(&IpAddr::V4(flow.destination))
            || flow.destination.is_loopback();
        now != Some(flow.answers) && (was == Some(flow.answers) || (now.is_some() && own))
    }

    /// Maps and sets.
    pub(super) fn sets(&self, facts: &Facts) -> [Set; 4] {
        let own = facts.addresses.iter().map(|a| (*a).into());
        let own = own.chain([LOOPBACK.into()]);
        let set = |name, elements| Set { name, elements };
        [
            set(ANYWHERE, Elements::Targets(self.anywhere.clone())),
            set(AT, Elements::TargetsAt(self.at.clone())),
            set(ITSELF, Elements::Twice(self.pods.clone())),
            set(OWN, Elements::Blocks(v4(own))),
        ]
    }
}

/// The chains that translate destinations.
pub(super) fn chains(fib: bool) -> [Chain; 2] {
    let chain = |name, hook| {
        let local = || {
            if fib {
                Expr::ToOwn
            } else {
                Expr::DestinationIn(OWN)
            }
        };
        Chain::new(name, "nat", hook, BEFORE_DESTINATION_NAT)
            .rule([local(), Expr::TargetAt(AT), Expr::DestinationNat])
            .rule([local(), Expr::Target(ANYWHERE), Expr::DestinationNat])
    };
    [
        chain("hostports_prerouting", HookPoint::Prerouting),
        chain("hostports_output", HookPoint::Output),
    ]
}

/// Adds rules for clients whose own address would not bring the answer back to the
/// node: the pod itself, and the node by its loopback. All others keep theirs.
pub(super) fn clients(chain: Chain, primary: Ipv4Addr) -> Chain {
    chain
        .rule([
            Expr::OutDevices(OWN_DEVICES),
            Expr::Source(LOOPBACK, true),
            Expr::SourceNat(primary),
        ])
        .rule([Expr::EndsIn(ITSELF), Expr::SourceNat(primary)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::tests::host_ports::pod_with_port;

    fn flow(destination: [u8; 4], port: u16, answers: [u8; 4]) -> Flow {
        Flow {
            source: [198, 51, 100, 9].into(),
            destination: destination.into(),
            protocol: 17,
            port,
            answers: answers.into(),
            answered: [198, 51, 100, 9].into(),
        }
    }

    #[test]
    fn datagrams_that_go_elsewhere_than_the_port_now_leads_are_stale() {
        const NODE: [u8; 4] = [192, 0, 2, 1];
        let facts = Facts {
            addresses: vec![NODE.into()],
            ..Facts::default()
        };
        let ports = |last: u8| HostPorts::of([pod_with_port(last, "udp", "", 53)].iter());
        let (none, old, new) = (HostPorts::default(), ports(5), ports(6));
        let (old_pod, new_pod) = ([10, 1, 0, 5], [10, 1, 0, 6]);
        for (before, now, flow, stale) in [
            (&old, &new, flow(NODE, 53, old_pod), true),
            (&old, &new, flow(NODE, 53, new_pod), false),
            (&none, &new, flow(NODE, 53, NODE), true),
            (&none, &new, flow(NODE, 54, NODE), false),
            (&none, &new, flow([127, 0, 0, 1], 53, [127, 0, 0, 1]), true),
            // A Service, and the world.
            (&none, &new, flow([10, 96, 0, 10], 53, old_pod), false),
            (&none, &new, flow([8, 8, 8, 8], 53, [8, 8, 8, 8]), false),
            (&old, &none, flow(NODE, 53, old_pod), true),
        ] {
            assert_eq!(now.is_stale(before, &facts, &flow), stale, "{flow:?}");
        }
        assert!(new.outlive_pods() && !none.outlive_pods());
        let tcp = Flow {
            protocol: TCP,
            ..flow(NODE, 53, old_pod)
        };
        assert!(!new.is_stale(&old, &facts, &tcp));
    }

    #[test]
    fn the_newer_sandbox_of_one_pod_has_its_ports() {
        let mut earlier = pod_with_port(5, "tcp", "", 80);
        let mut later = pod_with_port(6, "tcp", "", 80);
        for order in [[1, 2], [2, 1]] {
            (earlier.serial, later.serial) = (order[0], order[1]);
            let all = HostPorts::of([&earlier, &later].into_iter());
            let to = all.anywhere.values().next().unwrap();
            assert_eq!(to.ip().octets()[3], if order == [1, 2] { 6 } else { 5 });
        }
    }
}
