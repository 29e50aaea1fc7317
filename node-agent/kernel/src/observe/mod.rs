//! What the node is: addresses, uplinks, paths to other nodes, by netlink.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::IpAddr,
};

use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

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
use veer_agent_core::{
    facts::{Facts, Path, Uplink},
    family::Family,
};

/// Nanoseconds after which the next share of the known paths is asked for again.
const TURN: u64 = 2_000_000_000;
/// Paths that are asked for in a turn, at least, though nothing shows that one has
/// changed: the kernel's answer depends on rules and tables that are not read here.
const ASKED: usize = 64;
/// Each path is asked for once in so many turns at the latest.
const TURNS: usize = 30;

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct FactsWanted<'a> {
    /// Uplinks by name; empty: those of the default routes.
    pub uplinks: &'a [String],
    /// The kubelet's idea of the node's address ([`hint`]).
    pub hint: Option<IpAddr>,
    /// The own addresses that other nodes know: those go first.
    pub said: &'a [IpAddr],
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
/// the first choice is none, and among those of the family that was first.
pub fn hint(said: &[IpAddr], known: &[IpAddr], at_start: Option<IpAddr>) -> Option<IpAddr> {
    let left = at_start.is_none_or(|at_start| !said.contains(&at_start));
    let first = at_start.map_or(Family::V4, Family::of);
    let usable = |a: &&IpAddr| known.contains(a);
    let mut same = said.iter().filter(usable).filter(|a| first.has(**a));
    let other = same.next().or_else(|| said.iter().find(usable));
    other.filter(|_| left).copied().or(at_start)
}

/// Whether a device's addresses can stand for the node. kube-ipvs0 holds the
/// addresses of services.
fn speaks_for_the_node(name: &str) -> bool {
    name != VXLAN && name != "kube-ipvs0" && !is_host_veth(name)
}

/// Reads the facts. Where the node has no address at this moment (its uplink is
/// being changed) the previous facts stay.
pub fn gather(socket: &mut Socket, wanted: FactsWanted<'_>, previous: &Facts) -> io::Result<Facts> {
    let links = link::list(socket)?;
    let addresses = address::list(socket)?;
    let routes = route::list(socket)?;
    let defaults: Vec<&Route> = routes
        .iter()
        .filter(|(protocol, r)| *protocol != PROTOCOL && r.destination.prefix_len() == 0)
        .map(|(_, r)| r)
        .collect();
    let names: HashMap<IfIndex, &Link> = links.iter().map(|l| (l.index, l)).collect();

    let usable: Vec<(&Address, &str)> = addresses
        .iter()
        .filter(|a| a.global && is_usable(a.ip))
        // One that the kernel looks at again, since its link was gone, is still the node's,
        // and so is one that no router has named for a while.
        .filter(|a| !a.passing || Some(a.ip) == wanted.hint || previous.addresses.contains(&a.ip))
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
    let mut own: Vec<&Address> = usable
        .iter()
        .map(|(a, _)| *a)
        .filter(|a| !of_pods(a))
        .collect();
    own.sort_by_key(|a| a.passing);
    let Some(primary) = primary(&own, wanted.hint, &defaults) else {
        return Ok(previous.clone());
    };
    let holder = own.iter().find(|a| a.ip == primary).map(|a| a.index);
    let uplinks = uplinks(&links, wanted, &defaults, (primary, holder));
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
        let mut devices = std::iter::once(Some(path.index)).chain(others.map(|r| r.index));
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
        addresses: in_order(&own, primary, wanted.said),
        uplinks,
        ways_v6: ways_v6(&defaults, &names),
        vxlan_index: links.iter().find(|l| l.name == VXLAN).map(|l| l.index),
        paths,
        unfit,
        misplaced,
        basis,
    })
}

