//! What the node's stack holds for pods and other nodes: routes, neighbour
//! entries, devices that are up, sysctls.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

use crate::{
    error::{Error, netlink},
    netlink::{
        VXLAN,
        link::{self, Link, Mac},
        message::Socket,
        neighbour,
        route::{self, PROTOCOL, Route},
        sysctl::{self, ACCEPT_RA, FORWARDING, Sysctls},
    },
};
use veer_agent_core::{
    desired::Desired,
    diff::Last,
    endpoint::{LocalEndpoint, PodAddress},
    facts::Facts,
    repair::{Kind, RoundLog},
};

pub struct Host {
    routes: Last<IpNet, Route>,
    neighbours: Last<(IfIndex, IpAddr), Mac>,
    sysctls: Sysctls,
    /// Keys that were as they should be after the last round.
    set: HashSet<String>,
}

impl Host {
    /// `sysctls` knows the values to restore.
    pub fn new(sysctls: Sysctls) -> Self {
        Self {
            routes: Last::default(),
            neighbours: Last::default(),
            sysctls,
            set: HashSet::new(),
        }
    }

    /// Writes and removes veer's routes. `present` was read before `wanted` was
    /// worked out. Unless every node is known (`complete`), routes to nodes stay.
    pub fn routes(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        present: &[(u8, Route)],
        links: &[Link],
        wanted: &Desired,
        complete: bool,
    ) {
        let own: HashMap<IpNet, &Route> = present
            .iter()
            .filter(|(protocol, _)| *protocol == PROTOCOL)
            .map(|(_, r)| (r.destination, r))
            .collect();
        let devices: HashSet<IfIndex> = links.iter().map(|l| l.index).collect();
        let mut now: HashMap<IpNet, Route> = HashMap::new();
        for route in &wanted.routes {
            let to = route.destination;
            let found = own.get(&to);
            if found != Some(&route) {
                if route.index.is_some_and(|device| !devices.contains(&device)) {
                    continue;
                }
                if let Err(error) = route::replace(socket, route) {
                    tracing::warn!(%to, %error, "cannot write a route");
                    continue;
                }
                if self.routes.lost(&to, route) {
                    let how = if found.is_some() {
                        "changed"
                    } else {
                        "removed"
                    };
                    done.repaired(Kind::Route, format!("route {to} was {how}"));
                }
            }
            now.insert(to, route.clone());
        }
        let wanted: HashSet<IpNet> = wanted.routes.iter().map(|r| r.destination).collect();
        // While nodes are missing, so are their routes; those to pods are known.
        let gone = own
            .values()
            .filter(|r| !wanted.contains(&r.destination) && (complete || r.gateway.is_none()));
        for route in gone {
            let to = route.destination;
            match route::delete(socket, route) {
                Ok(true) if self.routes.foreign(&to) && complete => {
                    done.repaired(Kind::Route, format!("route {to} was added"));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%to, %error, "cannot remove a route"),
            }
        }
        if complete {
            self.routes.set(now);
        } else {
            self.routes.extend(now);
        }
    }

    /// Writes the permanent neighbour entries of local pods.
    pub fn neighbours(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        present: &[(IfIndex, IpAddr, Mac)],
        links: &[Link],
        pods: &[Arc<LocalEndpoint>],
    ) {
        let devices: HashSet<IfIndex> = links.iter().map(|l| l.index).collect();
        let present: HashMap<(IfIndex, IpAddr), Mac> =
            present.iter().map(|(i, a, m)| ((*i, *a), *m)).collect();
        let mut now = HashMap::new();
        for pod in pods {
            let Some(index) = pod.ifindex.filter(|device| devices.contains(device)) else {
                continue;
            };
            let mac = pod.mac;
            for PodAddress { address, .. } in pod.addresses() {
                let key = (index, address);
                let found = present.get(&key);
                if found != Some(&mac) {
                    if let Err(error) = neighbour::replace(socket, index, address, mac) {
                        tracing::warn!(%address, %error, "cannot write a neighbour entry");
                        continue;
                    }
                    if self.neighbours.lost(&key, &mac) {
                        let how = if found.is_some() {
                            "changed"
                        } else {
                            "removed"
                        };
                        let what = format!("neighbour entry {address} was {how}");
                        done.repaired(Kind::Neighbour, what);
                    }
                }
                now.insert(key, mac);
            }
        }
        self.neighbours.set(now);
    }

    /// Has the devices take IPv6 addresses and routes that pods' packets come by, where the
    /// node has pods or a block in that family. What has none goes first.
    pub fn enable_ipv6(
        &mut self,
        done: &mut RoundLog,
        pods: &[Arc<LocalEndpoint>],
        blocks: &[IpNet],
    ) -> Result<(), Error> {
        if !is_dual(pods, blocks) {
            return Ok(());
        }
        if !self.sysctls.has_ipv6() {
            return Err(Error::NoIpv6);
        }
        self.set_all(done, enabled(pods)).1
    }

    /// Sets the sysctls of node, devices and pods' devices.
    pub fn sysctls(
        &mut self,
        done: &mut RoundLog,
        facts: &Facts,
        pods: &[Arc<LocalEndpoint>],
        blocks: &[IpNet],
    ) -> Result<(), Error> {
        // The first sets all devices' forwarding, so it comes first.
        let mut wanted = vec![("ipv4/ip_forward".to_owned(), "1", true)];
        wanted.extend(of_device(VXLAN, true));
        wanted.extend(facts.uplinks.iter().flat_map(|u| of_device(&u.name, true)));
        // These go with their pods: there is nothing to restore.
        for e in pods {
            wanted.extend(of_device(&e.host_ifname, false));
            let ports = !e.host_ports().is_empty();
            wanted.extend(ports.then(|| key("ipv4", &e.host_ifname, sysctl::LOOPBACK, false)));
        }
        let (mut now, mut outcome) = self.set_all(done, wanted);
        if is_dual(pods, blocks) && self.sysctls.has_ipv6() {
            let (set, v6) = self.forward_ipv6(done, facts, pods);
            now.extend(set);
            outcome = outcome.and(v6);
        }
        self.set = now;
        outcome
    }

