//! Exact numbers of writes, against a server that keeps both objects.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use kube::client::Body;
use serde_json::{Value, json};
use veer_agent_core::index::OwnNode;
use veer_crds::v1alpha1::{Epoch, Phase};

use super::{
    content::{degraded_of, ready, uniform},
    *,
};

/// An API server of one NodeNetwork and one NodeReport.
#[derive(Default)]
struct Server {
    /// By the last part but one of the path: the plural.
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Bodies of writes, by plural.
    writes: BTreeMap<String, Vec<Value>>,
}

impl Server {
    fn handle(&mut self, method: &str, path: &str, body: &[u8]) -> Value {
        let plural = path.split('/').nth(4).unwrap_or_default().to_owned();
        let object = self.objects.entry(plural.clone()).or_insert_with(|| {
            let kind = if plural == "nodereports" {
                "NodeReport"
            } else {
                "NodeNetwork"
            };
            json!({
                "apiVersion": "veer.dev/v1alpha1", "kind": kind,
                "metadata": {"name": "a", "uid": "u"}, "spec": {},
            })
        });
        if method == "PATCH" {
            let said: Value = serde_json::from_slice(body).unwrap();
            merge(&mut object["status"], &said["status"]);
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.writes.entry(plural).or_default().push(said);
        }
        object.clone()
    }

    fn written(&self, plural: &str) -> usize {
        self.writes.get(plural).map_or(0, Vec::len)
    }
}

/// As an apply and a merge patch both do, with one writer.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

struct Scene {
    server: Arc<Mutex<Server>>,
    report: watch::Sender<StatusReport>,
    repaired: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    fn start() -> Self {
        let kept = Arc::new(Mutex::new(Server::default()));
        let api = Arc::clone(&kept);
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = Arc::clone(&api);
            async move {
                let (method, path) = (request.method().clone(), request.uri().path().to_owned());
                let body = request
                    .into_body()
                    .collect_bytes()
                    .await
                    .unwrap_or_default();
                let answer = api.lock().unwrap().handle(method.as_str(), &path, &body);
                let body = Body::from(answer.to_string().into_bytes());
                Ok::<_, Infallible>(http::Response::new(body))
            }
        });
        let client = Client::new(service, "default");
        let (report, reports) = watch::channel(StatusReport::default());
        let repaired = Arc::new(Mutex::new(Vec::new()));
        let said = Arc::clone(&repaired);
        tokio::spawn(async move {
            let told = |what: String| said.lock().unwrap().push(what);
            let (networks, nodes) = (Api::all(client.clone()), Api::all(client));
            tokio::join!(
                network::keep(networks, "a", reports.clone(), told),
                report::keep(nodes, "a", reports, told),
            );
        });
        Self {
            server: kept,
            report,
            repaired,
        }
    }

    /// The engine reports, and the watch shows what the server has.
    async fn say(&self, change: impl FnOnce(&mut StatusReport)) {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let object = self.server.lock().unwrap().handle(
            "GET",
            "/apis/veer.dev/v1alpha1/nodenetworks/a",
            &[],
        );
        let status = serde_json::from_value(object["status"].clone());
        let version = object["metadata"]["resourceVersion"].as_str();
        let seen = OwnNode {
            uid: "u".into(),
            version: version.and_then(|v| v.parse().ok()).unwrap_or(0),
            status: status.unwrap_or_default(),
        };
        self.report.send_modify(|report| {
            report.seen = Some(seen);
            change(report);
        });
    }

    fn writes(&self) -> (usize, usize) {
        let server = self.server.lock().unwrap();
        (
            server.written("nodenetworks"),
            server.written("nodereports"),
        )
    }

    fn edit(&self, plural: &str, edit: impl FnOnce(&mut Value)) {
        let mut server = self.server.lock().unwrap();
        server.version += 1;
        let version = server.version.to_string();
        let object = server.objects.get_mut(plural).unwrap();
        edit(&mut object["status"]);
        object["metadata"]["resourceVersion"] = version.into();
    }

    fn status(&self, plural: &str) -> Value {
        self.server.lock().unwrap().objects[plural]["status"].clone()
    }
}

