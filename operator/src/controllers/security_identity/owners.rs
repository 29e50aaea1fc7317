//! Finds labels that make an identity of almost every pod of one owner: plain data.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::index::Set;

/// From how many label sets of one owner on a label is suspected.
const MANY: usize = 10;

/// A label that makes many identities.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Suspect {
    /// Its key.
    pub(crate) key: String,
    /// The pods' namespace.
    pub(crate) namespace: String,
    /// What made the pods, as `Kind name`.
    pub(crate) owner: String,
}

/// The label sets of each owner's pods, with the number of pods.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    sets: HashMap<(String, String), HashMap<Set, usize>>,
    /// Labels under suspicion that were not taken yet, and how many pods of how
    /// many have a value of their own.
    suspects: BTreeMap<Suspect, (usize, usize)>,
}

impl Owners {
    /// A pod of an owner uses a set.
    pub(crate) fn put(&mut self, namespace: &str, owner: &str, set: &Set) {
        let key = (namespace.to_owned(), owner.to_owned());
        let sets = self.sets.entry(key).or_default();
        let pods = sets.entry(set.clone()).or_default();
        *pods += 1;
        let fresh = *pods == 1;
        // Looked at again with every doubling, not with every pod.
        let count = sets.len();
        if fresh && (count == MANY || (count > MANY && count.is_power_of_two())) {
            self.judge(namespace, owner);
        }
    }

    /// A pod of an owner uses a set no more.
    pub(crate) fn remove(&mut self, namespace: &str, owner: &str, set: &Set) {
        let key = (namespace.to_owned(), owner.to_owned());
        let Some(sets) = self.sets.get_mut(&key) else {
            return;
        };
        if let Some(pods) = sets.get_mut(set) {
            *pods = pods.saturating_sub(1);
            if *pods == 0 {
                sets.remove(set);
            }
        }
        if sets.is_empty() {
            self.sets.remove(&key);
        }
    }

    /// The labels that came under suspicion.
    pub(crate) fn take(&mut self) -> BTreeMap<Suspect, (usize, usize)> {
        std::mem::take(&mut self.suspects)
    }

    fn judge(&mut self, namespace: &str, owner: &str) {
        let Some(sets) = self.sets.get(&(namespace.to_owned(), owner.to_owned())) else {
            return;
        };
        let pods: usize = sets.values().sum();
        let mut values: HashMap<&str, HashSet<&str>> = HashMap::new();
        for set in sets.keys() {
            for (key, value) in set.iter() {
                values.entry(key).or_default().insert(value);
            }
        }
        for (key, values) in values {
            if values.len() * 10 >= pods * 9 {
                let suspect = Suspect {
                    key: key.to_owned(),
                    namespace: namespace.to_owned(),
                    owner: owner.to_owned(),
                };
                self.suspects.insert(suspect, (values.len(), pods));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn set(labels: &[(&str, String)]) -> Set {
        let owned = |(k, v): &(&str, String)| ((*k).to_owned(), v.clone());
        Arc::new(labels.iter().map(owned).collect())
    }

    #[test]
    fn a_label_with_another_value_on_every_pod_of_an_owner_is_suspected_once() {
        let mut owners = Owners::default();
        for i in 0..12 {
            let shard = ["a", "b"][i % 2].to_owned();
            let set = set(&[
                ("app", "web".into()),
                ("shard", shard),
                ("uid", i.to_string()),
            ]);
            owners.put("shop", "Run r", &set);
        }
        let found: Vec<_> = owners.take().into_iter().collect();
        let suspect = Suspect {
            key: "uid".into(),
            namespace: "shop".into(),
            owner: "Run r".into(),
        };
        assert_eq!(found, [(suspect, (10, 10))]);
        assert!(owners.take().is_empty());
    }

    #[test]
    fn many_pods_of_few_sets_and_many_owners_of_one_are_not_suspected() {
        let mut owners = Owners::default();
        for i in 0..100 {
            let app = set(&[("app", format!("app-{i}"))]);
            owners.put("shop", &format!("ReplicaSet {i}"), &app);
            owners.put("shop", "Run r", &set(&[("shard", (i % 9).to_string())]));
        }
        assert!(owners.take().is_empty());
        for i in 0..100 {
            owners.remove("shop", "Run r", &set(&[("shard", (i % 9).to_string())]));
        }
        assert_eq!(owners.sets.len(), 100);
    }
}
