//! Rounds against tables that a test holds: whatever happens in whatever order, they
//! come to what is desired, and a second round changes nothing.

mod blocks;
mod memory;
mod services;

use std::{collections::BTreeMap, net::Ipv4Addr};

use proptest::{collection::vec, prelude::*, sample::select};
use veer_agent_api::Attachment;
use veer_bpf_common::{
    identity::Identity,
    tables::{Config, Endpoint, Interface, IpcacheEntry},
};

use blocks::{CLUSTERS, blocks, pod_ip};
use memory::{Kernel, Shared};

use super::*;
use crate::{
    desired::{DesiredInputs, address_rows_of, desired},
    endpoint::{Claims, LocalEndpoint, Store},
    facts::Facts,
    family::Family,
    index::{Change, Event, Index, NodeRecord, PodEndpointRow},
    peers::{Ids, Left, Peers, peers},
    switch::{Pairs, RoutingStep},
};

/// What may happen.
#[derive(Clone, Debug)]
enum Happening {
    /// Another node comes, or has another address.
    Node(u8, u8),
    NodeGone(u8),
    /// A pod of another node comes, or has another identity.
    Pod(u8, u8, u16),
    PodGone(u8, u8),
    /// A pod of this node.
    Add(u8),
    Del(u8),
    /// A DEL begins, and may end much later.
    Leave(u8),
    Identity(u8, u16),
    /// The device of a pod is made again.
    Rewired(u8),
    /// Somebody else writes or removes an entry.
    Foreign(u8),
    /// Another agent takes over.
    Restart,
    /// A round, of all rows or not.
    Round(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    let (node, pod) = (0..4u8, 2..6u8);
    prop_oneof![
        (node.clone(), 0..3u8).prop_map(|(n, a)| Happening::Node(n, a)),
        node.clone().prop_map(Happening::NodeGone),
        (node.clone(), pod.clone(), 300..303u16).prop_map(|(n, p, i)| Happening::Pod(n, p, i)),
        (node, pod.clone()).prop_map(|(n, p)| Happening::PodGone(n, p)),
        pod.clone().prop_map(Happening::Add),
        pod.clone().prop_map(Happening::Del),
        pod.clone().prop_map(Happening::Leave),
        (pod.clone(), 300..303u16).prop_map(|(p, i)| Happening::Identity(p, i)),
        pod.prop_map(Happening::Rewired),
        (0..8u8).prop_map(Happening::Foreign),
        Just(Happening::Restart),
        any::<bool>().prop_map(Happening::Round),
    ]
}

/// One node with its agent.
struct Agent {
    families: &'static [Family],
    kernel: Kernel,
    tables: Tables,
    index: Index,
    store: Store,
    facts: Facts,
    ids: Ids,
    peers: Peers,
    present: HashMap<u32, Remote>,
    /// The last device's index.
    device: u32,
}

const OWN: [u8; 4] = [192, 0, 2, 1];

/// An address that the user denies.
const DENIED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn attachment(pod: u8) -> Attachment {
    Attachment {
        container_id: format!("c{pod}"),
        ifname: "eth0".into(),
    }
}

fn name(node: u8) -> String {
    format!("n{node}")
}

impl Agent {
    fn new(families: &'static [Family]) -> Self {
        let kernel = Kernel::new();
        let mut index = Index::new("a");
        let own = NodeRecord {
            name: "a".into(),
            pod_cidrs: blocks(families, 0),
            addresses: vec![OWN.into()],
            ..NodeRecord::default()
        };
        index.handle(Event::Node(Change::Snapshot(vec![own])));
        index.handle(Event::Endpoint(Change::Snapshot(Vec::new())));
        let spec = serde_json::json!({
            "podCIDRs": [{"cidr": "10.1.0.0/16", "nodeMaskSize": 24},
                {"cidr": "fd00:1::/32", "nodeMaskSize": 64}],
            "deniedPrefixes": [format!("{DENIED}/32")],
        });
        let spec = serde_json::from_value(spec).unwrap();
        index.handle(Event::Cluster(Box::new(("c".into(), spec))));
        let mut store = Store::new([], Vec::new());
        store.set_blocks(&blocks(families, 0));
        let mut agent = Self {
            families,
            tables: kernel.tables(),
            kernel,
            index,
            store,
            facts: Facts {
                primary: Some(OWN.into()),
                addresses: vec![OWN.into()],
                vxlan_index: IfIndex::new(9),
                ..Facts::default()
            },
            ids: Ids::default(),
            peers: Peers::default(),
            present: HashMap::new(),
            device: 100,
        };
        agent.round(true);
        agent
    }

