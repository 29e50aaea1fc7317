//! Cases that people who run pod networks reported. What they have in common: a node
//! with something of somebody else's on it, pods made for the case alone, and questions
//! that pods ask.

mod addresses;
mod crowded;
mod families;
mod flows;
mod host;
mod members;
mod translated;
mod uplinks;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Family, Machine, await_condition};
use veer_e2e_tests::{
    client,
    lab::Lab,
    pods::{self, Pod},
    scene::{DEMO, FIXED, Scene},
    site::Site,
    workloads::{self, HTTP, STARTED},
};

use crate::fault::Fault;

/// The node that things happen on, and another one.
const NODE: &str = "worker1";
const OTHER: &str = "worker2";

/// All of them.
pub(crate) fn faults() -> Vec<Fault> {
    let mut all = host::faults();
    all.extend(addresses::faults());
    all.extend(crowded::faults());
    all.extend(families::faults());
    all.extend(flows::faults());
    all.extend(members::faults());
    all.extend(translated::faults());
    all.extend(uplinks::faults());
    all
}

/// Shell text that a node runs now, and other text that it runs when this is dropped,
/// whatever became of the case.
struct Foreign {
    node: Machine,
    undo: String,
}

impl Foreign {
    fn put(lab: &Lab, node: &str, script: &str, undo: &str) -> Result<Self> {
        let foreign = Self {
            node: lab.node(node)?,
            undo: undo.to_owned(),
        };
        foreign.node.exec(&["sh", "-ec", script])?;
        Ok(foreign)
    }

    /// Takes it away.
    fn undone(self) -> Result<()> {
        self.node.exec(&["sh", "-ec", &self.undo])?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Done already, mostly: every undo may run twice.
        let _done = self.node.exec_any(&["sh", "-c", &self.undo]);
    }
}

/// A pod made for a case, which goes when this is dropped.
struct Made<'a> {
    lab: &'a Lab,
    pod: Pod,
}

impl<'a> Made<'a> {
    fn on(lab: &'a Lab, node: &str, name: &str) -> Result<Self> {
        let labels = format!("{{app: {name}}}");
        lab.kubectl()
            .apply(&workloads::single(DEMO, name, node, &labels))?;
        let ready = pods::await_ready(lab, DEMO, &format!("app={name}"), 1, STARTED);
        let pod = ready.and_then(|pods| pods.into_iter().next().context("no pod"));
        if pod.is_err() {
            delete(lab, name, "--wait=false")?;
        }
        Ok(Self { lab, pod: pod? })
    }

    /// Deletes it and waits until it is gone.
    fn deleted(self) -> Result<()> {
        delete(self.lab, &self.pod.name, "--wait=true")
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // Gone already, mostly.
        let _gone = delete(self.lab, &self.pod.name, "--wait=false");
    }
}

fn delete(lab: &Lab, name: &str, wait: &str) -> Result<()> {
    lab.kubectl().run(&[
        "-n",
        DEMO,
        "delete",
        "pod",
        name,
        "--ignore-not-found",
        "--timeout=100s",
        wait,
    ])?;
    Ok(())
}

/// Asks the pod with a known place on a node by its service.
fn service(scene: &Scene, family: Family, from: &Site, node: &str) -> Result<()> {
    let pod = scene.fixed_on(node)?;
    let http = workloads::service(&scene.lab, family, (FIXED, &pod.name), "http")?;
    let to = SocketAddr::from((http.address, http.port));
    let name = client::http_get(from, to, "/hostname")?;
    ensure!(name.trim() == pod.name, "{name} answered for {}", pod.name);
    Ok(())
}

/// What a pod needs: DNS, and in each family a service, a pod of another node, the
/// world.
fn works(scene: &Scene, pod: &Pod) -> Result<()> {
    client::dns(&pod.site, scene.lab.primary(), &[])?;
    for family in scene.lab.cluster.families().all() {
        for node in [NODE, OTHER] {
            service(scene, *family, &pod.site, node)?;
            let to = scene.fixed_on(node)?.address_in(*family)?;
            client::reaches(&pod.site, to, 2)?;
        }
        client::reaches(&pod.site, family.outside(), 2)?;
    }
    Ok(())
}

/// Waits until all of that is so.
fn await_works(scene: &Scene, pod: &Pod) -> Result<()> {
    let what = format!("{} has DNS, services, pods and the world", pod.name);
    await_condition(&what, STARTED, || {
        works(scene, pod).map(Some).map_err(|e| format!("{e:#}"))
    })?;
    Ok(())
}

/// Asks a pod's HTTP server by its address.
fn asked(from: &Site, pod: &Pod) -> Result<()> {
    let to = SocketAddr::from((pod.address, HTTP));
    let name = client::http_get(from, to, "/hostname")?;
    ensure!(name.trim() == pod.name, "{name} answered for {}", pod.name);
    Ok(())
}

/// Sees for a while that something stays so.
fn stays(what: &str, time: Duration, mut so: impl FnMut() -> Result<()>) -> Result<()> {
    let start = std::time::Instant::now();
    await_condition(what, time * 2, || match so() {
        Ok(()) => Ok((start.elapsed() >= time).then_some(Ok(()))),
        Err(error) => Ok(Some(Err(error))),
    })?
    .with_context(|| what.to_owned())
}
