//! Names of what events have numbers for, as this node's agent knows them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::net::if_::if_indextoname;
use veer_agent_api::{EndpointRow, IdentityRow, MAX_ADDRESSES, PodName, RemoteRow, Request};
use veer_bpf_common::identity::Identity;

use crate::command::{Ask, answer};

/// Time between two questions for what was missing.
const PATIENCE: Duration = Duration::from_secs(1);
/// After which addresses and devices may be those of other pods.
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
    pods: HashMap<IpAddr, String>,
    labels: HashMap<u32, Vec<String>>,
    remotes: HashMap<u32, String>,
    /// Pods' addresses in events since the last question.
    seen: HashSet<IpAddr>,
    missing: Missing,
    /// The last question, and the last for all that may have changed.
    asked: Option<Instant>,
    learned: Option<Instant>,
}

/// What an event had no name for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Missing {
    /// A pod's address.
    pod: bool,
    /// A pod's device or a node.
    local: bool,
    /// An identity.
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

    /// Asks for what was missing or may have changed, at most once in a while. Returns
    /// whether it asked.
    pub(crate) fn refresh(&mut self, ask: Ask<'_>) -> anyhow::Result<bool> {
        let within = |at: Option<Instant>, time| at.is_some_and(|at| at.elapsed() < time);
        let stale = !within(self.learned, FRESH);
        let nothing = self.missing == Missing::default() && !stale;
        if nothing || within(self.asked, PATIENCE) {
            return Ok(false);
        }
        let missing = std::mem::take(&mut self.missing);
        let now = Instant::now();
        self.asked = Some(now);
        if missing.identity {
            self.learn_identities(answer(ask, &Request::Identities)?);
        }
        if missing.local || stale {
            self.learned = Some(now);
            self.learn_remotes(answer(ask, &Request::Remotes)?);
            self.learn_endpoints(answer(ask, &Request::Endpoints)?);
        }
        let unknown = self.seen.drain().filter(|a| !self.pods.contains_key(a));
        let unknown: Vec<IpAddr> = unknown.collect();
        for addresses in unknown.chunks(MAX_ADDRESSES) {
            let addresses = addresses.to_vec();
            let who: Vec<PodName> = answer(ask, &Request::Who { addresses })?;
            self.pods.extend(who.into_iter().map(|row| (row.address, row.pod)));
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
        self.by_device.clear();
        for row in rows {
            self.pods.insert(row.address, row.pod.clone());
            let local = Local {
                id: row.id,
                pod: row.pod,
                device: row.ifname,
            };
            self.by_device.insert(row.ifindex, local);
        }
    }

    /// Labels of an identity; none of 0.
    pub(crate) fn labels(&mut self, identity: u32) -> Vec<String> {
        let labels = self.labels.get(&identity);
        self.missing.identity |= identity != 0 && labels.is_none();
        labels.cloned().unwrap_or_default()
    }

    /// `namespace/name` of the pod with an address and an identity; empty: none.
    pub(crate) fn pod(&mut self, address: IpAddr, identity: u32) -> String {
        let known = self.pods.get(&address).cloned();
        if known.is_some() || Identity::new(identity).is_some_and(Identity::is_allocated) {
            self.missing.pod |= known.is_none();
            self.seen.insert(address);
        }
        known.unwrap_or_default()
    }

    /// A device's name; its number where it has none any more.
    pub(crate) fn device(&self, index: u32) -> String {
        if let Some(local) = self.by_device.get(&index).filter(|l| !l.device.is_empty()) {
            return local.device.clone();
        }
        let name = if_indextoname(index).ok();
        let name = name.and_then(|name| name.into_string().ok());
        name.unwrap_or_else(|| format!("device {index}"))
    }

    /// The pod behind a device, with its number.
    pub(crate) fn endpoint(&mut self, index: u32) -> String {
        match self.by_device.get(&index) {
            Some(local) if local.pod.is_empty() => format!("endpoint {}", local.id),
            Some(local) => format!("endpoint {} ({})", local.id, local.pod),
            None => {
                self.missing.local = true;
                format!("the pod behind {}", self.device(index))
            }
        }
    }

    /// The node with a number.
    pub(crate) fn remote(&mut self, id: u32) -> String {
        match self.remotes.get(&id) {
            Some(node) => node.clone(),
            None => {
                self.missing.local = true;
                id.to_string()
            }
        }
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
        assert_eq!(names.pod("10.0.1.5".parse().unwrap(), 40000), "shop/cart-0");
        assert!(!names.refresh(&ask).unwrap(), "nothing is missing");

        let other = "10.0.2.6".parse().unwrap();
        assert_eq!(names.pod(other, 41000), "");
        // The world is no pod.
        assert_eq!(names.pod("192.0.2.9".parse().unwrap(), 2), "");
        assert!(!names.refresh(&ask).unwrap(), "asked just before");
        names.asked = Instant::now().checked_sub(PATIENCE);
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["who"]);
        assert_eq!(names.pod(other, 41000), "bank/till-0");
    }

    #[test]
    fn names_of_addresses_are_asked_for_again_before_they_are_old() {
        let asked = RefCell::default();
        let ask = agent(&asked);
        let mut names = Names::new("a".into());
        names.refresh(&ask).unwrap();
        names.pod("10.0.2.6".parse().unwrap(), 41000);
        names.asked = Instant::now().checked_sub(PATIENCE);
        names.refresh(&ask).unwrap();
        asked.take();
        assert_eq!(names.pod("10.0.2.6".parse().unwrap(), 41000), "bank/till-0");
        names.asked = Instant::now().checked_sub(FRESH);
        names.learned = names.asked;
        assert!(names.refresh(&ask).unwrap());
        assert_eq!(asked.take(), ["remotes", "endpoints", "who"]);
        assert_eq!(names.pod("10.0.2.6".parse().unwrap(), 41000), "bank/till-0");
    }
}
