//! Identities by label set, and what makes an own pod's set: the pod and its
//! namespace.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use veer_bpf_common::identity::Identity;
use veer_crds::{
    labels::{PodIdentityInput, canonical},
    v1alpha1::IdentityLabels,
};

use super::Change;

/// What counts of a SecurityIdentity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    /// The number.
    pub number: Identity,
    /// The set it stands for.
    pub labels: BTreeMap<String, String>,
    /// Whether it may be assigned.
    pub active: bool,
    /// Seconds since 1970 at which it was created.
    pub created: i64,
}

/// What counts of a Pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRecord {
    /// UID of the API object.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Service account.
    pub service_account: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotation `kubernetes.io/config.hash`: the kubelet's UID of a static pod.
    pub config_hash: Option<String>,
    /// Addresses that its status names.
    pub addresses: Vec<IpAddr>,
    /// It has run to its end: its addresses are free, whatever its status says.
    pub ended: bool,
    /// It asks for a limit of its bandwidth.
    pub bandwidth: bool,
}

impl PodRecord {
    /// Whether the kubelet calls it so: by its object's UID, or, a static pod, by
    /// its configuration's hash.
    pub fn goes_by(&self, uid: &str) -> bool {
        !uid.is_empty() && (self.uid == uid || self.config_hash.as_deref() == Some(uid))
    }
}

/// What is known of an own pod's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The number, and the UID of the API object.
    Known(Identity, String),
    /// The pod is known (by its object's UID), its number is not yet.
    NoNumber(String),
    /// The pod is not known yet.
    NoPod,
}

/// Identities, namespaces and own pods.
#[derive(Debug, Default)]
pub struct Identities {
    by_number: BTreeMap<Identity, IdentityRecord>,
    /// Numbers by the hash of their sets; more than one only for a set found
    /// twice, or a collision.
    by_hash: HashMap<u64, Vec<Identity>>,
    namespaces: HashMap<String, BTreeMap<String, String>>,
    pods: HashMap<String, PodRecord>,
}

impl Identities {
    pub(super) fn handle_identity(&mut self, change: Change<Identity, IdentityRecord>) {
        match change {
            Change::Apply(record) => self.insert(record),
            Change::Delete(number) => self.remove(number),
            Change::Doubted(records, gone) => {
                for number in gone {
                    self.remove(number);
                }
                for record in records {
                    self.insert(record);
                }
            }
            Change::Snapshot(records) => {
                self.by_number.clear();
                self.by_hash.clear();
                for record in records {
                    self.insert(record);
                }
            }
        }
    }

    fn insert(&mut self, record: IdentityRecord) {
        self.remove(record.number);
        let hash = veer_crds::labels::hash(&record.labels);
        self.by_hash.entry(hash).or_default().push(record.number);
        self.by_number.insert(record.number, record);
    }

    fn remove(&mut self, number: Identity) {
        let Some(old) = self.by_number.remove(&number) else {
            return;
        };
        let hash = veer_crds::labels::hash(&old.labels);
        if let Some(numbers) = self.by_hash.get_mut(&hash) {
            numbers.retain(|n| *n != number);
            if numbers.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }

    pub(super) fn handle_namespace(
        &mut self,
        change: Change<String, (String, BTreeMap<String, String>)>,
    ) {
        match change {
            Change::Apply((name, labels)) => {
                self.namespaces.insert(name, labels);
            }
            Change::Delete(name) => {
                self.namespaces.remove(&name);
            }
            Change::Doubted(all, gone) => {
                self.namespaces.retain(|name, _| !gone.contains(name));
                self.namespaces.extend(all);
            }
            Change::Snapshot(all) => self.namespaces = all.into_iter().collect(),
        }
    }

    pub(super) fn handle_pod(&mut self, change: Change<String, PodRecord>) {
        match change {
            Change::Apply(pod) => {
                self.pods.insert(pod.uid.clone(), pod);
            }
            Change::Delete(uid) => {
                self.pods.remove(&uid);
            }
            Change::Doubted(all, gone) => {
                self.pods.retain(|uid, _| !gone.contains(uid));
                self.pods
                    .extend(all.into_iter().map(|p| (p.uid.clone(), p)));
            }
            Change::Snapshot(all) => {
                self.pods = all.into_iter().map(|p| (p.uid.clone(), p)).collect();
            }
        }
    }

    /// Pods of this node that have addresses and have not ended.
    pub(super) fn wired_pods(&self) -> impl Iterator<Item = &PodRecord> {
        let pods = self.pods.values();
        pods.filter(|p| !p.ended && !p.addresses.is_empty())
    }

    fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<&PodRecord> {
        if let Some(pod) = self.pods.get(uid) {
            return Some(pod);
        }
        self.pods.values().find(|p| {
            let same_name = p.namespace == namespace && p.name == name;
            same_name && (uid.is_empty() || p.config_hash.as_deref() == Some(uid))
        })
    }

    pub(super) fn resolve(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        filter: Option<&IdentityLabels>,
    ) -> Resolution {
        let Some(pod) = self.pod(namespace, name, uid) else {
            return Resolution::NoPod;
        };
        let waiting = Resolution::NoNumber(pod.uid.clone());
        let (Some(namespace_labels), Some(filter)) = (self.namespaces.get(&pod.namespace), filter)
        else {
            return waiting;
        };
        let set = canonical(
            PodIdentityInput {
                namespace: &pod.namespace,
                namespace_labels,
                service_account: &pod.service_account,
                labels: &pod.labels,
            },
            filter,
        );
        self.number_of(&set)
            .map_or(waiting, |n| Resolution::Known(n, pod.uid.clone()))
    }

    /// The number of a set. The older of two counts: the younger retires.
    fn number_of(&self, set: &BTreeMap<String, String>) -> Option<Identity> {
        self.by_hash
            .get(&veer_crds::labels::hash(set))?
            .iter()
            .filter_map(|n| self.by_number.get(n))
            .filter(|r| r.active && r.labels == *set)
            .min_by_key(|r| (r.created, r.number))
            .map(|r| r.number)
    }

    /// All identities in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &IdentityRecord> {
        self.by_number.values()
    }

