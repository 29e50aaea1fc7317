//! Nodes lose power, stand still, are deleted, move, get another uplink. The
//! victim is a worker of its own, so that the load has nothing to do with it.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Cluster, Family, OUTSIDE, Role, await_condition};
use veer_e2e_tests::{
    client,
    lab::{AGENT, Lab, Mode, NAMESPACE, repository},
    maps,
    pods::{self, Pod},
    scene::{DEMO, Scene, identity_of},
    snapshot, workloads,
};

use crate::{
    fault::{Fault, Held},
    survive::{SETTLED, changeable, quick_or_full, seconds, unharmed},
};

/// The victim.
pub(crate) const VICTIM: &str = "victim";
/// Its pod.
const POD: &str = "on-victim";
/// How long Kubernetes may take to see a node as it is.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);

/// All faults of nodes.
pub(crate) fn faults() -> Vec<Fault> {
    let frozen = quick_or_full(10, 60);
    vec![
        Fault::new(
            "node::power_cut",
            "all processes and namespaces of a node ended at once, started from its disk",
            Mode::Tunnel,
            |scene| with_victim(scene, power_cut),
        ),
        Fault::new(
            "node::frozen",
            format!("all processes of a node frozen for {frozen} s"),
            Mode::Tunnel,
            move |scene| with_victim(scene, |s, l| stood_still(s, l, Duration::from_secs(frozen))),
        ),
        Fault::new(
            "node::deleted_under_running_pods",
            "kubectl delete node; its kubelet registers again",
            Mode::Tunnel,
            |scene| with_victim(scene, deleted),
        ),
        Fault::new(
            "node::replaced_under_its_old_name",
            "another machine with an empty disk takes the name",
            Mode::Tunnel,
            |scene| with_victim(scene, replaced),
        ),
        Fault::new(
            "node::new_address",
            "another address on its uplink",
            Mode::Tunnel,
            |scene| with_victim(scene, readdressed),
        ),
        Fault::new(
            "node::second_uplink",
            "another device, the default route moves to it and back",
            Mode::Tunnel,
            |scene| with_victim(scene, second_uplink),
        ),
    ]
}

/// Adds the victim with a pod on it, runs the fault, and removes it.
pub(crate) fn with_victim(
    scene: &Scene,
    fault: impl FnOnce(&Scene, &mut Lab) -> Result<Held>,
) -> Result<Held> {
    let mut lab = changeable(scene)?;
    join(&mut lab)?;
    let held = start_pod(&lab).and_then(|_| fault(scene, &mut lab));
    let gone = leave(&mut lab);
    let held = held?;
    gone?;
    Ok(held)
}

pub(crate) fn join(lab: &mut Lab) -> Result<()> {
    if lab.cluster.node_names().iter().any(|n| n == VICTIM) {
        lab.cluster.remove_node(VICTIM)?;
    }
    lab.cluster.add_node(VICTIM, Role::Worker)?;
    load_images(lab)?;
    settle(lab)
}

pub(crate) fn leave(lab: &mut Lab) -> Result<()> {
    let delete = [
        "-n",
        DEMO,
        "delete",
        "pod",
        POD,
        "--ignore-not-found",
        "--force",
        "--grace-period=0",
    ];
    lab.kubectl().run(&delete)?;
    lab.cluster.remove_node(VICTIM)?;
    pods::forget(lab, VICTIM)?;
    snapshot::await_agrees(lab, SETTLED)?;
    Ok(())
}

pub(crate) fn load_images(lab: &Lab) -> Result<()> {
    for name in ["veer-operator", "veer-node"] {
        let archive = repository().join(format!("build/images/{name}.tar"));
        lab.cluster.load_image(&archive)?;
    }
    Ok(())
}

/// Waits until the victim is Ready, its agent too, the `DaemonSet`'s pod on it
/// runs, and all know its pods. What takes long of it is Kubernetes' part.
pub(crate) fn settle(lab: &Lab) -> Result<()> {
    lab.cluster.await_nodes_ready(PATIENCE)?;
    lab.cluster.await_rollout(NAMESPACE, AGENT, PATIENCE)?;
    lab.cluster
        .await_rollout(DEMO, "daemonset/demo", PATIENCE)?;
    snapshot::await_agrees(lab, PATIENCE)?;
    Ok(())
}

pub(crate) fn start_pod(lab: &Lab) -> Result<Pod> {
    let labels = format!("{{app: {POD}}}");
    lab.kubectl()
        .apply(&workloads::single(DEMO, POD, VICTIM, &labels))?;
    await_pod(lab)
}

pub(crate) fn await_pod(lab: &Lab) -> Result<Pod> {
    let ready = pods::await_ready(lab, DEMO, &format!("app={POD}"), 1, PATIENCE)?;
    ready.into_iter().next().context("no pod")
}

