//! Names of what events have numbers for, as this node's agent knows them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::net::if_::if_indextoname;
use veer_agent_api::{
    EndpointRow, Frontend, FrontendName, IdentityRow, MAX_ADDRESSES, MAX_FRONTENDS, PodName,
    RemoteRow, Request,
};
use veer_bpf_common::identity::Identity;

use crate::command::{Ask, answer};

/// After which addresses and devices may be those of other pods, and what had no name may
/// have one.
const FRESH: Duration = Duration::from_secs(5);

/// A pod of this node.
#[derive(Clone, Debug)]
struct Local {
    id: u16,
    pod: String,
    device: String,
}

/// Names by number and address.
#[derive(Debug, Default)]
pub(crate) struct Names {
    node: String,
    by_device: HashMap<u32, Local>,
    /// Devices that are no pod's.
    devices: HashMap<u32, String>,
    pods: HashMap<IpAddr, String>,
    /// Of this node's pods.
    identities: HashMap<IpAddr, u32>,
    labels: HashMap<u32, Vec<String>>,
    remotes: HashMap<u32, String>,
    services: HashMap<Frontend, String>,
    /// Frontends without a name, to ask for.
    frontends: Vec<Frontend>,
    /// Pods' addresses in events since all was asked for again.
    seen: HashSet<IpAddr>,
    /// What has no name, and was asked for since then.
    nameless: HashSet<Nameless>,
    missing: Missing,
    learned: Option<Instant>,
}

/// What has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Nameless {
    Pod(IpAddr),
    Device(u32),
    Node(u32),
    Identity(u32),
    Frontend(Frontend),
}

/// What to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missing {
    pod: bool,
    local: bool,
    identity: bool,
}

impl Names {
    /// No names yet, of this node.
    pub(crate) fn new(node: String) -> Self {
        Self {
            node,
            missing: Missing {
                local: true,
                identity: true,
                pod: false,
            },
            ..Self::default()
        }
    }

    /// The node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Asks for what was missing or may have changed: for each once in a while. Returns
    /// whether it asked. After an error events have numbers for a while.
    pub(crate) fn refresh(&mut self, ask: Ask<'_>) -> anyhow::Result<bool> {
        let stale = self.learned.is_none_or(|at| at.elapsed() >= FRESH);
        if self.missing == Missing::default() && self.frontends.is_empty() && !stale {
            return Ok(false);
        }
        let missing = std::mem::take(&mut self.missing);
        if stale {
            self.nameless.clear();
        }
        if missing.identity {
            self.learn_identities(answer(ask, &Request::Identities)?);
        }
        let learns = missing.local || stale;
        if learns {
            self.learned = Some(Instant::now());
            self.learn_remotes(answer(ask, &Request::Remotes)?);
            self.learn_endpoints(answer(ask, &Request::Endpoints)?);
        }
        let unknown = self.seen.iter().filter(|a| !self.pods.contains_key(a));
        let unknown: Vec<IpAddr> = unknown.copied().collect();
        if learns {
            self.seen.clear();
        }
        for addresses in unknown.chunks(MAX_ADDRESSES) {
            let addresses = addresses.to_vec();
            let who: Vec<PodName> = answer(ask, &Request::Who { addresses })?;
            self.pods
                .extend(who.into_iter().map(|row| (row.address, row.pod)));
        }
        for frontends in std::mem::take(&mut self.frontends).chunks(MAX_FRONTENDS) {
            let frontends = frontends.to_vec();
            let named: Vec<FrontendName> = answer(ask, &Request::Frontends { frontends })?;
            self.services
                .extend(named.into_iter().map(|row| (row.frontend, row.service)));
        }
        Ok(true)
    }

    fn learn_identities(&mut self, rows: Vec<IdentityRow>) {
        let labels = rows.into_iter().map(|row| (row.identity, row.labels));
        self.labels = labels.collect();
    }

    fn learn_remotes(&mut self, rows: Vec<RemoteRow>) {
        let remotes = rows.into_iter().map(|row| (row.node_id, row.node));
        self.remotes = remotes.collect();
    }

