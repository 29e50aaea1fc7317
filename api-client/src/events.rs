//! Kubernetes Events by kube's [`Recorder`].
//!
//! A Recorder counts Events of one object and reason as one, and keeps the note of
//! the first. Here the note says what happened ("phase Switch is done"), so another
//! note is another Event: each note gets a Recorder of its own.

use std::{
    collections::HashMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// How long the same note is the same Event: the time for which a Recorder knows it.
const SAME: Duration = Duration::from_mins(6);
/// Bytes of a note that the API takes.
const NOTE_MAX: usize = 1024;
/// Characters of the reporting instance that the API takes.
const INSTANCE_MAX: usize = 128;

/// Publishes Events. The same type, reason and note about the same object within
/// six minutes are one Event with a count.
pub struct Publisher {
    client: Client,
    reporter: Reporter,
    /// By note, with the time of its last use.
    recorders: Mutex<HashMap<String, (Recorder, Instant)>>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher")
            .field("reporter", &self.reporter)
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher for `controller`, which runs as `instance`.
    pub fn new(client: Client, controller: &str, instance: &str) -> Self {
        let reporter = Reporter {
            controller: controller.to_owned(),
            instance: Some(instance.chars().take(INSTANCE_MAX).collect()),
        };
        Self {
            client,
            reporter,
            recorders: Mutex::default(),
        }
    }

    /// Publishes an Event about an object. `reason` is one word in `PascalCase`,
    /// `note` a sentence, cut where it is longer than the API takes.
    ///
    /// # Errors
    ///
    /// The API server refuses the Event or does not answer.
    pub async fn publish(
        &self,
        regarding: &ObjectReference,
        type_: EventType,
        reason: &str,
        note: String,
    ) -> kube::Result<()> {
        let note = cut(note);
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note.clone()),
            action: reason.to_owned(),
            secondary: None,
        };
        match self.recorder(&note).publish(&event, regarding).await {
            // The counted Event has expired or was deleted: the next one is the first.
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.known().remove(&note);
                self.recorder(&note).publish(&event, regarding).await
            }
            result => result,
        }
    }

    /// The Recorder of a note. Forgets those that were not used for [`SAME`].
    fn recorder(&self, note: &str) -> Recorder {
        let now = Instant::now();
        let mut known = self.known();
        known.retain(|_, (_, used)| now.duration_since(*used) < SAME);
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (recorder, used) = known.entry(note.to_owned()).or_insert_with(|| (new(), now));
        *used = now;
        recorder.clone()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (Recorder, Instant)>> {
        self.recorders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The note as the API takes it.
fn cut(mut note: String) -> String {
    const MARK: char = '…';
    if note.len() > NOTE_MAX {
        note.truncate(note.floor_char_boundary(NOTE_MAX - MARK.len_utf8()));
        note.push(MARK);
    }
    note
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kube::client::Body;
    use serde_json::{Value, json};
    use tower::BoxError;

    use super::*;

    /// What the API server was asked: method, path and object.
    type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

    /// A publisher whose API server answers with what it is sent; patches fail with
    /// `gone`, if that is a status.
    fn publisher(gone: Option<u16>) -> (Publisher, Asked) {
        let asked = Asked::default();
        let seen = Arc::clone(&asked);
        let server = tower::service_fn(move |request: http::Request<Body>| {
            let seen = Arc::clone(&seen);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let object: Value = serde_json::from_slice(&body)?;
                let method = head.method.to_string();
                let status = gone.filter(|_| method == "PATCH");
                let answer = match status {
                    Some(code) => json!({ "kind": "Status", "code": code, "message": "",
                        "reason": "NotFound", "status": "Failure" }),
                    None => object.clone(),
                };
                let path = head.uri.path().to_owned();
                seen.lock().expect("sound").push((method, path, object));
                let answer = http::Response::builder()
                    .status(status.unwrap_or(200))
                    .body(Body::from(serde_json::to_vec(&answer)?))?;
                Ok::<_, BoxError>(answer)
            }
        });
        let client = Client::new(server, "default");
        (Publisher::new(client, "veer-test", &"n".repeat(200)), asked)
    }

    fn node(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".into()),
            name: Some(name.into()),
            uid: Some(name.into()),
            ..ObjectReference::default()
        }
    }

    async fn tell(publisher: &Publisher, about: &ObjectReference, note: &str) {
        let note = note.to_owned();
        publisher
            .publish(about, EventType::Warning, "Repaired", note)
            .await
            .expect("published");
    }

    /// Method, note and count of each request.
    fn told(asked: &Asked) -> Vec<(String, String, u64)> {
        let asked = asked.lock().expect("sound");
        let one = |(method, _, object): &(String, String, Value)| {
            let note = object["note"].as_str().unwrap_or_default().to_owned();
            let count = object["series"]["count"].as_u64().unwrap_or(1);
            (method.clone(), note, count)
        };
        asked.iter().map(one).collect()
    }

    fn sent(method: &str, note: &str, count: u64) -> (String, String, u64) {
        (method.into(), note.into(), count)
    }

    #[tokio::test]
    async fn same_note_is_counted_and_another_note_is_an_event_of_its_own() {
        let (publisher, asked) = publisher(None);
        for note in ["a route", "a rule", "a route", "a route", "a rule"] {
            tell(&publisher, &node("n1"), note).await;
        }
        tell(&publisher, &node("n2"), "a route").await;
        let expected = [
            sent("POST", "a route", 1),
            sent("POST", "a rule", 1),
            sent("PATCH", "a route", 2),
            sent("PATCH", "a route", 3),
            sent("PATCH", "a rule", 2),
            sent("POST", "a route", 1),
        ];
        assert_eq!(told(&asked), expected);
    }

    #[tokio::test]
    async fn event_that_has_expired_begins_again() {
        let (publisher, asked) = publisher(Some(404));
        for _ in 0..2 {
            tell(&publisher, &node("n1"), "a route").await;
        }
        let expected = [
            sent("POST", "a route", 1),
            sent("PATCH", "a route", 2),
            sent("POST", "a route", 1),
        ];
        assert_eq!(told(&asked), expected);
    }

    #[tokio::test]
    async fn event_is_in_its_objects_namespace_and_names_object_and_reporter() {
        let (publisher, asked) = publisher(None);
        let pod = ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("shop".into()),
            name: Some("cart-0".into()),
            ..ObjectReference::default()
        };
        tell(&publisher, &node("n1"), "a route").await;
        tell(&publisher, &pod, "a veth").await;
        let asked = asked.lock().expect("sound");
        let paths: Vec<&str> = asked.iter().map(|(_, path, _)| path.as_str()).collect();
        let path = |namespace| format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
        assert_eq!(paths, [path("default"), path("shop")]);
        let (_, _, event) = &asked[0];
        // As the kubelet names its node: `kubectl describe node` looks for this UID.
        assert_eq!(event["regarding"]["uid"], "n1");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["reportingController"], "veer-test");
        let instance = event["reportingInstance"].as_str().map(str::len);
        assert_eq!(instance, Some(INSTANCE_MAX));
        assert!(event["eventTime"].is_string() && event["action"].is_string());
    }

    #[test]
    fn long_note_is_cut_between_characters() {
        let note = cut("ü".repeat(NOTE_MAX));
        assert!(note.len() <= NOTE_MAX && note.ends_with('…'));
    }
}
