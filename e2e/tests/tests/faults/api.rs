//! The API server and its store go away, come back, come back as they were
//! before.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use veer_e2e_cluster::{API_PORT, COMPONENTS, await_condition};
use veer_e2e_tests::{
    agents, client,
    lab::{AGENT, Lab, Mode, NAMESPACE, OPERATOR},
    maps,
    pods::{self, Pod},
    scene::{DEMO, Scene, identity_of},
    snapshot,
    underlay_rules::Rules,
    workloads,
};

use crate::{
    fault::{Fault, Held},
    survive::{quick_or_full, seconds, unchanged, unharmed},
};

/// How soon after the API server is back all is as the API wants it.
const CONVERGED: Duration = Duration::from_secs(30);
/// How long pods that a restored store forgot may stay known: a minute, by then
/// their agents would have written them again.
const FORGOTTEN: Duration = Duration::from_secs(100);
/// How soon an agent finds out that the other end of its watches is gone, 30 s,
/// and knows what it missed.
const NOTICED: Duration = Duration::from_secs(45);
/// Identity of a pod of which none is known yet.
const INIT: u32 = 5;
/// How long Kubernetes' own parts may take after that.
const PATIENCE: Duration = Duration::from_mins(3);

/// All faults of the API.
pub(crate) fn faults() -> Vec<Fault> {
    let time = quick_or_full(10, 60);
    vec![
        Fault::new(
            "api::server_stopped",
            format!("kube-apiserver killed, started again after {time} s"),
            Mode::Tunnel,
            move |scene| stopped(scene, "kube-apiserver", Duration::from_secs(time)),
        ),
        Fault::new(
            "api::etcd_stopped",
            format!("etcd killed, started again after {time} s"),
            Mode::Tunnel,
            move |scene| stopped(scene, "etcd", Duration::from_secs(time)),
        ),
        Fault::new(
            "api::connections_lost_silently",
            "kube-apiserver killed and started again; no word of it reaches who was connected",
            Mode::Tunnel,
            lost_silently,
        )
        .short(),
        Fault::new(
            "api::agents_forbidden",
            format!("the agents' ClusterRoleBinding deleted for {time} s, all agents killed"),
            Mode::Tunnel,
            move |scene| forbidden(scene, Duration::from_secs(time)),
        ),
        Fault::new(
            "api::etcd_restored",
            "etcd's store replaced by a copy from before pods and identities were made",
            Mode::Tunnel,
            restored,
        ),
    ]
}

/// A pod made now: the time until it was Ready, most of which is Kubernetes'
/// own, and from then until every node knew it.
struct Converged {
    pod: Pod,
    ready: Duration,
    known: Duration,
}

impl Converged {
    fn figure(&self) -> String {
        format!(
            "a pod made at its return was Ready after {}, known everywhere {} later",
            seconds(self.ready),
            seconds(self.known)
        )
    }
}

/// Waits until a pod made now on a node is Ready and `known` by every node.
fn made(
    lab: &Lab,
    name: &str,
    node: &str,
    known: impl FnOnce(&Lab, &Pod) -> Result<Duration>,
) -> Result<Converged> {
    let start = Instant::now();
    let labels = format!("{{app: {name}}}");
    lab.kubectl()
        .apply(&workloads::single(DEMO, name, node, &labels))?;
    let ready = pods::await_ready(lab, DEMO, &format!("app={name}"), 1, PATIENCE)?;
    let pod = ready.into_iter().next().context("no pod")?;
    let ready = start.elapsed();
    let known = known(lab, &pod)?;
    Ok(Converged { pod, ready, known })
}

/// Waits until a pod made now is Ready and every node knows it, and none that is
/// not.
fn converges(lab: &Lab, name: &str) -> Result<Converged> {
    made(lab, name, "worker2", |lab, _| {
        snapshot::await_agrees(lab, CONVERGED)
    })
}

/// Waits until every node knows the pod by an identity of its own.
fn known(lab: &Lab, pod: &Pod, within: Duration) -> Result<Duration> {
    let start = Instant::now();
    await_condition("every node knows the new pod", within, || {
        let number = identity_of(lab, pod).map_err(|e| format!("{e:#}"))?;
        for name in lab.cluster.node_names() {
            let rows = lab.node(&name);
            let rows = rows.and_then(|node| maps::ipcache(&node));
            let rows = rows.map_err(|e| format!("{e:#}"))?;
            let row = rows
                .iter()
                .find(|r| r.is_whole() && r.address == pod.address);
            let identity = row.map(|r| r.identity);
            if number == INIT || identity != Some(number) {
                return Err(format!("{name}: {identity:?}, the API says {number}"));
            }
        }
        Ok(Some(()))
    })?;
    Ok(start.elapsed())
}