    /// This node's pods. The others' names are forgotten: their addresses may be those of
    /// other pods now.
    fn learn_endpoints(&mut self, rows: Vec<EndpointRow>) {
        self.pods.clear();
        self.identities.clear();
        self.by_device.clear();
        self.devices.clear();
        self.services.clear();
        for row in rows {
            self.pods.insert(row.address, row.pod.clone());
            self.identities.insert(row.address, row.identity);
            let local = Local {
                id: row.id,
                pod: row.pod,
                device: row.ifname,
            };
            self.by_device.insert(row.ifindex, local);
        }
    }

    /// Whether something without a name was not asked for yet.
    fn is_new(&mut self, what: Nameless) -> bool {
        self.nameless.insert(what)
    }

    /// Labels of an identity; none of 0.
    pub(crate) fn labels(&mut self, identity: u32) -> Vec<String> {
        if let Some(labels) = self.labels.get(&identity) {
            return labels.clone();
        }
        self.missing.identity |= identity != 0 && self.is_new(Nameless::Identity(identity));
        Vec::new()
    }

    /// The identity of this node's pod with an address; 0: it is none.
    pub(crate) fn identity(&self, address: IpAddr) -> u32 {
        self.identities.get(&address).copied().unwrap_or_default()
    }

    /// `namespace/name` of the pod with an address and an identity; empty: none.
    pub(crate) fn pod(&mut self, address: IpAddr, identity: u32) -> String {
        if let Some(pod) = self.pods.get(&address) {
            self.seen.insert(address);
            return pod.clone();
        }
        if Identity::new(identity).is_some_and(Identity::is_allocated) {
            self.seen.insert(address);
            self.missing.pod |= self.is_new(Nameless::Pod(address));
        }
        String::new()
    }

    /// The Service with a frontend, as [`FrontendName::service`]; empty: none.
    pub(crate) fn service(&mut self, frontend: Frontend) -> String {
        if let Some(service) = self.services.get(&frontend) {
            return service.clone();
        }
        if self.is_new(Nameless::Frontend(frontend)) {
            self.frontends.push(frontend);
        }
        String::new()
    }

    /// Frontends that are to be asked for.
    #[cfg(test)]
    pub(crate) fn frontends(&self) -> &[Frontend] {
        &self.frontends
    }

    /// `namespace/name` of the pod behind a device.
    pub(crate) fn pod_behind(&mut self, index: u32) -> Option<String> {
        if let Some(local) = self.by_device.get(&index) {
            return Some(local.pod.clone());
        }
        self.missing.local |= self.is_new(Nameless::Device(index));
        None
    }

    /// A device's name; its number where it has none any more.
    pub(crate) fn device(&mut self, index: u32) -> String {
        if let Some(local) = self.by_device.get(&index)
            && !local.device.is_empty()
        {
            return local.device.clone();
        }
        let device = self.devices.entry(index).or_insert_with(|| {
            let name = if_indextoname(index).ok();
            let name = name.and_then(|name| name.into_string().ok());
            name.unwrap_or_else(|| format!("device {index}"))
        });
        device.clone()
    }

    /// The pod behind a device, with its number.
    pub(crate) fn endpoint(&mut self, index: u32) -> String {
        let pod = self.pod_behind(index);
        match (self.by_device.get(&index), pod) {
            (Some(local), Some(pod)) if !pod.is_empty() => {
                format!("endpoint {} ({pod})", local.id)
            }
            (Some(local), _) => format!("endpoint {}", local.id),
            (None, _) => format!("the pod behind {}", self.device(index)),
        }
    }

