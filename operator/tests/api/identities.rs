//! Identities of pods, with the operator as a process.

use std::collections::BTreeMap;

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use veer_crds::v1alpha1::{IdentityState, PodEndpoint, SecurityIdentity};

use crate::play::NETWORK;
use crate::server::{Server, eventually};

async fn all(server: &Server) -> Vec<SecurityIdentity> {
    server
        .identities()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

/// Waits until an identity is in a state.
async fn in_state(server: &Server, number: &str, state: IdentityState) -> SecurityIdentity {
    eventually(&format!("{number} is {state:?}"), async || {
        let now = server.identities().get(number).await;
        let now = now.map_err(|e| e.to_string())?;
        if now.spec.state == state {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
}

/// Waits until there is no such identity.
async fn gone(server: &Server, number: &str) {
    eventually(&format!("{number} is gone"), async || {
        match server.identities().get_opt(number).await.unwrap() {
            None => Ok(()),
            Some(there) => Err(format!("{there:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn pods_of_one_label_set_share_a_number_that_outlives_them_all() {
    let server = Server::start().await;
    server.add_namespace("shop", &[("team", "blue")]).await;
    server
        .add_pod(
            "shop",
            "web-1",
            &[("app", "web"), ("pod-template-hash", "x")],
        )
        .await;
    let operator = server.operator(NETWORK, &[]);
    let first = server.identity_with("app", "web").await;
    let expected = BTreeMap::from([
        ("app".to_owned(), "web".to_owned()),
        ("io.kubernetes.pod.namespace".to_owned(), "shop".to_owned()),
        (
            "io.veer.k8s.serviceaccount".to_owned(),
            "default".to_owned(),
        ),
        (
            "io.veer.k8s.namespace.labels.team".to_owned(),
            "blue".to_owned(),
        ),
        (
            "io.veer.k8s.namespace.labels.kubernetes.io/metadata.name".to_owned(),
            "shop".to_owned(),
        ),
    ]);
    assert_eq!(first.spec.labels, expected);

    // Another revision, another set, and one on the host's network.
    server
        .add_pod(
            "shop",
            "web-2",
            &[("app", "web"), ("pod-template-hash", "y")],
        )
        .await;
    server.add_pod("shop", "db", &[("app", "db")]).await;
    let host = json!({
        "metadata": { "name": "host", "labels": { "app": "host" } },
        "spec": { "hostNetwork": true, "containers": [{ "name": "c", "image": "i" }] },
    });
    let host = serde_json::from_value(host).unwrap();
    server
        .pods("shop")
        .create(&PostParams::default(), &host)
        .await
        .unwrap();
    server.identity_with("app", "db").await;
    assert_eq!(all(&server).await.len(), 2);

    // The pods go and come back, and the operator too: the number stays.
    server.delete_pod("shop", "web-1").await;
    server.delete_pod("shop", "web-2").await;
    operator.terminate();
    let _operator = server.operator(NETWORK, &[]);
    server.add_pod("shop", "web-3", &[("app", "web")]).await;
    server.add_pod("shop", "last", &[("app", "last")]).await;
    server.identity_with("app", "last").await;
    let again = server.identity_with("app", "web").await;
    assert_eq!(
        (again.name_any(), again.uid()),
        (first.name_any(), first.uid())
    );
}

#[tokio::test]
async fn relabelling_a_namespace_gives_its_pods_other_numbers() {
    let server = Server::start().await;
    server.add_namespace("shop", &[("team", "blue")]).await;
    let _operator = server.operator(NETWORK, &[]);
    server.add_pod("shop", "web", &[("app", "web")]).await;
    let key = "io.veer.k8s.namespace.labels.team";
    let blue = server.identity_with(key, "blue").await;
    let out = server.kubectl(&["label", "namespace", "shop", "team=red", "--overwrite"]);
    assert!(out.status.success());
    let red = server.identity_with(key, "red").await;
    assert_ne!(red.name_any(), blue.name_any());
}

#[tokio::test]
async fn a_number_that_another_set_has_is_not_taken_from_it() {
    let server = Server::start().await;
    server.add_namespace("shop", &[]).await;
    let operator = server.operator(NETWORK, &[]);
    server.add_pod("shop", "web", &[("app", "web")]).await;
    let seeded = server.identity_with("app", "web").await;
    operator.terminate();
    // The number that the hash points to now stands for something else.
    server
        .identities()
        .delete(&seeded.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    let other = json!({
        "apiVersion": "veer.dev/v1alpha1", "kind": "SecurityIdentity",
        "metadata": { "name": seeded.name_any() }, "spec": { "labels": { "other": "set" } },
    });
    let other = serde_json::from_value(other).unwrap();
    server
        .identities()
        .create(&PostParams::default(), &other)
        .await
        .unwrap();
    let _operator = server.operator(NETWORK, &[]);
    let moved = server.identity_with("app", "web").await;
    let next = seeded.name_any().parse::<u32>().unwrap() + 1;
    assert_eq!(moved.name_any(), next.to_string());
}

#[tokio::test]
async fn an_unused_number_goes_only_when_agents_agreed_and_nobody_has_it() {
    let server = Server::start().await;
    server.add_namespace("shop", &[]).await;
    server.add_node("a").await;
    let _operator = server.operator(NETWORK, &["--identity-unused-seconds", "1"]);
    server.block_of("a").await;
    server.agent("a").await;
    server.add_pod("shop", "web", &[("app", "web")]).await;
    let identity = server.identity_with("app", "web").await;
    let number = identity.name_any();
    let endpoints: Api<PodEndpoint> = Api::namespaced(server.client.clone(), "shop");
    let endpoint = json!({
        "podName": "web", "podUID": "u", "nodeName": "a", "endpointId": 1,
        "addresses": ["10.244.0.2"], "identity": number.parse::<i64>().unwrap(), "serial": 1,
    });
    let endpoint = PodEndpoint::new("web-1", serde_json::from_value(endpoint).unwrap());
    endpoints
        .create(&PostParams::default(), &endpoint)
        .await
        .unwrap();

    server.delete_pod("shop", "web").await;
    let retiring = in_state(&server, &number, IdentityState::Retiring).await;

    // A pod of the set makes it active again, under the same number.
    server.add_pod("shop", "web", &[("app", "web")]).await;
    let active = in_state(&server, &number, IdentityState::Active).await;
    assert_eq!(active.uid(), retiring.uid());
    server.delete_pod("shop", "web").await;
    in_state(&server, &number, IdentityState::Retiring).await;

    // The agent has not seen that yet: it stays, although it is long unused. A
    // second set that comes and retires meanwhile shows that time has passed.
    server.add_pod("shop", "mark", &[("app", "mark")]).await;
    let mark = server.identity_with("app", "mark").await.name_any();
    server.delete_pod("shop", "mark").await;
    in_state(&server, &mark, IdentityState::Retiring).await;
    assert_eq!(
        server.identities().get(&number).await.unwrap().uid(),
        retiring.uid()
    );

    // The agent has seen everything; the endpoint still has the number, the
    // later one is in nobody's hands.
    let newest = || async {
        let list = server
            .identities()
            .list(&ListParams::default())
            .await
            .unwrap();
        list.metadata.resource_version.unwrap()
    };
    let status = json!({ "status": { "identitySerial": newest().await } });
    let params = PatchParams::default();
    server
        .reports()
        .patch_status("a", &params, &Patch::Merge(status))
        .await
        .unwrap();
    gone(&server, &mark).await;
    assert_eq!(
        server.identities().get(&number).await.unwrap().uid(),
        retiring.uid()
    );
    endpoints
        .delete("web-1", &DeleteParams::default())
        .await
        .unwrap();
    gone(&server, &number).await;

    // Only now the number may come back.
    server.add_pod("shop", "web", &[("app", "web")]).await;
    let again = server.identity_with("app", "web").await;
    assert_eq!(again.name_any(), number);
    assert_ne!(again.uid(), identity.uid());
}

#[tokio::test]
async fn ten_jobs_make_one_identity_and_a_label_per_pod_is_named() {
    let server = Server::start().await;
    server.add_namespace("shop", &[]).await;
    let _operator = server.operator(NETWORK, &[]);
    server.network().await;
    for i in 0..10 {
        let (job, uid) = (format!("x{i}"), format!("uid-{i}"));
        let labels = [
            ("app", "batch"),
            ("job-name", job.as_str()),
            ("batch.kubernetes.io/job-name", &job),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/controller-uid", &uid),
        ];
        server.add_pod("shop", &job, &labels).await;
    }
    server.add_pod("shop", "last", &[("app", "last")]).await;
    server.identity_with("app", "last").await;
    let batch = server.identity_with("app", "batch").await;
    assert!(
        batch.spec.labels.keys().all(|key| !key.contains("job")),
        "{:?}",
        batch.spec.labels
    );
    assert_eq!(all(&server).await.len(), 2);

    // A label that nobody could know, on the pods of one owner.
    for i in 0..10 {
        let pod = json!({
            "metadata": { "name": format!("run-{i}"), "labels": { "run.example.com/id": i.to_string() },
                "ownerReferences": [{ "apiVersion": "example.com/v1", "kind": "Run", "name": "r",
                    "uid": "u", "controller": true }] },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
        });
        let pod = serde_json::from_value(pod).unwrap();
        let pods = server.pods("shop");
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    eventually("the label is named in an event", async || {
        let out = server.kubectl(&["get", "events", "-A", "-o", "jsonpath={.items[*].message}"]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let wanted = "add run.example.com/id to spec.identityLabels.exclude";
        if said.contains(wanted) {
            Ok(())
        } else {
            Err(said)
        }
    })
    .await;
}