/// Waits until agents and operators are Ready everywhere.
fn rolled_out(lab: &Lab) -> Result<()> {
    lab.cluster.await_rollout(NAMESPACE, AGENT, PATIENCE)?;
    Ok(lab.cluster.await_rollout(NAMESPACE, OPERATOR, PATIENCE)?)
}

fn delete(lab: &Lab, name: &str) -> Result<()> {
    lab.kubectl().run(&[
        "-n",
        DEMO,
        "delete",
        "pod",
        name,
        "--wait=true",
        "--ignore-not-found",
    ])?;
    Ok(())
}

fn stopped(scene: &Scene, component: &str, time: Duration) -> Result<Held> {
    let lab = &scene.lab;
    unchanged(
        scene,
        "all traffic; a pod of a new identity seconds after the return",
        || {
            lab.cluster.stop_process("control", component)?;
            let start = Instant::now();
            let over = await_condition("the time of the fault is over", time * 2, || {
                Ok((start.elapsed() >= time).then_some(()))
            });
            lab.cluster.start_process("control", component)?;
            over?;
            answers(lab)?;
            let converged = converges(lab, "after-api");
            delete(lab, "after-api")?;
            let converged = converged?;
            rolled_out(lab)?;
            Ok(converged)
        },
        Converged::figure,
    )
}

/// The API server's machine loses power and is back at once: connections to it
/// neither end nor answer. Nothing Kubernetes does of its own helps here.
fn lost_silently(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    unchanged(
        scene,
        "all traffic; a pod made on its return known to agents that were connected",
        || {
            let workers = ["worker1", "worker2"];
            let rules = |to: &str, from: &str| {
                let mut all = vec![("control", from.to_owned())];
                all.extend(workers.map(|w| (w, to.to_owned())));
                all
            };
            let nothing = rules(
                &format!("tcp dport {API_PORT} drop"),
                &format!("tcp sport {API_PORT} drop"),
            );
            let wire = Rules::put(lab, "veer_e2e_silent", "", &nothing)?;
            lab.cluster.stop_process("control", "kube-apiserver")?;
            forget_connections(lab)?;
            // New connections work; segments of old ones get no answer.
            let no_reset = format!("tcp sport {API_PORT} tcp flags & rst == rst drop");
            wire.replace("", &rules("", &no_reset))?;
            lab.cluster.start_process("control", "kube-apiserver")?;
            // There kubelet and agent are connected past the wire.
            let converged = made(lab, "after-silence", "control", |lab, pod| {
                known(lab, pod, NOTICED)
            });
            wire.remove()?;
            delete(lab, "after-silence")?;
            lab.cluster.await_nodes_ready(PATIENCE)?;
            rolled_out(lab)?;
            converged
        },
        Converged::figure,
    )
}

/// Ends what the control node's kernel keeps of connections to the API server,
/// which ends with the power too: it would go on to acknowledge, and to say FIN.
fn forget_connections(lab: &Lab) -> Result<()> {
    let control = lab.node("control")?;
    let port = format!(":{API_PORT}");
    // Whose other end said FIN too knows of its end.
    let old = [
        "state",
        "connected",
        "exclude",
        "time-wait",
        "sport",
        "=",
        &port,
    ];
    await_condition("no connection to the API server is left", PATIENCE, || {
        let ended = control.exec(&[&["ss", "-HKt"], &old[..]].concat());
        let left = ended.and_then(|_| control.exec(&[&["ss", "-Ht"], &old[..]].concat()));
        match left.map_err(|e| e.to_string())?.stdout {
            none if none.is_empty() => Ok(Some(())),
            some => Err(some),
        }
    })?;
    Ok(())
}

/// Agents that start and may list nothing keep what the ones before them knew.
fn forbidden(scene: &Scene, time: Duration) -> Result<Held> {
    const BINDING: [&str; 2] = ["clusterrolebinding", "veer-agent"];
    let lab = &scene.lab;
    unchanged(
        scene,
        "all traffic; no entry given up; nodes as before",
        || {
            let binding = lab.kubectl().json(&[&["get"], &BINDING[..]].concat())?;
            let binding = json!({
                "apiVersion": binding["apiVersion"], "kind": binding["kind"],
                "metadata": {"name": BINDING[1], "labels": binding["metadata"]["labels"],
                    "annotations": binding["metadata"]["annotations"]},
                "roleRef": binding["roleRef"], "subjects": binding["subjects"],
            });
            let before = rows(lab)?;
            lab.kubectl().run(&[&["delete"], &BINDING[..]].concat())?;
            let start = Instant::now();
            let mut fewest = before;
            let outcome = (|| {
                for node in lab.cluster.node_names() {
                    agents::signal(lab, &node, "KILL")?;
                }
                await_condition("the time of the fault is over", time * 2, || {
                    fewest = fewest.min(rows(lab).map_err(|e| format!("{e:#}"))?);
                    Ok((start.elapsed() >= time).then_some(()))
                })?;
                Ok(())
            })();
            lab.kubectl().apply(&binding.to_string())?;
            let back = Instant::now();
            let outcome: Result<()> = outcome;
            outcome?;
            lab.cluster.await_rollout(NAMESPACE, AGENT, PATIENCE)?;
            ensure!(
                fewest == before,
                "the ipcache shrank from {before} rows to {fewest}"
            );
            Ok(back.elapsed())
        },
        |time| {
            format!(
                "agents ready {} after they might list again",
                seconds(*time)
            )
        },
    )
}