/// Both ways between the victim's pod and one of each other node.
pub(crate) fn connected(scene: &Scene, pod: &Pod) -> Result<()> {
    for other in &scene.demo {
        for family in scene.lab.cluster.families().all() {
            for (from, to) in [(pod, other), (other, pod)] {
                client::reaches(&from.site, to.address_in(*family)?, 3)?;
            }
        }
    }
    Ok(())
}

/// The victim's blocks and the number of the pod's identity.
fn belongings(lab: &Lab, pod: &Pod) -> Result<(Vec<String>, u32)> {
    Ok((blocks(lab)?, identity_of(lab, pod)?))
}

/// The victim's blocks, the primary family's first.
fn blocks(lab: &Lab) -> Result<Vec<String>> {
    let families = lab.cluster.families();
    let of = |family: &Family| lab.pod_cidr(VICTIM, *family);
    families.all().iter().map(of).collect()
}

fn power_cut(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let before = belongings(lab, &await_pod(lab)?)?;
    // What a pod of it sends must be in the tunnel: bare is unfiltered.
    let bare = format!(
        "(src net {}) and not udp port 8472",
        before.0.join(" or src net ")
    );
    let watch = lab.cluster.capture("worker1", "eth0", &bare)?;
    let held = unharmed(
        scene,
        "all other traffic; its pods are back with their identity; nothing passed without veer",
        || {
            lab.cluster.reboot_node(VICTIM)?;
            let start = Instant::now();
            let mut early = 0;
            await_condition("the victim's agent is ready", PATIENCE, || {
                let ready = veer_e2e_tests::agents::is_ready(lab, VICTIM).unwrap_or(false);
                if ready {
                    return Ok(Some(()));
                }
                // Nothing of a pod may be there before it.
                let node = lab.node(VICTIM).map_err(|e| format!("{e:#}"))?;
                let out = node
                    .exec_any(&[
                        "sh",
                        "-c",
                        "ls /sys/class/net | grep '^veer[0-9a-f]' || true",
                    ])
                    .map_err(|e| e.to_string())?;
                early += out.stdout.lines().count();
                Err("not ready".to_owned())
            })?;
            ensure!(early == 0, "pods had devices before the agent was ready");
            settle(lab)?;
            let pod = await_pod(lab)?;
            connected(scene, &pod)?;
            let after = belongings(lab, &pod)?;
            ensure!(before == after, "{before:?} became {after:?}");
            Ok(start.elapsed())
        },
        |time| format!("all of it back after {}", seconds(*time)),
    )?;
    let bare = watch.finish()?;
    ensure!(
        bare.is_empty(),
        "{} bare packets of its pods, the first {:?}",
        bare.len(),
        bare[0]
    );
    Ok(held)
}

fn stood_still(scene: &Scene, lab: &mut Lab, time: Duration) -> Result<Held> {
    let pod = await_pod(lab)?;
    let before = snapshot::cluster(lab)?;
    let held = unharmed(
        scene,
        "all other traffic; nodes as before",
        || {
            lab.cluster.pause_node(VICTIM)?;
            let start = Instant::now();
            let over = await_condition("the time of the fault is over", time * 2, || {
                Ok((start.elapsed() >= time).then_some(()))
            });
            lab.cluster.resume_node(VICTIM)?;
            over?;
            let back = Instant::now();
            settle(lab)?;
            connected(scene, &pod)?;
            Ok(back.elapsed())
        },
        |time| format!("settled {} after it went on", seconds(*time)),
    )?;
    snapshot::await_same(lab, &before, SETTLED)?;
    Ok(held)
}

fn deleted(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let pod = await_pod(lab)?;
    let (blocks, _) = belongings(lab, &pod)?;
    unharmed(
        scene,
        "all other traffic; its pods' traffic; it keeps its block",
        || {
            lab.kubectl().run(&["delete", "node", VICTIM])?;
            connected(scene, &pod)?;
            lab.cluster.stop_process(VICTIM, "kubelet")?;
            lab.cluster.start_process(VICTIM, "kubelet")?;
            let start = Instant::now();
            await_condition("the victim has its block", PATIENCE, || {
                let network = lab.kubectl().json(&["get", "nodenetwork", VICTIM]);
                let network = network.map_err(|e| e.to_string())?;
                let node = lab.kubectl().json(&["get", "node", VICTIM]);
                let node = node.map_err(|e| e.to_string())?;
                if network["spec"]["nodeUID"] == node["metadata"]["uid"]
                    || network["spec"]["nodeUid"] == node["metadata"]["uid"]
                {
                    return Ok(Some(()));
                }
                Err(network["spec"].to_string())
            })?;
            let took = start.elapsed();
            settle(lab)?;
            let now = self::blocks(lab)?;
            ensure!(now == blocks, "{blocks:?} became {now:?}");
            let there = pods::running(lab, DEMO, &format!("app={POD}"))?;
            for pod in &there {
                connected(scene, pod)?;
            }
            Ok(took)
        },
        |time| format!("its NodeNetwork is the new Node's after {}", seconds(*time)),
    )
}

