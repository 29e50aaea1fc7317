//! Watches the API server and turns objects into the index's events.
//!
//! A list counts only once it is complete and can be believed ([`intake`]). A
//! failed list or watch, a forbidden one included, sends nothing.

mod intake;
pub(crate) mod slim;
mod source;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::mpsc::Sender,
    time::{Duration, Instant},
};

use intake::Intake;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use slim::{SlimNamespace, SlimPod};
use source::{Reached, Source};
use veer_crds::v1alpha1::{
    CLUSTER_NETWORK, ClusterNetwork, IdentityState, NodeNetwork, PodEndpoint, SecurityIdentity,
};

use crate::{
    engine::Input,
    events::Events,
    index::{Change, Event, IdentityRecord, NodeRecord, PodEndpointRow, PodRecord},
};

/// Annotation of a mirror pod: the UID under which the kubelet runs it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// How long a node that a doubtful list lacks is kept: without its entry nothing
/// reaches it.
const CONFIRM_NODES: Duration = Duration::from_mins(5);
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
        Source::new(Api::<NodeNetwork>::all(client.clone()), None, &reached),
        (to.clone(), events.clone()),
        Intake::doubting(
            Box::new(move |n| (named_key(n), named_key(n) == name)),
            earlier.nodes,
            CONFIRM_NODES,
        ),
        move |change| {
            vec![Event::Node(map(
                change,
                |n| Some(node_record(n, &own)),
                named_key,
            ))]
        },
    );
    let name = node.to_owned();
    spawn(
        Source::new(Api::<PodEndpoint>::all(client.clone()), None, &reached),
        (to.clone(), events.clone()),
        Intake::doubting(
            Box::new(move |e| (endpoint_key(e), e.spec.node_name == name)),
            earlier.pods,
            CONFIRM_PODS,
        ),
        |change| {
            let record = |e| Some(endpoint_row(e));
            vec![Event::Endpoint(map(change, record, endpoint_key))]
        },
    );
    spawn(
        Source::new(Api::<SecurityIdentity>::all(client.clone()), None, &reached),
        (to.clone(), events.clone()),
        Intake::trusting(),
        identity_events,
    );
    spawn(
        Source::new(Api::<SlimNamespace>::all(client.clone()), None, &reached),
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
            Api::<SlimPod>::all(client.clone()),
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
            Api::<ClusterNetwork>::all(client.clone()),
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
}

fn spawn<K>(
    mut source: Source<K>,
    (to, doubts): (Sender<Input>, Events),
    mut intake: Intake<K>,
    events: impl Fn(Change<K, K>) -> Vec<Event> + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            let next = match intake.again() {
                Some(at) => tokio::time::timeout_at(at.into(), source.next()).await,
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
                    tracing::warn!(
                        kind = %K::kind(&()),
                        error = %crate::chain(&error),
                        "watch failed; keeping what is known and trying again"
                    );
                    continue;
                }
            };
            if let Some(why) = doubt {
                tracing::error!("{why}");
                doubts.warn("ListDoubted", why);
            }
            for event in events(change) {
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
    let status = node.status.unwrap_or_default();
    let mine = name == own;
    NodeRecord {
        pod_cidrs: node.spec.pod_cidrs,
        addresses: status.addresses,
        epoch: node.spec.epoch.filter(|_| mine),
        keeps_form_to_us: status
            .probes
            .filter(|p| p.failed.iter().chain(&p.fell_back).any(|n| n.node == own))
            .map(|p| p.number),
        applied: status.applied,
        gone: node.spec.node_uid.is_empty(),
        decommission: mine && node.spec.decommission,
        reported: if mine && !status.boot_id.is_empty() {
            uid
        } else {
            String::new()
        },
        name,
    }
}

fn endpoint_key(endpoint: &PodEndpoint) -> String {
    format!(
        "{}/{}",
        endpoint.namespace().unwrap_or_default(),
        endpoint.name_any()
    )
}

fn endpoint_row(endpoint: PodEndpoint) -> PodEndpointRow {
    PodEndpointRow {
        key: endpoint_key(&endpoint),
        node: endpoint.spec.node_name,
        addresses: endpoint.spec.addresses,
        identity: endpoint.spec.identity,
        serial: endpoint.spec.serial,
        pod_uid: endpoint.spec.pod_uid,
    }
}

fn identity_record(identity: SecurityIdentity) -> Option<IdentityRecord> {
    Some(IdentityRecord {
        number: identity.name_any().parse().ok()?,
        active: identity.spec.state == IdentityState::Active,
        created: identity
            .metadata
            .creation_timestamp
            .map_or(0, |t| t.0.as_second()),
        labels: identity.spec.labels,
    })
}

fn identity_events(change: Change<SecurityIdentity, SecurityIdentity>) -> Vec<Event> {
    let version = |i: &SecurityIdentity| i.resource_version();
    let serial = match &change {
        Change::Apply(i) | Change::Delete(i) => version(i),
        Change::Snapshot(all) | Change::Doubted(all, _) => all
            .iter()
            .filter_map(version)
            .max_by_key(|v| v.parse::<u64>().unwrap_or(0)),
    };
    let key = |i: &SecurityIdentity| i.name_any().parse().unwrap_or(0);
    let mut events = vec![Event::Identity(map(change, identity_record, key))];
    events.extend(serial.map(Event::IdentitySerial));
    events
}

fn pod_record(pod: SlimPod) -> Option<PodRecord> {
    if pod.spec.host_network {
        return None;
    }
    let meta = pod.metadata;
    Some(PodRecord {
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