/// Waits until the API server serves again.
fn answers(lab: &Lab) -> Result<()> {
    await_condition("the API server serves", PATIENCE, || {
        let answer = lab.kubectl().run(&["get", "--raw", "/readyz"]);
        answer.map(Some).map_err(|e| e.to_string())
    })?;
    Ok(())
}

/// Where etcd's store is, on the first node's disk, and a copy of it.
fn store(lab: &Lab) -> Result<(PathBuf, PathBuf)> {
    let disk = lab.node("control")?.disk().join("var/lib");
    Ok((disk.join("etcd"), disk.join("etcd-copy")))
}

/// Stops the control plane, does something to etcd's store, starts it all.
fn offline(lab: &Lab, act: impl FnOnce() -> Result<()>) -> Result<()> {
    for component in COMPONENTS.iter().rev() {
        lab.cluster.stop_process("control", component)?;
    }
    let outcome = act();
    for component in COMPONENTS {
        lab.cluster.start_process("control", component)?;
    }
    outcome?;
    answers(lab)
}

/// Copies a directory's files.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    let status = std::process::Command::new("cp")
        .args(["-a", &*from, &*to])
        .status()
        .context("start cp")?;
    ensure!(status.success(), "cp -a {from} {to}: {status}");
    Ok(())
}

fn restored(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let (there, copied) = store(lab)?;
    if copied.exists() {
        fs::remove_dir_all(&copied)?;
    }
    unharmed(
        scene,
        "all traffic; nothing given up; converged",
        || {
            offline(lab, || copy(&there, &copied))?;
            // What the restored store will not know.
            let mut forgotten = 0;
            for name in ["unknown1", "unknown2"] {
                forgotten += converges(lab, name)?.pod.addresses.len();
            }
            let rows = rows(lab)?;
            offline(lab, || {
                fs::remove_dir_all(&there)?;
                Ok(fs::rename(&copied, &there)?)
            })?;
            // As the manual of etcd requires, Kubernetes' own components with a cache
            // are restarted. veer's agents and operators are not, and kube-proxy need
            // not be: no service changes here, and one that started over its own
            // rules has been seen to leave an endpoint's chain empty.
            for node in lab.cluster.node_names() {
                lab.cluster.stop_process(&node, "kubelet")?;
                lab.cluster.start_process(&node, "kubelet")?;
            }
            lab.cluster.await_nodes_ready(PATIENCE)?;
            never_below(lab, rows - forgotten)?;
            let converged = made(lab, "after-restore", "worker2", |lab, pod| {
                known(lab, pod, CONVERGED)
            })?;
            let source = scene.demo_on("worker1")?;
            client::reaches(&source.site, converged.pod.address, 3)?;
            delete(lab, "after-restore")?;
            snapshot::await_agrees(lab, FORGOTTEN)?;
            for name in ["unknown1", "unknown2"] {
                delete(lab, name)?;
            }
            rolled_out(lab)?;
            Ok(converged)
        },
        Converged::figure,
    )
}

/// How many rows the fullest and the emptiest ipcache has.
fn rows(lab: &Lab) -> Result<usize> {
    let counts: Result<Vec<usize>> = lab
        .cluster
        .node_names()
        .iter()
        .map(|name| Ok(maps::ipcache(&lab.node(name)?)?.len()))
        .collect();
    Ok(counts?.into_iter().min().unwrap_or_default())
}

/// Looks at the ipcaches for some seconds: only what the store forgot may go.
fn never_below(lab: &Lab, kept: usize) -> Result<()> {
    let start = Instant::now();
    let mut fewest = usize::MAX;
    await_condition("ten seconds of ipcaches", Duration::from_secs(30), || {
        fewest = fewest.min(rows(lab).map_err(|e| format!("{e:#}"))?);
        Ok((start.elapsed() > Duration::from_secs(10)).then_some(()))
    })?;
    ensure!(
        fewest >= kept,
        "the ipcache shrank to {fewest} rows; of {kept} the store knows"
    );
    Ok(())
}
