//! Kubernetes Events about this node, on its Node object or on one of its pods:
//! asynchronous, no more than a few a minute, and never in the way of what they
//! tell of.
//!
//! The same words within some minutes are one Event with a count. What cannot
//! be written while the API server is away waits; what does not fit is counted
//! and told with the next one.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        events::v1::{Event, EventSeries},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::mpsc;

/// Events that wait to be written.
const QUEUE: usize = 128;
/// Events that may be written at once, and the time after which one more may.
const BURST: u32 = 20;
const PACE: Duration = Duration::from_secs(2);
/// How long the same words are the same Event.
const SAME: Duration = Duration::from_mins(6);
/// Wait before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a note; the API takes 1024.
const NOTE_MAX: usize = 1000;
/// Characters of the reporting instance that the API takes.
const INSTANCE_MAX: usize = 128;
/// Who tells it.
const CONTROLLER: &str = "veer-agent";

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Told {
    warning: bool,
    reason: &'static str,
    note: String,
    /// Namespace, name and UID of the pod that it is about; `None`: the node.
    pod: Option<(String, String, String)>,
}

/// Handle by which the agent's parts tell things. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    to: mpsc::Sender<Told>,
    lost: Arc<AtomicUsize>,
}

/// The other end of [`Events`].
#[derive(Debug)]
pub(crate) struct Untold {
    from: mpsc::Receiver<Told>,
    lost: Arc<AtomicUsize>,
}

impl Told {
    fn namespace(&self) -> &str {
        // Events of objects without a namespace are in this one.
        self.pod
            .as_ref()
            .map_or("default", |(namespace, ..)| namespace)
    }

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
    pub(crate) fn new() -> (Self, Untold) {
        let (to, from) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicUsize>::default();
        let untold = Untold {
            from,
            lost: lost.clone(),
        };
        (Self { to, lost }, untold)
    }

    /// Tells of something that somebody should look at. `reason` is one word in
    /// `PascalCase`, `note` a sentence.
    pub(crate) fn warn(&self, reason: &'static str, note: impl Into<String>) {
        self.tell(true, reason, note.into(), None);
    }

    /// As [`Events::warn`], on a pod: its namespace, name and UID.
    pub(crate) fn warn_pod(
        &self,
        pod: (String, String, String),
        reason: &'static str,
        note: impl Into<String>,
    ) {
        self.tell(true, reason, note.into(), Some(pod));
    }

    /// Tells of something that is as it should be.
    pub(crate) fn normal(&self, reason: &'static str, note: impl Into<String>) {
        self.tell(false, reason, note.into(), None);
    }