    /// Turns IPv6 forwarding on, so that no default route is lost that a router told of.
    fn forward_ipv6(
        &mut self,
        done: &mut RoundLog,
        facts: &Facts,
        pods: &[Arc<LocalEndpoint>],
    ) -> (HashSet<String>, Result<(), Error>) {
        let get = |key: &str| self.sysctls.get(key).ok().flatten();
        let mut wanted = enabled(pods);
        // Where it was on before, routers' words do not count, by whoever's decision.
        let own = self.sysctls.remembers(FORWARDING) || get(FORWARDING).as_deref() == Some("0");
        let heeds = |key: &String| own && matches!(get(key).as_deref(), Some("1" | "2"));
        // The switch is the whole node's, so it is not only about uplinks.
        let uplinks = facts.uplinks.iter().map(|u| &u.name);
        let devices: BTreeSet<&String> = uplinks.chain(&facts.ways_v6).collect();
        let keys = devices.into_iter();
        let keys = keys.map(|name| format!("ipv6/conf/{name}/{ACCEPT_RA}"));
        wanted.extend(keys.filter(heeds).map(|key| (key, "2", true)));
        let (mut now, outcome) = self.set_all(done, wanted);
        if outcome.is_err() {
            return (now, outcome);
        }
        let (set, outcome) = self.set_all(done, vec![(FORWARDING.to_owned(), "1", true)]);
        now.extend(set);
        (now, outcome)
    }

    /// Sets keys to values, remembering what was there where it is said. Returns those that
    /// are so now.
    fn set_all(
        &mut self,
        done: &mut RoundLog,
        wanted: Vec<Setting>,
    ) -> (HashSet<String>, Result<(), Error>) {
        let mut now = HashSet::new();
        let mut failure = None;
        for (key, value, remember) in wanted {
            match self.sysctls.set(&key, value, remember) {
                Ok(changed) => {
                    if changed && self.set.contains(&key) {
                        let what = format!("sysctl net.{} was changed", key.replace('/', "."));
                        done.repaired(Kind::Sysctl, what);
                    }
                    now.insert(key);
                }
                // The device is gone.
                Err(e) if !remember && e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => failure = failure.or(Some(netlink("set a sysctl below net")(e))),
            }
        }
        (now, failure.map_or(Ok(()), Err))
    }

    /// Puts old values of sysctls back, and forgets what it knew.
    pub fn restore(&mut self) -> io::Result<()> {
        self.routes.clear();
        self.neighbours.clear();
        self.set.clear();
        self.sysctls.restore()
    }
}

/// A device's sysctls, and whether to remember what was there before. Some
/// configuration of the host (systemd-networkd, hardening) sets forwarding by
/// device, whatever `ip_forward` says.
fn of_device(name: &str, remember: bool) -> [Setting; 2] {
    sysctl::DEVICE.map(|setting| key("ipv4", name, setting, remember))
}

/// What is to be set where the node has IPv6 addresses for pods: `lo` holds the health
/// address.
fn enabled(pods: &[Arc<LocalEndpoint>]) -> Vec<Setting> {
    let of_pods = pods
        .iter()
        .filter(|e| has_ipv6(e))
        .map(|e| e.host_ifname.as_str());
    let devices = [("lo", true), (VXLAN, true)].into_iter();
    let all = devices.chain(of_pods.map(|name| (name, false)));
    all.map(|(name, remember)| key("ipv6", name, sysctl::ENABLED, remember))
        .collect()
}

fn has_ipv6(pod: &LocalEndpoint) -> bool {
    pod.addresses().any(|a| a.address.is_ipv6())
}

/// Whether the node has anything to do with IPv6 of pods.
fn is_dual(pods: &[Arc<LocalEndpoint>], blocks: &[IpNet]) -> bool {
    blocks.iter().any(|b| b.addr().is_ipv6()) || pods.iter().any(|pod| has_ipv6(pod))
}

/// A key below `net`, its value, and whether what was there before is put back.
type Setting = (String, &'static str, bool);

fn key(family: &str, device: &str, (key, value): (&str, &'static str), remember: bool) -> Setting {
    (format!("{family}/conf/{device}/{key}"), value, remember)
}

/// Sets up the host sides of local pods' devices, with the MAC that the pod sends
/// to. A device that is down has no routes and no neighbours, so this comes first.
pub fn up(done: &mut RoundLog, socket: &mut Socket, links: &[Link], pods: &[Arc<LocalEndpoint>]) {
    let wired: HashMap<(&str, Option<IfIndex>), Mac> = pods
        .iter()
        .map(|e| ((e.host_ifname.as_str(), e.ifindex), e.node_mac))
        .collect();
    for link in links {
        let Some(mac) = wired.get(&(link.name.as_str(), Some(link.index))) else {
            continue;
        };
        if link.mac != *mac {
            match link::set_mac(socket, link.index, *mac) {
                Ok(()) => {
                    let what = format!("the MAC of {} was changed", link.name);
                    done.repaired(Kind::Device, what);
                }
                Err(error) => tracing::warn!(device = link.name, %error, "cannot set its MAC"),
            }
        }
        if link.up {
            continue;
        }
        match link::set_up(socket, link.index) {
            Ok(()) => {
                done.repaired(Kind::Device, format!("{} was set down", link.name));
            }
            Err(error) => tracing::warn!(device = link.name, %error, "cannot set it up"),
        }
    }
}