/// The uplinks: those that the user names, or those that the world is reached by and the
/// one that has the node's own address. Where no packet of a family is pods' or the
/// tunnel's, its way is none.
fn uplinks(
    links: &[Link],
    wanted: FactsWanted<'_>,
    defaults: &[&Route],
    (primary, holder): (IpAddr, Option<IfIndex>),
) -> Vec<Uplink> {
    let counts = |r: &Route| {
        let mut nets = wanted.pods.iter().map(IpNet::addr).chain([primary]);
        nets.any(|a| of_family(r, a))
    };
    let is_uplink = |l: &Link| {
        if wanted.uplinks.is_empty() {
            let mut ways = defaults.iter().filter(|r| counts(r));
            ways.any(|r| r.index == Some(l.index)) || holder == Some(l.index)
        } else {
            wanted.uplinks.contains(&l.name)
        }
    };
    let all = links.iter().filter(|l| is_uplink(l) && l.name != "lo");
    all.filter(|l| speaks_for_the_node(&l.name))
        .map(|l| Uplink {
            name: l.name.clone(),
            index: l.index,
            mtu: l.mtu,
            kind: l.kind.clone(),
            ethernet: l.ethernet,
        })
        .collect()
}

/// The devices of default routes of IPv6.
fn ways_v6(defaults: &[&Route], names: &HashMap<IfIndex, &Link>) -> Vec<String> {
    let v6 = defaults.iter().filter(|r| r.destination.addr().is_ipv6());
    let devices: BTreeSet<&str> = v6
        .filter_map(|r| Some(names.get(&r.index?)?.name.as_str()))
        .collect();
    devices.into_iter().map(str::to_owned).collect()
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
fn basis(
    links: &[Link],
    addresses: &[Address],
    routes: &[(u8, Route)],
    wanted: FactsWanted<'_>,
) -> u64 {
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
    let mut devices: HashMap<(IpNet, u32), HashSet<Option<IfIndex>>> = HashMap::new();
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
fn obstacle(
    index: Option<IfIndex>,
    uplinks: &[Uplink],
    names: &HashMap<IfIndex, &Link>,
) -> Option<String> {
    let name = index
        .and_then(|index| names.get(&index))
        .map_or("a device that is gone", |l| l.name.as_str());
    match uplinks.iter().find(|u| Some(u.index) == index) {
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
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local() && !a.is_unspecified(),
    }
}

/// Whether a route is for packets to addresses like this.
fn of_family(route: &Route, address: IpAddr) -> bool {
    Family::of_net(&route.destination).has(address)
}

/// The kubelet's address, or the first that the world is reached from, or just the first;
/// without the kubelet's word IPv4 goes first.
fn primary(own: &[&Address], hint: Option<IpAddr>, defaults: &[&Route]) -> Option<IpAddr> {
    let reaches = |a: &Address| {
        let mut ways = defaults.iter().filter(|r| of_family(r, a.ip));
        ways.any(|r| r.index == Some(a.index))
    };
    let first = |family: Family| {
        let all = || own.iter().filter(move |a| family.has(a.ip));
        all().find(|a| reaches(a)).or_else(|| all().next())
    };
    let hinted = own.iter().find(|a| Some(a.ip) == hint);
    let found = hinted
        .or_else(|| first(Family::V4))
        .or_else(|| first(Family::V6));
    found.map(|a| a.ip)
}

/// All own addresses, the primary first. Of each family the first is the source of what
/// the node sends to pods, so other nodes must know it: a virtual one they do not.
fn in_order(own: &[&Address], primary: IpAddr, said: &[IpAddr]) -> Vec<IpAddr> {
    let order = |a: &&Address| (a.ip != primary, a.passing, !said.contains(&a.ip), a.ip);
    let mut own = own.to_vec();
    own.sort_unstable_by_key(order);
    let mut seen = HashSet::new();
    let all = own.iter().map(|a| a.ip);
    all.filter(|a| seen.insert(*a)).collect()
}

fn path(peer: IpAddr, found: Lookup, direct: bool, defaults: &[&Route]) -> Path {
    let router = defaults
        .iter()
        .filter(|r| of_family(r, peer))
        .find_map(|r| Some((r.index?, r.gateway?)));
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
mod tests;