fn begin(report: &mut StatusReport) {
    report.node.boot_id = "b".into();
    report.network.held_pod_cidrs = vec!["10.1.0.0/24".parse().unwrap()];
    report.network.path_mtu = 1500;
    report.judgements = vec![
        ready(String::new(), String::new(), false),
        degraded_of(("", "")),
        uniform(None),
    ];
}

/// Between bursts: longer than the pace, shorter than a look at the object.
const WHILE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_pod_that_starts_writes_nothing_that_other_agents_watch() {
    let scene = Scene::start();
    scene.say(begin).await;
    tokio::time::sleep(WHILE).await;
    assert_eq!(scene.writes(), (1, 1));
    // Ten pods with ten new label sets, one after the other.
    for pod in 1..=10 {
        scene.say(|r| r.node.endpoints = pod).await;
    }
    tokio::time::sleep(WHILE).await;
    let (networks, reports) = scene.writes();
    assert_eq!(networks, 1, "no other agent receives it");
    assert!(reports <= 3, "{reports} for one burst");
    assert_eq!(scene.status("nodereports")["endpoints"], 10);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_mode_is_one_write_to_the_nodenetwork_for_each_of_its_steps() {
    let scene = Scene::start();
    scene.say(begin).await;
    tokio::time::sleep(WHILE).await;
    let phases = [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
        Phase::Ready,
    ];
    for phase in phases {
        let epoch = Epoch {
            number: 2,
            phase,
            ..Epoch::default()
        };
        scene.say(|r| r.network.applied = Some(epoch)).await;
        // Rounds in between, which find nothing new.
        for _ in 0..5 {
            scene.say(|_| ()).await;
        }
        tokio::time::sleep(WHILE).await;
    }
    assert_eq!(scene.writes().0, 1 + phases.len());
}

#[tokio::test(start_paused = true)]
async fn what_the_operator_waits_for_is_written_at_once() {
    let scene = Scene::start();
    scene.say(begin).await;
    tokio::time::sleep(WHILE).await;
    scene.say(|r| r.node.endpoints = 1).await;
    tokio::time::sleep(WHILE).await;
    let (_, before) = scene.writes();
    scene
        .say(|r| r.judgements[0] = ready("no".into(), String::new(), false))
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.writes().1, before + 1);
    scene
        .say(|r| r.node.addresses = vec!["192.0.2.1".parse().unwrap()])
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.writes().1, before + 2);
}

#[tokio::test(start_paused = true)]
async fn a_status_edited_by_hand_is_put_back_and_told() {
    let scene = Scene::start();
    scene.say(begin).await;
    tokio::time::sleep(WHILE).await;
    scene.say(|_| ()).await;
    let before = (scene.status("nodenetworks"), scene.status("nodereports"));
    scene.edit("nodenetworks", |s| {
        s["pathMtu"] = 9000.into();
        s["heldPodCIDRs"] = json!([]);
        s["decommissioned"] = true.into();
        s["keptForm"] = json!({"number": 7, "all": true});
    });
    scene.edit("nodereports", |s| {
        s["bootID"] = "other".into();
        s["repairs"] = json!({"lies": 5});
        s["probes"] = json!({"number": 9, "mode": "Native"});
    });
    // The watch shows the one; the other is not watched.
    scene.say(|_| ()).await;
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(scene.status("nodenetworks"), before.0);
    assert_eq!(scene.status("nodereports"), before.1);
    let told = scene.repaired.lock().unwrap().join("; ");
    for kind in ["NodeNetwork a", "NodeReport a"] {
        assert_eq!(told.matches(kind).count(), 1, "{told}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_news_nothing_is_written_for_hours() {
    let scene = Scene::start();
    scene.say(begin).await;
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_mins(2)).await;
        scene.say(|_| ()).await;
    }
    assert_eq!(scene.writes(), (1, 1));
    assert!(scene.repaired.lock().unwrap().is_empty());
}
