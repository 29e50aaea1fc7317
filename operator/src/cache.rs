//! One watch per kind, shared by all controllers: a store of the objects and a stream
//! of their changes.
//!
//! A change is announced after the store has it. A subscriber that falls behind
//! receives [`Change::All`] and has to look at everything. A new list is announced in
//! the same way: the objects that vanished before it have no names in it.
//!
//! An object that cannot be read is left out and named once in the log. Agents write
//! some of these kinds, and an object of one agent must not stop the operator from
//! reading the others.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt, stream};
use kube::core::DeserializeGuard;
use kube::core::error_boundary::InvalidObject;
use kube::{Api, Client, Resource};
use kube_runtime::reflector::{ObjectRef, Store, store};
use kube_runtime::watcher::{self, Event};
use kube_runtime::{WatchStreamExt, watcher as follow};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::slim::strip;

/// How many changes a subscriber may fall behind.
const BACKLOG: usize = 1024;

/// What changed.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// The object is new or was modified.
    Set(Arc<K>),
    /// The object is gone.
    Gone(Arc<K>),
    /// Anything may have changed.
    All,
}

// Not derived: that would ask for `K: Clone`.
impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Set(object) => Self::Set(Arc::clone(object)),
            Self::Gone(object) => Self::Gone(Arc::clone(object)),
            Self::All => Self::All,
        }
    }
}

/// A watched kind.
pub(crate) struct Cached<K: Resource<DynamicType = ()> + 'static> {
    store: Store<K>,
    changes: broadcast::Sender<Change<K>>,
    /// How many lists were read. The store's own signal is not enough: it wakes one
    /// waiter only, which is the applier.
    filled: watch::Receiver<u64>,
    /// The watch cannot go on, and what is known is of before until a new list is read.
    outdated: Arc<AtomicBool>,
    unreadable: Arc<Unreadable>,
}

/// Objects that cannot be read.
#[derive(Debug, Default)]
struct Unreadable(Mutex<Reasons>);

#[derive(Debug, Default)]
struct Reasons {
    /// How many lists were begun.
    lists: u64,
    /// The reason, and the list (or the watch after it) in which it was seen; by
    /// name.
    all: BTreeMap<String, (String, u64)>,
}

impl Unreadable {
    /// Records an unreadable object; returns whether it was unknown.
    fn note(&self, kind: &str, name: &str, invalid: &InvalidObject) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = (invalid.error.clone(), known.lists);
        let before = known.all.insert(name.to_owned(), seen);
        if before.is_none_or(|(why, _)| why != invalid.error) {
            let why = &invalid.error;
            tracing::error!(%kind, name, "cannot be read, and is left out: {why}");
        }
    }

    fn forget(&self, name: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.all.remove(name);
    }

    /// A new list begins.
    fn begin(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.lists += 1;
    }

    /// Forgets what the new list does not have.
    fn end(&self) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Reasons { lists, all } = &mut *known;
        all.retain(|_, (_, seen)| seen == lists);
    }

    fn why(&self, name: &str) -> Option<String> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.all.get(name).map(|(why, _)| why.clone())
    }

    /// The event without objects that cannot be read; none if it concerns such an
    /// object only. `known` is what the store has under a name.
    fn readable<K>(
        &self,
        event: Event<DeserializeGuard<K>>,
        known: impl Fn(&str) -> Option<Arc<K>>,
    ) -> Option<Event<K>>
    where
        K: Resource<DynamicType = ()> + Clone,
    {
        let name = |guard: &DeserializeGuard<K>| guard.meta().name.clone().unwrap_or_default();
        match event {
            Event::Apply(guard) => {
                let name = name(&guard);
                match guard.0 {
                    Ok(object) => {
                        self.forget(&name);
                        Some(Event::Apply(object))
                    }
                    Err(invalid) => {
                        self.note(&K::kind(&()), &name, &invalid);
                        known(&name).map(|object| Event::Delete(K::clone(&object)))
                    }
                }
            }
            Event::Delete(guard) => {
                let name = name(&guard);
                self.forget(&name);
                let gone = guard.0.ok();
                gone.or_else(|| known(&name).map(|object| K::clone(&object)))
                    .map(Event::Delete)
            }
            Event::Init => {
                self.begin();
                Some(Event::Init)
            }
            Event::InitApply(guard) => {
                let name = name(&guard);
                match guard.0 {
                    Ok(object) => {
                        self.forget(&name);
                        Some(Event::InitApply(object))
                    }
                    Err(invalid) => {
                        self.note(&K::kind(&()), &name, &invalid);
                        None
                    }
                }
            }
            Event::InitDone => {
                self.end();
                Some(Event::InitDone)
            }
        }
    }
}

