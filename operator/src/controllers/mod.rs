//! The controllers, and how one runs: a queue of references to objects, a
//! reconciliation per object, and a wait that grows with failures.

pub(crate) mod cluster_network;
pub(crate) mod node;
pub(crate) mod node_network;
pub(crate) mod node_report;
pub(crate) mod pod_cidr;
pub(crate) mod security_identity;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Resource;
use kube_runtime::controller::{Action, Config, applier};
use kube_runtime::reflector::{ObjectRef, Store};

use crate::context::Context;
use crate::error::Error;

/// Runs a controller until its queue ends, which it does with the term.
///
/// `settle` is how long changes are collected before the object is looked at.
pub(crate) async fn run<K, F>(
    name: &'static str,
    context: Arc<Context>,
    store: Store<K>,
    queue: impl Stream<Item = ObjectRef<K>> + Send + 'static,
    settle: Duration,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Send + Sync + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let failures: Arc<Mutex<HashMap<ObjectRef<K>, u32>>> = Arc::default();
    let forget = Arc::clone(&failures);
    let attempt = move |object: Arc<K>, context: Arc<Context>| {
        let key = ObjectRef::from_obj(object.as_ref());
        let forget = Arc::clone(&forget);
        let work = reconcile(object, Arc::clone(&context));
        Box::pin(async move {
            let result = work.await;
            if result.is_ok() {
                forget
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&key);
                context.metrics.ran(name, "ok");
            }
            result
        })
    };
    let policy = move |object: Arc<K>, error: &Error, context: Arc<Context>| {
        let key = ObjectRef::from_obj(object.as_ref());
        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key.clone()).or_default();
        let wait = error.backoff(*count);
        *count += 1;
        context.metrics.ran(name, error.category());
        if matches!(error, Error::Conflict { .. } | Error::Outdated { .. }) {
            tracing::debug!(controller = name, object = %key, "{}", error.chain());
        } else {
            tracing::warn!(controller = name, object = %key, ?wait, "{}", error.chain());
        }
        Action::requeue(wait)
    };
    let config = Config::default().debounce(settle).concurrency(8);
    let queue = queue.map(Ok::<_, Infallible>);
    let mut results = std::pin::pin!(applier(attempt, policy, context, store, queue, config));
    // The error policy has logged failures; an object that is gone is no error.
    while results.next().await.is_some() {}
}
