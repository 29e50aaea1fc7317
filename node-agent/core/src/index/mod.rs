//! What the API server said, as plain data behind `apply` and `delete`.
//!
//! Inputs are typed events; outputs are lookups. Invariants: nothing vanishes
//! by an error, only by a deletion or a complete list; an address is believed
//! only inside its node's block; of two claims of one address the one with the
//! higher serial counts. Knows neither the API client nor the kernel.

mod endpoints;
mod identities;
mod nodes;
pub mod services;

use std::collections::{BTreeMap, HashSet};

use veer_bpf_common::identity::Identity;
use veer_crds::v1alpha1::ClusterNetworkSpec;

pub use endpoints::{Endpoints, OwnRow, PodEndpointRow, RemotePod};
pub use identities::{IdentityRecord, PodRecord, Resolution};
pub use nodes::{Networks, NodeRecord, Nodes, OwnNode};
pub use services::{
    ChosenEndpoint, EndpointRecord, EndpointState, PortRecord, ServicePort, ServiceRecord,
    Services, SliceRecord,
};

use crate::endpoint::Claims;
use identities::Identities;
use nodes::Extent;

/// A change of a set of objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<K, T> {
    /// New or changed.
    Apply(T),
    /// Gone.
    Delete(K),
    /// The complete set.
    Snapshot(Vec<T>),
    /// What is said to be the complete set but is not believed: these are there,
    /// those are gone, of all others nothing is known.
    Doubted(Vec<T>, Vec<K>),
}

impl<K, T> Change<K, T> {
    /// Whether it says of everything whether it is there.
    fn is_complete(&self) -> bool {
        matches!(self, Self::Snapshot(_))
    }

    /// Whether a list was read to its end.
    fn is_list(&self) -> bool {
        matches!(self, Self::Snapshot(_) | Self::Doubted(..))
    }
}

/// What a watcher reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node, by name.
    Node(Change<String, NodeRecord>),
    /// A wired pod of any node, by `namespace/name` of its object.
    Endpoint(Change<String, PodEndpointRow>),
    /// An identity, by number.
    Identity(Change<Identity, IdentityRecord>),
    /// Labels of a namespace, by its name.
    Namespace(Change<String, (String, BTreeMap<String, String>)>),
    /// A pod of this node, by UID.
    Pod(Change<String, PodRecord>),
    /// The cluster's network; it never vanishes once seen.
    Cluster(Box<(String, ClusterNetworkSpec)>),
    /// resourceVersion of the newest identity seen that may not be assigned any
    /// more.
    RetiringSerial(u64),
    /// A Service, by `namespace/name`.
    Service(Change<String, ServiceRecord>),
    /// Endpoints of a Service, by `namespace/name` of their slice.
    Slice(Change<String, SliceRecord>),
    /// The zone of this node, `None`: it has none. It stays when the Node is deleted, until
    /// a list lacks that.
    Zone(Option<String>),
}

/// What an event made stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// Everything: nodes, routes, configuration, all rows.
    pub all: bool,
    /// Everything but rows of the ipcache.
    pub pairs: bool,
    /// The rows of these addresses.
    pub addresses: HashSet<std::net::IpAddr>,
    /// The identities of local pods.
    pub identities: bool,
    /// The rows of these Services, by `namespace/name`.
    pub services: HashSet<String>,
}

impl Stale {
    /// Both together.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.pairs |= other.pairs;
        self.identities |= other.identities;
        self.addresses.extend(other.addresses);
        self.services.extend(other.services);
    }
}

/// Which sets were seen complete at least once.
#[expect(
    clippy::struct_excessive_bools,
    reason = "one per watch; they become true independently of each other"
)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Complete {
    /// Nodes.
    pub nodes: bool,
    /// Wired pods.
    pub endpoints: bool,
    /// Identities.
    pub identities: bool,
    /// Namespaces.
    pub namespaces: bool,
    /// Pods of this node.
    pub pods: bool,
    /// Nodes, but what the list lacked may be there nevertheless.
    pub nodes_listed: bool,
    /// Wired pods, in the same sense; those of this node are complete.
    pub endpoints_listed: bool,
    /// Services.
    pub services: bool,
    /// Endpoints of Services.
    pub slices: bool,
    /// The zone of this node, or that it has none.
    pub zone: bool,
}

/// The index.
#[derive(Debug)]
pub struct Index {
    own: String,
    /// Nodes.
    pub nodes: Nodes,
    /// Wired pods.
    pub endpoints: Endpoints,
    /// Identities, namespaces and own pods.
    pub identities: Identities,
    /// Services and their endpoints.
    pub services: Services,
    /// UID and spec of the ClusterNetwork.
    pub cluster: Option<(String, ClusterNetworkSpec)>,
    /// resourceVersion of the newest identity seen that may not be assigned any
    /// more; 0: there was none. New identities do not change it, so that a pod with
    /// new labels makes no agent report anything.
    pub retiring_serial: u64,
    /// What was seen complete.
    pub complete: Complete,
}

