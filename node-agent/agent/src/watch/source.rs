//! A list and then a watch, for ever.
//!
//! kube's own watcher does the same but keeps to itself from which
//! resourceVersion it goes on, and so cannot tell a store that was set back. A
//! watch from a version that a restored etcd has not reached yet is silent: what
//! happens before the store gets there would never be seen. Here the store is
//! asked for its version whenever a connection was lost, for no etcd is restored
//! under a running API server, and one that is behind is listed anew.

use std::{
    fmt::Debug,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The longest pause: so long may a cluster take to be told that its API server is
/// back, if no other watch finds that out sooner.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// `Gone`: the version is too old, or was never there.
const GONE: u16 = 410;

/// What is seen.
#[derive(Debug)]
pub(super) enum Seen<K> {
    /// All objects.
    List(Vec<K>),
    /// One that is new or changed.
    Apply(K),
    /// One that is gone, as it was last.
    Delete(K),
}

/// Why nothing is seen for now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A request failed.
    #[error("cannot list or watch")]
    Api(#[from] kube::Error),
    /// The server ended a watch.
    #[error("the API server ended the watch: {0}")]
    Ended(String),
    /// A list without a version, from which nothing can be watched.
    #[error("the API server's list has no resourceVersion")]
    NoVersion,
}

/// Has all watches of an agent try again as soon as one of them gets through.
#[derive(Clone, Debug)]
pub(super) struct Reached(watch::Sender<()>);

impl Reached {
    /// One for all.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(()))
    }
}

/// See the module.
pub(super) struct Source<K> {
    api: Api<K>,
    reached: Reached,
    others: watch::Receiver<()>,
    fields: Option<String>,
    /// Where the watch goes on; `None`: a list comes first.
    version: Option<String>,
    watch: Option<BoxStream<'static, kube::Result<WatchEvent<K>>>>,
    /// A connection was lost: the store may have been set back since.
    lost: bool,
    /// How often in a row it failed.
    failures: u32,
    /// How long to wait before the next try.
    pause: Option<Duration>,
}

impl<K> Source<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Of all objects, or of those that a field selector names.
    pub(super) fn new(api: Api<K>, fields: Option<String>, reached: &Reached) -> Self {
        Self {
            api,
            reached: reached.clone(),
            others: reached.0.subscribe(),
            fields,
            version: None,
            watch: None,
            lost: false,
            failures: 0,
            pause: None,
        }
    }

    /// Has the next thing seen be a list.
    pub(super) fn list_again(&mut self) {
        self.version = None;
        self.watch = None;
    }

    /// What comes next. May be dropped at any time: nothing is lost. After an
    /// error the next call waits a while, longer each time.
    ///
    /// # Errors
    ///
    /// A request failed or a watch ended badly; the next call tries again.
    pub(super) async fn next(&mut self) -> Result<Seen<K>, Error> {
        if let Some(pause) = self.pause {
            // Nobody else getting through is no reason to stop trying.
            let _sooner = tokio::time::timeout(pause, self.others.changed()).await;
            self.pause = None;
        }
        let result = self.step().await;
        if result.is_err() {
            self.watch = None;
            self.lost = true;
            self.pause = Some(pause(self.failures));
            self.failures = self.failures.saturating_add(1);
            // What others found out until now did not help.
            self.others.mark_unchanged();
        }
        result
    }

    /// The server answered.
    fn got_through(&mut self) {
        self.failures = 0;
        if self.lost {
            self.lost = false;
            self.reached.0.send_replace(());
        }
    }

    async fn step(&mut self) -> Result<Seen<K>, Error> {
        loop {
            let Some(version) = self.version.clone() else {
                return self.list().await.map(Seen::List);
            };
            if self.lost {
                self.compare(&version).await?;
                self.got_through();
                continue;
            }
            let Some(watch) = &mut self.watch else {
                let mut params = WatchParams::default();
                params.field_selector.clone_from(&self.fields);
                match self.api.watch(&params, &version).await {
                    Ok(watch) => self.watch = Some(watch.boxed()),
                    Err(kube::Error::Api(status)) => return Err(self.ended(&status)),
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            let Some(event) = watch.next().await else {
                // After some minutes, as asked for.
                self.watch = None;
                continue;
            };
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.version = object.resource_version();
                    return Ok(Seen::Apply(object));
                }
                WatchEvent::Deleted(object) => {
                    self.version = object.resource_version();
                    return Ok(Seen::Delete(object));
                }
                WatchEvent::Bookmark(bookmark) => {
                    self.version = Some(bookmark.metadata.resource_version);
                }
                WatchEvent::Error(status) => return Err(self.ended(&status)),
            }
        }
    }

    /// What a server's refusal to watch, or to go on, comes to.
    fn ended(&mut self, status: &Status) -> Error {
        if status.code == GONE {
            self.list_again();
        }
        let Status {
            message,
            code,
            reason,
            ..
        } = status;
        Error::Ended(format!("{message} ({code} {reason})"))
    }

    /// Lists again where the store has not reached `version`.
    async fn compare(&mut self, version: &str) -> Result<(), Error> {
        let list = self.api.list(&self.params(1)).await?;
        let now = list.metadata.resource_version.unwrap_or_default();
        if is_before(&now, version) {
            tracing::warn!(
                kind = %K::kind(&()),
                now,
                seen = version,
                "the API server's store was set back: listing again"
            );
            self.list_again();
        }
        Ok(())
    }

    async fn list(&mut self) -> Result<Vec<K>, Error> {
        let mut all = Vec::new();
        let mut params = self.params(PAGE);
        loop {
            let page = self.api.list(&params).await?;
            all.extend(page.items);
            if let Some(token) = page.metadata.continue_.filter(|token| !token.is_empty()) {
                params = self.params(PAGE).continue_token(&token);
                continue;
            }
            let version = page.metadata.resource_version.filter(|v| !v.is_empty());
            self.version = Some(version.ok_or(Error::NoVersion)?);
            self.got_through();
            return Ok(all);
        }
    }

    fn params(&self, limit: u32) -> ListParams {
        let params = ListParams::default().limit(limit);
        match &self.fields {
            Some(fields) => params.fields(fields),
            None => params,
        }
    }
}

/// How long to wait after that many failures before: somewhere between the half
/// and the whole, so that not all agents come back at once.
fn pause(failures: u32) -> Duration {
    let whole = FIRST_PAUSE
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_PAUSE);
    let random = RandomState::new().hash_one(Instant::now());
    let share = 128 + u32::from(random.to_ne_bytes()[0] >> 1);
    whole * share / 256
}

/// Whether a resourceVersion is older than another. Kubernetes orders them as
/// numbers (KEP 5504).
fn is_before(a: &str, b: &str) -> bool {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a < b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_differ() {
        for (failures, whole) in [(0, FIRST_PAUSE), (2, FIRST_PAUSE * 4), (99, LONGEST_PAUSE)] {
            let some: Vec<Duration> = (0..50).map(|_| pause(failures)).collect();
            assert!(
                some.iter().all(|p| (whole / 2..=whole).contains(p)),
                "{some:?}"
            );
            assert!(some.iter().any(|p| *p != some[0]), "{some:?}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_before("9", "10"));
        assert!(!is_before("10", "10"));
        assert!(!is_before("10", "9"));
        assert!(!is_before("", "9"), "unknown is not behind");
    }
}