    fn desired(&mut self, rows: bool) -> Desired {
        self.peers = peers(&self.index, &self.facts, &mut self.ids);
        desired(DesiredInputs {
            index: &self.index,
            store: &self.store,
            facts: &self.facts,
            peers: &self.peers,
            step: &RoutingStep::default(),
            present: &self.present,
            pairs: &Pairs::default(),
            now: 1,
            rows,
        })
    }

    fn round(&mut self, full: bool) {
        let found = self.tables.remotes.read().unwrap();
        self.present = self.tables.own_remotes(&found);
        let wanted = self.desired(full);
        let scope = Scope {
            nodes: true,
            rows: true,
            ipcache: full,
        };
        self.tables.converge(&wanted, found, scope, drop).unwrap();
        self.present = wanted.remotes;
    }

    fn address(&mut self, address: IpAddr) {
        let before = self.tables.device_at(address).unwrap();
        let (index, store) = (&self.index, &self.store);
        let rows = address_rows_of(index, store, &self.facts, &self.peers, address, before);
        self.tables.converge_address(&rows, true).unwrap();
    }

    /// As the engine does: what an event makes stale is brought up to date.
    fn tell(&mut self, event: Event) {
        let stale = self.index.handle(event);
        if stale.all || stale.pairs {
            self.round(stale.all);
        }
        for address in stale.addresses {
            self.address(address);
        }
    }

    fn rewire(&mut self, pod: u8) {
        if !self.store.is_recorded(&attachment(pod)) {
            return;
        }
        let Some(mut endpoint) = self.store.get(&attachment(pod)).cloned() else {
            return;
        };
        self.device += 1;
        endpoint.ifindex = IfIndex::new(self.device);
        self.store.insert(endpoint.clone());
        self.addresses_of(&endpoint);
    }

    fn addresses_of(&mut self, endpoint: &LocalEndpoint) {
        for of_pod in endpoint.addresses() {
            self.address(of_pod.address);
        }
    }

    fn add(&mut self, pod: u8) {
        if self.store.get(&attachment(pod)).is_some() {
            return;
        }
        let uid = format!("u{pod}");
        let reservation = self.store.reserve(&uid, &Claims::new(), 1).unwrap();
        self.device += 1;
        let endpoint = LocalEndpoint {
            attachment: attachment(pod),
            netns: String::new(),
            netns_inode: 0,
            namespace: "default".into(),
            pod_name: format!("p{pod}"),
            pod_uid: uid,
            object_uid: None,
            address: reservation.first.address,
            gateway: reservation.first.gateway,
            second: reservation.second,
            endpoint_id: reservation.endpoint_id,
            serial: reservation.serial,
            identity: Identity::new(300).unwrap(),
            host_ifname: format!("veer{pod}"),
            ifindex: IfIndex::new(self.device),
            mac: [2; 6],
            node_mac: [6; 6],
            host_ports: None,
        };
        self.store.insert(endpoint.clone());
        self.addresses_of(&endpoint);
        self.store.record(&attachment(pod));
        let is_wired = |key| self.tables.endpoints.get(&key).unwrap().is_some();
        let all = endpoint.keys().all(is_wired);
        assert!(all, "ADD answers only when the maps are filled");
        assert_eq!(endpoint.keys().count(), self.families.len());
    }

    fn del(&mut self, pod: u8) {
        let Some(endpoint) = self.store.leave(&attachment(pod)) else {
            return;
        };
        self.addresses_of(&endpoint);
        for key in endpoint.keys() {
            assert_eq!(self.tables.endpoints.get(&key).unwrap(), None);
        }
        self.store.remove(&attachment(pod));
    }

