//! A list and then a watch, for ever.
//!
//! kube's own watcher does the same but does not expose the resourceVersion from
//! which it goes on, and so cannot detect a store that was restored. A
//! watch from a version that a restored etcd has not reached yet is silent: what
//! happens before the store gets there would never be seen. Here the store is
//! asked for its version whenever a connection was lost, because no etcd is restored
//! under a running API server. A store that is behind is listed again.

use std::{
    fmt::Debug,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::{DeserializeGuard, Status},
};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};
use veer_api_client::version::is_before;

/// Objects per page of a list.
const PAGE: u32 = 500;
/// The pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(800);
/// The shortest pause, whoever gets through meanwhile.
const LEAST_PAUSE: Duration = Duration::from_millis(400);
/// The longest pause: so long may a cluster take to be told that its API server is
/// back, if no other watch finds that out sooner.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// `Gone`: the version is too old, or was never there.
const GONE: u16 = 410;

/// An event of the watch, or a finished list.
#[derive(Debug)]
pub(super) enum Observed<K> {
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

/// Makes all watches of an agent retry as soon as one of them gets through.
#[derive(Clone, Debug)]
pub(super) struct Reached(watch::Sender<()>);

impl Reached {
    /// One for all.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(()))
    }
}

/// An unreadable object (a field has an invalid value) is logged and skipped. It
/// does not block the others.
pub(super) struct Source<K> {
    api: Api<DeserializeGuard<K>>,
    reached: Reached,
    others: watch::Receiver<()>,
    fields: Option<String>,
    /// Where the watch goes on; `None`: a list comes first.
    version: Option<String>,
    watch: Option<BoxStream<'static, kube::Result<WatchEvent<DeserializeGuard<K>>>>>,
    /// When that was begun.
    since: Instant,
    /// A connection was lost: the store may have been set back since.
    lost: bool,
    /// How often it failed since a watch last went on for a while.
    failures: u32,
    /// How long to wait before the next try.
    pause: Option<Duration>,
}

