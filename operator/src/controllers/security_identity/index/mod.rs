//! Which label sets pods use: plain data, filled by watches and judged without
//! an API server.
//!
//! Pods of one set share one copy of it. Each change touches the pods it is
//! about and nothing else; only a change of the label filter touches all.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use veer_crds::labels::{PodIdentityInput, canonical};
use veer_crds::v1alpha1::IdentityLabels;

use super::owners::{Owners, Suspect};
use super::state::Numbers;
use crate::slim::{SlimNamespace, SlimPod};

/// Labels, shared.
pub(crate) type Set = Arc<BTreeMap<String, String>>;

/// What the two parts of the controller share.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    index: Mutex<Index>,
    numbers: Mutex<Numbers>,
}

impl Usage {
    /// Access to the index; never held across an await, nor with the numbers.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Access to the numbers; never held across an await, nor with the index.
    pub(crate) fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a pod that count.
#[derive(Debug)]
struct Entry {
    account: String,
    owner: Option<String>,
    labels: Set,
    /// Absent until the namespace's labels are known.
    set: Option<Set>,
}

/// Pods and namespaces, as far as identities go.
#[derive(Debug, Default)]
pub(crate) struct Index {
    filter: IdentityLabels,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    pods: HashMap<String, HashMap<String, Entry>>,
    /// Pods of each set in use.
    users: HashMap<Set, usize>,
    /// The sets by what made the pods.
    owners: Owners,
    /// Sets that came into use or fell out of it since they were last taken.
    dirty: HashSet<Set>,
    /// Both watches have given their first list.
    complete: bool,
}

impl Index {
    /// Whether any pod uses the set; unknown before the first lists are in.
    pub(crate) fn in_use(&self, set: &BTreeMap<String, String>) -> Option<bool> {
        // A set in use is in use, whatever the rest of the lists says.
        if self.users.contains_key(set) {
            Some(true)
        } else {
            self.complete.then_some(false)
        }
    }

    /// The first lists are in.
    pub(crate) fn set_complete(&mut self) {
        self.complete = true;
    }

    /// The sets that came into use or fell out of it, once each.
    pub(crate) fn take_dirty(&mut self) -> Vec<Set> {
        self.dirty.drain().collect()
    }

    /// Labels that came under suspicion of making an identity of every pod, and how
    /// many pods of how many have a value of their own.
    pub(crate) fn take_suspects(&mut self) -> BTreeMap<Suspect, (usize, usize)> {
        self.owners.take()
    }

    /// Every set in use.
    pub(crate) fn sets(&self) -> Vec<Set> {
        self.users.keys().cloned().collect()
    }

    /// A pod is new or changed.
    pub(crate) fn apply_pod(&mut self, pod: &SlimPod) {
        let (namespace, name) = key(pod);
        if !pod.has_network() {
            self.delete_pod(pod);
            return;
        }
        let labels = pod.labels();
        let account = &pod.spec.service_account_name;
        let old = self.pods.get(namespace).and_then(|pods| pods.get(name));
        if old.is_some_and(|old| *old.labels == labels && old.account == *account) {
            return;
        }
        let account = account.clone();
        let entry = self.entry(namespace, account, pod.owner(), Arc::new(labels));
        self.put(namespace, name, entry);
    }

    /// A pod is gone.
    pub(crate) fn delete_pod(&mut self, pod: &SlimPod) {
        let (namespace, name) = key(pod);
        self.remove(namespace, name);
    }

    /// A namespace is new or changed.
    pub(crate) fn apply_namespace(&mut self, namespace: &SlimNamespace) {
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let labels = namespace.metadata.labels.clone().unwrap_or_default();
        if self.namespaces.get(&name) == Some(&labels) {
            return;
        }
        self.namespaces.insert(name.clone(), labels);
        self.recompute(&name);
    }

    /// A namespace is gone; its pods went before it.
    pub(crate) fn delete_namespace(&mut self, namespace: &SlimNamespace) {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        self.namespaces.remove(name);
    }