/// Whether a watch that ended so begins with a new list: its version is too old (410), or
/// there was no list to begin with.
fn needs_list(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status)
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        watcher::Error::InitialListFailed(_) | watcher::Error::NoResourceVersion => true,
        watcher::Error::WatchStartFailed(_) | watcher::Error::WatchFailed(_) => false,
    }
}

impl<K> Cached<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// The cache of a cluster-wide kind, and the watch that fills it while it is
    /// polled.
    pub(crate) fn new(client: &Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        Self::quiet(client, |_, _| false)
    }

    /// As [`Self::new`]; a new version that says the same as the one before is stored
    /// and not announced.
    pub(crate) fn quiet(
        client: &Client,
        says_the_same: fn(&K, &K) -> bool,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
        let unreadable = Arc::new(Unreadable::default());
        let left_out = Arc::clone(&unreadable);
        let (reader, mut writer) = store();
        let seen: Store<K> = reader.clone();
        let (changes, _) = broadcast::channel(BACKLOG);
        let announce = changes.clone();
        let (fill, filled) = watch::channel(0);
        let outdated = Arc::new(AtomicBool::new(false));
        let missed = Arc::clone(&outdated);
        let run = async move {
            let kind = K::kind(&());
            let events = follow(api, watcher::Config::default())
                .modify(|guard: &mut DeserializeGuard<K>| {
                    if let Ok(object) = &mut guard.0 {
                        strip(object);
                    }
                })
                .default_backoff();
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                let event = match event {
                    Ok(event) => event,
                    Err(error) => {
                        tracing::warn!(%kind, "watch failed, trying again: {error}");
                        if needs_list(&error) {
                            missed.store(true, Ordering::Release);
                        }
                        continue;
                    }
                };
                let known = |name: &str| seen.get(&ObjectRef::new(name));
                let Some(event) = left_out.readable(event, known) else {
                    continue;
                };
                let before = match &event {
                    Event::Apply(object) => seen.get(&ObjectRef::from_obj(object)),
                    Event::Delete(_) | Event::Init | Event::InitApply(_) | Event::InitDone => None,
                };
                writer.apply_watcher_event(&event);
                let change = match event {
                    Event::Apply(object) if before.is_some_and(|b| says_the_same(&object, &b)) => {
                        continue;
                    }
                    Event::Apply(object) => Change::Set(Arc::new(object)),
                    Event::Delete(object) => Change::Gone(Arc::new(object)),
                    Event::InitDone => {
                        // In this order: who finds nothing outdated finds the new list
                        // counted.
                        fill.send_modify(|lists| *lists += 1);
                        missed.store(false, Ordering::Release);
                        Change::All
                    }
                    Event::Init | Event::InitApply(_) => continue,
                };
                // Having no subscriber is not an error.
                let _ = announce.send(change);
            }
        };
        (
            Self {
                store: reader,
                changes,
                filled,
                outdated,
                unreadable,
            },
            run,
        )
    }

    /// The object of this name (of a cluster-wide kind).
    pub(crate) fn get(&self, name: &str) -> Option<Arc<K>> {
        self.store.get(&ObjectRef::new(name))
    }

    /// Why the object of this name, which is there, cannot be read.
    pub(crate) fn unreadable(&self, name: &str) -> Option<String> {
        self.unreadable.why(name)
    }

    /// All objects.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.store.state()
    }

    /// The store, for an applier.
    pub(crate) fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Whether changes may be missing that only a new list will have. Its reading is tried
    /// again and again, with growing pauses.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Acquire)
    }

    /// How many lists were read. More than one means that the watch was interrupted
    /// and that what was known before may be outdated.
    pub(crate) fn lists(&self) -> u64 {
        *self.filled.borrow()
    }

    /// Returns once the first list is in.
    pub(crate) async fn ready(&self) {
        if self
            .filled
            .clone()
            .wait_for(|lists| *lists > 0)
            .await
            .is_err()
        {
            // The watch has ended, and with it this term.
            std::future::pending::<()>().await;
        }
    }

    /// All changes from now on, [`Change::All`] first.
    pub(crate) fn changes(&self) -> impl Stream<Item = Change<K>> + Send + use<K> {
        let news = stream::unfold(self.changes.subscribe(), |mut from| async move {
            match from.recv().await {
                Ok(change) => Some((change, from)),
                Err(RecvError::Lagged(_)) => Some((Change::All, from)),
                Err(RecvError::Closed) => None,
            }
        });
        stream::once(async { Change::All }).chain(news)
    }

    /// References to what changed, for an applier of this kind.
    pub(crate) fn queue(&self) -> impl Stream<Item = ObjectRef<K>> + Send + use<K> {
        let store = self.store.clone();
        self.changes().flat_map(move |change| {
            stream::iter(match change {
                Change::Set(object) => vec![ObjectRef::from_obj(object.as_ref())],
                Change::Gone(_) => Vec::new(),
                Change::All => refs(&store),
            })
        })
    }

    /// As [`Self::changes`], but a change of the object's status alone is none.
    pub(crate) fn spec_changes(&self) -> impl Stream<Item = ()> + Send + use<K> {
        let mut last = HashMap::new();
        self.changes().filter_map(move |change| {
            let fresh = match change {
                Change::Set(object) => {
                    let meta = object.meta();
                    let version = (meta.uid.clone(), meta.generation);
                    last.insert(meta.name.clone(), version.clone()) != Some(version)
                }
                Change::Gone(object) => {
                    last.remove(&object.meta().name);
                    true
                }
                Change::All => true,
            };
            std::future::ready(fresh.then_some(()))
        })
    }

    /// References to all objects, whenever `when` says so.
    pub(crate) fn queue_on<S>(&self, when: S) -> impl Stream<Item = ObjectRef<K>> + Send + use<K, S>
    where
        S: Stream<Item = ()> + Send + 'static,
    {
        let store = self.store.clone();
        when.flat_map(move |()| stream::iter(refs(&store)))
    }

    /// References to objects of kind `T` that a change here concerns, by name;
    /// all in `target` after a new list.
    pub(crate) fn queue_for<T, F>(
        &self,
        target: &Cached<T>,
        pick: F,
    ) -> impl Stream<Item = ObjectRef<T>> + Send + use<K, T, F>
    where
        F: Fn(&K) -> String + Send + 'static,
        T: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    {
        let store = target.store.clone();
        self.changes().flat_map(move |change| {
            let name = match &change {
                Change::Set(object) | Change::Gone(object) => Some(pick(object)),
                Change::All => None,
            };
            stream::iter(name.map_or_else(|| refs(&store), |name| vec![ObjectRef::new(&name)]))
        })
    }
}

