//! The queue of Kubernetes Events about this node, on its Node object or on one of its
//! pods. Adding to it never waits; a few Events a minute are written.
//!
//! Events wait in the queue while the API server is away. Events that do not fit are
//! counted, and the next Event says how many were lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, runtime::events::EventType};
use tokio::sync::mpsc;
use veer_api_client::events::Publisher;

/// Events that wait to be written.
const QUEUE: usize = 128;
/// Events that may be written at once, and the time after which one more may.
const BURST: u32 = 20;
const PACE: Duration = Duration::from_secs(2);
/// Wait before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The reporting controller.
const CONTROLLER: &str = "veer-agent";

/// An Event to write.
#[derive(Debug)]
struct Queued {
    type_: EventType,
    reason: &'static str,
    note: String,
    /// Namespace, name and UID of its pod; `None`: it is about the node.
    pod: Option<(String, String, String)>,
}

/// Handle to add Events. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    to: mpsc::Sender<Queued>,
    lost: Arc<AtomicUsize>,
}

/// Writes what [`Events`] add.
#[derive(Debug)]
pub(crate) struct EventWriter {
    from: mpsc::Receiver<Queued>,
    lost: Arc<AtomicUsize>,
}

impl Queued {
    fn regarding(&self, node: &str) -> ObjectReference {
        let Some((namespace, name, uid)) = &self.pod else {
            return ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                // As the kubelet's Events of its node have it: `kubectl describe
                // node` looks for this.
                uid: Some(node.to_owned()),
                ..ObjectReference::default()
            };
        };
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(namespace.clone()),
            name: Some(name.clone()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }
    }
}

impl Events {
    /// A handle and what the writing task needs.
    pub(crate) fn new() -> (Self, EventWriter) {
        let (to, from) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicUsize>::default();
        let writer = EventWriter {
            from,
            lost: lost.clone(),
        };
        (Self { to, lost }, writer)
    }

    /// Adds an Event of type Warning. `reason` is one word in `PascalCase`, `note` a
    /// sentence.
    pub(crate) fn warn(&self, reason: &'static str, note: impl Into<String>) {
        self.add(EventType::Warning, reason, note.into(), None);
    }

    /// As [`Events::warn`], on a pod: its namespace, name and UID.
    pub(crate) fn warn_pod(
        &self,
        pod: (String, String, String),
        reason: &'static str,
        note: impl Into<String>,
    ) {
        self.add(EventType::Warning, reason, note.into(), Some(pod));
    }

    /// Adds an Event of type Normal.
    pub(crate) fn normal(&self, reason: &'static str, note: impl Into<String>) {
        self.add(EventType::Normal, reason, note.into(), None);
    }

    fn add(
        &self,
        type_: EventType,
        reason: &'static str,
        note: String,
        pod: Option<(String, String, String)>,
    ) {
        let event = Queued {
            type_,
            reason,
            note,
            pod,
        };
        if self.to.try_send(event).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// How many may be written now: a bucket that fills by one every [`PACE`].
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    /// Takes one out; without one, how long until there is.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        while self.left < BURST && now.duration_since(self.since) >= PACE {
            self.left += 1;
            self.since += PACE;
        }
        if self.left == BURST {
            self.since = now;
        }
        if self.left == 0 {
            return Err(PACE.saturating_sub(now.duration_since(self.since)));
        }
        self.left -= 1;
        Ok(())
    }
}

impl EventWriter {
    /// Writes Events until all handles are gone.
    pub(crate) async fn run(mut self, client: Client, node: String) {
        let mut allowance = Allowance::new(Instant::now());
        let publisher = Publisher::new(client, CONTROLLER, &node);
        while let Some(event) = self.from.recv().await {
            while let Err(wait) = allowance.take(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
            loop {
                let write = write(&publisher, &node, &event, &self.lost);
                match tokio::time::timeout(PATIENCE, write).await {
                    Ok(Err(kube::Error::Api(e)))
                        if (400..500).contains(&e.code) && e.code != 429 =>
                    {
                        tracing::warn!(error = %e.message, note = event.note, "an Event was refused");
                        break;
                    }
                    // With the second, the Event was written and the answer is unreadable.
                    Ok(Ok(()) | Err(kube::Error::SerdeError(_))) => break,
                    Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }
}

async fn write(
    publisher: &Publisher,
    node: &str,
    event: &Queued,
    lost: &AtomicUsize,
) -> kube::Result<()> {
    let missed = lost.load(Ordering::Relaxed);
    let text = if missed == 0 {
        event.note.clone()
    } else {
        format!("({missed} earlier ones were not written) {}", event.note)
    };
    publisher
        .publish(&event.regarding(node), event.type_, event.reason, text)
        .await?;
    lost.fetch_sub(missed, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_events_is_written_at_a_walk() {
        let begun = Instant::now();
        let mut allowance = Allowance::new(begun);
        let at_once = (0..100).filter(|_| allowance.take(begun).is_ok()).count();
        assert_eq!(at_once, BURST as usize);
        assert_eq!(allowance.take(begun), Err(PACE));
        assert_eq!(allowance.take(begun + PACE), Ok(()));
        assert!(allowance.take(begun + PACE).is_err());
        let later = begun + PACE * 1000;
        let again = (0..100).filter(|_| allowance.take(later).is_ok()).count();
        assert_eq!(again, BURST as usize, "what was not used is not saved up");
    }

    #[tokio::test]
    async fn adding_never_waits_and_what_does_not_fit_is_counted() {
        let (events, mut writer) = Events::new();
        for i in 0..QUEUE + 7 {
            events.warn("Repaired", format!("route {i} was removed; put back"));
        }
        assert_eq!(writer.lost.load(Ordering::Relaxed), 7);
        let first = writer.from.recv().await.unwrap();
        assert_eq!(first.note, "route 0 was removed; put back");
    }

    fn about(pod: Option<(String, String, String)>) -> ObjectReference {
        let event = Queued {
            type_: EventType::Warning,
            reason: "Repaired",
            note: "x".into(),
            pod,
        };
        event.regarding("n1")
    }

    #[test]
    fn an_event_names_the_node_as_the_kubelet_does() {
        let node = about(None);
        assert_eq!(node.uid.as_deref(), Some("n1"));
        assert_eq!((node.kind.as_deref(), node.namespace), (Some("Node"), None));
    }

    #[test]
    fn an_event_of_a_pod_is_in_the_pods_namespace() {
        let pod = about(Some(("shop".into(), "cart-0".into(), "u-1".into())));
        assert_eq!(pod.namespace.as_deref(), Some("shop"));
        assert_eq!(
            (pod.kind.as_deref(), pod.name.as_deref()),
            (Some("Pod"), Some("cart-0"))
        );
        assert_eq!(pod.uid.as_deref(), Some("u-1"));
    }
}