impl Index {
    /// An empty index of the node with this name.
    pub fn new(own: &str) -> Self {
        Self {
            own: own.to_owned(),
            nodes: Nodes::default(),
            endpoints: Endpoints::new(own),
            identities: Identities::default(),
            services: Services::default(),
            cluster: None,
            retiring_serial: 0,
            complete: Complete::default(),
        }
    }

    /// Name of the own node.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// Takes an event in and says what it made stale.
    pub fn handle(&mut self, event: Event) -> Stale {
        let mut stale = Stale::default();
        match event {
            Event::Node(change) => {
                self.complete.nodes |= change.is_complete();
                self.complete.nodes_listed |= change.is_list();
                match self.nodes.handle(change, &self.own) {
                    Extent::Nothing => {}
                    Extent::Pair => stale.pairs = true,
                    Extent::Rows => stale.all = true,
                }
            }
            Event::Endpoint(change) => {
                stale.all = change.is_list();
                self.complete.endpoints |= change.is_complete();
                self.complete.endpoints_listed |= change.is_list();
                stale.addresses = self.endpoints.handle(change);
            }
            Event::Identity(change) => {
                self.complete.identities |= change.is_complete();
                self.identities.handle_identity(change);
                stale.identities = true;
            }
            Event::Namespace(change) => {
                self.complete.namespaces |= change.is_complete();
                self.identities.handle_namespace(change);
                stale.identities = true;
            }
            Event::Pod(change) => {
                self.complete.pods |= change.is_complete();
                self.identities.handle_pod(change);
                stale.identities = true;
            }
            Event::Cluster(cluster) => {
                let new = Some(*cluster);
                if self.cluster != new {
                    self.cluster = new;
                    stale.all = true;
                    stale.identities = true;
                }
            }
            Event::RetiringSerial(serial) => self.retiring_serial = serial,
            Event::Service(change) => {
                self.complete.services |= change.is_complete();
                stale.services = self.services.handle_service(change);
            }
            Event::Slice(change) => {
                self.complete.slices |= change.is_complete();
                stale.services = self.services.handle_slice(change);
            }
            Event::Zone(zone) => {
                self.complete.zone = true;
                stale.services = self.services.set_zone(zone);
            }
        }
        stale
    }