fn refs<K>(store: &Store<K>) -> Vec<ObjectRef<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .state()
        .iter()
        .map(|object| ObjectRef::from_obj(object.as_ref()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use veer_crds::v1alpha1::NodeNetwork;

    use super::*;

    type Guarded = DeserializeGuard<NodeNetwork>;

    fn holding(name: &str, block: &str) -> Guarded {
        serde_json::from_value(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "NodeNetwork",
            "metadata": { "name": name }, "spec": {}, "status": { "heldPodCIDRs": [block] },
        }))
        .unwrap()
    }

    #[test]
    fn an_object_that_cannot_be_read_is_left_out_and_the_rest_is_not() {
        let unreadable = Unreadable::default();
        let none = |_: &str| None;
        let listed = |event| unreadable.readable(event, none);
        assert!(matches!(listed(Event::Init), Some(Event::Init)));
        assert!(listed(Event::InitApply(holding("bad", "nonsense"))).is_none());
        let good = listed(Event::InitApply(holding("good", "10.0.0.0/24")));
        assert!(matches!(good, Some(Event::InitApply(_))));
        assert!(matches!(listed(Event::InitDone), Some(Event::InitDone)));
        assert!(unreadable.why("bad").unwrap().contains("invalid"));
        assert_eq!(unreadable.why("good"), None);

        // One that was good goes, and is back once it can be read again.
        let known = |_: &str| holding("good", "10.0.0.0/24").0.ok().map(Arc::new);
        let spoilt = Event::Apply(holding("good", "10.0.0.0"));
        let seen = unreadable.readable(spoilt, known);
        assert!(matches!(seen, Some(Event::Delete(_))));
        assert!(unreadable.why("good").is_some());
        let seen = listed(Event::Apply(holding("good", "10.0.0.0/24")));
        assert!(matches!(seen, Some(Event::Apply(_))));
        assert_eq!(unreadable.why("good"), None);

        // A list that has it no more forgets it.
        listed(Event::Init);
        listed(Event::InitDone);
        assert_eq!(unreadable.why("bad"), None);
    }
}
