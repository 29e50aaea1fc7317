//! What the node is: addresses, uplinks, paths to other nodes, by netlink.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    clock::monotonic,
    netlink::{
        VXLAN,
        address::{self, Address},
        is_host_veth,
        link::{self, Link},
        message::Socket,
        route::{self, Lookup, PROTOCOL, Route},
    },
};
use veer_agent_core::facts::{Facts, Path, Uplink};

/// Nanoseconds after which the next share of the known paths is asked for again.
const TURN: u64 = 2_000_000_000;
/// Paths that are asked for in a turn, at least, though nothing shows that one has
/// changed: the kernel's answer depends on rules and tables that are not read here.
const ASKED: usize = 64;
/// Each path is asked for once in so many turns at the latest.
const TURNS: usize = 30;

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Uplinks by name; empty: those of the default routes.
    pub uplinks: &'a [String],
    /// The kubelet's idea of the node's address ([`hint`]).
    pub hint: Option<IpAddr>,
    /// Other nodes' addresses.
    pub peers: &'a [IpAddr],
    /// Go straight to nodes on the same link.
    pub direct: bool,
    /// Blocks of pods of the whole cluster.
    pub pods: &'a [IpNet],
}

/// The kubelet's idea of the node's address: what it was when this agent started, unless
/// the Node does not have that any more (`said`: what the operator has found there) and
/// has another that this node has: a kubelet may restart with another `--node-ip`.
///
/// The order of `said` is that in which the agent reports them, so it decides only where
/// the first choice is none.
pub fn hint(said: &[IpAddr], known: &[IpAddr], at_start: Option<IpAddr>) -> Option<IpAddr> {
    let left = at_start.is_none_or(|at_start| !said.contains(&at_start));
    let usable = |a: &&IpAddr| a.is_ipv4() && known.contains(a);
    let other = said.iter().find(usable).filter(|_| left);
    other.copied().or(at_start)
}

/// Whether a device's addresses can stand for the node. kube-ipvs0 holds the
/// addresses of services.
fn speaks_for_the_node(name: &str) -> bool {
    name != VXLAN && name != "kube-ipvs0" && !is_host_veth(name)
}

/// Reads the facts. Where the node has no address at this moment (its uplink is
/// being changed) the previous facts stay.
pub fn gather(socket: &mut Socket, wanted: Wanted<'_>, previous: &Facts) -> io::Result<Facts> {
    let links = link::list(socket)?;
    let addresses = address::list(socket)?;
    let routes = route::list(socket)?;
    let defaults: Vec<(u32, Option<IpAddr>)> = routes
        .iter()
        .filter(|(protocol, r)| *protocol != PROTOCOL && r.destination.prefix_len() == 0)
        .map(|(_, r)| (r.index, r.gateway))
        .collect();
    let names: HashMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();

    let usable: Vec<(&Address, &str)> = addresses
        .iter()
        .filter(|a| a.global && is_usable(a.ip))
        .filter_map(|a| Some((a, names.get(&a.index)?.name.as_str())))
        .filter(|(_, device)| speaks_for_the_node(device))
        .collect();
    // What another network left, such as a bridge with a gateway's address.
    let of_pods =
        |a: &Address| Some(a.ip) != wanted.hint && wanted.pods.iter().any(|p| p.contains(&a.ip));
    let misplaced = usable.iter().filter(|(a, _)| of_pods(a));
    let misplaced = misplaced
        .map(|(a, device)| (a.ip, (*device).to_owned()))
        .collect();
    let own: Vec<&Address> = usable
        .iter()
        .map(|(a, _)| *a)
        .filter(|a| !of_pods(a))
        .collect();
    let Some(primary) = primary(&own, wanted.hint, &defaults) else {
        return Ok(previous.clone());
    };
    let mut all: Vec<IpAddr> = own.iter().map(|a| a.ip).collect();
    all.sort_unstable();
    all.dedup();
    all.retain(|a| *a != primary);
    all.insert(0, primary);

    let holder = own.iter().find(|a| a.ip == primary).map(|a| a.index);
    let is_uplink = |l: &Link| {
        if wanted.uplinks.is_empty() {
            defaults.iter().any(|(index, _)| *index == l.index) || holder == Some(l.index)
        } else {
            wanted.uplinks.contains(&l.name)
        }
    };
    let uplinks: Vec<Uplink> = links
        .iter()
        .filter(|l| is_uplink(l) && speaks_for_the_node(&l.name) && l.name != "lo")
        .map(|l| Uplink {
            name: l.name.clone(),
            index: l.index,
            mtu: l.mtu,
            kind: l.kind.clone(),
            ethernet: l.ethernet,
        })
        .collect();
    let mut paths = HashMap::new();
    let mut unfit = HashMap::new();
    let several = several(&routes);
    let basis = basis(&links, &addresses, &routes, wanted);
    let turn = usize::try_from(monotonic() / TURN).unwrap_or(0);
    let share = Share::new(wanted.peers.len(), turn);
    for (place, peer) in wanted.peers.iter().enumerate() {
        if basis == previous.basis && !share.has(place) {
            if let Some(known) = previous.paths.get(peer) {
                paths.insert(*peer, *known);
                continue;
            }
            if let Some(known) = previous.unfit.get(peer) {
                unfit.insert(*peer, known.clone());
                continue;
            }
        }
        let Some(found) = route::lookup(socket, *peer)? else {
            continue;
        };
        let path = path(*peer, found, wanted.direct, &defaults);
        let others = several.iter().filter(|r| r.destination.contains(peer));
        let mut devices = std::iter::once(path.index).chain(others.map(|r| r.index));
        match devices.find_map(|index| obstacle(index, &uplinks, &names)) {
            None => {
                paths.insert(*peer, path);
            }
            Some(why) => {
                unfit.insert(*peer, why);
            }
        }
    }
    Ok(Facts {
        primary: Some(primary),
        addresses: all,
        uplinks,
        vxlan_index: links
            .iter()
            .find(|l| l.name == VXLAN)
            .map_or(0, |l| l.index),
        paths,
        unfit,
        misplaced,
        basis,
    })
}