    /// The node with a number.
    pub(crate) fn remote(&mut self, id: u32) -> String {
        if let Some(node) = self.remotes.get(&id) {
            return node.clone();
        }
        self.missing.local |= self.is_new(Nameless::Node(id));
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use serde_json::{Value, json};

    use super::*;

    /// An agent with one pod, one identity and one node; what it was asked.
    fn agent(asked: &RefCell<Vec<&'static str>>) -> impl Fn(&Request) -> anyhow::Result<Value> {
        move |request| {
            #[expect(clippy::wildcard_enum_match_arm, reason = "all that names ask for")]
            let (name, value) = match request {
                Request::Endpoints => (
                    "endpoints",
                    json!([{
                        "address": "10.0.1.5", "id": 7, "identity": 40000, "pod": "shop/cart-0",
                        "ifindex": 12, "ifname": "veer000000001", "mac": "", "node_mac": "",
                    }]),
                ),
                Request::Identities => (
                    "identities",
                    json!([{"identity": 40000, "state": "Active", "labels": ["app=cart"]}]),
                ),
                Request::Remotes => ("remotes", json!([])),
                Request::Who { addresses } => {
                    assert_eq!(addresses, &["10.0.2.6".parse::<IpAddr>().unwrap()]);
                    let row = json!([{"address": "10.0.2.6", "pod": "bank/till-0", "node": "b"}]);
                    ("who", row)
                }
                Request::Frontends { frontends } => {
                    let row = json!([{"frontend": frontends[0], "service": "shop/cart:http"}]);
                    ("frontends", row)
                }
                other => panic!("{other:?}"),
            };
            asked.borrow_mut().push(name);
            Ok(value)
        }
    }

    #[test]
    fn names_are_asked_for_as_they_are_missed_and_not_again_at_once() {
        let asked = RefCell::default();
        let ask = agent(&asked);
        let mut names = Names::new("a".into());
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["identities", "remotes", "endpoints"]);
        assert_eq!(names.endpoint(12), "endpoint 7 (shop/cart-0)");
        assert_eq!(names.labels(40000), ["app=cart"]);
        let own = "10.0.1.5".parse().unwrap();
        assert_eq!(names.pod(own, 40000), "shop/cart-0");
        assert_eq!(names.identity(own), 40000);
        assert!(!names.refresh(&ask).unwrap(), "nothing is missing");

        let other = "10.0.2.6".parse().unwrap();
        assert_eq!(names.pod(other, 41000), "");
        // The world is no pod.
        assert_eq!(names.pod("192.0.2.9".parse().unwrap(), 2), "");
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["who"]);
        assert_eq!(names.pod(other, 41000), "bank/till-0");

        assert!(names.labels(41000).is_empty());
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["identities"]);
        assert!(names.labels(41000).is_empty());
        assert!(
            !names.refresh(&ask).unwrap(),
            "it was asked for just before"
        );
    }

    #[test]
    fn a_service_is_asked_for_by_its_frontend_and_again_when_it_may_be_another() {
        let asked = RefCell::default();
        let ask = agent(&asked);
        let mut names = Names::new("a".into());
        let frontend = Frontend {
            at: "10.96.0.10:80".parse().unwrap(),
            protocol: 6,
        };
        names.refresh(&ask).unwrap();
        for _ in 0..2 {
            asked.take();
            assert_eq!(names.service(frontend), "");
            assert_eq!(names.service(frontend), "");
            assert!(names.refresh(&ask).unwrap());
            assert_eq!(asked.take(), ["frontends"]);
            assert_eq!(names.service(frontend), "shop/cart:http");
            names.learned = Instant::now().checked_sub(FRESH);
            assert!(names.refresh(&ask).unwrap());
        }
    }

    #[test]
    fn names_of_addresses_are_asked_for_again_before_they_are_old() {
        let asked = RefCell::default();
        let ask = agent(&asked);
        let mut names = Names::new("a".into());
        let other = "10.0.2.6".parse().unwrap();
        names.refresh(&ask).unwrap();
        names.pod(other, 41000);
        names.refresh(&ask).unwrap();
        asked.take();
        assert_eq!(names.pod(other, 41000), "bank/till-0");
        names.learned = Instant::now().checked_sub(FRESH);
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["remotes", "endpoints", "who"]);
        assert_eq!(names.pod(other, 41000), "bank/till-0");
    }
}
