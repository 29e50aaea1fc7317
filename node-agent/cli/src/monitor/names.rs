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

/// Time between two looks for what was missing.
const PATIENCE: Duration = Duration::from_secs(1);
/// Numbers of nodes, identities and pods' addresses that are remembered; with more all
/// are forgotten and asked for again as they come.
const REMEMBERED: usize = 1 << 17;

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
    /// Pods' addresses without a name so far.
    unknown: HashSet<IpAddr>,
    /// Something else was missing.
    missing: bool,
    asked: Option<Instant>,
}

impl Names {
    /// No names yet, of this node.
    pub(crate) fn new(node: String) -> Self {
        Self {
            node,
            missing: true,
            ..Self::default()
        }
    }

    /// The node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Asks for what was missing, at most once in a while. Returns whether it asked.
    pub(crate) fn refresh(&mut self, ask: Ask<'_>) -> anyhow::Result<bool> {
        let due = self.asked.is_none_or(|at| at.elapsed() >= PATIENCE);
        if !due || (!self.missing && self.unknown.is_empty()) {
            return Ok(false);
        }
        self.asked = Some(Instant::now());
        if self.pods.len() > REMEMBERED {
            self.pods.clear();
        }
        if self.missing {
            self.missing = false;
            self.learn(
                answer(ask, &Request::Endpoints)?,
                answer(ask, &Request::Identities)?,
                answer(ask, &Request::Remotes)?,
            );
        }
        let unknown: Vec<IpAddr> = self.unknown.drain().take(MAX_ADDRESSES).collect();
        if !unknown.is_empty() {
            let who: Vec<PodName> = answer(ask, &Request::Who { addresses: unknown })?;
            self.pods
                .extend(who.into_iter().map(|row| (row.address, row.pod)));
        }
        Ok(true)
    }

    fn learn(
        &mut self,
        endpoints: Vec<EndpointRow>,
        identities: Vec<IdentityRow>,
        remotes: Vec<RemoteRow>,
    ) {
        for row in endpoints {
            self.pods.insert(row.address, row.pod.clone());
            let local = Local {
                id: row.id,
                pod: row.pod,
                device: row.ifname,
            };
            self.by_device.insert(row.ifindex, local);
        }
        let labels = identities.into_iter().map(|row| (row.identity, row.labels));
        self.labels = labels.collect();
        let remotes = remotes.into_iter().map(|row| (row.node_id, row.node));
        self.remotes = remotes.collect();
    }

    /// Labels of an identity; none of 0.
    pub(crate) fn labels(&mut self, identity: u32) -> Vec<String> {
        let labels = self.labels.get(&identity);
        self.missing |= identity != 0 && labels.is_none();
        labels.cloned().unwrap_or_default()
    }

    /// `namespace/name` of the pod with an address and an identity; empty: none.
    pub(crate) fn pod(&mut self, address: IpAddr, identity: u32) -> String {
        if let Some(pod) = self.pods.get(&address) {
            return pod.clone();
        }
        if Identity::new(identity).is_some_and(Identity::is_allocated) {
            self.unknown.insert(address);
        }
        String::new()
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
                self.missing = true;
                format!("the pod behind {}", self.device(index))
            }
        }
    }

    /// The node with a number.
    pub(crate) fn remote(&mut self, id: u32) -> String {
        match self.remotes.get(&id) {
            Some(node) => node.clone(),
            None => {
                self.missing = true;
                id.to_string()
            }
        }
    }
}