    fn foreign(&mut self, what: u8) {
        let pod = pod_ip(*self.families.last().unwrap(), 0, 2);
        let key = IpKey::from(pod);
        let other = IpKey::v4([192, 0, 2, 77]);
        let lock = |map: &Shared<Endpoints>| map.clone();
        match what {
            0 => drop(
                lock(&self.kernel.endpoints)
                    .lock()
                    .unwrap()
                    .entries
                    .remove(&key),
            ),
            1 => {
                let mut map = self.kernel.endpoints.lock().unwrap();
                map.entries.insert(other, Endpoint::default());
            }
            2 => {
                let mut map = self.kernel.ipcache.lock().unwrap();
                let row = IpcacheEntry {
                    identity: 1,
                    node_id: 1,
                };
                map.entries.insert(host_prefix(pod), row);
            }
            3 => self.kernel.ipcache.lock().unwrap().entries.clear(),
            4 => self.kernel.nodes.lock().unwrap().entries.clear(),
            5 => {
                let mut map = self.kernel.remotes.lock().unwrap();
                for remote in map.entries.values_mut() {
                    remote.ifindex = 77;
                }
            }
            6 => {
                let mut map = self.kernel.interfaces.lock().unwrap();
                map.entries.insert(5, Interface::default());
            }
            _ => {
                let mut map = self.kernel.config.lock().unwrap();
                map.entries.insert(0, Config::default());
            }
        }
    }

    fn restart(&mut self) {
        self.tables = self.kernel.tables();
        let remotes = self.tables.remotes.read().unwrap();
        self.ids = Ids::from_present(Left {
            remotes: &remotes,
            nodes: &self.tables.nodes.read().unwrap(),
            rows: &self.tables.ipcache.read().unwrap(),
        });
        self.round(true);
    }

    fn take(&mut self, step: &Happening) {
        match *step {
            Happening::Node(n, address) => self.tell(Event::Node(Change::Apply(NodeRecord {
                name: name(n),
                pod_cidrs: blocks(self.families, n + 1),
                addresses: vec![Ipv4Addr::new(192, 0, 2 + address, 10 + n).into()],
                ..NodeRecord::default()
            }))),
            Happening::NodeGone(n) => self.tell(Event::Node(Change::Delete(name(n)))),
            Happening::Pod(n, pod, identity) => {
                self.tell(Event::Endpoint(Change::Apply(PodEndpointRow {
                    key: format!("x/{n}-{pod}"),
                    node: name(n),
                    // One of them claims what the user denies.
                    addresses: if pod == 5 {
                        vec![DENIED.into()]
                    } else {
                        let families = self.families.iter();
                        families.map(|f| pod_ip(*f, n + 1, pod)).collect()
                    },
                    identity: identity.into(),
                    serial: 1,
                    own: None,
                })));
            }
            Happening::PodGone(n, pod) => {
                self.tell(Event::Endpoint(Change::Delete(format!("x/{n}-{pod}"))));
            }
            Happening::Add(pod) => self.add(pod),
            Happening::Del(pod) => self.del(pod),
            Happening::Leave(pod) => {
                if let Some(endpoint) = self.store.leave(&attachment(pod)) {
                    self.addresses_of(&endpoint);
                }
            }
            Happening::Identity(pod, identity) => {
                let identity = Identity::new(identity.into()).unwrap();
                let changed = self.store.set_identity(&attachment(pod), identity, None);
                if let Some(endpoint) = changed {
                    self.addresses_of(&endpoint);
                }
            }
            Happening::Rewired(pod) => self.rewire(pod),
            Happening::Foreign(what) => self.foreign(what),
            Happening::Restart => self.restart(),
            Happening::Round(full) => self.round(full),
        }
    }