    fn tell(
        &self,
        warning: bool,
        reason: &'static str,
        note: String,
        pod: Option<(String, String, String)>,
    ) {
        let told = Told {
            warning,
            reason,
            note: cut(note),
            pod,
        };
        if self.to.try_send(told).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The note as the API takes it.
fn cut(mut note: String) -> String {
    if note.len() > NOTE_MAX {
        let end = (0..=NOTE_MAX)
            .rev()
            .find(|at| note.is_char_boundary(*at))
            .unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    note
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

/// An Event that was written.
#[derive(Debug)]
struct Written {
    name: String,
    times: i32,
    at: Instant,
}

impl Untold {
    /// Writes Events until all handles are gone.
    pub(crate) async fn run(mut self, client: Client, node: String) {
        let mut allowance = Allowance::new(Instant::now());
        let mut written: HashMap<Told, Written> = HashMap::new();
        while let Some(told) = self.from.recv().await {
            while let Err(wait) = allowance.take(Instant::now()) {
                tokio::time::sleep(wait).await;
            }
            written.retain(|_, w| w.at.elapsed() < SAME);
            let api: Api<Event> = Api::namespaced(client.clone(), told.namespace());
            loop {
                let write = write(&api, &node, &told, written.get(&told), &self.lost);
                match tokio::time::timeout(PATIENCE, write).await {
                    Ok(Ok(done)) => {
                        written.insert(told, done);
                        break;
                    }
                    // One that has expired meanwhile is begun anew.
                    Ok(Err(kube::Error::Api(e)))
                        if e.code == 404 && written.contains_key(&told) =>
                    {
                        written.remove(&told);
                    }
                    Ok(Err(kube::Error::Api(e)))
                        if (400..500).contains(&e.code) && e.code != 429 =>
                    {
                        tracing::warn!(error = %e.message, note = told.note, "an Event was refused");
                        break;
                    }
                    // It was written, only the answer makes no sense.
                    Ok(Err(kube::Error::SerdeError(_))) => break,
                    Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
                }
            }
        }
    }
}

async fn write(
    api: &Api<Event>,
    node: &str,
    told: &Told,
    earlier: Option<&Written>,
    lost: &AtomicUsize,
) -> Result<Written, kube::Error> {
    let now = Timestamp::now();
    if let Some(Written { name, times, .. }) = earlier {
        let times = times + 1;
        let series = EventSeries {
            count: times,
            last_observed_time: MicroTime(now),
        };
        let patch = json!({ "series": series });
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        return Ok(Written {
            name: name.clone(),
            times,
            at: Instant::now(),
        });
    }
    let missed = lost.swap(0, Ordering::Relaxed);
    let words = if missed == 0 {
        told.note.clone()
    } else {
        cut(format!(
            "({missed} earlier ones were not written) {}",
            told.note
        ))
    };
    let event = event(node, told, words, now);
    let name = event.metadata.name.clone().unwrap_or_default();
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {}
        Err(error) => {
            lost.fetch_add(missed, Ordering::Relaxed);
            return Err(error);
        }
    }
    Ok(Written {
        name,
        times: 1,
        at: Instant::now(),
    })
}

fn event(node: &str, told: &Told, words: String, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{node}.{:x}", now.as_nanosecond())),
            namespace: Some(told.namespace().to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        action: Some(told.reason.to_owned()),
        reason: Some(told.reason.to_owned()),
        note: Some(words),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        regarding: Some(told.regarding(node)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(node.chars().take(INSTANCE_MAX).collect()),
        ..Event::default()
    }
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
    async fn telling_never_waits_and_what_does_not_fit_is_counted() {
        let (events, mut untold) = Events::new();
        for i in 0..QUEUE + 7 {
            events.warn("Repaired", format!("route {i} was removed; put back"));
        }
        assert_eq!(untold.lost.load(Ordering::Relaxed), 7);
        let first = untold.from.recv().await.unwrap();
        assert_eq!(first.note, "route 0 was removed; put back");
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = cut("ü".repeat(NOTE_MAX));
        assert!(note.len() <= 1024 && note.ends_with('…'));
    }

    #[test]
    fn an_event_names_the_node_as_the_kubelet_does() {
        let told = Told {
            warning: true,
            reason: "Repaired",
            note: "x".into(),
            pod: None,
        };
        let event = event("n1", &told, told.note.clone(), Timestamp::UNIX_EPOCH);
        let regarding = event.regarding.unwrap();
        assert_eq!(regarding.uid.as_deref(), Some("n1"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert!(event.event_time.is_some() && event.reporting_instance.is_some());
    }

    #[test]
    fn an_event_of_a_pod_is_in_the_pods_namespace() {
        let told = Told {
            warning: true,
            reason: "BandwidthNotLimited",
            note: "x".into(),
            pod: Some(("shop".into(), "cart-0".into(), "u-1".into())),
        };
        let event = event("n1", &told, told.note.clone(), Timestamp::UNIX_EPOCH);
        assert_eq!(event.metadata.namespace.as_deref(), Some("shop"));
        let regarding = event.regarding.unwrap();
        assert_eq!(
            (regarding.kind.as_deref(), regarding.name.as_deref()),
            (Some("Pod"), Some("cart-0"))
        );
        assert_eq!(regarding.uid.as_deref(), Some("u-1"));
    }
}
