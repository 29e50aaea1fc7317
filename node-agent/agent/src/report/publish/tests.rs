//! Requests that the publisher sends, against a server that counts them.

use std::convert::Infallible;

use kube::client::Body;

use super::*;
use veer_agent_core::index::{Change, OwnRow};

fn endpoint(name: &str, identity: u32) -> LocalEndpoint {
    LocalEndpoint {
        attachment: veer_agent_api::Attachment {
            container_id: name.into(),
            ifname: "eth0".into(),
        },
        netns: String::new(),
        netns_inode: 0,
        namespace: "x".into(),
        pod_name: name.into(),
        pod_uid: format!("uid-{name}"),
        object_uid: Some(format!("uid-{name}")),
        address: [10, 1, 0, 9].into(),
        gateway: [10, 1, 0, 1].into(),
        second: None,
        endpoint_id: 7,
        serial: 3,
        identity: veer_bpf_common::identity::Identity::new(identity).unwrap(),
        host_ifname: String::new(),
        ifindex: veer_bpf_common::device::IfIndex::new(1),
        mac: [0; 6],
        node_mac: [0; 6],
        host_ports: None,
    }
}

#[test]
fn an_object_names_the_pods_addresses_in_the_order_of_its_families() {
    let v6 = veer_agent_core::endpoint::PodAddress {
        address: "fd00::9".parse().unwrap(),
        gateway: "fd00::1".parse().unwrap(),
    };
    let mut pod = endpoint("p", 300);
    let one = vec![pod.address];
    assert_eq!(Entry::of("a", &pod).spec.addresses, one);
    pod.second = Some(v6);
    let both = vec![one[0], v6.address];
    assert_eq!(Entry::of("a", &pod).spec.addresses, both);
}

/// The key of the pod's object if no other node took its name.
fn key(endpoint: &LocalEndpoint) -> Key {
    place::key(&Endpoints::new("a"), endpoint)
}

/// The row that the watch shows of an object.
fn shown(endpoint: &LocalEndpoint, version: u64) -> PodEndpointRow {
    let (namespace, name) = key(endpoint);
    let Entry { spec, owner } = Entry::of("a", endpoint);
    PodEndpointRow {
        key: format!("{namespace}/{name}"),
        node: "a".into(),
        addresses: spec.addresses.clone(),
        identity: spec.identity,
        serial: spec.serial,
        own: Some(Box::new(OwnRow {
            version,
            owner: owner.unwrap_or_default(),
            spec,
        })),
    }
}

/// A server that takes everything, after `failures` refusals, and tells methods and
/// paths. Versions rise from 100.
fn server(failures: usize) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let log = Arc::clone(&log);
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let body = request
                .into_body()
                .collect_bytes()
                .await
                .unwrap_or_default();
            let line_is_delete = line.starts_with("DELETE");
            let number = {
                let mut log = log.lock().unwrap();
                log.push(line);
                log.len()
            };
            let response = http::Response::builder();
            let (response, answer) = if number <= failures {
                let refusal = json!({"kind": "Status", "status": "Failure", "code": 500});
                (response.status(500), refusal)
            } else {
                let deleted = json!({"kind": "Status", "status": "Success"});
                let mut object: serde_json::Value =
                    serde_json::from_slice(&body).unwrap_or_default();
                if line_is_delete {
                    object = deleted;
                } else {
                    object["metadata"]["resourceVersion"] = (99 + number).to_string().into();
                }
                (response, object)
            };
            Ok::<_, Infallible>(
                response
                    .body(Body::from(answer.to_string().into_bytes()))
                    .unwrap(),
            )
        }
    });
    (Client::new(service, "default"), asked)
}

