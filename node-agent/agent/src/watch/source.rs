//! A list and then a watch, for ever.
//!
//! kube's own watcher does the same but keeps to itself from which
//! resourceVersion it goes on, and so cannot tell a store that was set back. A
//! watch from a version that a restored etcd has not reached yet is silent: what
//! happens before the store gets there would never be seen. Here the store is
//! asked for its version whenever a connection was lost, for no etcd is restored
//! under a running API server, and one that is behind is listed anew.

use std::{fmt::Debug, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::Status,
    runtime::watcher::DefaultBackoff,
};
use serde::de::DeserializeOwned;

/// Objects per page of a list.
const PAGE: u32 = 500;
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

/// See the module.
pub(super) struct Source<K> {
    api: Api<K>,
    fields: Option<String>,
    /// Where the watch goes on; `None`: a list comes first.
    version: Option<String>,
    watch: Option<BoxStream<'static, kube::Result<WatchEvent<K>>>>,
    /// A connection was lost: the store may have been set back since.
    lost: bool,
    backoff: DefaultBackoff,
    /// How long to wait before the next try.
    pause: Option<Duration>,
}

impl<K> Source<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Of all objects, or of those that a field selector names.
    pub(super) fn new(api: Api<K>, fields: Option<String>) -> Self {
        Self {
            api,
            fields,
            version: None,
            watch: None,
            lost: false,
            backoff: DefaultBackoff::default(),
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
            tokio::time::sleep(pause).await;
            self.pause = None;
        }
        let result = self.step().await;
        if result.is_err() {
            self.watch = None;
            self.lost = true;
            self.pause = self.backoff.next();
        }
        result
    }

    async fn step(&mut self) -> Result<Seen<K>, Error> {
        loop {
            let Some(version) = self.version.clone() else {
                return self.list().await.map(Seen::List);
            };
            if self.lost {
                self.compare(&version).await?;
                self.lost = false;
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
            self.lost = false;
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
    fn versions_are_compared_as_numbers() {
        assert!(is_before("9", "10"));
        assert!(!is_before("10", "10"));
        assert!(!is_before("10", "9"));
        assert!(!is_before("", "9"), "unknown is not behind");
    }
}
