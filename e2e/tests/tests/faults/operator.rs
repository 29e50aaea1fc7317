//! The operator is killed, split-brained, away: it gives out names and numbers,
//! and no packet needs it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    lab::{Lab, Mode, NAMESPACE, OPERATOR},
    light, pods,
    scene::{DEMO, Scene, await_identity, identity_of},
    workloads,
};

use crate::{
    fault::{Fault, Held},
    survive::{changeable, quick_or_full, seconds, unharmed},
};

/// How long a new leader may take: the lease's time and some.
const NEW_LEADER: Duration = Duration::from_mins(1);
/// Namespace of pods whose identities are asked for.
const CROWD: &str = "e2e-split";

/// All faults of the operator.
pub(crate) fn faults() -> Vec<Fault> {
    vec![
        Fault::new(
            "operator::leader_killed",
            "SIGKILL to the leading operator",
            Mode::Tunnel,
            killed,
        )
        .short(),
        Fault::new(
            "operator::split_brain",
            "SIGSTOP to the leader until another leads, then SIGCONT; nodes and identities are \
             asked for all the time",
            Mode::Tunnel,
            split_brain,
        ),
        Fault::new(
            "operator::away",
            format!(
                "scaled to 0 for {} s; a pod of a known identity is made",
                quick_or_full(10, 60)
            ),
            Mode::Tunnel,
            |scene| away(scene, Duration::from_secs(quick_or_full(10, 60))),
        ),
    ]
}

/// Who leads, as the lease says it, and the node of that pod.
fn leader(lab: &Lab) -> Result<(String, String)> {
    let lease = lab
        .kubectl()
        .json(&["-n", NAMESPACE, "get", "lease", "veer-operator"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let list = lab.kubectl().json(&[
        "-n",
        NAMESPACE,
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=veer-operator",
    ])?;
    let pods = list["items"].as_array().context("a list without items")?;
    pods.iter()
        .filter_map(|p| {
            Some((
                p["metadata"]["name"].as_str()?,
                p["spec"]["nodeName"].as_str()?,
            ))
        })
        .find(|(name, _)| !name.is_empty() && holder.contains(name))
        .map(|(_, node)| (holder.to_owned(), node.to_owned()))
        .with_context(|| format!("the lease is held by {holder:?}, which is no pod"))
}

fn signal(lab: &Lab, node: &str, signal: &str) -> Result<()> {
    let signal = format!("-{signal}");
    lab.node(node)?
        .exec(&["pkill", &signal, "-x", "veer-operator"])?;
    Ok(())
}

/// Waits until a pod with new labels has an identity: a leader works.
fn works(lab: &Lab, name: &str) -> Result<()> {
    lab.kubectl().apply(&workloads::single(
        DEMO,
        name,
        "worker2",
        &format!("{{app: {name}}}"),
    ))?;
    let ready = pods::await_ready(lab, DEMO, &format!("app={name}"), 1, NEW_LEADER)?;
    let pod = ready.first().context("no pod")?;
    await_identity(lab, pod, NEW_LEADER)?;
    lab.kubectl()
        .run(&["-n", DEMO, "delete", "pod", name, "--wait=true"])?;
    Ok(())
}

fn killed(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    unharmed(
        scene,
        "all traffic; identities are given out again",
        || {
            let (_, node) = leader(lab)?;
            signal(lab, &node, "KILL")?;
            let start = Instant::now();
            works(lab, "after-kill")?;
            Ok(start.elapsed())
        },
        |time| format!("a new identity {} after the kill", seconds(*time)),
    )
}

/// Pods of many label sets on a light node, and the nodes themselves: each gives the
/// leader something to do.
fn ask(lab: &Lab, round: &str, count: usize) -> Result<()> {
    let items: Vec<Value> = (0..count)
        .map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{round}-{number}"), "namespace": CROWD,
                    "labels": {"app": format!("{round}-{number}")}},
                "spec": {"nodeName": "split0",
                    "containers": [{"name": "none", "image": "none", "imagePullPolicy": "Never"}]},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    lab.kubectl().apply(&list.to_string())?;
    Ok(())
}

/// A Node without a machine: it only needs addresses.
fn ask_for_addresses(lab: &Lab, name: &str) -> Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"unschedulable": true}});
    lab.kubectl().apply(&node.to_string())?;
    Ok(())
}

fn split_brain(scene: &Scene) -> Result<Held> {
    const EACH: usize = 20;
    let lab = &scene.lab;
    let nodes: Vec<String> = (0..6).map(|n| format!("split{n}")).collect();
    let held = unharmed(
        scene,
        "all traffic; no block and no label set twice",
        || {
            light::namespace(lab, CROWD)?;
            let (old, node) = leader(lab)?;
            ask_for_addresses(lab, &nodes[0])?;
            ask(lab, "before", EACH)?;
            // In the middle of its work, as far as that can be hit.
            signal(lab, &node, "STOP")?;
            let stopped = Instant::now();
            let outcome = (|| {
                ask_for_addresses(lab, &nodes[1])?;
                ask_for_addresses(lab, &nodes[2])?;
                ask(lab, "headless", EACH)?;
                await_condition("another operator leads", NEW_LEADER, || {
                    let (now, _) = leader(lab).map_err(|e| format!("{e:#}"))?;
                    if now == old { Err(now) } else { Ok(Some(())) }
                })?;
                Ok(stopped.elapsed())
            })();
            signal(lab, &node, "CONT")?;
            for name in &nodes[3..] {
                ask_for_addresses(lab, name)?;
            }
            ask(lab, "both", EACH)?;
            await_condition("everything asked for is given", NEW_LEADER, || {
                given(lab, &nodes, 3 * EACH).map_err(|e| format!("{e:#}"))
            })?;
            outcome
        },
        |time| {
            format!(
                "another led after {}; {} label sets and {} nodes served",
                seconds(*time),
                3 * EACH,
                nodes.len()
            )
        },
    );
    let unique = held.and_then(|held| unique(lab).map(|()| held));
    let names: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let delete = [&["delete", "node", "--ignore-not-found"], &names[..]].concat();
    lab.kubectl().run(&delete)?;
    lab.kubectl().run(&[
        "delete",
        "namespace",
        "--ignore-not-found",
        "--wait=false",
        CROWD,
    ])?;
    unique
}

