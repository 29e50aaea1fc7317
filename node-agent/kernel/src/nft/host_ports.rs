//! hostPorts: ports of the node that lead to pods. Chains that never change, and
//! maps of which one pod's change is some elements.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    content::{Chain, Elements, HookPoint, Place, Set},
    expr::{Expr, Names},
    ruleset::{OWN_DEVICES, joined},
};
use crate::netlink::conntrack::Flow;
use veer_agent_api::HostAddress;
use veer_agent_core::{
    endpoint::{LocalEndpoint, PodAddress},
    facts::Facts,
    family::Family,
};

/// Ports of all of the node's addresses.
const ANYWHERE: Names = ["hostports", "hostports6"];
/// Ports of one address.
const AT: Names = ["hostports_at4", "hostports_at6"];
/// Pods with hostPorts, as source and destination.
const ITSELF: Names = ["hairpin4", "hairpin6"];
/// The node's own addresses, for kernels that cannot ask their routes in a rule.
const OWN: Names = ["own4", "own6"];

/// Before kube-proxy and the plugin portmap, whose rules for pods of an earlier
/// release lead to the same, at `NF_IP_PRI_NAT_DST` (-100).
const BEFORE_DESTINATION_NAT: i32 = -101;
/// 127.0.0.0/8.
const LOOPBACK: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
/// `::1/128`.
const LOOPBACK6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));
/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// What the node's ports lead to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostPorts {
    each: [OfFamily; 2],
}

/// The same for packets of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OfFamily {
    anywhere: BTreeMap<Place, SocketAddr>,
    at: BTreeMap<Place, SocketAddr>,
    pods: BTreeSet<IpAddr>,
}

impl HostPorts {
    /// Those of wired pods. Of two sandboxes of one pod the newer one has them.
    pub(super) fn of<'a>(endpoints: impl Iterator<Item = &'a LocalEndpoint>) -> Self {
        let mut having: Vec<_> = endpoints.filter(|e| !e.host_ports().is_empty()).collect();
        having.sort_by_key(|e| e.serial);
        let mut all = Self::default();
        for endpoint in having {
            for PodAddress { address, .. } in endpoint.addresses() {
                let of_family = Family::of(address).pick(all.each.each_mut());
                of_family.add(endpoint, address);
            }
        }
        all
    }

    fn of_family(&self, address: IpAddr) -> &OfFamily {
        Family::of(address).pick(self.each.each_ref())
    }

    /// Where a flow goes whose destination is the node.
    fn target(&self, flow: &Flow) -> Option<IpAddr> {
        let all = self.of_family(flow.destination);
        let place = |address| Place {
            address,
            protocol: flow.protocol,
            port: flow.port,
        };
        let at = all.at.get(&place(Some(flow.destination)));
        at.or_else(|| all.anywhere.get(&place(None)))
            .map(SocketAddr::ip)
    }

    /// Whether some are of a protocol whose flows do not end by themselves.
    pub(super) fn outlive_pods(&self) -> bool {
        let maps = self.each.iter().flat_map(|f| [&f.anywhere, &f.at]);
        let mut all = maps.flat_map(BTreeMap::keys);
        all.any(|place| place.protocol != TCP)
    }

    /// Whether a flow still goes where `before` or nobody sent it. The ends of a
    /// TCP connection notice.
    pub(super) fn is_stale(&self, before: &Self, facts: &Facts, flow: &Flow) -> bool {
        // A client that is `::1` is led nowhere, see `led`.
        if flow.protocol == TCP || flow.source == IpAddr::V6(Ipv6Addr::LOCALHOST) {
            return false;
        }
        let (now, was) = (self.target(flow), before.target(flow));
        let own = facts.addresses.contains(&flow.destination) || flow.destination.is_loopback();
        now != Some(flow.answers) && (was == Some(flow.answers) || (now.is_some() && own))
    }

    /// Maps and sets of a family.
    pub(super) fn sets(&self, family: Family, facts: &Facts) -> [Set; 4] {
        let own = facts.addresses.iter().map(|a| (*a).into());
        let own = joined(family, own.chain([LOOPBACK, LOOPBACK6]));
        let set = |names, elements| Set {
            name: family.pick(names),
            family,
            elements,
        };
        let [v4, v6] = &self.each;
        let all = family.pick([v4, v6]);
        [
            set(ANYWHERE, Elements::Targets(all.anywhere.clone())),
            set(AT, Elements::TargetsAt(all.at.clone())),
            set(ITSELF, Elements::Twice(all.pods.clone())),
            set(OWN, Elements::Blocks(own)),
        ]
    }
}

impl OfFamily {
    /// Adds the ports that lead to an address of a pod.
    fn add(&mut self, endpoint: &LocalEndpoint, address: IpAddr) {
        self.pods.insert(address);
        for port in endpoint.host_ports() {
            let to = SocketAddr::new(address, port.container_port.get());
            let place = |address| Place {
                address,
                protocol: port.protocol.number(),
                port: port.host_port.get(),
            };
            match port.within(address.is_ipv4()) {
                HostAddress::None => {}
                HostAddress::Every => drop(self.anywhere.insert(place(None), to)),
                HostAddress::One(at) => drop(self.at.insert(place(Some(at)), to)),
            }
        }
    }
}

/// The chains that translate destinations.
pub(super) fn hooks() -> [Chain; 2] {
    let chain = |name, hook| Chain::new(name, "nat", hook, BEFORE_DESTINATION_NAT);
    [
        chain("hostports_prerouting", HookPoint::Prerouting),
        chain("hostports_output", HookPoint::Output),
    ]
}

