//! How a change of mode is carried out: canaries, pairs that fail, nodes that
//! fall back, a pause; and what the user sees of it.

use k8s_openapi::api::events::v1::Event;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use veer_crds::v1alpha1::{ClusterNetworkStatus, Phase, RoutingMode};

use crate::modes::{ready_cluster, told};
use crate::server::{Server, eventually};

const ALL: [&str; 3] = ["a", "b", "c"];

/// The agents of all nodes take the present change to this phase.
async fn take_to(server: &Server, number: i64, phase: Phase) {
    for step in [Phase::Preflight, Phase::Prepare, Phase::Switch] {
        if step == phase {
            return;
        }
        for name in ALL {
            told(server, name, number, step).await;
            server.agent(name).await;
        }
    }
}

async fn status(
    server: &Server,
    what: &str,
    wanted: impl Fn(&ClusterNetworkStatus) -> bool,
) -> ClusterNetworkStatus {
    eventually(what, async || {
        let status = server.network().await.status.unwrap_or_default();
        if wanted(&status) {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await
}

/// The note of an event of the ClusterNetwork with this reason, once `wanted` is in it.
async fn event_with(server: &Server, reason: &str, wanted: &str) -> String {
    let events: Api<Event> = Api::all(server.client.clone());
    eventually(&format!("an event {reason} with {wanted:?}"), async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let ours = all.iter().filter(|e| {
            e.regarding.as_ref().and_then(|r| r.kind.as_deref()) == Some("ClusterNetwork")
        });
        let seen: Vec<_> = ours
            .map(|e| (e.reason.clone(), e.note.clone().unwrap_or_default()))
            .collect();
        let found = seen
            .iter()
            .find(|(r, note)| r.as_deref() == Some(reason) && note.contains(wanted));
        found
            .map(|(_, note)| note.clone())
            .ok_or_else(|| format!("{seen:?}"))
    })
    .await
}

/// The note of the first event of the ClusterNetwork with this reason.
async fn event(server: &Server, reason: &str) -> String {
    event_with(server, reason, "").await
}

/// The phases that the nodes were told.
async fn phases(server: &Server) -> Vec<Phase> {
    let mut phases = Vec::new();
    for name in ALL {
        phases.push(server.network_of(name).await.spec.epoch.unwrap().phase);
    }
    phases
}

async fn label(server: &Server, node: &str) {
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "canary": "yes" } } }));
    let params = PatchParams::default();
    server.nodes().patch(node, &params, &patch).await.unwrap();
}

#[tokio::test]
async fn canaries_switch_first_then_one_after_the_other_and_a_pause_holds_them() {
    let (server, _operator) = ready_cluster().await;
    server
        .change(json!({
            "routing": { "mode": "Native" },
            "rollout": {
                "canary": { "matchLabels": { "canary": "yes" } }, "maxConcurrent": 1,
            },
        }))
        .await;
    take_to(&server, 2, Phase::Switch).await;
    let said = server
        .await_network("Progressing", "True", "AwaitingCanary")
        .await;
    assert!(said.contains("label one"), "{said}");
    assert_eq!(phases(&server).await, [Phase::Prepare; 3]);

    label(&server, "b").await;
    told(&server, "b", 2, Phase::Switch).await;
    let seen = status(&server, "b is awaited first", |s| {
        s.slowest.first().is_some_and(|n| n.node == "b")
    })
    .await;
    assert!(
        seen.slowest[0]
            .reason
            .starts_with("told Switch, last acknowledged Prepare"),
        "{:?}",
        seen.slowest
    );
    server
        .change(json!({ "rollout": { "paused": true } }))
        .await;
    let said = server.await_network("Progressing", "False", "Paused").await;
    assert!(said.contains("set spec.rollout.paused to false"), "{said}");
    server.agent("b").await;
    status(&server, "b has switched", |s| s.nodes.switched == 1).await;
    let held = phases(&server).await;
    assert_eq!(held, [Phase::Prepare, Phase::Switch, Phase::Prepare]);
    server
        .change(json!({ "rollout": { "paused": false } }))
        .await;
    told(&server, "a", 2, Phase::Switch).await;
    assert_eq!(phases(&server).await[2], Phase::Prepare);
    server.agent("a").await;
    told(&server, "c", 2, Phase::Switch).await;
    server.agent("c").await;
    for phase in [Phase::Finalize, Phase::Ready] {
        for name in ALL {
            told(&server, name, 2, phase).await;
            server.agent(name).await;
        }
    }
    server.await_network("Ready", "True", "InForce").await;

    let said = event(&server, "RoutingModeChanging").await;
    assert_eq!(said, "changing from Tunnel to Native (epoch 2)");
    assert!(event(&server, "RolloutPaused").await.contains("Switch"));
    assert!(event(&server, "RolloutResumed").await.contains("Switch"));
    for phase in ["Preflight", "Prepare", "Switch", "Finalize"] {
        let wanted = format!("phase {phase} is done on 3 ready node(s)");
        event_with(&server, "RolloutPhaseDone", &wanted).await;
    }
    let said = event(&server, "RoutingModeChanged").await;
    assert!(
        said.starts_with("traffic moves by Native (epoch 2), after "),
        "{said}"
    );
}

