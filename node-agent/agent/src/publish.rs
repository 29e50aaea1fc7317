//! Writes this node's PodEndpoints: asynchronously, the last word per object
//! counts, what fails is tried again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use veer_crds::{
    names::pod_endpoint_name,
    v1alpha1::{PodEndpoint, PodEndpointSpec, PodEndpointState},
};

use crate::endpoint::LocalEndpoint;

/// Field manager of everything the agent writes.
pub(crate) const FIELD_MANAGER: &str = "veer-agent";
/// Requests under way at once.
const PARALLEL: usize = 8;
/// Waits between attempts at one object, from the first to the longest.
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
];

/// An object: namespace and name.
type Key = (String, String);

/// What an object is to be.
#[derive(Clone, Debug)]
enum Wish {
    /// As this, owned by the pod with this name and UID if that is known.
    Be(Box<PodEndpointSpec>, Option<(String, String)>),
    /// Gone.
    Gone,
}

/// Handle of the writing task.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    to: mpsc::UnboundedSender<(Key, Wish)>,
}

/// The object's namespace and name.
pub(crate) fn key(endpoint: &LocalEndpoint) -> (String, String) {
    let uid = endpoint.object_uid.as_ref().unwrap_or(&endpoint.pod_uid);
    (
        endpoint.namespace.clone(),
        pod_endpoint_name(&endpoint.pod_name, uid),
    )
}

impl Publisher {
    /// A handle and what the task needs.
    pub(crate) fn new() -> (Self, Wishes) {
        let (to, from) = mpsc::unbounded_channel();
        (Self { to }, Wishes { from })
    }

    /// The object of a wired pod is to be there.
    pub(crate) fn publish(&self, node: &str, endpoint: &LocalEndpoint) {
        let spec = PodEndpointSpec {
            pod_name: endpoint.pod_name.clone(),
            pod_uid: endpoint
                .object_uid
                .clone()
                .unwrap_or_else(|| endpoint.pod_uid.clone()),
            node_name: node.to_owned(),
            endpoint_id: endpoint.endpoint_id.into(),
            addresses: vec![endpoint.address],
            identity: endpoint.identity.into(),
            serial: endpoint.serial,
            state: if endpoint.is_init() {
                PodEndpointState::Init
            } else {
                PodEndpointState::Ready
            },
        };
        let owner = endpoint
            .object_uid
            .clone()
            .map(|uid| (endpoint.pod_name.clone(), uid));
        let _ = self
            .to
            .send((key(endpoint), Wish::Be(Box::new(spec), owner)));
    }

    /// An object is to be gone.
    pub(crate) fn withdraw(&self, key: (String, String)) {
        let _ = self.to.send((key, Wish::Gone));
    }
}

/// The other end of a [`Publisher`].
#[derive(Debug)]
pub(crate) struct Wishes {
    from: mpsc::UnboundedReceiver<(Key, Wish)>,
}

impl Wishes {
    /// Carries wishes out until all handles are gone.
    pub(crate) async fn run(mut self, client: Client) {
        let client = Arc::new(client);
        let mut pending: HashMap<Key, Wish> = HashMap::new();
        let mut queue: Vec<Key> = Vec::new();
        let mut busy: HashMap<Key, usize> = HashMap::new();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < PARALLEL
                && let Some(at) = queue.iter().position(|k| !busy.contains_key(k))
            {
                let key = queue.remove(at);
                if let Some(wish) = pending.remove(&key) {
                    busy.insert(key.clone(), 0);
                    running.push(attempt(client.clone(), key, wish, 0));
                }
            }
            tokio::select! {
                wish = self.from.recv() => {
                    let Some((key, wish)) = wish else { return };
                    if pending.insert(key.clone(), wish).is_none() {
                        queue.push(key);
                    }
                }
                Some((key, wish, tries, done)) = running.next(), if !running.is_empty() => {
                    busy.remove(&key);
                    if done || pending.contains_key(&key) {
                        continue;
                    }
                    busy.insert(key.clone(), tries);
                    running.push(attempt(client.clone(), key, wish, tries + 1));
                }
            }
        }
    }
}

async fn attempt(
    client: Arc<Client>,
    key: Key,
    wish: Wish,
    tries: usize,
) -> (Key, Wish, usize, bool) {
    if tries > 0 {
        tokio::time::sleep(BACKOFF[(tries - 1).min(BACKOFF.len() - 1)]).await;
    }
    let api: Api<PodEndpoint> = Api::namespaced(client.as_ref().clone(), &key.0);
    let result = match &wish {
        Wish::Be(spec, owner) => be(&api, &key, spec, owner.as_ref()).await,
        Wish::Gone => match api.delete(&key.1, &DeleteParams::default()).await {
            Err(kube::Error::Api(e)) if e.code == 404 => Ok(()),
            other => other.map(drop),
        },
    };
    let done = match result {
        Ok(()) => true,
        // The pod's namespace is going or gone; so is the pod.
        Err(kube::Error::Api(e)) if e.code == 404 || e.is_terminating_namespace() => true,
        Err(error) => {
            tracing::warn!(
                object = format!("{}/{}", key.0, key.1),
                error = %crate::chain(&error),
                "cannot write the PodEndpoint; trying again"
            );
            false
        }
    };
    (key, wish, tries, done)
}

trait Terminating {
    fn is_terminating_namespace(&self) -> bool;
}

impl Terminating for kube::core::Status {
    fn is_terminating_namespace(&self) -> bool {
        self.code == 403 && self.message.contains("being terminated")
    }
}

async fn be(
    api: &Api<PodEndpoint>,
    (namespace, name): &Key,
    spec: &PodEndpointSpec,
    owner: Option<&(String, String)>,
) -> Result<(), kube::Error> {
    let owners = owner.map_or_else(Vec::new, |(pod, uid)| {
        vec![json!({
            "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid,
        })]
    });
    let object = json!({
        "apiVersion": "veer.dev/v1alpha1",
        "kind": "PodEndpoint",
        "metadata": { "name": name, "namespace": namespace, "ownerReferences": owners },
        "spec": spec,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(&object))
        .await
        .map(drop)
}