    /// How many identities there are.
    pub fn len(&self) -> usize {
        self.by_number.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(app: &str) -> BTreeMap<String, String> {
        canonical(
            PodIdentityInput {
                namespace: "shop",
                namespace_labels: &BTreeMap::new(),
                service_account: "default",
                labels: &BTreeMap::from([("app".into(), app.into())]),
            },
            &IdentityLabels::default(),
        )
    }

    fn record(number: u32, app: &str, created: i64) -> IdentityRecord {
        IdentityRecord {
            number: Identity::new(number).unwrap(),
            labels: set(app),
            active: true,
            created,
        }
    }

    fn known(number: u32, uid: String) -> Resolution {
        Resolution::Known(Identity::new(number).unwrap(), uid)
    }

    fn with_pod() -> Identities {
        let mut ids = Identities::default();
        ids.handle_namespace(Change::Apply(("shop".into(), BTreeMap::new())));
        ids.handle_pod(Change::Apply(PodRecord {
            uid: "u1".into(),
            namespace: "shop".into(),
            name: "web-0".into(),
            labels: BTreeMap::from([("app".into(), "web".into())]),
            config_hash: Some("hash".into()),
            ..PodRecord::default()
        }));
        ids
    }

    fn resolve(ids: &Identities, uid: &str) -> Resolution {
        ids.resolve("shop", "web-0", uid, Some(&IdentityLabels::default()))
    }

    #[test]
    fn a_pod_has_no_number_until_one_for_its_set_is_seen() {
        let mut ids = with_pod();
        assert_eq!(resolve(&ids, "u1"), Resolution::NoNumber("u1".into()));
        ids.handle_identity(Change::Apply(record(300, "web", 1)));
        assert_eq!(resolve(&ids, "u1"), known(300, "u1".into()));
        assert_eq!(resolve(&ids, "other"), Resolution::NoPod);
    }

    #[test]
    fn a_static_pod_is_found_by_its_config_hash() {
        let mut ids = with_pod();
        ids.handle_identity(Change::Apply(record(300, "web", 1)));
        assert_eq!(resolve(&ids, "hash"), known(300, "u1".into()));
    }

    #[test]
    fn the_older_of_two_numbers_counts_and_a_retiring_one_never() {
        let mut ids = with_pod();
        ids.handle_identity(Change::Snapshot(vec![
            record(300, "web", 20),
            record(400, "web", 10),
        ]));
        assert_eq!(resolve(&ids, "u1"), known(400, "u1".into()));
        ids.handle_identity(Change::Apply(IdentityRecord {
            active: false,
            ..record(400, "web", 10)
        }));
        assert_eq!(resolve(&ids, "u1"), known(300, "u1".into()));
    }

    #[test]
    fn without_the_namespaces_labels_nothing_is_guessed() {
        let mut ids = with_pod();
        ids.handle_identity(Change::Apply(record(300, "web", 1)));
        ids.handle_namespace(Change::Delete("shop".into()));
        assert_eq!(resolve(&ids, "u1"), Resolution::NoNumber("u1".into()));
    }
}