fn replaced(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let (blocks, _) = belongings(lab, &await_pod(lab)?)?;
    unharmed(
        scene,
        "all other traffic; the new one works; no entry of the old one is left",
        || {
            lab.cluster.remove_node(VICTIM)?;
            lab.cluster.add_node(VICTIM, Role::Worker)?;
            load_images(lab)?;
            let start = Instant::now();
            lab.kubectl().run(&[
                "-n",
                DEMO,
                "delete",
                "pod",
                POD,
                "--force",
                "--grace-period=0",
                "--ignore-not-found",
            ])?;
            settle(lab)?;
            let pod = start_pod(lab)?;
            connected(scene, &pod)?;
            let (now, _) = belongings(lab, &pod)?;
            Ok((start.elapsed(), now))
        },
        |(time, now)| {
            format!(
                "works after {}; blocks {blocks:?}, then {now:?}",
                seconds(*time)
            )
        },
    )
}

fn readdressed(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let old = lab.cluster.address(VICTIM)?;
    unharmed(
        scene,
        "all other traffic; all nodes send to the new address only",
        || {
            let new = lab.cluster.readdress_node(VICTIM)?;
            let start = Instant::now();
            for name in ["control", "worker1", "worker2"] {
                let machine = lab.node(name)?;
                let what = format!("{name} knows {new} and no longer {old}");
                await_condition(&what, PATIENCE, || {
                    let nodes = maps::dump(&machine, "NODES").map_err(|e| format!("{e:#}"))?;
                    let has = |a: Ipv4Addr| nodes.iter().any(|(k, _)| *k == maps::key(a.into()));
                    if has(new) && !has(old) {
                        Ok(Some(()))
                    } else {
                        Err(format!("{new}: {}, {old}: {}", has(new), has(old)))
                    }
                })?;
            }
            let took = start.elapsed();
            settle(lab)?;
            connected(scene, &await_pod(lab)?)?;
            Ok((took, new))
        },
        |(time, new)| format!("{old} → {new}: known everywhere after {}", seconds(*time)),
    )
}

/// Networks of the second uplink: the victim's and the world's address there.
const SECOND: [&str; 2] = ["172.31.250.2", "172.31.250.1"];

/// A link between the victim and the world beside the first one.
fn plug(cluster: &Cluster) -> Result<()> {
    let (victim, world) = (cluster.node(VICTIM)?, cluster.world());
    let [ours, theirs] = SECOND.map(|a| format!("{a}/24"));
    let pid = victim.init()?.to_string();
    world.network_exec(&[
        "ip", "link", "add", "second", "type", "veth", "peer", "name", "eth1", "netns", &pid,
    ])?;
    world.network_exec(&["ip", "address", "add", &theirs, "dev", "second"])?;
    world.network_exec(&["ip", "link", "set", "second", "up"])?;
    victim.network_exec(&["ip", "address", "add", &ours, "dev", "eth1"])?;
    victim.network_exec(&["ip", "link", "set", "eth1", "up"])?;
    Ok(())
}

fn second_uplink(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let victim = lab.node(VICTIM)?;
    let pod = await_pod(lab)?;
    let default = victim
        .exec(&["ip", "-o", "route", "show", "default"])?
        .stdout;
    let old: Vec<String> = default.split_whitespace().map(str::to_owned).collect();
    unharmed(
        scene,
        "all other traffic; pods reach the world and the nodes by either",
        || {
            plug(&lab.cluster)?;
            let start = Instant::now();
            victim.exec(&[
                "ip", "route", "replace", "default", "via", SECOND[1], "dev", "eth1",
            ])?;
            await_condition("eth1 has its programs", SETTLED, || {
                for direction in ["ingress", "egress"] {
                    maps::attached(&victim, "eth1", direction).map_err(|e| format!("{e:#}"))?;
                }
                Ok(Some(()))
            })?;
            let took = start.elapsed();
            client::await_reaches(&pod.site, OUTSIDE, 2, SETTLED)?;
            connected(scene, &pod)?;
            let words: Vec<&str> = old.iter().map(String::as_str).collect();
            victim.exec(&[&["ip", "route", "replace"], &words[..]].concat())?;
            client::await_reaches(&pod.site, OUTSIDE, 2, SETTLED)?;
            connected(scene, &pod)?;
            lab.cluster
                .world()
                .network_exec(&["ip", "link", "del", "second"])?;
            client::await_reaches(&pod.site, OUTSIDE, 2, SETTLED)?;
            connected(scene, &pod)?;
            Ok(took)
        },
        |time| format!("programs on it after {}", seconds(*time)),
    )
}
