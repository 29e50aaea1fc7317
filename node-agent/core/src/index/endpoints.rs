//! PodEndpoints of all nodes, by object and by address.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use veer_bpf_common::identity::Identity;
use veer_crds::v1alpha1::PodEndpointSpec;

use super::Change;

/// What counts of a PodEndpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct PodEndpointRow {
    /// `namespace/name` of the object.
    pub key: String,
    /// The node that wrote it.
    pub node: String,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod's identity as written there.
    pub identity: i64,
    /// Allocation serial.
    pub serial: i64,
    /// All that the object says; of the own node's only, which it is compared for.
    pub own: Option<Box<OwnRow>>,
}

/// A PodEndpoint of the own node as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnRow {
    /// resourceVersion; 0: of its order nothing is known.
    pub version: u64,
    /// UID of the pod that owns the object; empty: nobody does.
    pub owner: String,
    /// Its spec.
    pub spec: PodEndpointSpec,
}

/// Who has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemotePod<'a> {
    /// The object, `namespace/name`.
    pub key: &'a str,
    /// Its node.
    pub node: &'a str,
    /// Its identity; `init` where the object names none that a pod can have.
    pub identity: Identity,
}

/// All wired pods.
#[derive(Debug, Default)]
pub struct Endpoints {
    node: String,
    by_key: HashMap<String, PodEndpointRow>,
    by_address: HashMap<IpAddr, Vec<String>>,
    /// Those that name the own node.
    own: HashSet<String>,
}

impl Endpoints {
    /// None yet; of the node with this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            ..Self::default()
        }
    }

    /// Takes a change in and returns the addresses whose rows may differ now.
    pub fn handle(&mut self, change: Change<String, PodEndpointRow>) -> HashSet<IpAddr> {
        match change {
            Change::Apply(row) => self.apply(row),
            Change::Delete(key) => self.remove(&key),
            Change::Doubted(rows, gone) => {
                let mut touched = HashSet::new();
                for key in gone {
                    touched.extend(self.remove(&key));
                }
                for row in rows {
                    touched.extend(self.apply(row));
                }
                touched
            }
            Change::Snapshot(rows) => {
                let mut touched: HashSet<IpAddr> = self.by_address.keys().copied().collect();
                *self = Self::new(&self.node);
                for row in rows {
                    touched.extend(self.apply(row));
                }
                touched
            }
        }
    }

    fn apply(&mut self, row: PodEndpointRow) -> HashSet<IpAddr> {
        if self.by_key.get(&row.key) == Some(&row) {
            return HashSet::new();
        }
        let mut touched = self.remove(&row.key);
        for address in &row.addresses {
            self.by_address
                .entry(*address)
                .or_default()
                .push(row.key.clone());
            touched.insert(*address);
        }
        if row.node == self.node {
            self.own.insert(row.key.clone());
        }
        self.by_key.insert(row.key.clone(), row);
        touched
    }

    fn remove(&mut self, key: &str) -> HashSet<IpAddr> {
        let Some(row) = self.by_key.remove(key) else {
            return HashSet::new();
        };
        self.own.remove(key);
        for address in &row.addresses {
            if let Some(keys) = self.by_address.get_mut(address) {
                keys.retain(|k| k != key);
                if keys.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        row.addresses.into_iter().collect()
    }

    /// Of those who claim an address and may, the one with the highest serial.
    pub(super) fn winner(
        &self,
        address: IpAddr,
        may: impl Fn(&str, IpAddr) -> bool,
    ) -> Option<RemotePod<'_>> {
        self.by_address
            .get(&address)?
            .iter()
            .filter_map(|key| self.by_key.get(key))
            .filter(|row| may(&row.node, address))
            .max_by(|a, b| (a.serial, &a.key).cmp(&(b.serial, &b.key)))
            .map(|row| RemotePod {
                key: &row.key,
                node: &row.node,
                identity: u32::try_from(row.identity)
                    .ok()
                    .and_then(Identity::new)
                    .filter(|identity| identity.is_allocated())
                    .unwrap_or(Identity::INIT),
            })
    }

    /// All addresses that any object names.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.by_address.keys().copied()
    }

    /// Name of the own node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether the object is there and says that it is the own node's.
    pub fn is_own(&self, key: &str) -> bool {
        self.own.contains(key)
    }

    /// The other node that the object, if it is there, says it is of.
    pub fn taken_by(&self, key: &str) -> Option<&str> {
        let row = self.by_key.get(key)?;
        (row.node != self.node).then_some(&*row.node)
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<&PodEndpointRow> {
        self.by_key.get(key)
    }

    /// The objects of the own node.
    pub fn own(&self) -> impl Iterator<Item = &PodEndpointRow> {
        self.own.iter().filter_map(|key| self.by_key.get(key))
    }

    /// How many objects there are of other nodes.
    pub fn remote_len(&self) -> usize {
        self.by_key.len() - self.own.len()
    }
}
