//! Writes this node's PodEndpoints: asynchronously, the last word per object
//! counts, what fails is tried again.

pub(crate) mod place;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::Instant};
use veer_api_client::{chain, version};
use veer_crds::v1alpha1::{PodEndpoint, PodEndpointSpec, PodEndpointState};

use crate::report::retry;
use place::Key;
use veer_agent_core::{
    endpoint::LocalEndpoint,
    index::{Endpoints, PodEndpointRow},
};

/// Field manager of everything the agent writes.
pub(crate) const FIELD_MANAGER: &str = "veer-agent";
/// Requests under way at once.
const PARALLEL: usize = 8;
/// Waits between attempts at one object, the first and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// How long what the watch shows may be older than what was written.
const ECHO: Duration = Duration::from_secs(10);
/// Time before the next attempt at an object that was refused: its namespace is
/// terminating, or the server does not know its kind.
const REFUSED: Duration = Duration::from_mins(1);

/// The wanted content of a PodEndpoint.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// Its spec.
    pub(crate) spec: PodEndpointSpec,
    /// UID of the pod that owns it, if that is known.
    pub(crate) owner: Option<String>,
}

impl Entry {
    /// Of a wired pod.
    pub(crate) fn of(node: &str, endpoint: &LocalEndpoint) -> Self {
        let spec = PodEndpointSpec {
            pod_name: endpoint.pod_name.clone(),
            pod_uid: endpoint
                .object_uid
                .clone()
                .unwrap_or_else(|| endpoint.pod_uid.clone()),
            node_name: node.to_owned(),
            endpoint_id: endpoint.endpoint_id.into(),
            addresses: endpoint.addresses().map(|a| a.address).collect(),
            identity: endpoint.identity.get().into(),
            serial: endpoint.serial,
            state: if endpoint.is_init() {
                PodEndpointState::Init
            } else {
                PodEndpointState::Ready
            },
        };
        Self {
            spec,
            owner: endpoint.object_uid.clone(),
        }
    }

    fn is_in(&self, row: &PodEndpointRow) -> bool {
        row.own
            .as_ref()
            .is_some_and(|own| own.spec == self.spec && own.owner == *self.owner_uid())
    }

    fn owner_uid(&self) -> &str {
        self.owner.as_deref().unwrap_or_default()
    }
}

/// The wanted state of an object.
#[derive(Clone, Debug)]
enum Wish {
    /// As this.
    Be(Box<Entry>),
    /// Gone.
    Gone,
    /// Whatever it is: no more of it.
    Any,
}

/// This agent's last action on an object.
#[derive(Debug)]
enum Done {
    /// It is about to write it.
    Writing,
    /// It wrote this; `None`: it deleted it.
    Written {
        entry: Option<Box<Entry>>,
        version: u64,
        at: Instant,
    },
    /// It could not be this.
    Refused { entry: Box<Entry>, at: Instant },
}

type Ledger = Arc<Mutex<HashMap<Key, Done>>>;

/// The action that an object needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Nothing.
    Nothing,
    /// To write or delete it.
    Write,
    /// To put back what somebody else changed.
    PutBack,
}

/// Handle of the writing task.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    to: mpsc::UnboundedSender<(Key, Wish)>,
    done: Ledger,
}