impl<K> Source<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Of all objects, or of those that a field selector names.
    pub(super) fn new(
        api: Api<DeserializeGuard<K>>,
        fields: Option<String>,
        reached: &Reached,
    ) -> Self {
        Self {
            api,
            reached: reached.clone(),
            others: reached.0.subscribe(),
            fields,
            version: None,
            watch: None,
            since: Instant::now(),
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
    pub(super) async fn next(&mut self) -> Result<Observed<K>, Error> {
        if let Some(pause) = self.pause {
            // At least so long: else two that get through and fail again would
            // keep each other, and the server, busy.
            tokio::time::sleep(LEAST_PAUSE).await;
            // Retry even if no other watch gets through.
            let rest = pause.saturating_sub(LEAST_PAUSE);
            let _sooner = tokio::time::timeout(rest, self.others.changed()).await;
            self.pause = None;
        }
        let result = self.step().await;
        if result.is_err() {
            if self.watch.take().is_some() && self.since.elapsed() >= LONGEST_PAUSE {
                self.failures = 0;
            }
            self.lost = true;
            self.pause = Some(pause(self.failures));
            self.failures = self.failures.saturating_add(1);
            // Successes of other watches until now did not help.
            self.others.mark_unchanged();
        }
        result
    }

    /// The server answered.
    fn got_through(&mut self) {
        if self.lost {
            self.lost = false;
            self.reached.0.send_replace(());
        }
    }

    async fn step(&mut self) -> Result<Observed<K>, Error> {
        loop {
            let Some(version) = self.version.clone() else {
                return self.list().await.map(Observed::List);
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
                    Ok(watch) => {
                        self.watch = Some(watch.boxed());
                        self.since = Instant::now();
                    }
                    Err(kube::Error::Api(status)) => return Err(self.ended(&status)),
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            let Some(event) = watch.next().await else {
                // After some minutes, as asked for. A server on its way down may
                // end each watch at once, and is not to be kept busy with that.
                if self.since.elapsed() < FIRST_PAUSE {
                    return Err(Error::Ended("it had only begun".to_owned()));
                }
                self.failures = 0;
                self.watch = None;
                continue;
            };
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.version = object.resource_version();
                    if let Some(object) = readable(object) {
                        return Ok(Observed::Apply(object));
                    }
                }
                WatchEvent::Deleted(object) => {
                    self.version = object.resource_version();
                    match readable(object) {
                        Some(object) => return Ok(Observed::Delete(object)),
                        // The object is unknown: the next list lacks it.
                        None => self.list_again(),
                    }
                }
                WatchEvent::Bookmark(bookmark) => {
                    self.version = Some(bookmark.metadata.resource_version);
                }
                WatchEvent::Error(status) => return Err(self.ended(&status)),
            }
        }
    }

    /// The error for a server's refusal to watch, or to go on.
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
        let now = list.metadata.resource_version;
        if is_before(now.as_deref(), version) {
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
            all.extend(page.items.into_iter().filter_map(readable));
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

/// The object; `None`, told: it cannot be read.
fn readable<K: Resource<DynamicType = ()>>(object: DeserializeGuard<K>) -> Option<K> {
    let unreadable = match object.0 {
        Ok(object) => return Some(object),
        Err(unreadable) => unreadable,
    };
    tracing::error!(
        kind = %K::kind(&()),
        namespace = unreadable.metadata.namespace,
        name = unreadable.metadata.name,
        error = unreadable.error,
        "an object cannot be read; it is left out until it is put right"
    );
    None
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

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, client::Body};

    use super::*;

    /// A server, and the queries that it was sent.
    fn server(
        reached: &Reached,
        answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static,
    ) -> (Source<ConfigMap>, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            log.lock().expect("no panic").push(query.clone());
            let (status, body) = answer(&query);
            let response = http::Response::builder().status(status);
            async move {
                let response = response.body(Body::from(body.into_bytes()));
                Ok::<_, Infallible>(response.expect("a response"))
            }
        });
        let client = Client::new(service, "default");
        let source = Source::new(Api::default_namespaced(client), None, reached);
        (source, asked)
    }

    fn list_of(version: u64) -> (u16, String) {
        let list = format!(
            r#"{{"kind":"ConfigMapList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}},
                "items":[{{"metadata":{{"name":"a","resourceVersion":"{version}"}}}}]}}"#
        );
        (200, list)
    }

    fn is_watch(query: &str) -> bool {
        query.contains("watch=true")
    }

    /// An object with a number in a field that must be text.
    const UNREADABLE: &str = r#"{"metadata":{"name":"b","resourceVersion":"7"},"data":{"x":1}}"#;

    #[tokio::test(start_paused = true)]
    async fn an_object_that_cannot_be_read_keeps_nobody_from_the_others() {
        let (mut source, asked) = server(&Reached::new(), |query| {
            if !is_watch(query) {
                let (status, list) = list_of(5);
                return (
                    status,
                    list.replace(r#""items":["#, &format!(r#""items":[{UNREADABLE},"#)),
                );
            }
            let event = |object| format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
            let good = r#"{"metadata":{"name":"c","resourceVersion":"8"}}"#;
            (200, format!("{}\n{}\n", event(UNREADABLE), event(good)))
        });
        let seen = source.next().await.expect("a list");
        assert!(matches!(seen, Observed::List(all) if all.len() == 1 && all[0].name_any() == "a"));
        let seen = source.next().await.expect("what came after it");
        assert!(matches!(seen, Observed::Apply(object) if object.name_any() == "c"));
        assert_eq!(
            asked.lock().expect("no panic").len(),
            2,
            "one list, one watch"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_was_set_back_is_listed_anew() {
        let restored = Arc::new(Mutex::new(false));
        let now = Arc::clone(&restored);
        let (mut source, _) = server(&Reached::new(), move |query| {
            let mut restored = now.lock().expect("no panic");
            match (is_watch(query), *restored) {
                (true, _) => {
                    *restored = true;
                    (500, "lost".to_owned())
                }
                (false, false) => list_of(100),
                (false, true) => list_of(50),
            }
        });
        let seen = source.next().await.expect("a list");
        assert!(
            matches!(seen, Observed::List(all) if all[0].resource_version() == Some("100".into()))
        );
        source.next().await.expect_err("no watch");
        let seen = source.next().await.expect("a list of the restored store");
        assert!(
            matches!(seen, Observed::List(all) if all[0].resource_version() == Some("50".into()))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_went_on_is_watched_from_where_it_was() {
        let (mut source, asked) = server(&Reached::new(), |query| {
            if is_watch(query) {
                (500, "lost".to_owned())
            } else {
                list_of(100)
            }
        });
        source.next().await.expect("a list");
        for _ in 0..2 {
            source.next().await.expect_err("no watch");
        }
        let asked = asked.lock().expect("no panic");
        let watches: Vec<_> = asked.iter().filter(|q| is_watch(q)).collect();
        assert_eq!(watches.len(), 2, "{asked:?}");
        assert!(watches.iter().all(|q| q.contains("resourceVersion=100")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_ends_every_watch_at_once_is_not_kept_busy() {
        /// How many watches there were in a minute, of one among some.
        async fn watches(reached: &Reached) -> usize {
            let (mut source, asked) = server(reached, |query| {
                if is_watch(query) {
                    (200, String::new())
                } else {
                    list_of(100)
                }
            });
            source.next().await.expect("a list");
            let mut watches = 0;
            let start = Instant::now();
            // Time does not pass for those that never wait.
            while start.elapsed() < Duration::from_mins(1) && watches < 1000 {
                source.next().await.expect_err("the watch ended");
                watches = asked.lock().expect("no panic").len() / 2;
            }
            watches
        }
        let alone = watches(&Reached::new()).await;
        assert!((4..20).contains(&alone), "{alone} watches in a minute");
        let reached = Reached::new();
        let (one, other) = tokio::join!(watches(&reached), watches(&reached));
        assert!((4..200).contains(&one), "{one} and {other} in a minute");
        assert!((4..200).contains(&other), "{one} and {other} in a minute");
    }

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
}