/// The peers, by their place, whose paths are asked for in a turn.
struct Share {
    turns: usize,
    turn: usize,
}

impl Share {
    fn new(peers: usize, turn: usize) -> Self {
        let turns = (peers / ASKED).clamp(1, TURNS);
        Self {
            turns,
            turn: turn % turns,
        }
    }

    fn has(&self, place: usize) -> bool {
        place % self.turns == self.turn
    }
}

/// A number for all that was read and that paths follow from. The devices of pods
/// come and go and lead to no node.
fn basis(links: &[Link], addresses: &[Address], routes: &[(u8, Route)], wanted: Wanted<'_>) -> u64 {
    let mut hash = DefaultHasher::new();
    (wanted.direct, wanted.uplinks, wanted.hint).hash(&mut hash);
    for link in links.iter().filter(|l| !is_host_veth(&l.name)) {
        (link.index, &link.name, link.mtu, link.up).hash(&mut hash);
    }
    for address in addresses {
        (address.index, address.ip).hash(&mut hash);
    }
    for (protocol, route) in routes.iter().filter(|(protocol, _)| *protocol != PROTOCOL) {
        (protocol, route).hash(&mut hash);
    }
    hash.finish()
}

/// Routes of others with more than one next hop: a packet may take any of them,
/// and so may an answer.
fn several(routes: &[(u8, Route)]) -> Vec<&Route> {
    let mut devices: HashMap<(IpNet, u32), HashSet<u32>> = HashMap::new();
    let foreign = || {
        routes
            .iter()
            .filter(|(p, _)| *p != PROTOCOL)
            .map(|(_, r)| r)
    };
    for r in foreign() {
        let key = (r.destination, r.metric);
        devices.entry(key).or_default().insert(r.index);
    }
    foreign()
        .filter(|r| devices[&(r.destination, r.metric)].len() > 1)
        .collect()
}

/// Why a bare packet with pods' addresses cannot go by a device; `None`: it can.
fn obstacle(index: u32, uplinks: &[Uplink], names: &HashMap<u32, &Link>) -> Option<String> {
    let name = names
        .get(&index)
        .map_or("a device that is gone", |l| l.name.as_str());
    match uplinks.iter().find(|u| u.index == index) {
        Some(uplink) if uplink.ethernet => None,
        Some(_) => Some(format!(
            "it is reached by {name}, which is no Ethernet device, so none of veer's programs can \
             run there and bare packets with pods' addresses are dropped"
        )),
        None => Some(format!(
            "it is reached by {name}, which has none of veer's programs, so bare packets with \
             pods' addresses are dropped there: name it in spec.uplinks"
        )),
    }
}

