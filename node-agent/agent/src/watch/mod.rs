//! Watches the API server and turns objects into the index's events.
//!
//! A list counts only once it is complete and can be believed ([`intake`]). A
//! failed list or watch, a forbidden one included, sends nothing.

mod intake;
mod services;
pub(crate) mod slim;
mod source;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use intake::{Doubts, Intake};
use kube::{Api, Client, Resource, ResourceExt, core::DeserializeGuard};
use serde::de::DeserializeOwned;
use slim::{SlimNamespace, SlimPod};
use source::{Reached, Source};
use veer_api_client::{chain, version};
use veer_bpf_common::identity::Identity;
use veer_crds::v1alpha1::{
    CLUSTER_NETWORK, ClusterNetwork, IdentityState, NodeNetwork, PodEndpoint, SecurityIdentity,
};

use crate::{
    report::{events::Events, retry},
    state::input::Input,
};
use veer_agent_core::{
    index::{
        Change, Event, IdentityRecord, NodeRecord, OwnNode, OwnRow, PodEndpointRow, PodRecord,
    },
    mtu::Mtu,
};

/// Annotation of a mirror pod: the UID under which the kubelet runs it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// How long a node whose loss is doubted is kept: without its entry nothing
/// reaches it.
const CONFIRM_NODES: Duration = Duration::from_mins(5);
/// By how much the times differ at which agents list what they doubt.
const SPREAD: Duration = Duration::from_secs(20);
/// How long a pod that a doubtful list lacks is kept. Its own agent writes it
/// again within seconds if it is there; without its row it is `init`.
const CONFIRM_PODS: Duration = Duration::from_mins(1);

/// How much an earlier agent knew, by what it left in the maps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Earlier {
    /// Other nodes.
    pub(crate) nodes: usize,
    /// Pods of other nodes.
    pub(crate) pods: usize,
    /// Services, at least nearly.
    pub(crate) services: usize,
}