/// Adds the rules that lead to pods.
pub(super) fn led(chain: Chain, family: Family, fib: bool) -> Chain {
    let local = || {
        if fib {
            Expr::ToOwn
        } else {
            Expr::DestinationIn(OWN)
        }
    };
    let chain = match family {
        Family::V4 => chain,
        // The kernel routes an answer to `::1` to no device but `lo`
        // (`rt6_need_strict`, net/ipv6/route.c), so such a client is refused rather
        // than lost. Clients with another address of the node reach pods by `::1`.
        Family::V6 => chain.rule(family, [Expr::Source(LOOPBACK6, true), Expr::Return]),
    };
    chain
        .rule(family, [local(), Expr::TargetAt(AT), Expr::DestinationNat])
        .rule(
            family,
            [local(), Expr::Target(ANYWHERE), Expr::DestinationNat],
        )
}

/// Adds rules for clients whose own address would not bring the answer back to the
/// node: the pod itself, and the node by 127.0.0.1. All others keep theirs.
pub(super) fn clients(chain: Chain, family: Family, own: IpAddr) -> Chain {
    let chain = match family {
        Family::V4 => chain.rule(
            family,
            [
                Expr::OutDevices(OWN_DEVICES),
                Expr::Source(LOOPBACK, true),
                Expr::SourceNat(own),
            ],
        ),
        Family::V6 => chain,
    };
    chain.rule(family, [Expr::EndsIn(ITSELF), Expr::SourceNat(own)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::tests::host_ports::pod_with_port;

    fn flow(destination: IpAddr, port: u16, answers: IpAddr) -> Flow {
        let client = if destination.is_ipv4() {
            IpAddr::from([198, 51, 100, 9])
        } else {
            "2001:db8:51::9".parse().unwrap()
        };
        Flow {
            source: client,
            destination,
            protocol: 17,
            port,
            answers,
            answered: client,
        }
    }

    #[test]
    fn datagrams_that_go_elsewhere_than_the_port_now_leads_are_stale() {
        let own = ["192.0.2.1", "2001:db8::1"];
        let facts = Facts {
            addresses: own.map(|a| a.parse().unwrap()).into(),
            ..Facts::default()
        };
        let ports = |last: u8| HostPorts::of([pod_with_port(last, "udp", "", 53)].iter());
        let (none, old, new) = (HostPorts::default(), ports(5), ports(6));
        for [here, old_pod, new_pod, loopback, service, world] in [
            [
                own[0],
                "10.1.0.5",
                "10.1.0.6",
                "127.0.0.1",
                "10.96.0.10",
                "8.8.8.8",
            ],
            [
                own[1],
                "fd00:1::5",
                "fd00:1::6",
                "::1",
                "fd00:96::a",
                "2001:4860::8",
            ],
        ] {
            let flow = |to: &str, port, answers: &str| {
                flow(to.parse().unwrap(), port, answers.parse().unwrap())
            };
            for (before, now, flow, stale) in [
                (&old, &new, flow(here, 53, old_pod), true),
                (&old, &new, flow(here, 53, new_pod), false),
                (&none, &new, flow(here, 53, here), true),
                (&none, &new, flow(here, 54, here), false),
                (&none, &new, flow(loopback, 53, loopback), true),
                (&none, &new, flow(service, 53, old_pod), false),
                (&none, &new, flow(world, 53, world), false),
                (&old, &none, flow(here, 53, old_pod), true),
            ] {
                assert_eq!(now.is_stale(before, &facts, &flow), stale, "{flow:?}");
            }
            let tcp = Flow {
                protocol: TCP,
                ..flow(here, 53, old_pod)
            };
            assert!(!new.is_stale(&old, &facts, &tcp));
            let by_loopback = Flow {
                source: loopback.parse().unwrap(),
                ..flow(loopback, 53, loopback)
            };
            let led = by_loopback.source.is_ipv4();
            assert_eq!(new.is_stale(&none, &facts, &by_loopback), led);
        }
        assert!(new.outlive_pods() && !none.outlive_pods());
    }

    #[test]
    fn a_port_of_one_address_is_for_the_pods_address_of_that_family() {
        for (ip, at) in [("192.0.2.1", [1, 0]), ("2001:db8::1", [0, 1]), ("", [0, 0])] {
            let all = HostPorts::of([pod_with_port(5, "tcp", ip, 80)].iter());
            assert_eq!(all.each.each_ref().map(|f| f.at.len()), at, "{ip}");
            let anywhere = usize::from(ip.is_empty());
            assert!(
                all.each.iter().all(|f| f.anywhere.len() == anywhere),
                "{ip}"
            );
        }
    }

    #[test]
    fn the_newer_sandbox_of_one_pod_has_its_ports() {
        let mut earlier = pod_with_port(5, "tcp", "", 80);
        let mut later = pod_with_port(6, "tcp", "", 80);
        for order in [[1, 2], [2, 1]] {
            (earlier.serial, later.serial) = (order[0], order[1]);
            let all = HostPorts::of([&earlier, &later].into_iter());
            let last = if order == [1, 2] { "6" } else { "5" };
            for family in &all.each {
                let to = family.anywhere.values().next().unwrap();
                assert!(to.ip().to_string().ends_with(last), "{to}");
            }
        }
    }
}
