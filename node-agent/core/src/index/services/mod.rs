//! Services and their endpoints: which of these new flows from this node's pods go to.

mod choose;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use veer_bpf_common::tables::Frontend;

use super::Change;
use crate::family::Family;
use choose::{Here, choose};

/// What counts of a Service. One without addresses of its own has no record, and neither has
/// one that another program translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// `namespace/name`.
    pub key: String,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers whose packets arrive as they were sent. None where the
    /// Service lets only some sources in: the stack judges those.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<PortRecord>,
    /// Seconds for which a client keeps its endpoint; 0: each flow is on its own.
    pub affinity: u32,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub external_local: bool,
}

/// A port of a Service, or of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRecord {
    /// Its name; empty: it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// The port, of endpoints the target port.
    pub port: u16,
    /// Its `NodePort`; 0: it has none.
    pub node_port: u16,
}

/// What counts of an `EndpointSlice`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRecord {
    /// `namespace/name` of the slice.
    pub key: String,
    /// `namespace/name` of its Service.
    pub service: String,
    /// Family of its endpoints.
    pub family: Family,
    /// The target ports of its endpoints.
    pub ports: Vec<PortRecord>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointRecord>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Its address; of several the first, as with kube-proxy.
    pub address: IpAddr,
    /// It takes new connections.
    pub ready: bool,
    /// It answers, on its way out too.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
    /// Its node.
    pub node: Option<String>,
    /// Zones whose traffic is to go to it.
    pub for_zones: Vec<String>,
    /// Nodes whose traffic is to go to it.
    pub for_nodes: Vec<String>,
}

impl EndpointRecord {
    /// What it can do.
    fn state(&self) -> EndpointState {
        if self.ready {
            EndpointState::Ready
        } else if self.serving && self.terminating {
            EndpointState::Terminating
        } else {
            EndpointState::NotReady
        }
    }
}

/// One port of a Service in one family, for its internal or its external frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name` of the Service.
    pub service: String,
    /// Name of the port; empty: it has none.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Family of frontends and endpoints.
    pub family: Family,
    /// Frontends are external addresses, those of load balancers and `NodePorts`
    /// ([`Frontend::is_node_port`]), not cluster IPs.
    pub external: bool,
    /// What clients send to.
    pub frontends: Vec<(IpAddr, u16)>,
    /// All endpoints, in the order of their addresses.
    pub endpoints: Vec<ChosenEndpoint>,
    /// Seconds for which a client keeps its endpoint; 0: each flow is on its own.
    pub affinity: u32,
    /// Flows stay on the node (`internalTrafficPolicy`).
    pub local: bool,
}

/// An endpoint as seen from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChosenEndpoint {
    /// Address and target port.
    pub address: SocketAddr,
    /// What it can do.
    pub state: EndpointState,
    /// New flows from this node may go there.
    pub chosen: bool,
    /// Its node.
    pub node: Option<String>,
}

/// What an endpoint can do. Of two reports of one endpoint the first in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// It takes new connections.
    Ready,
    /// It is on its way out and still answers.
    Terminating,
    /// It takes none.
    NotReady,
}

impl EndpointState {
    /// Whether it answers.
    pub fn serves(self) -> bool {
        match self {
            Self::Ready | Self::Terminating => true,
            Self::NotReady => false,
        }
    }
}

/// All Services with their endpoints.
#[derive(Debug, Default)]
pub struct Services {
    by_key: BTreeMap<String, ServiceRecord>,
    slices: HashMap<String, SliceRecord>,
    /// Keys of slices by the Service that they are of.
    of_service: HashMap<String, BTreeSet<String>>,
    /// Zone of the own node.
    zone: Option<String>,
}

impl Services {
    /// Takes a change in and returns the Services whose ports may differ now.
    pub fn handle_service(&mut self, change: Change<String, ServiceRecord>) -> HashSet<String> {
        let (there, gone) = parts(change, |record| &record.key, self.by_key.keys());
        let mut touched = HashSet::new();
        for key in gone {
            if self.by_key.remove(&key).is_some() {
                touched.insert(key);
            }
        }
        for record in there {
            if self.by_key.get(&record.key) != Some(&record) {
                touched.insert(record.key.clone());
                self.by_key.insert(record.key.clone(), record);
            }
        }
        touched
    }