#[tokio::test]
async fn failed_pairs_stop_the_change_are_tried_again_and_may_be_kept() {
    let (server, _operator) = ready_cluster().await;
    server
        .change(json!({ "routing": { "mode": "Native" } }))
        .await;
    for name in ALL {
        told(&server, name, 2, Phase::Preflight).await;
    }
    server.agent_failing("a", &["c"], &[]).await;
    server.agent("b").await;
    server.agent_failing("c", &["a"], &[]).await;
    let said = server
        .await_network("Progressing", "True", "PairsFailed")
        .await;
    assert!(
        said.contains(
            "2 of 6 pairs fail in Native, e.g. a → c: no answer to probes; mend it, set \
                       spec.rollout.failedPairs to Keep, or set spec.routing.mode back to Tunnel"
        ),
        "{said}"
    );
    let seen = server.network().await.status.unwrap();
    assert_eq!((seen.failed_pair_count, seen.failed_pairs.len()), (2, 2));
    assert_eq!(
        (seen.phase, seen.progress.as_str()),
        (Some(Phase::Preflight), "3/3")
    );
    assert!(
        event(&server, "PairsFailed")
            .await
            .starts_with("2 of 6 pairs fail in Native")
    );

    // What a user sees.
    let out = server.kubectl(&["get", "clusternetwork"]);
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        [
            "NAME", "MODE", "TARGET", "PHASE", "PROGRESS", "FAILED", "PAIRS", "READY", "AGE"
        ]
    );
    assert_eq!(
        rows[1][..7],
        [
            "default",
            "Tunnel",
            "Native",
            "Preflight",
            "3/3",
            "2",
            "False"
        ]
    );
    let out = server.kubectl(&["get", "clusternetwork", "-o", "wide"]);
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        table.contains("WAITING FOR") && table.contains("pairs fail"),
        "{table}"
    );

    // Nothing is written while nothing happens before the next attempt.
    let before = server.network().await;
    label(&server, "b").await;
    let attempt = eventually("a and c are told to try again", async || {
        let mut attempts = Vec::new();
        for name in ALL {
            attempts.push(server.network_of(name).await.spec.epoch.unwrap().attempt);
        }
        if attempts == [1, 0, 1] {
            Ok(server.network().await)
        } else {
            let now = server.network().await;
            assert!(
                now.metadata.resource_version == before.metadata.resource_version
                    || now.status.as_ref().unwrap().epoch.as_ref().unwrap().attempt == 1
            );
            Err(format!("{attempts:?}"))
        }
    })
    .await;
    assert_eq!(attempt.status.unwrap().phase, Some(Phase::Preflight));
    server.agent_failing("a", &["c"], &[]).await;
    server.agent("c").await;
    status(&server, "one pair is left", |s| s.failed_pair_count == 1).await;
    server
        .change(json!({ "rollout": { "failedPairs": "Keep" } }))
        .await;
    for phase in [Phase::Prepare, Phase::Switch, Phase::Finalize, Phase::Ready] {
        for name in ALL {
            told(&server, name, 2, phase).await;
            let failed: &[&str] = if name == "a" { &["c"] } else { &[] };
            server.agent_failing(name, failed, &[]).await;
        }
    }
    let said = server.await_network("Ready", "True", "InForce").await;
    assert!(said.contains("except that 1 of 6 pairs fail"), "{said}");
    server
        .await_network("Degraded", "True", "PairsFailed")
        .await;
    let seen = server.network().await.status.unwrap();
    assert_eq!(seen.active_mode, Some(RoutingMode::Native));
}

#[tokio::test]
async fn a_node_that_fell_back_is_named_and_told_to_try_again() {
    let (server, _operator) = ready_cluster().await;
    server
        .change(json!({
            "routing": { "mode": "Hybrid" }, "rollout": { "confirmTimeoutSeconds": 1 },
        }))
        .await;
    take_to(&server, 2, Phase::Switch).await;
    for name in ALL {
        told(&server, name, 2, Phase::Switch).await;
    }
    server.agent("a").await;
    server.agent("c").await;
    server.agent_failing("b", &[], &["c"]).await;
    let said = server
        .await_network("Progressing", "True", "NodesFellBack")
        .await;
    assert!(
        said.contains("b fell back, towards c; 1 of 6 pairs fail in Hybrid"),
        "{said}"
    );
    let seen = server.network().await.status.unwrap();
    assert_eq!(seen.failed_nodes.len(), 1);
    assert_eq!(
        (seen.failed_nodes[0].node.as_str(), seen.nodes.failed),
        ("b", 1)
    );
    assert_eq!(seen.active_mode, Some(RoutingMode::Tunnel));
    assert!(
        event(&server, "NodeFellBack")
            .await
            .contains("attempt 0: b fell back towards c")
    );
    eventually("b is told to try again", async || {
        let epoch = server.network_of("b").await.spec.epoch.unwrap();
        if epoch.attempt == 1 && epoch.phase == Phase::Switch {
            Ok(())
        } else {
            Err(format!("{epoch:?}"))
        }
    })
    .await;
    server.agent("b").await;
    for phase in [Phase::Finalize, Phase::Ready] {
        for name in ALL {
            told(&server, name, 2, phase).await;
            server.agent(name).await;
        }
    }
    server.await_network("Ready", "True", "InForce").await;
    let seen = server.network().await.status.unwrap();
    assert_eq!(seen.active_mode, Some(RoutingMode::Hybrid));
    assert_eq!((seen.failed_nodes.len(), seen.failed_pair_count), (0, 0));
}
