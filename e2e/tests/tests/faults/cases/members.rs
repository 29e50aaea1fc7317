//! Nodes under other names, and the objects of nodes deleted.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use veer_e2e_cluster::{Role, await_condition};
use veer_e2e_tests::{
    client,
    lab::{Lab, Mode, repository},
    pods,
    scene::{DEMO, Scene},
    snapshot,
    workloads::STARTED,
};

use super::{NODE, works};
use crate::{
    fault::{Fault, Held},
    node::{PATIENCE, VICTIM, await_pod, connected, join, load_images, with_victim},
    survive::{SETTLED, changeable, seconds, unharmed},
};

pub(super) fn faults() -> Vec<Fault> {
    vec![
        Fault::new(
            "members::node_back_under_another_name_with_its_address",
            "a node removed, its machine added again under a name that sorts before the old one",
            Mode::Tunnel,
            renamed,
        ),
        Fault::new(
            "members::all_node_networks_deleted",
            "kubectl delete nodenetworks --all",
            Mode::Tunnel,
            networks_deleted,
        ),
        Fault::new(
            "members::all_node_networks_deleted_in_native",
            "kubectl delete nodenetworks --all",
            Mode::Native,
            networks_deleted,
        ),
        Fault::new(
            "members::all_objects_of_the_other_kinds_deleted",
            "kubectl delete --all of podendpoints, securityidentities, podcidrs, nodereports",
            Mode::Native,
            others_deleted,
        ),
        Fault::new(
            "members::crd_of_node_networks_deleted",
            "kubectl delete crd nodenetworks.veer.dev; a pod made meanwhile; the CRD applied again",
            Mode::Tunnel,
            crd_deleted,
        ),
        Fault::new(
            "members::power_cut_while_a_closed_webhook_refuses_veers_writes",
            "a webhook that nobody serves, with failurePolicy Fail, for all of veer's resources; \
             then a node's power cut",
            Mode::Tunnel,
            |scene| with_victim(scene, writes_refused),
        ),
    ]
}

fn renamed(scene: &Scene) -> Result<Held> {
    const NEW: &str = "blade";
    let mut lab = changeable(scene)?;
    join(&mut lab)?;
    let address = lab.cluster.address(VICTIM)?;
    lab.cluster.remove_node(VICTIM)?;
    let outcome = (|| {
        lab.cluster.add_node(NEW, Role::Worker)?;
        ensure!(
            lab.cluster.address(NEW)? == address,
            "the new node has another address, which proves nothing"
        );
        load_images(&lab)?;
        lab.cluster.await_nodes_ready(PATIENCE)?;
        let pod = pods::await_ready(&lab, DEMO, "app=demo", 4, PATIENCE)?;
        let pod = pod.into_iter().find(|p| p.node == NEW).context("no pod")?;
        await_condition("the node works under its new name", STARTED, || {
            let all = works(scene, &pod)
                .and_then(|()| client::reaches(&scene.demo_on(NODE)?.site, pod.address, 5));
            all.map(Some).map_err(|e| format!("{e:#}"))
        })?;
        Ok(())
    })();
    lab.cluster.remove_node(NEW)?;
    pods::forget(&lab, NEW)?;
    snapshot::await_agrees(&lab, PATIENCE)?;
    outcome.map(|()| Held::new("pods, DNS, services and the world, both ways", ""))
}

/// The block of every node.
fn blocks(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let list = lab.kubectl().json(&["get", "nodenetworks"])?;
    let mut all = BTreeMap::new();
    for network in list["items"].as_array().context("no list")? {
        let name = network["metadata"]["name"].as_str().unwrap_or_default();
        all.insert(name.to_owned(), network["spec"]["podCIDRs"].to_string());
    }
    Ok(all)
}

/// The block of every node that is.
fn own_blocks(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let nodes = lab.cluster.node_names();
    let mut all = blocks(lab)?;
    all.retain(|node, _| nodes.contains(node));
    Ok(all)
}

fn await_blocks(lab: &Lab, before: &BTreeMap<String, String>) -> Result<()> {
    await_condition("every node has its former block", STARTED, || {
        let now = own_blocks(lab).map_err(|e| format!("{e:#}"))?;
        if now == *before {
            Ok(Some(()))
        } else {
            Err(format!("{before:?}, now {now:?}"))
        }
    })?;
    Ok(())
}

