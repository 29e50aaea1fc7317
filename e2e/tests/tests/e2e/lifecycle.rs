//! Agents, pods and the API server come and go; traffic and order remain.

use std::{env, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    client,
    lab::{AGENT, NAMESPACE},
    load::{self, Path},
    pods,
    processes::{REPLACED, kill_agents},
    workloads,
};

use crate::{
    behind,
    scene::{DEMO, Scene, Test, await_identity, identity_of},
};

/// All tests.
pub(crate) const TESTS: [(&str, Test); 5] = [
    (
        "no_packet_is_lost_while_agents_are_killed",
        Test::Once(agents_killed),
    ),
    (
        "no_packet_is_lost_while_agents_are_replaced",
        Test::Once(agents_replaced),
    ),
    (
        "no_packet_is_lost_while_the_api_server_is_down",
        Test::Once(without_api),
    ),
    (
        "pod_started_again_is_reached_from_every_node_by_its_identity",
        Test::Once(again),
    ),
    (
        "pods_that_came_and_went_leave_nothing_behind",
        Test::Once(come_and_go),
    ),
];

/// Traffic of each kind on all paths must survive whatever `change` does.
fn unharmed(scene: &Scene, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let ((), report) = load::under(&scene.lab, &Path::ALL, change)?;
    report.unharmed()
}

fn agents_killed(scene: &Scene) -> Result<()> {
    unharmed(scene, || {
        let nodes = scene.lab.cluster.node_names();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        kill_agents(&scene.lab, &nodes)
    })
}

fn agents_replaced(scene: &Scene) -> Result<()> {
    unharmed(scene, || {
        let selector = "app.kubernetes.io/name=veer-agent";
        scene
            .lab
            .kubectl()
            .run(&["-n", NAMESPACE, "delete", "pods", "-l", selector])?;
        Ok(scene
            .lab
            .cluster
            .await_rollout(NAMESPACE, AGENT, REPLACED)?)
    })
}

fn without_api(scene: &Scene) -> Result<()> {
    let cluster = &scene.lab.cluster;
    unharmed(scene, || {
        cluster.stop_process("control", "kube-apiserver")?;
        let source = scene.demo_on("worker1")?;
        let target = scene.other_on("worker2")?;
        let outcome = (0..3).try_for_each(|_| client::reaches(&source.site, target.address, 10));
        cluster.start_process("control", "kube-apiserver")?;
        outcome
    })?;
    cluster.await_nodes_ready(REPLACED)?;
    cluster.await_rollout(NAMESPACE, AGENT, REPLACED)?;
    Ok(())
}

fn again(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let yaml = workloads::single(DEMO, "again", "worker2", "{app: again}");
    lab.kubectl().apply(&yaml)?;
    let before = pods::await_ready(lab, DEMO, "app=again", 1, workloads::STARTED)?;
    let number = await_identity(lab, before.first().context("no pod")?, workloads::STARTED)?;
    lab.kubectl()
        .run(&["-n", DEMO, "delete", "pod", "again", "--wait=true"])?;
    lab.kubectl().apply(&yaml)?;
    // The agent writes the PodEndpoint while it wires the pod: nobody can know
    // the address earlier.
    let what = "the pod's PodEndpoint is there";
    let address: IpAddr = await_condition(what, Duration::from_secs(30), || {
        let list = lab.kubectl().json(&["-n", DEMO, "get", "podendpoints"]);
        let list = list.map_err(|e| e.to_string())?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let found = items.iter().find(|e| {
            e["spec"]["podName"] == "again" && e["spec"]["podUID"] != before[0].uid.as_str()
        });
        Ok(found.and_then(|e| e["spec"]["addresses"][0].as_str()?.parse().ok()))
    })?;
    let reached: Result<()> = scene
        .fixed
        .iter()
        .try_for_each(|pod| client::await_reaches(&pod.site, address, 1, workloads::STARTED));
    let after = pods::await_ready(lab, DEMO, "app=again", 1, workloads::STARTED)?;
    let again = identity_of(lab, after.first().context("no pod")?)?;
    lab.kubectl()
        .run(&["-n", DEMO, "delete", "pod", "again", "--wait=true"])?;
    ensure!(number == again, "identity {number} became {again}");
    reached
}

fn come_and_go(scene: &Scene) -> Result<()> {
    const NAMESPACE: &str = "e2e-crowd";
    const AT_ONCE: u32 = 60;
    let total: u32 = match env::var("VEER_E2E_PODS") {
        Ok(text) => text.parse().context("VEER_E2E_PODS is a number")?,
        Err(_) => 120,
    };
    let lab = &scene.lab;
    let before = behind::everything(lab)?;
    lab.kubectl().apply(&workloads::crowd(NAMESPACE, 0))?;
    let scale = |count: u32| {
        let count = format!("--replicas={count}");
        lab.kubectl()
            .run(&["-n", NAMESPACE, "scale", "deployment/crowd", &count])
    };
    let mut seen = 0;
    while seen < total {
        scale(AT_ONCE)?;
        let deadline = Duration::from_mins(3);
        lab.cluster
            .await_rollout(NAMESPACE, "deployment/crowd", deadline)?;
        seen += AT_ONCE;
        scale(0)?;
        await_condition("the crowd is gone", deadline, || {
            let out = lab
                .kubectl()
                .any(&["-n", NAMESPACE, "get", "pods", "-o", "name"]);
            let out = out.map_err(|e| e.to_string())?;
            let left = out.stdout.lines().count();
            if left == 0 {
                Ok(Some(()))
            } else {
                Err(format!("{left} pods are left"))
            }
        })?;
    }
    lab.kubectl()
        .run(&["delete", "namespace", NAMESPACE, "--wait=true"])?;
    await_condition(
        "nothing is left of the crowd",
        Duration::from_secs(30),
        || {
            let after = behind::everything(lab).map_err(|e| format!("{e:#}"))?;
            behind::nothing_new(&before, &after)
                .map(Some)
                .map_err(|e| format!("{e:#}"))
        },
    )?;
    Ok(())
}