    /// The pod of another node that has this address now, if any can be
    /// believed.
    pub fn remote_pod(&self, address: std::net::IpAddr) -> Option<RemotePod<'_>> {
        self.endpoints.winner(address, |node, address| {
            node != self.own && self.nodes.claims(node, address)
        })
    }

    /// Pods of this node that have addresses by their status and have not ended.
    pub fn wired_pods(&self) -> impl Iterator<Item = &PodRecord> {
        self.identities.wired_pods()
    }

    /// The pod of this node whose status names an address.
    pub fn pod_at(&self, address: std::net::IpAddr) -> Option<&PodRecord> {
        self.wired_pods().find(|p| p.addresses.contains(&address))
    }

    /// What pods of this node have by their status.
    pub fn claims(&self) -> Claims {
        let mut claims = Claims::new();
        for pod in self.wired_pods() {
            for address in &pod.addresses {
                let uids = claims.entry(*address).or_default();
                uids.push(pod.uid.clone());
                uids.extend(pod.config_hash.clone());
            }
        }
        claims
    }

    /// The own pod's identity by its label set.
    pub fn resolve(&self, namespace: &str, name: &str, uid: &str) -> Resolution {
        let filter = self.cluster.as_ref().map(|(_, c)| &c.identity_labels);
        self.identities.resolve(namespace, name, uid, filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: &str) -> NodeRecord {
        NodeRecord {
            name: name.into(),
            pod_cidrs: vec![cidr.parse().unwrap()],
            ..NodeRecord::default()
        }
    }

    fn row(key: &str, node: &str, address: &str, serial: i64) -> PodEndpointRow {
        PodEndpointRow {
            key: key.into(),
            node: node.into(),
            addresses: vec![address.parse().unwrap()],
            identity: 300,
            serial,
            own: None,
        }
    }

    fn index() -> Index {
        let mut index = Index::new("a");
        index.handle(Event::Node(Change::Snapshot(vec![
            node("a", "10.1.0.0/24"),
            node("b", "10.1.1.0/24"),
        ])));
        index
    }

    #[test]
    fn an_address_outside_its_nodes_block_is_not_believed() {
        let mut index = index();
        for (key, on, address) in [
            ("x/1", "b", "10.1.1.5"),
            ("x/2", "b", "10.1.0.5"),
            ("x/3", "nobody", "10.1.1.6"),
        ] {
            index.handle(Event::Endpoint(Change::Apply(row(key, on, address, 1))));
        }
        let seen = |a: &str| index.remote_pod(a.parse().unwrap()).is_some();
        assert!(seen("10.1.1.5"));
        assert!(!seen("10.1.0.5") && !seen("10.1.1.6"));
    }

    #[test]
    fn of_two_claims_the_higher_serial_wins_in_any_order() {
        for order in [[0, 1], [1, 0]] {
            let mut index = index();
            let mut rows = [
                row("x/old", "b", "10.1.1.5", 7),
                row("x/new", "b", "10.1.1.5", 8),
            ];
            rows[1].identity = 400;
            for i in order {
                index.handle(Event::Endpoint(Change::Apply(rows[i].clone())));
            }
            let address = "10.1.1.5".parse().unwrap();
            assert_eq!(index.remote_pod(address).unwrap().identity.get(), 400);
            index.handle(Event::Endpoint(Change::Delete("x/new".into())));
            assert_eq!(index.remote_pod(address).unwrap().identity.get(), 300);
        }
    }

    #[test]
    fn a_snapshot_drops_what_it_does_not_name_and_marks_it_stale() {
        let mut index = index();
        index.handle(Event::Endpoint(Change::Apply(row(
            "x/1", "b", "10.1.1.5", 1,
        ))));
        let stale = index.handle(Event::Endpoint(Change::Snapshot(vec![row(
            "x/2", "b", "10.1.1.6", 2,
        )])));
        assert!(stale.all && index.complete.endpoints);
        assert!(index.remote_pod("10.1.1.5".parse().unwrap()).is_none());
    }

    #[test]
    fn the_own_node_and_the_cluster_network_stay_when_they_vanish() {
        let mut index = index();
        index.handle(Event::Node(Change::Delete("a".into())));
        index.handle(Event::Node(Change::Delete("b".into())));
        assert!(index.nodes.get("a").is_some() && index.nodes.get("b").is_none());
        index.handle(Event::Node(Change::Snapshot(Vec::new())));
        assert!(index.nodes.get("a").is_some());
    }

    #[test]
    fn an_address_that_the_operator_withdraws_is_gone_at_once() {
        let mut index = index();
        let mut b = node("b", "10.1.1.0/24");
        b.addresses = ["192.0.2.2", "10.96.0.10"]
            .map(|a| a.parse().unwrap())
            .to_vec();
        index.handle(Event::Node(Change::Apply(b.clone())));
        b.addresses.pop();
        let stale = index.handle(Event::Node(Change::Apply(b.clone())));
        assert!(stale.all, "its row is to go");
        assert_eq!(index.nodes.get("b"), Some(&b));
    }

    #[test]
    fn the_own_object_made_again_is_something_new() {
        let mut index = index();
        let mut a = node("a", "10.1.0.0/24");
        let seen = |uid: &str| {
            Some(Box::new(OwnNode {
                uid: uid.into(),
                ..OwnNode::default()
            }))
        };
        a.seen = seen("uid-1");
        let stale = index.handle(Event::Node(Change::Apply(a.clone())));
        assert_eq!(stale, Stale::default(), "what the agent wrote itself");
        assert_eq!(index.nodes.own_seen().unwrap().uid, "uid-1");
        index.handle(Event::Node(Change::Delete("a".into())));
        assert_eq!(index.nodes.own_seen(), None);
        a.seen = seen("uid-2");
        index.handle(Event::Node(Change::Apply(a)));
        assert_eq!(index.nodes.own_seen().unwrap().uid, "uid-2");
    }

    #[test]
    fn a_nodes_row_that_did_not_change_makes_nothing_stale() {
        let mut index = index();
        let stale = index.handle(Event::Node(Change::Apply(node("b", "10.1.1.0/24"))));
        assert_eq!(stale, Stale::default());
    }

    #[test]
    fn a_reserved_or_oversized_identity_of_a_peer_counts_as_init() {
        let mut index = index();
        for bad in [0, 1, 2, 6, 255, 0x0100_0000] {
            let mut r = row("x/1", "b", "10.1.1.5", 1);
            r.identity = bad;
            index.handle(Event::Endpoint(Change::Apply(r)));
            let pod = index.remote_pod("10.1.1.5".parse().unwrap()).unwrap();
            assert_eq!(pod.identity, Identity::INIT);
        }
    }
}
