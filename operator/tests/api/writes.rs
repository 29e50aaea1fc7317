//! How often the operator writes: exact small numbers, by the versions of objects.
//!
//! Every write gives an object a new resourceVersion, and a watch shows each; so the
//! events of a watch that only the operator writes to are its writes.

use std::sync::{Arc, Mutex};

use futures::StreamExt;
use kube::Api;
use kube::api::{WatchEvent, WatchParams};
use serde_json::json;
use veer_crds::v1alpha1::{NodeNetwork, Phase, SecurityIdentity};

use crate::modes::{ready_cluster, told};
use crate::server::{Server, eventually};

/// Counts the events of a kind from now on.
struct Count {
    seen: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Count {
    async fn of<K>(server: &Server) -> Self
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let api: Api<K> = Api::all(server.client.clone());
        let list = api.list(&kube::api::ListParams::default()).await.unwrap();
        let from = list.metadata.resource_version.unwrap();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let to = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let params = WatchParams::default().timeout(290);
            let mut events = std::pin::pin!(api.watch(&params, &from).await.unwrap());
            while let Some(Ok(event)) = events.next().await {
                let (what, object) = match event {
                    WatchEvent::Added(object) => ("added", object),
                    WatchEvent::Modified(object) => ("modified", object),
                    WatchEvent::Deleted(object) => ("deleted", object),
                    WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
                };
                let name = object.meta().name.clone().unwrap_or_default();
                to.lock().unwrap().push(format!("{what} {name}"));
            }
        });
        Self { seen, task }
    }

    /// The events before this one, which the test makes the operator cause last.
    async fn until(&self, last: &str) -> Vec<String> {
        eventually(last, async || {
            let seen = self.seen.lock().unwrap();
            let end = seen.iter().position(|event| event == last);
            let end = end.ok_or_else(|| format!("{seen:?}"))?;
            Ok(seen[..end].to_vec())
        })
        .await
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn pods_and_jobs_cost_no_write_to_a_node_and_one_per_new_label_set() {
    let (server, _operator) = ready_cluster().await;
    server.add_namespace("shop", &[]).await;
    let nodes = Count::of::<NodeNetwork>(&server).await;
    let identities = Count::of::<SecurityIdentity>(&server).await;
    for i in 0..10 {
        let (set, job) = (format!("s{i}"), format!("j{i}"));
        server.add_pod("shop", &set, &[("app", &set)]).await;
        let labels = [
            ("app", "batch"),
            ("batch.kubernetes.io/job-name", job.as_str()),
        ];
        server.add_pod("shop", &job, &labels).await;
        // What agents say of it is no news for the operator.
        let pods = json!({ "status": { "endpoints": i + 1, "identitySerial": "1" } });
        let patch = kube::api::Patch::Merge(pods);
        let params = kube::api::PatchParams::default();
        server
            .reports()
            .patch_status("a", &params, &patch)
            .await
            .unwrap();
    }
    server.identity_with("app", "s9").await;
    server.identity_with("app", "batch").await;
    server.add_pod("shop", "mark", &[("app", "mark")]).await;
    let mark = server.identity_with("app", "mark").await;
    let mark = format!("added {}", mark.metadata.name.unwrap());
    let made = identities.until(&mark).await;
    assert_eq!(made.len(), 11, "{made:?}");
    assert!(
        made.iter().all(|event| event.starts_with("added")),
        "{made:?}"
    );
    server.add_node("mark").await;
    assert_eq!(nodes.until("added mark").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_change_of_mode_costs_five_writes_a_node() {
    let (server, _operator) = ready_cluster().await;
    let nodes = Count::of::<NodeNetwork>(&server).await;
    server
        .change(json!({ "routing": { "mode": "Native" } }))
        .await;
    let phases = [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
        Phase::Ready,
    ];
    for phase in phases {
        for name in ["a", "b", "c"] {
            told(&server, name, 2, phase).await;
        }
        for name in ["a", "b", "c"] {
            server.agent(name).await;
        }
    }
    server.await_network("Progressing", "False", "Done").await;
    // The operator tells each node five steps; the agent acknowledges four of them
    // there, for its word for Preflight is in its NodeReport.
    server.add_node("mark").await;
    let seen = nodes.until("added mark").await;
    assert_eq!(seen.len(), 3 * (5 + 4), "{seen:?}");
}