fn lock(done: &Ledger) -> MutexGuard<'_, HashMap<Key, Done>> {
    done.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Publisher {
    /// A handle and what the task needs.
    pub(crate) fn new() -> (Self, Wishes) {
        let (to, from) = mpsc::unbounded_channel();
        let done = Ledger::default();
        let wishes = Wishes {
            from,
            done: Arc::clone(&done),
        };
        (Self { to, done }, wishes)
    }

    /// Asks for the object of a wired pod.
    pub(crate) fn publish(&self, endpoints: &Endpoints, endpoint: &LocalEndpoint) {
        let entry = Box::new(Entry::of(endpoints.node(), endpoint));
        self.wish(place::key(endpoints, endpoint), Wish::Be(entry));
    }

    /// Asks for an object's deletion.
    pub(crate) fn withdraw(&self, key: Key) {
        self.wish(key, Wish::Gone);
    }

    /// Objects for which something is under way, and which turned out not to be this
    /// node's, are left alone: that would fail for as long as they are there.
    pub(crate) fn leave(&self, is_others: impl Fn(&Key) -> bool) {
        let mut done = lock(&self.done);
        let left = done
            .extract_if(|key, done| matches!(done, Done::Writing) && is_others(key))
            .map(|(key, _)| key);
        for key in left {
            let _ = self.to.send((key, Wish::Any));
        }
    }

    fn wish(&self, key: Key, wish: Wish) {
        lock(&self.done).insert(key.clone(), Done::Writing);
        let _ = self.to.send((key, wish));
    }

    /// The action that an object needs. `wanted` is its wanted content (`None`: it
    /// must not exist), `seen` is the content that the watch shows. A change that the
    /// watch may not have shown yet needs no action.
    pub(crate) fn todo(
        &self,
        key: &Key,
        wanted: Option<&Entry>,
        seen: Option<&PodEndpointRow>,
    ) -> Todo {
        let as_wanted = match (wanted, seen) {
            (Some(wanted), Some(row)) => wanted.is_in(row),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if as_wanted {
            return Todo::Nothing;
        }
        match lock(&self.done).get(key) {
            None => Todo::Write,
            Some(Done::Writing) => Todo::Nothing,
            Some(Done::Refused { entry, at }) => {
                if wanted == Some(&**entry) && at.elapsed() < REFUSED {
                    Todo::Nothing
                } else {
                    Todo::Write
                }
            }
            Some(Done::Written { entry, version, at }) => {
                let seen = seen
                    .and_then(|row| row.own.as_ref())
                    .map_or(0, |o| o.version);
                if entry.as_deref() != wanted {
                    Todo::Write
                } else if (entry.is_none() || seen < *version) && at.elapsed() < ECHO {
                    Todo::Nothing
                } else {
                    Todo::PutBack
                }
            }
        }
    }

    /// Forgets objects that are gone and not to be there.
    pub(crate) fn forget(&self, wanted: impl Fn(&Key) -> bool) {
        lock(&self.done).retain(|key, done| match done {
            Done::Writing => true,
            Done::Written { at, .. } | Done::Refused { at, .. } => {
                wanted(key) || at.elapsed() < ECHO
            }
        });
    }
}

/// The other end of a [`Publisher`].
#[derive(Debug)]
pub(crate) struct Wishes {
    from: mpsc::UnboundedReceiver<(Key, Wish)>,
    done: Ledger,
}

/// The result of a wish.
enum Outcome {
    /// The object is as wished, with this resourceVersion; 0: it is gone.
    Written(u64),
    /// It cannot be, and trying again is of no use.
    Refused,
}

/// The keys of objects, in the states between a wish and its end.
#[derive(Default)]
struct Queue {
    /// The last word on each object that is not being written right now, and on
    /// those that are.
    pending: HashMap<Key, Wish>,
    /// Keys of `pending` whose turn comes.
    ready: VecDeque<Key>,
    /// Keys that a request is under way for.
    busy: HashSet<Key>,
    /// Keys of `pending` that failed, and until when they rest.
    resting: HashMap<Key, Instant>,
    /// How often an object's wishes have failed in a row.
    failures: HashMap<Key, u32>,
}

impl Queue {
    /// Something newer does not wait for the failure of the older.
    fn wish(&mut self, key: Key, wish: Wish) {
        let was_pending = self.pending.insert(key.clone(), wish).is_some();
        let rested = self.resting.remove(&key).is_some();
        if rested || (!was_pending && !self.busy.contains(&key)) {
            self.ready.push_back(key);
        }
    }

    fn next(&mut self) -> Option<(Key, Wish)> {
        if self.busy.len() >= PARALLEL {
            return None;
        }
        let key = self.ready.pop_front()?;
        let wish = self.pending.remove(&key)?;
        self.busy.insert(key.clone());
        Some((key, wish))
    }

    /// A request failed; returns until when the object rests.
    fn failed(&mut self, key: Key, wish: Wish, error: &kube::Error) -> Option<(Key, Instant)> {
        self.busy.remove(&key);
        let failures = self.failures.entry(key.clone()).or_default();
        let wait = retry::after(error, *failures, BACKOFF);
        *failures = failures.saturating_add(1);
        if self.pending.contains_key(&key) {
            self.ready.push_back(key);
            return None;
        }
        let until = Instant::now() + wait;
        self.pending.insert(key.clone(), wish);
        self.resting.insert(key.clone(), until);
        Some((key, until))
    }

    fn rested(&mut self, key: Key, until: Instant) {
        if self.resting.get(&key) == Some(&until) {
            self.resting.remove(&key);
            self.ready.push_back(key);
        }
    }

    /// A request is through. Whether that was the last word.
    fn through(&mut self, key: &Key) -> bool {
        self.busy.remove(key);
        self.failures.remove(key);
        let newer = self.pending.contains_key(key);
        if newer {
            self.ready.push_back(key.clone());
        }
        !newer
    }
}

impl Wishes {
    /// Carries wishes out until all handles are gone.
    pub(crate) async fn run(mut self, client: Client) {
        let mut queue = Queue::default();
        let mut running = FuturesUnordered::new();
        let mut resting = FuturesUnordered::new();
        loop {
            while let Some((key, wish)) = queue.next() {
                running.push(attempt(client.clone(), key, wish));
            }
            tokio::select! {
                wish = self.from.recv() => {
                    let Some((key, wish)) = wish else { return };
                    queue.wish(key, wish);
                }
                Some((key, until)) = resting.next(), if !resting.is_empty() => {
                    queue.rested(key, until);
                }
                Some((key, wish, result)) = running.next(), if !running.is_empty() => {
                    match result {
                        Ok(outcome) if queue.through(&key) => {
                            if let Some(done) = done(wish, &outcome) {
                                lock(&self.done).insert(key, done);
                            }
                        }
                        Ok(_) => {}
                        Err(error) => resting.extend(queue.failed(key, wish, &error).map(rest)),
                    }
                }
            }
        }
    }
}

async fn rest((key, until): (Key, Instant)) -> (Key, Instant) {
    tokio::time::sleep_until(until).await;
    (key, until)
}

fn done(wish: Wish, outcome: &Outcome) -> Option<Done> {
    let at = Instant::now();
    Some(match (wish, outcome) {
        (Wish::Be(entry), Outcome::Refused) => Done::Refused { entry, at },
        (Wish::Be(entry), Outcome::Written(version)) => Done::Written {
            entry: Some(entry),
            version: *version,
            at,
        },
        // An object whose deletion is refused is gone, or goes with its namespace.
        (Wish::Gone, _) => Done::Written {
            entry: None,
            version: 0,
            at,
        },
        (Wish::Any, _) => return None,
    })
}

/// One try.
async fn attempt(client: Client, key: Key, wish: Wish) -> (Key, Wish, kube::Result<Outcome>) {
    let api: Api<PodEndpoint> = Api::namespaced(client, &key.0);
    let result = match &wish {
        Wish::Be(entry) => be(&api, &key, entry).await.map(Outcome::Written),
        Wish::Gone => api
            .delete(&key.1, &DeleteParams::default())
            .await
            .map(|_| Outcome::Written(0)),
        Wish::Any => Ok(Outcome::Refused),
    };
    let result = match result {
        Err(kube::Error::Api(e)) if e.is_final() => Ok(Outcome::Refused),
        Err(error) => {
            tracing::warn!(
                object = format!("{}/{}", key.0, key.1),
                error = %chain(&error),
                "cannot write the PodEndpoint; trying again"
            );
            Err(error)
        }
        ok @ Ok(_) => ok,
    };
    (key, wish, result)
}

trait Refusal {
    /// Whether trying again is of no use.
    fn is_final(&self) -> bool;
}

impl Refusal for kube::core::Status {
    fn is_final(&self) -> bool {
        // The pod's namespace is going or gone; so is the pod. Everything else
        // ends: also the refusal of a webhook whose own pods wait for this node.
        self.code == 404 || (self.code == 403 && self.message.contains("being terminated"))
    }
}

async fn be(
    api: &Api<PodEndpoint>,
    (namespace, name): &Key,
    entry: &Entry,
) -> Result<u64, kube::Error> {
    let owners = entry.owner.as_ref().map_or_else(Vec::new, |uid| {
        vec![json!({
            "apiVersion": "v1", "kind": "Pod", "name": entry.spec.pod_name, "uid": uid,
        })]
    });
    let object = json!({
        "apiVersion": "veer.dev/v1alpha1",
        "kind": "PodEndpoint",
        "metadata": { "name": name, "namespace": namespace, "ownerReferences": owners },
        "spec": entry.spec,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let written = api.patch(name, &params, &Patch::Apply(&object)).await?;
    Ok(version::of(&written))
}

#[cfg(test)]
mod tests;