    /// Takes a change in and returns the Services whose ports may differ now.
    pub fn handle_slice(&mut self, change: Change<String, SliceRecord>) -> HashSet<String> {
        let (there, gone) = parts(change, |record| &record.key, self.slices.keys());
        let mut touched = HashSet::new();
        for key in gone {
            touched.extend(self.remove_slice(&key));
        }
        for record in there {
            if self.slices.get(&record.key) != Some(&record) {
                touched.extend(self.remove_slice(&record.key));
                touched.insert(record.service.clone());
                self.of_service
                    .entry(record.service.clone())
                    .or_default()
                    .insert(record.key.clone());
                self.slices.insert(record.key.clone(), record);
            }
        }
        touched
    }

    /// Returns the Service that the slice was of.
    fn remove_slice(&mut self, key: &str) -> Option<String> {
        let service = self.slices.remove(key)?.service;
        if let Some(keys) = self.of_service.get_mut(&service) {
            keys.remove(key);
            if keys.is_empty() {
                self.of_service.remove(&service);
            }
        }
        Some(service)
    }

    /// Sets the zone of the own node and returns the Services whose ports may differ now.
    pub fn set_zone(&mut self, zone: Option<String>) -> HashSet<String> {
        if self.zone == zone {
            return HashSet::new();
        }
        self.zone = zone;
        let asks = |slice: &&SliceRecord| slice.endpoints.iter().any(|e| !e.for_zones.is_empty());
        let slices = self.slices.values().filter(asks);
        slices.map(|slice| slice.service.clone()).collect()
    }

    /// The ports of a Service as seen from this node; none: there is no such Service.
    /// `NodePorts` are among their frontends with `node_ports`.
    pub fn ports_of(&self, key: &str, own_node: &str, node_ports: bool) -> Vec<ServicePort> {
        let Some(service) = self.by_key.get(key) else {
            return Vec::new();
        };
        let external = || {
            service
                .external_ips
                .iter()
                .chain(&service.load_balancer_ips)
        };
        let mut ports = Vec::new();
        for port in &service.ports {
            for family in Family::ALL {
                let internal = frontends(&service.cluster_ips, family, port.port);
                let mut external = frontends(external(), family, port.port);
                if node_ports {
                    external.extend(service.at_nodes(port, family));
                }
                if internal.is_empty() && external.is_empty() {
                    continue;
                }
                let endpoints = self.endpoints(key, port, family);
                for (is_external, frontends) in [(false, internal), (true, external)] {
                    if !frontends.is_empty() {
                        // Of pods' traffic to external addresses no policy keeps
                        // anything on the node: kube-proxy takes any endpoint too.
                        let local = service.internal_local && !is_external;
                        let here = Here {
                            node: own_node,
                            zone: self.zone.as_deref(),
                            only: local,
                        };
                        ports.push(ServicePort {
                            service: key.to_owned(),
                            name: port.name.clone(),
                            protocol: port.protocol,
                            family,
                            external: is_external,
                            frontends,
                            endpoints: chosen(&endpoints, here),
                            affinity: service.affinity,
                            local,
                        });
                    }
                }
            }
        }
        ports
    }

    /// All endpoints of a port, once each.
    fn endpoints(
        &self,
        service: &str,
        port: &PortRecord,
        family: Family,
    ) -> Vec<(SocketAddr, &EndpointRecord)> {
        let mut found: BTreeMap<SocketAddr, &EndpointRecord> = BTreeMap::new();
        let keys = self.of_service.get(service).into_iter().flatten();
        let slices = keys.filter_map(|key| self.slices.get(key));
        for slice in slices.filter(|slice| slice.family == family) {
            let is_target = |target: &&PortRecord| {
                (&target.name, target.protocol) == (&port.name, port.protocol)
            };
            let usable = |endpoint: &&EndpointRecord| is_usable(endpoint.address, family);
            for target in slice.ports.iter().filter(is_target) {
                for endpoint in slice.endpoints.iter().filter(usable) {
                    let at = SocketAddr::new(endpoint.address, target.port);
                    let known = found.entry(at).or_insert(endpoint);
                    if endpoint.state() < known.state() {
                        *known = endpoint;
                    }
                }
            }
        }
        found.into_iter().collect()
    }