/// Lets the task work until it has nothing more to do for now.
async fn idle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_starts_is_one_write_however_late_the_watch_shows_it() {
    let (publisher, wishes) = Publisher::new();
    let (client, asked) = server(0);
    tokio::spawn(wishes.run(client));
    let pod = endpoint("p", 300);
    let (key, wanted) = (key(&pod), Entry::of("a", &pod));
    publisher.publish(&Endpoints::new("a"), &pod);
    assert_eq!(
        publisher.todo(&key, Some(&wanted), None),
        Todo::Nothing,
        "under way"
    );
    idle().await;
    assert_eq!(
        publisher.todo(&key, Some(&wanted), None),
        Todo::Nothing,
        "no echo yet"
    );
    let row = shown(&pod, 100);
    assert_eq!(
        publisher.todo(&key, Some(&wanted), Some(&row)),
        Todo::Nothing
    );
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_somebody_else_changes_in_an_own_object_is_put_back() {
    let (publisher, wishes) = Publisher::new();
    let (client, _) = server(0);
    tokio::spawn(wishes.run(client));
    let pod = endpoint("p", 300);
    let (key, wanted) = (key(&pod), Entry::of("a", &pod));
    publisher.publish(&Endpoints::new("a"), &pod);
    idle().await;
    let edits: [fn(&mut OwnRow); 5] = [
        |own| own.spec.identity = 400,
        |own| own.spec.state = PodEndpointState::Init,
        |own| own.spec.endpoint_id = 8,
        |own| own.spec.pod_name = "q".into(),
        |own| own.owner.clear(),
    ];
    for edit in edits {
        let mut row = shown(&pod, 101);
        edit(row.own.as_mut().unwrap());
        assert_eq!(
            publisher.todo(&key, Some(&wanted), Some(&row)),
            Todo::PutBack
        );
    }
    tokio::time::advance(ECHO).await;
    assert_eq!(
        publisher.todo(&key, Some(&wanted), None),
        Todo::PutBack,
        "deleted"
    );
    publisher.withdraw(key.clone());
    idle().await;
    let row = shown(&pod, 100);
    let todo = || publisher.todo(&key, None, Some(&row));
    assert_eq!(todo(), Todo::Nothing, "no echo yet");
    tokio::time::advance(ECHO).await;
    assert_eq!(todo(), Todo::PutBack, "made again");
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_agent_wrote_otherwise_is_nobodys_fault() {
    let (publisher, _wishes) = Publisher::new();
    let (old, new) = (endpoint("p", 300), endpoint("p", 301));
    let (key, wanted) = (key(&new), Entry::of("a", &new));
    let todo = |row: &PodEndpointRow| publisher.todo(&key, Some(&wanted), Some(row));
    assert_eq!(todo(&shown(&old, 5)), Todo::Write);
    assert_eq!(todo(&shown(&new, 5)), Todo::Nothing);
}

#[tokio::test(start_paused = true)]
async fn objects_that_fail_keep_no_other_waiting_and_the_last_word_counts() {
    let (publisher, wishes) = Publisher::new();
    let (client, asked) = server(PARALLEL);
    tokio::spawn(wishes.run(client));
    for i in 0..PARALLEL {
        publisher.publish(&Endpoints::new("a"), &endpoint(&format!("fails{i}"), 300));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    publisher.publish(&Endpoints::new("a"), &endpoint("later", 300));
    tokio::time::sleep(Duration::from_millis(1)).await;
    let sent = asked.lock().unwrap().len();
    assert_eq!(sent, PARALLEL + 1, "while those rest");
    publisher.withdraw(key(&endpoint("fails0", 300)));
    tokio::time::sleep(Duration::from_mins(1)).await;
    let asked = asked.lock().unwrap();
    let of = |name: &str| {
        asked
            .iter()
            .filter(|a| a.contains(name))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of("fails1").len(), 2);
    let of_first = of("fails0");
    assert_eq!(of_first.len(), 2);
    assert!(of_first[1].starts_with("DELETE"), "{of_first:?}");
}

#[tokio::test(start_paused = true)]
async fn an_object_whose_namespace_is_going_is_left_alone_and_nobody_is_blamed() {
    let (publisher, wishes) = Publisher::new();
    let asked = Arc::new(Mutex::new(0));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |_: http::Request<Body>| {
        *log.lock().unwrap() += 1;
        async {
            let refusal = json!({"kind": "Status", "status": "Failure", "code": 403,
                "message": "namespace x is being terminated"});
            let body = Body::from(refusal.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(403).body(body).unwrap())
        }
    });
    tokio::spawn(wishes.run(Client::new(service, "default")));
    let pod = endpoint("p", 300);
    let (key, wanted) = (key(&pod), Entry::of("a", &pod));
    publisher.publish(&Endpoints::new("a"), &pod);
    idle().await;
    for _round in 0..20 {
        let todo = publisher.todo(&key, Some(&wanted), None);
        assert_eq!(todo, Todo::Nothing);
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    assert_eq!(*asked.lock().unwrap(), 1);
    tokio::time::advance(REFUSED).await;
    let todo = publisher.todo(&key, Some(&wanted), None);
    assert_eq!(todo, Todo::Write, "the namespace may be another one now");
    let other = Entry::of("a", &endpoint("p", 301));
    assert_eq!(publisher.todo(&key, Some(&other), None), Todo::Write);
}

#[tokio::test(start_paused = true)]
async fn retries_after_an_outage_come_a_few_at_a_time() {
    let mut queue = Queue::default();
    let error = kube::Error::Api(Box::new(refusal(500, "away")));
    let mut rests = Vec::new();
    let pods = PARALLEL * 3;
    for i in 0..pods {
        queue.wish(("x".to_owned(), i.to_string()), Wish::Gone);
    }
    while let Some((key, wish)) = queue.next() {
        rests.extend(queue.failed(key, wish, &error));
    }
    assert_eq!(rests.len(), pods, "each failed once");
    for (key, until) in rests {
        queue.rested(key, until);
    }
    let at_once: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
    assert_eq!(at_once.len(), PARALLEL);
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_objects_name_another_node_took_gets_an_object_that_no_other_node_can_take() {
    let (publisher, wishes) = Publisher::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().path().to_owned();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let method = request.method().clone();
        log.lock().unwrap().push(format!("{method} {name}"));
        async move {
            let (code, answer) = if method == http::Method::DELETE {
                (200, json!({"kind": "Status", "status": "Success"}))
            } else if name.contains(".a.") {
                let body = request.into_body().collect_bytes().await;
                let object = serde_json::from_slice(&body.unwrap_or_default());
                (200, object.unwrap_or_default())
            } else {
                // The schema's own rule comes before the admission policy.
                let message = "podName, podUID and nodeName cannot be changed";
                let refusal = json!({"status": "Failure", "code": 422, "message": message});
                (422, refusal)
            };
            let body = Body::from(answer.to_string().into_bytes());
            Ok::<_, Infallible>(http::Response::builder().status(code).body(body).unwrap())
        }
    });
    tokio::spawn(wishes.run(Client::new(service, "default")));
    let (mut endpoints, pod) = (Endpoints::new("a"), endpoint("p", 300));
    let (usual, wanted) = (key(&pod), Entry::of("a", &pod));
    // The index does not show it yet.
    publisher.publish(&endpoints, &pod);
    idle().await;
    assert_eq!(publisher.todo(&usual, Some(&wanted), None), Todo::Nothing);
    let mut theirs = shown(&pod, 5);
    (theirs.node, theirs.own) = ("b".into(), None);
    endpoints.handle(Change::Apply(theirs));

    let second = place::key(&endpoints, &pod);
    assert_eq!(second, ("x".into(), "p-d.a.node".into()));
    assert_eq!(publisher.todo(&second, Some(&wanted), None), Todo::Write);
    publisher.publish(&endpoints, &pod);
    publisher.leave(|key| *key != second && endpoints.taken_by(&place::path(key)).is_some());
    idle().await;
    let before = asked.lock().unwrap().clone();
    let made = format!("PATCH {}", second.1);
    assert_eq!(before.iter().filter(|line| **line == made).count(), 1);
    tokio::time::sleep(REFUSED).await;
    assert_eq!(*asked.lock().unwrap(), before, "the other is left alone");
    // The pod ends, and what it had goes.
    publisher.withdraw(place::key(&endpoints, &pod));
    idle().await;
    let asked = asked.lock().unwrap();
    assert_eq!(asked[before.len()..], [format!("DELETE {}", second.1)]);
}

#[test]
fn a_pod_keeps_its_object_whoever_takes_its_usual_name_and_lets_go_of_it() {
    let (mut endpoints, pod) = (Endpoints::new("a"), endpoint("p", 300));
    let usual = key(&pod);
    let at = |key: &Key, node: &str| {
        let mut row = shown(&pod, 5);
        (row.key, row.node) = (place::path(key), node.into());
        Change::Apply(row)
    };
    endpoints.handle(at(&usual, "b"));
    let second = place::key(&endpoints, &pod);
    assert_ne!(second, usual);
    assert_eq!(place::taken(&endpoints, &pod), [(place::path(&usual), "b")]);
    endpoints.handle(at(&second, "a"));
    endpoints.handle(Change::Delete(place::path(&usual)));
    assert_eq!(place::key(&endpoints, &pod), second);
    assert_eq!(place::taken(&endpoints, &pod), []);
    // Of two, as after a request that was long under way, the usual one stays.
    endpoints.handle(at(&usual, "a"));
    assert_eq!(place::key(&endpoints, &pod), usual);
    endpoints.handle(Change::Delete(place::path(&second)));
    assert_eq!(place::key(&endpoints, &pod), usual);
}

#[test]
fn of_many_taken_names_some_are_named_and_the_rest_is_counted() {
    let names: Vec<String> = (0..7).map(|i| format!("x/p{i} (node b)")).collect();
    let words = place::words("a", names.iter());
    assert!(words.contains("end in .a.node"), "{words}");
    let end = "delete x/p0 (node b), x/p1 (node b), x/p2 (node b), x/p3 (node b), x/p4 (node b) \
               and 2 more";
    assert!(words.ends_with(end), "{words}");
}

fn refusal(code: u16, message: &str) -> kube::core::Status {
    kube::core::Status::failure(message, "").with_code(code)
}

#[test]
fn what_a_webhook_refuses_while_its_pods_are_away_is_tried_again() {
    for (code, message) in [
        (
            500,
            "failed calling webhook \"v.example\": connection refused",
        ),
        (403, "admission webhook \"v.example\" denied the request"),
        (429, "too many requests"),
        (409, "conflict"),
    ] {
        assert!(!refusal(code, message).is_final(), "{code} {message}");
    }
    assert!(refusal(404, "namespaces \"a\" not found").is_final());
    assert!(refusal(403, "namespace a is being terminated").is_final());
}