fn is_usable(ip: IpAddr) -> bool {
    match ip {
        // Node-local DNS caches sit on link-local addresses of every node.
        IpAddr::V4(a) => !a.is_loopback() && !a.is_link_local() && !a.is_unspecified(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    }
}

fn primary(
    own: &[&Address],
    hint: Option<IpAddr>,
    defaults: &[(u32, Option<IpAddr>)],
) -> Option<IpAddr> {
    let v4 = || own.iter().filter(|a| a.ip.is_ipv4());
    v4().find(|a| Some(a.ip) == hint)
        .or_else(|| v4().find(|a| defaults.iter().any(|(index, _)| *index == a.index)))
        .or_else(|| v4().next())
        .map(|a| a.ip)
}

fn path(peer: IpAddr, found: Lookup, direct: bool, defaults: &[(u32, Option<IpAddr>)]) -> Path {
    let router = defaults
        .iter()
        .find_map(|(index, gateway)| gateway.map(|g| (*index, g)));
    match (found.gateway, direct, router) {
        (None, false, Some((index, next_hop))) => Path {
            index,
            next_hop,
            same_link: false,
        },
        (gateway, _, _) => Path {
            index: found.index,
            next_hop: gateway.unwrap_or(peer),
            same_link: gateway.is_none(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u32, ip: &str) -> Address {
        Address {
            index,
            ip: ip.parse().unwrap(),
            global: true,
            host: false,
            tentative: false,
        }
    }

    #[test]
    fn the_kubelets_address_counts_only_while_the_node_has_it() {
        let (a, b) = (at(2, "192.0.2.5"), at(3, "10.9.9.9"));
        let own = [&b, &a];
        let defaults = [(2, None)];
        let hint = Some("10.9.9.9".parse().unwrap());
        assert_eq!(primary(&own, hint, &defaults), hint);
        let gone = Some("192.0.2.77".parse().unwrap());
        assert_eq!(primary(&own, gone, &defaults), Some(a.ip));
        assert_eq!(primary(&own, None, &[]), Some(b.ip));
    }

    #[test]
    fn a_kubelet_started_anew_with_another_address_of_the_node_is_followed() {
        let [a, b, gone] = ["192.0.2.5", "10.9.9.9", "192.0.2.77"].map(|a| a.parse().unwrap());
        let at_start = Some(a);
        assert_eq!(hint(&[b], &[a, b], at_start), Some(b));
        assert_eq!(
            hint(&[b, a], &[a, b], at_start),
            at_start,
            "it was told first once"
        );
        assert_eq!(hint(&[gone, b], &[a, b], at_start), Some(b));
        assert_eq!(hint(&[gone], &[a, b], at_start), at_start);
        assert_eq!(hint(&[], &[a, b], at_start), at_start);
        let v6 = "2001:db8::5".parse().unwrap();
        assert_eq!(hint(&[v6, b], &[v6, a, b], None), Some(b));
    }

    #[test]
    fn a_node_on_the_link_is_its_own_next_hop_unless_a_router_is_asked_for() {
        let peer = "192.0.2.9".parse().unwrap();
        let router = "192.0.2.1".parse().unwrap();
        let found = Lookup {
            index: 2,
            gateway: None,
            source: None,
        };
        let defaults = [(2, Some(router))];
        assert_eq!(path(peer, found, true, &defaults).next_hop, peer);
        assert_eq!(path(peer, found, false, &defaults).next_hop, router);
    }

    #[test]
    fn every_path_is_asked_for_within_a_minute_however_many_nodes_there_are() {
        for peers in [0, 1, 64, 127, 128, 5000] {
            for place in 0..peers {
                let asked = (7..7 + TURNS).filter(|turn| Share::new(peers, *turn).has(place));
                assert!(asked.count() >= 1, "{place} of {peers}");
            }
            let most = (0..TURNS).map(|turn| {
                let share = Share::new(peers, turn);
                (0..peers).filter(|place| share.has(*place)).count()
            });
            assert!(most.max() <= Some((2 * ASKED).max(peers.div_ceil(TURNS))));
        }
    }

    #[test]
    fn a_changed_route_is_seen_at_once_also_among_hundreds_of_known_paths() {
        let node = crate::netlink::lab::namespace();
        node.command("ip", "link add eth0 type bridge");
        node.device("eth0", "192.0.2.5", "192.0.2.0/24");
        node.command("ip", "route add default via 192.0.2.1 dev eth0");
        let peers: Vec<IpAddr> = (0..250).map(|n| IpAddr::from([198, 51, 100, n])).collect();
        let look = |previous: &Facts| {
            let wanted = Wanted {
                uplinks: &[],
                hint: None,
                peers: &peers,
                direct: true,
                pods: &[],
            };
            gather(&mut Socket::route().unwrap(), wanted, previous).unwrap()
        };
        let before = node.run(|| look(&Facts::default()));
        assert_eq!(before.paths.len(), peers.len());
        node.command("ip", "route add 198.51.100.0/24 via 192.0.2.2 dev eth0");
        let after = node.run(|| look(&before));
        let by: IpAddr = "192.0.2.2".parse().unwrap();
        assert!(after.paths.values().all(|p| p.next_hop == by));
    }

    #[test]
    fn link_local_addresses_do_not_stand_for_the_node() {
        assert!(!is_usable("169.254.20.10".parse().unwrap()));
        assert!(!is_usable("127.0.0.1".parse().unwrap()));
        assert!(is_usable("172.17.0.1".parse().unwrap()));
    }

    #[test]
    fn a_device_without_programs_is_named_also_behind_one_of_several_next_hops() {
        let link = |index, name: &str| Link {
            index,
            name: name.into(),
            ..Link::default()
        };
        let links = [link(2, "eth0"), link(3, "wg0"), link(4, "tun0")];
        let names: HashMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();
        let uplink = |index, ethernet| Uplink {
            index,
            ethernet,
            ..Uplink::default()
        };
        let uplinks = [uplink(2, true), uplink(4, false)];
        assert_eq!(obstacle(2, &uplinks, &names), None);
        let why = |index| obstacle(index, &uplinks, &names).unwrap();
        assert!(why(3).contains("wg0") && why(3).contains("spec.uplinks"));
        assert!(why(4).contains("tun0") && why(4).contains("no Ethernet"));

        let block: IpNet = "198.51.100.0/24".parse().unwrap();
        let other: IpNet = "203.0.113.0/24".parse().unwrap();
        let routes = [
            (3, Route::link(block, 2)),
            (3, Route::link(block, 3)),
            (3, Route::link(other, 2)),
            (PROTOCOL, Route::link(other, 3)),
        ];
        let several: Vec<u32> = several(&routes).iter().map(|r| r.index).collect();
        assert_eq!(several, [2, 3]);
    }

    #[test]
    fn a_bridge_with_another_nodes_gateway_does_not_speak_for_this_node() {
        let node = crate::netlink::lab::namespace();
        node.command("ip", "link add eth0 type bridge");
        node.device("eth0", "192.0.2.5", "192.0.2.0/24");
        node.command(
            "ip",
            "route add default nexthop dev eth0 nexthop via 192.0.2.1 dev eth0",
        );
        node.command("ip", "link add cni0 type bridge");
        node.device("cni0", "10.1.1.1", "10.1.1.0/24");
        let facts = node.run(|| {
            let wanted = Wanted {
                uplinks: &[],
                hint: None,
                peers: &["192.0.2.9".parse().unwrap()],
                direct: true,
                pods: &["10.1.1.0/24".parse().unwrap()],
            };
            gather(&mut Socket::route().unwrap(), wanted, &Facts::default()).unwrap()
        });
        let own: IpAddr = "192.0.2.5".parse().unwrap();
        assert_eq!((facts.primary, &*facts.addresses), (Some(own), &[own][..]));
        let gateway: IpAddr = "10.1.1.1".parse().unwrap();
        assert_eq!(facts.misplaced, [(gateway, "cni0".to_owned())]);
        let uplinks: Vec<&str> = facts.uplinks.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(uplinks, ["eth0"]);
        assert_eq!(facts.paths.len(), 1, "{:?}", facts.unfit);
    }
}