/// Whether all label sets and nodes that asked have something.
fn given(lab: &Lab, nodes: &[String], sets: usize) -> Result<Option<()>> {
    let list = |kind| lab.kubectl().json(&["get", kind]);
    let identities = list("securityidentities")?;
    let own = identities["items"].as_array().into_iter().flatten();
    let own = own.filter(|i| i["spec"]["labels"]["io.kubernetes.pod.namespace"] == CROWD);
    let own = own.count();
    let networks = list("nodenetworks")?;
    let served = networks["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|n| {
            let name = n["metadata"]["name"].as_str().unwrap_or_default();
            nodes.iter().any(|wanted| wanted == name) && n["spec"]["podCIDRs"][0].is_string()
        });
    let served = served.count();
    ensure!(
        own >= sets && served == nodes.len(),
        "{own} of {sets} identities, {served} of {} nodes",
        nodes.len()
    );
    Ok(Some(()))
}

/// No block has two owners, no Active label set two numbers.
fn unique(lab: &Lab) -> Result<()> {
    let mut blocks: BTreeMap<String, String> = BTreeMap::new();
    let networks = lab.kubectl().json(&["get", "nodenetworks"])?;
    for network in networks["items"].as_array().into_iter().flatten() {
        let name = network["metadata"]["name"].to_string();
        for block in network["spec"]["podCIDRs"].as_array().into_iter().flatten() {
            let other = blocks.insert(block.to_string(), name.clone());
            ensure!(other.is_none(), "{block} is {name}'s and {other:?}'s");
        }
    }
    let claims = lab.kubectl().json(&["get", "podcidrs"])?;
    for claim in claims["items"].as_array().into_iter().flatten() {
        let (cidr, node) = (&claim["spec"]["cidr"], &claim["spec"]["nodeName"]);
        if let Some(owner) = blocks.get(&cidr.to_string()) {
            ensure!(
                node == owner.trim_matches('"'),
                "{cidr} is claimed for {node}, {owner} has it"
            );
        }
    }
    let what = "no label set has two Active numbers";
    await_condition(what, NEW_LEADER, || {
        let list = lab.kubectl().json(&["get", "securityidentities"]);
        let list = list.map_err(|e| e.to_string())?;
        let mut sets: BTreeMap<String, String> = BTreeMap::new();
        for identity in list["items"].as_array().into_iter().flatten() {
            if identity["spec"]["state"] == "Retiring" || identity["status"]["state"] == "Retiring"
            {
                continue;
            }
            let number = identity["metadata"]["name"].to_string();
            let labels = identity["spec"]["labels"].to_string();
            if let Some(other) = sets.insert(labels.clone(), number.clone()) {
                return Err(format!("{labels} has {number} and {other}"));
            }
        }
        Ok(Some(()))
    })?;
    Ok(())
}

fn away(scene: &Scene, time: Duration) -> Result<Held> {
    let lab = changeable(scene)?;
    let lab = &lab;
    let yaml = workloads::single(DEMO, "known", "worker1", "{app: known}");
    lab.kubectl().apply(&yaml)?;
    let before = pods::await_ready(lab, DEMO, "app=known", 1, workloads::STARTED)?;
    let number = await_identity(lab, before.first().context("no pod")?, workloads::STARTED)?;
    let delete = ["-n", DEMO, "delete", "pod", "known", "--wait=true"];
    lab.kubectl().run(&delete)?;
    let scale = |count: &str| {
        lab.kubectl()
            .run(&["-n", NAMESPACE, "scale", OPERATOR, count])
    };
    let old =
        lab.kubectl().json(&["-n", NAMESPACE, "get", OPERATOR])?["spec"]["replicas"].to_string();
    let held = unharmed(
        scene,
        "all traffic; a pod of a known identity starts",
        || {
            scale("--replicas=0")?;
            let start = Instant::now();
            let outcome = (|| {
                await_condition("no operator runs", NEW_LEADER, || {
                    let list = lab.kubectl().any(&[
                        "-n",
                        NAMESPACE,
                        "get",
                        "pods",
                        "-o",
                        "name",
                        "-l",
                        "app.kubernetes.io/name=veer-operator",
                    ]);
                    let list = list.map_err(|e| e.to_string())?.stdout;
                    if list.trim().is_empty() {
                        Ok(Some(()))
                    } else {
                        Err(list)
                    }
                })?;
                lab.kubectl().apply(&yaml)?;
                let asked = Instant::now();
                let after = pods::await_ready(lab, DEMO, "app=known", 1, workloads::STARTED)?;
                let took = asked.elapsed();
                let again = identity_of(lab, after.first().context("no pod")?)?;
                ensure!(number == again, "identity {number} became {again}");
                await_condition("the time of the fault is over", time * 2, || {
                    Ok((start.elapsed() >= time).then_some(()))
                })?;
                Ok(took)
            })();
            scale(&format!("--replicas={old}"))?;
            lab.cluster.await_rollout(NAMESPACE, OPERATOR, NEW_LEADER)?;
            outcome
        },
        |took| format!("the pod was Ready after {}", seconds(*took)),
    );
    lab.kubectl().run(&delete)?;
    held
}