/// Starts all watches. They end when the receiver is gone.
pub(crate) fn start(
    client: &Client,
    node: &str,
    to: &Sender<Input>,
    events: &Events,
    earlier: Earlier,
) {
    let reached = Reached::new();
    let own = node.to_owned();
    let name = node.to_owned();
    spawn(
        Source::new(
            Api::<DeserializeGuard<NodeNetwork>>::all(client.clone()),
            None,
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::doubting(Doubts {
            naming: Box::new(move |n| (named_key(n), named_key(n) == name)),
            // The operator takes the blocks back before it deletes one.
            was_to_go: Some(|n: &NodeNetwork| n.spec.pod_cidrs.is_empty() || n.spec.decommission),
            earlier: earlier.nodes,
            confirm: CONFIRM_NODES,
        }),
        move |change| {
            vec![Event::Node(map(
                change,
                |n| Some(node_record(n, &own)),
                named_key,
            ))]
        },
    );
    let (name, own) = (node.to_owned(), node.to_owned());
    spawn(
        Source::new(
            Api::<DeserializeGuard<PodEndpoint>>::all(client.clone()),
            None,
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::doubting(Doubts {
            naming: Box::new(move |e| (endpoint_key(e), e.spec.node_name == name)),
            // Its agent deletes it with the pod, and writes it again if it is there.
            was_to_go: None,
            earlier: earlier.pods,
            confirm: CONFIRM_PODS,
        }),
        move |change| {
            let record = |e| Some(endpoint_row(e, &own));
            vec![Event::Endpoint(map(change, record, endpoint_key))]
        },
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<SecurityIdentity>>::all(client.clone()),
            None,
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::trusting(),
        identity_events,
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<SlimNamespace>>::all(client.clone()),
            None,
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::trusting(),
        |change| {
            let record = |n: SlimNamespace| {
                let labels = n.metadata.labels.clone().unwrap_or_default();
                Some((n.name_any(), labels))
            };
            vec![Event::Namespace(map(change, record, named_key))]
        },
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<SlimPod>>::all(client.clone()),
            Some(format!("spec.nodeName={node}")),
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::trusting(),
        |change| {
            vec![Event::Pod(map(change, pod_record, |p| {
                p.metadata.uid.clone().unwrap_or_default()
            }))]
        },
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<ClusterNetwork>>::all(client.clone()),
            Some(format!("metadata.name={CLUSTER_NETWORK}")),
            &reached,
        ),
        (to.clone(), events.clone()),
        Intake::trusting(),
        |change| match change {
            Change::Apply(c) => vec![cluster_event(c)],
            Change::Snapshot(all) => all.into_iter().map(cluster_event).collect(),
            // The last state stays.
            Change::Delete(_) | Change::Doubted(..) => Vec::new(),
        },
    );
    services::start(client, node, (to, events), &reached, earlier.services);
}

fn spawn<K>(
    mut source: Source<K>,
    (to, doubts): (Sender<Input>, Events),
    mut intake: Intake<K>,
    events: impl Fn(Change<K, K>) -> Vec<Event> + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // All agents doubt the same list; they must not all list at once.
    let spread = retry::between((Duration::ZERO, SPREAD));
    tokio::spawn(async move {
        loop {
            let next = match intake.again() {
                Some(at) => tokio::time::timeout_at((at + spread).into(), source.next()).await,
                None => Ok(source.next().await),
            };
            let Ok(next) = next else {
                if intake.take_again(Instant::now()) {
                    source.list_again();
                }
                continue;
            };
            let (change, doubt) = match next {
                Ok(seen) => intake.take(seen, Instant::now()),
                Err(error) => {
                    intake.interrupted();
                    tracing::warn!(
                        kind = %K::kind(&()),
                        error = %chain(&error),
                        "watch failed; keeping what is known and trying again"
                    );
                    continue;
                }
            };
            if let Some(why) = doubt {
                tracing::error!("{why}");
                doubts.warn("ListDoubted", why);
            }
            for event in change.map(&events).into_iter().flatten() {
                if to.send(Input::Api(event)).is_err() {
                    return;
                }
            }
        }
    });
}

/// Translates a change of objects into one of records. An object without a
/// record (one that does not concern the agent) counts as gone.
fn map<K, T, I>(
    change: Change<K, K>,
    record: impl Fn(K) -> Option<T>,
    key: impl Fn(&K) -> I,
) -> Change<I, T>
where
    K: Clone,
{
    match change {
        Change::Apply(object) => match record(object.clone()) {
            Some(record) => Change::Apply(record),
            None => Change::Delete(key(&object)),
        },
        Change::Delete(object) => Change::Delete(key(&object)),
        Change::Snapshot(all) => Change::Snapshot(all.into_iter().filter_map(record).collect()),
        Change::Doubted(all, gone) => Change::Doubted(
            all.into_iter().filter_map(record).collect(),
            gone.iter().map(key).collect(),
        ),
    }
}

fn named_key<K: Resource>(object: &K) -> String {
    object.name_any()
}

fn node_record(node: NodeNetwork, own: &str) -> NodeRecord {
    let name = node.name_any();
    let uid = node.uid().unwrap_or_default();
    let mine = name == own;
    let seen = mine.then(|| {
        Box::new(OwnNode {
            uid: uid.clone(),
            version: version::of(&node),
            status: node.status.clone().unwrap_or_default(),
        })
    });
    let silent = node.status.is_none();
    let created = node.metadata.creation_timestamp.as_ref();
    let born = (created.map_or(0, |t| t.0.as_second()), uid);
    let status = node.status.unwrap_or_default();
    let kept = status.kept_form.as_ref();
    NodeRecord {
        name,
        born,
        pod_cidrs: node.spec.pod_cidrs,
        addresses: node.spec.addresses,
        epoch: node.spec.epoch.filter(|_| mine),
        keeps_form_to_us: kept
            .filter(|k| k.all || k.peers.iter().any(|peer| peer == own))
            .map(|k| k.number),
        silent,
        applied: status.applied,
        path_mtu: u32::try_from(status.path_mtu).ok().and_then(Mtu::new),
        decommission: mine && node.spec.decommission,
        gone: node.spec.node_uid.is_empty(),
        seen,
    }
}

fn endpoint_key(endpoint: &PodEndpoint) -> String {
    format!(
        "{}/{}",
        endpoint.namespace().unwrap_or_default(),
        endpoint.name_any()
    )
}

fn endpoint_row(endpoint: PodEndpoint, own: &str) -> PodEndpointRow {
    let row = (endpoint.spec.node_name == own).then(|| {
        let owners = endpoint.metadata.owner_references.as_ref();
        Box::new(OwnRow {
            version: version::of(&endpoint),
            owner: owners
                .and_then(|o| o.first())
                .map(|o| o.uid.clone())
                .unwrap_or_default(),
            spec: endpoint.spec.clone(),
        })
    });
    PodEndpointRow {
        key: endpoint_key(&endpoint),
        node: endpoint.spec.node_name,
        addresses: endpoint.spec.addresses,
        identity: endpoint.spec.identity,
        serial: endpoint.spec.serial,
        own: row,
    }
}

/// The number that an object is named after; `None` where no label set can have it.
fn identity_number(identity: &SecurityIdentity) -> Option<Identity> {
    let number = Identity::new(identity.name_any().parse().ok()?)?;
    number.is_allocated().then_some(number)
}

fn identity_record(identity: SecurityIdentity) -> Option<IdentityRecord> {
    Some(IdentityRecord {
        number: identity_number(&identity)?,
        active: identity.spec.state == IdentityState::Active,
        created: identity
            .metadata
            .creation_timestamp
            .map_or(0, |t| t.0.as_second()),
        labels: identity.spec.labels,
    })
}

fn identity_events(change: Change<SecurityIdentity, SecurityIdentity>) -> Vec<Event> {
    let retiring = |i: &&SecurityIdentity| i.spec.state != IdentityState::Active;
    let serial = match &change {
        Change::Apply(i) => Some(i).filter(retiring).map(version::of),
        Change::Snapshot(all) | Change::Doubted(all, _) => {
            // Of a store that was set back too, so not the highest ever.
            Some(
                all.iter()
                    .filter(retiring)
                    .map(version::of)
                    .max()
                    .unwrap_or(0),
            )
        }
        Change::Delete(_) => None,
    };
    // Of no record, and so of none that is known.
    let key = |i: &SecurityIdentity| identity_number(i).unwrap_or(Identity::INIT);
    let mut events = vec![Event::Identity(map(change, identity_record, key))];
    events.extend(serial.map(Event::RetiringSerial));
    events
}

/// Annotations that the plugin `bandwidth` acts on.
const BANDWIDTH: [&str; 2] = [
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
];

fn pod_record(pod: SlimPod) -> Option<PodRecord> {
    if pod.spec.host_network {
        return None;
    }
    let meta = pod.metadata;
    let bandwidth = meta
        .annotations
        .as_ref()
        .is_some_and(|all| BANDWIDTH.iter().any(|key| all.contains_key(*key)));
    Some(PodRecord {
        addresses: pod
            .status
            .pod_ips
            .iter()
            .filter_map(|one| one.ip.parse().ok())
            .collect(),
        ended: matches!(pod.status.phase.as_str(), "Succeeded" | "Failed"),
        bandwidth,
        uid: meta.uid.unwrap_or_default(),
        namespace: meta.namespace.unwrap_or_default(),
        name: meta.name.unwrap_or_default(),
        service_account: pod.spec.service_account_name,
        labels: meta.labels.unwrap_or_default(),
        config_hash: meta
            .annotations
            .as_ref()
            .and_then(|a: &BTreeMap<String, String>| a.get(CONFIG_HASH).cloned()),
    })
}

fn cluster_event(cluster: ClusterNetwork) -> Event {
    Event::Cluster(Box::new((cluster.uid().unwrap_or_default(), cluster.spec)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(number: u32, version: u64, state: IdentityState) -> SecurityIdentity {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "SecurityIdentity",
            "metadata": {"name": number.to_string(), "resourceVersion": version.to_string()},
            "spec": {"labels": {}, "state": state},
        }))
        .unwrap()
    }

    fn serial(change: Change<SecurityIdentity, SecurityIdentity>) -> Option<u64> {
        identity_events(change).into_iter().find_map(|event| {
            if let Event::RetiringSerial(serial) = event {
                Some(serial)
            } else {
                None
            }
        })
    }

    #[test]
    fn agents_acknowledge_that_a_number_retires_and_not_that_one_is_new() {
        let (new, old) = (IdentityState::Active, IdentityState::Retiring);
        assert_eq!(serial(Change::Apply(identity(300, 9, new))), None);
        assert_eq!(serial(Change::Apply(identity(300, 9, old))), Some(9));
        let all = vec![identity(300, 4, old), identity(301, 8, new)];
        assert_eq!(serial(Change::Snapshot(all)), Some(4));
        let all = vec![identity(301, 8, new)];
        assert_eq!(serial(Change::Snapshot(all)), Some(0));
    }

    #[test]
    fn what_a_node_says_of_its_own_addresses_is_not_believed() {
        let node: NodeNetwork = serde_json::from_value(serde_json::json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "NodeNetwork",
            "metadata": {"name": "b"},
            "spec": {"nodeUid": "u", "addresses": ["192.0.2.2"]},
            "status": {"addresses": ["192.0.2.2", "10.96.0.10"], "pathMtu": 1400,
                "keptForm": {"number": 3, "peers": ["a", "c"]}},
        }))
        .unwrap();
        let record = node_record(node, "a");
        assert_eq!(
            record.addresses,
            ["192.0.2.2".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(
            (record.path_mtu, record.keeps_form_to_us),
            (Mtu::new(1400), Some(3))
        );
        assert_eq!(record.seen, None, "of the own node only");
    }
}