    /// All that the maps hold, with names in the place of the agent's own numbers.
    fn content(&self) -> String {
        let names: BTreeMap<u32, &String> = self
            .peers
            .by_name
            .iter()
            .map(|(n, id)| (id.get(), n))
            .collect();
        let node = |id: u32| {
            names
                .get(&id)
                .map_or_else(|| id.to_string(), ToString::to_string)
        };
        let mut lines: Vec<String> = Vec::new();
        for (key, e) in &self.kernel.endpoints.lock().unwrap().entries {
            lines.push(format!("endpoint {} {}", key.text(), e.identity));
        }
        lines.extend(
            self.kernel
                .interfaces
                .lock()
                .unwrap()
                .entries
                .values()
                .map(|i| format!("interface {:?} {:?} {}", i.v4, i.v6, i.identity)),
        );
        for (key, row) in &self.kernel.ipcache.lock().unwrap().entries {
            let at = node(row.node_id);
            lines.push(format!("row {} {} {at}", key.text(), row.identity));
        }
        for (key, id) in &self.kernel.nodes.lock().unwrap().entries {
            lines.push(format!("node {} {}", key.text(), node(*id)));
        }
        for (id, remote) in &self.kernel.remotes.lock().unwrap().entries {
            let to = remote.tunnel_address;
            lines.push(format!("remote {} {to:?} {}", node(*id), remote.form));
        }
        lines.sort_unstable();
        lines.join("\n")
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happened_a_round_brings_the_maps_to_what_is_desired_and_a_second_writes_nothing(
        steps in vec(happening(), 0..60),
        families in select(&CLUSTERS),
    ) {
        let mut agent = Agent::new(families);
        for step in &steps {
            agent.take(step);
        }
        agent.round(true);
        let wanted = agent.desired(true);
        prop_assert_eq!(&agent.kernel.endpoints.lock().unwrap().entries, &wanted.endpoints);
        prop_assert_eq!(&agent.kernel.interfaces.lock().unwrap().entries, &wanted.interfaces);
        prop_assert_eq!(&agent.kernel.ipcache.lock().unwrap().entries, &wanted.ipcache);
        prop_assert_eq!(&agent.kernel.nodes.lock().unwrap().entries, &wanted.nodes);
        prop_assert_eq!(&agent.kernel.remotes.lock().unwrap().entries, &wanted.remotes);
        let before = agent.kernel.writes();
        agent.round(true);
        prop_assert_eq!(agent.kernel.writes(), before);
    }

    #[test]
    fn rounds_of_one_address_leave_the_maps_as_a_whole_round_does(
        steps in vec(happening(), 0..60),
        families in select(&CLUSTERS),
    ) {
        let mut agent = Agent::new(families);
        // What others write and what a new agent finds is for whole rounds to put right.
        let steps = steps
            .iter()
            .filter(|s| !matches!(s, Happening::Foreign(_) | Happening::Restart));
        for step in steps {
            agent.take(step);
        }
        let before = agent.content();
        agent.round(true);
        prop_assert_eq!(agent.content(), before);
    }

    #[test]
    fn the_order_of_events_adds_and_dels_does_not_count(
        mut steps in vec(happening(), 0..40),
        turn in 0..40usize,
        families in select(&CLUSTERS),
    ) {
        // One event of each thing, so that no order says another last word.
        let mut seen = std::collections::HashSet::new();
        steps.retain(|step| match step {
            Happening::Node(n, _) => seen.insert((0, *n, 0)),
            Happening::Pod(n, p, _) => seen.insert((1, *n, *p)),
            // The pod's number decides its address only if they come in one order.
            Happening::Round(_) | Happening::Restart | Happening::Foreign(_) => true,
            Happening::Add(2) => seen.insert((2, 2, 0)),
            Happening::NodeGone(_)
            | Happening::PodGone(..)
            | Happening::Add(_)
            | Happening::Del(_)
            | Happening::Leave(_)
            | Happening::Identity(..)
            | Happening::Rewired(_) => false,
        });
        let mut other = steps.clone();
        if !other.is_empty() {
            let by = turn % other.len();
            other.rotate_left(by);
        }
        let ends = [&steps, &other].map(|steps| {
            let mut agent = Agent::new(families);
            for step in steps {
                agent.take(step);
            }
            agent.round(true);
            agent.content()
        });
        prop_assert_eq!(&ends[0], &ends[1]);
    }
}