/// A pod that is made works.
fn new_pod_works(scene: &Scene, name: &str) -> Result<()> {
    let made = super::Made::on(&scene.lab, NODE, name)?;
    await_condition("the new pod works", STARTED, || {
        let all = works(scene, &made.pod);
        all.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    made.deleted()
}

fn networks_deleted(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let before = own_blocks(lab)?;
    unharmed(
        scene,
        "all traffic; every node has its former block",
        || {
            lab.kubectl()
                .run(&["delete", "nodenetworks", "--all", "--wait=false"])?;
            await_blocks(lab, &before)?;
            snapshot::await_agrees(lab, SETTLED)?;
            new_pod_works(scene, "after-deletion")
        },
        |()| format!("{} nodes", before.len()),
    )
}

fn others_deleted(scene: &Scene) -> Result<Held> {
    const KINDS: [&str; 4] = [
        "podendpoints",
        "securityidentities",
        "podcidrs",
        "nodereports",
    ];
    let lab = &scene.lab;
    let before = own_blocks(lab)?;
    let count = |kind| -> Result<usize> {
        let list = lab.kubectl().json(&["get", kind, "-A"])?;
        Ok(list["items"].as_array().map_or(0, Vec::len))
    };
    unharmed(
        scene,
        "all traffic; all of them made again; a new pod works",
        || {
            for kind in KINDS {
                // The report of a node that is gone does not come back.
                let some = match kind {
                    "nodereports" => count(kind)?.min(count("nodes")?),
                    _ => count(kind)?,
                };
                ensure!(some > 0, "there are no {kind}: nothing was tested");
                let words = ["delete", kind, "--all", "--wait=false"];
                let everywhere = ["--all-namespaces"];
                let everywhere = &everywhere[..usize::from(kind == "podendpoints")];
                lab.kubectl().run(&[&words[..], everywhere].concat())?;
                await_condition(&format!("there are {kind} again"), STARTED, || {
                    let now = count(kind).map_err(|e| format!("{e:#}"))?;
                    // A number that nobody uses any more need not come back.
                    let enough = now >= some || (kind == "securityidentities" && now > 0);
                    if enough {
                        Ok(Some(()))
                    } else {
                        Err(format!("{now} of {some}"))
                    }
                })?;
                snapshot::await_agrees(lab, SETTLED)?;
                new_pod_works(scene, &format!("without-{kind}"))?;
            }
            await_blocks(lab, &before)
        },
        |()| KINDS.join(", "),
    )
}

fn crd_deleted(scene: &Scene) -> Result<Held> {
    const CRD: &str = "nodenetworks.veer.dev";
    let lab = &scene.lab;
    let before = own_blocks(lab)?;
    let crds = repository().join("charts/veer/crds").display().to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", &crds];
    let held = unharmed(
        scene,
        "all traffic; pods start; every node has its former block afterwards",
        || {
            lab.kubectl().run(&["delete", "crd", CRD, "--wait=true"])?;
            new_pod_works(scene, "without-the-crd")?;
            snapshot::await_agrees(lab, SETTLED)?;
            lab.kubectl().run(&apply)?;
            await_blocks(lab, &before)?;
            snapshot::await_agrees(lab, SETTLED)?;
            new_pod_works(scene, "after-the-crd")
        },
        |()| format!("{} nodes", before.len()),
    );
    if held.is_err() {
        // For the faults after this one.
        lab.kubectl().run(&apply)?;
    }
    held
}

/// A webhook for every write of veer's resources that nobody serves, with
/// `failurePolicy` Fail; it goes when this is dropped.
struct Closed<'a>(&'a Lab);

impl<'a> Closed<'a> {
    const NAME: &'static str = "e2e-closed";

    fn put(lab: &'a Lab) -> Result<Self> {
        let webhook = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": Self::NAME},
            "webhooks": [{
                "name": "closed.e2e.veer.dev", "failurePolicy": "Fail", "sideEffects": "None",
                "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
                "clientConfig": {"service": {"namespace": DEMO, "name": Self::NAME}},
                "rules": [{"apiGroups": ["veer.dev"], "apiVersions": ["*"],
                    "operations": ["*"], "resources": ["*/*"]}],
            }],
        });
        lab.kubectl().apply(&webhook.to_string())?;
        let closed = Self(lab);
        await_condition("veer's resources cannot be written", STARTED, || {
            let words = ["annotate", "--overwrite", "nodenetwork", NODE];
            let words = [&words[..], &["e2e.veer.dev/probe=1", "--dry-run=server"]].concat();
            Ok(lab.kubectl().run(&words).is_err().then_some(()))
        })?;
        Ok(closed)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let kind = "validatingwebhookconfiguration";
        let words = ["delete", kind, Self::NAME, "--ignore-not-found"];
        let _gone = self.0.kubectl().run(&words);
    }
}

fn writes_refused(scene: &Scene, lab: &mut Lab) -> Result<Held> {
    let closed = Closed::put(lab)?;
    lab.cluster.reboot_node(VICTIM)?;
    let start = Instant::now();
    await_condition("the victim's pod is back", PATIENCE, || {
        // By its process: the API knows it as Ready from before.
        let all = await_pod(lab).and_then(|pod| connected(scene, &pod));
        all.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    let took = start.elapsed();
    let made = super::Made::on(lab, VICTIM, "made-meanwhile")?;
    await_condition("the new pod is reached by its node", STARTED, || {
        let all = lab
            .node_site(VICTIM)
            .and_then(|n| super::asked(&n, &made.pod));
        all.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    drop(closed);
    snapshot::await_agrees(lab, PATIENCE)?;
    works(scene, &made.pod)?;
    made.deleted()?;
    Ok(Held::new(
        "pods of the node were back, a new one started; all known when writes were allowed",
        format!("back after {}", seconds(took)),
    ))
}