    /// The Service with a frontend, by its key and the name of the port. Where several have
    /// it, one whose own address it is comes first, as in the datapath.
    pub fn by_frontend(&self, at: SocketAddr, protocol: u8) -> Option<(&str, &str)> {
        let with = |number: fn(&PortRecord) -> u16, has: fn(&ServiceRecord, &IpAddr) -> bool| {
            let is_it = |port: &&PortRecord| (number(port), port.protocol) == (at.port(), protocol);
            let mut services = self
                .by_key
                .values()
                .filter(|service| has(service, &at.ip()));
            services.find_map(|service| {
                let port = service.ports.iter().find(is_it)?;
                Some((service.key.as_str(), port.name.as_str()))
            })
        };
        let own = |port: &PortRecord| port.port;
        with(own, |service, address| {
            service.cluster_ips.contains(address)
        })
        .or_else(|| {
            with(own, |service, address| {
                service.external_ips.contains(address)
                    || service.load_balancer_ips.contains(address)
            })
        })
        // At an address that is no Service's.
        .or_else(|| with(|port| port.node_port, |_, _| true))
    }

    /// The keys of all Services, in their order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.by_key.keys().map(String::as_str)
    }
}

impl ServiceRecord {
    /// The frontends of a port's `NodePort`. Other nodes keep flows from outside at their own
    /// endpoints where the policy says so, so nobody else chooses for them.
    fn at_nodes(&self, port: &PortRecord, family: Family) -> Vec<(IpAddr, u16)> {
        let has_family = self.cluster_ips.iter().any(|address| family.has(*address));
        if port.node_port == 0 || !has_family {
            return Vec::new();
        }
        let node = |bytes: [u8; 16]| {
            let [a, b, c, d, ..] = bytes;
            match family {
                Family::V4 => IpAddr::from([a, b, c, d]),
                Family::V6 => IpAddr::from(bytes),
            }
        };
        let mut all = vec![(node(Frontend::OWN_NODE), port.node_port)];
        if !self.external_local {
            all.push((node(Frontend::OTHER_NODES), port.node_port));
        }
        all
    }
}

/// Of what a change names, what is there, and what is gone. `known`: what there was.
fn parts<'a, T>(
    change: Change<String, T>,
    key: impl Fn(&T) -> &String,
    known: impl Iterator<Item = &'a String>,
) -> (Vec<T>, Vec<String>) {
    match change {
        Change::Apply(one) => (vec![one], Vec::new()),
        Change::Delete(key) => (Vec::new(), vec![key]),
        Change::Doubted(there, gone) => (there, gone),
        Change::Snapshot(all) => {
            let gone = {
                let there: HashSet<&String> = all.iter().map(key).collect();
                known.filter(|key| !there.contains(key)).cloned().collect()
            };
            (all, gone)
        }
    }
}

/// Those of a family, once each and in their order.
fn frontends<'a>(
    addresses: impl IntoIterator<Item = &'a IpAddr>,
    family: Family,
    port: u16,
) -> Vec<(IpAddr, u16)> {
    let usable = addresses
        .into_iter()
        .filter(|address| is_usable(**address, family));
    let once: BTreeSet<IpAddr> = usable.copied().collect();
    once.into_iter().map(|address| (address, port)).collect()
}

/// Whether an address is of a family and one that packets can be sent to.
fn is_usable(address: IpAddr, family: Family) -> bool {
    let special = match address {
        IpAddr::V4(a) => a.is_link_local() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let nobody = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    family.has(address) && !special && !nobody
}

fn chosen(endpoints: &[(SocketAddr, &EndpointRecord)], here: Here<'_>) -> Vec<ChosenEndpoint> {
    let records: Vec<&EndpointRecord> = endpoints.iter().map(|(_, record)| *record).collect();
    let chosen = choose(&records, here);
    endpoints
        .iter()
        .zip(chosen)
        .map(|((address, record), chosen)| ChosenEndpoint {
            address: *address,
            state: record.state(),
            chosen,
            node: record.node.clone(),
        })
        .collect()
}