    /// After a new list of pods: those not in it are gone.
    pub(crate) fn keep_pods(&mut self, listed: &HashSet<(String, String)>) {
        let gone: Vec<(String, String)> = self
            .pods
            .iter()
            .flat_map(|(namespace, pods)| pods.keys().map(|p| (namespace.clone(), p.clone())))
            .filter(|pod| !listed.contains(pod))
            .collect();
        for (namespace, name) in gone {
            self.remove(&namespace, &name);
        }
    }

    /// The user chose which labels count.
    pub(crate) fn set_filter(&mut self, filter: &IdentityLabels) {
        if self.filter == *filter {
            return;
        }
        self.filter = filter.clone();
        let names: Vec<String> = self.pods.keys().cloned().collect();
        for name in names {
            self.recompute(&name);
        }
    }

    /// The canonical set of a pod under the filter and namespaces known now.
    pub(crate) fn canonical(&self, pod: &SlimPod) -> Option<BTreeMap<String, String>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        self.canonical_of(namespace, &pod.spec.service_account_name, &pod.labels())
    }

    fn canonical_of(
        &self,
        namespace: &str,
        service_account: &str,
        labels: &BTreeMap<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        let namespace_labels = self.namespaces.get(namespace)?;
        let pod = PodIdentityInput {
            namespace,
            namespace_labels,
            service_account,
            labels,
        };
        Some(canonical(pod, &self.filter))
    }

    fn entry(&self, namespace: &str, account: String, owner: Option<String>, labels: Set) -> Entry {
        let set = self.canonical_of(namespace, &account, &labels).map(|set| {
            match self.users.get_key_value(&set) {
                Some((shared, _)) => Arc::clone(shared),
                None => Arc::new(set),
            }
        });
        // A pod whose labels all count differently is rare; most share nothing
        // with their set but text, so the labels are kept as they came.
        Entry {
            account,
            owner,
            labels,
            set,
        }
    }

    fn put(&mut self, namespace: &str, name: &str, entry: Entry) {
        if let Some(set) = &entry.set {
            let users = self.users.entry(Arc::clone(set)).or_default();
            *users += 1;
            if *users == 1 {
                self.dirty.insert(Arc::clone(set));
            }
            if let Some(owner) = &entry.owner {
                self.owners.put(namespace, owner, set);
            }
        }
        let pods = self.pods.entry(namespace.to_owned()).or_default();
        let old = pods.insert(name.to_owned(), entry);
        self.drop_use(namespace, old);
    }

    fn remove(&mut self, namespace: &str, name: &str) {
        let Some(pods) = self.pods.get_mut(namespace) else {
            return;
        };
        let old = pods.remove(name);
        let empty = pods.is_empty();
        if empty {
            self.pods.remove(namespace);
        }
        self.drop_use(namespace, old);
    }

    fn drop_use(&mut self, namespace: &str, entry: Option<Entry>) {
        let Some((owner, set)) = entry.and_then(|e| Some((e.owner, e.set?))) else {
            return;
        };
        if let Some(owner) = owner {
            self.owners.remove(namespace, &owner, &set);
        }
        let left = self
            .users
            .get(&set)
            .map_or(0, |users| users.saturating_sub(1));
        if left > 0 {
            self.users.insert(set, left);
        } else {
            self.users.remove(&set);
            self.dirty.insert(set);
        }
    }

    fn recompute(&mut self, namespace: &str) {
        let Some(pods) = self.pods.get(namespace) else {
            return;
        };
        let again: Vec<(String, Entry)> = pods
            .iter()
            .map(|(name, old)| {
                let labels = Arc::clone(&old.labels);
                (
                    name.clone(),
                    self.entry(namespace, old.account.clone(), old.owner.clone(), labels),
                )
            })
            .collect();
        for (name, entry) in again {
            self.put(namespace, &name, entry);
        }
    }
}

fn key(pod: &SlimPod) -> (&str, &str) {
    let meta = &pod.metadata;
    (
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests;
