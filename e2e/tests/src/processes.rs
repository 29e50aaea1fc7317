//! The product's processes, to kill, freeze and thaw them. A node has process
//! ids of its own, so only its processes are meant.

use std::{process::Child, time::Duration};

use anyhow::{Context, Result};
use veer_e2e_cluster::await_condition;

use crate::lab::{AGENT, Lab, NAMESPACE};

/// How long agents may take to be there again.
pub const REPLACED: Duration = Duration::from_mins(1);

/// A process that a test or a benchmark has started, and that ends when this is dropped.
#[derive(Debug)]
pub struct Started(pub Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A signal, as pkill spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ends the process at whatever instruction it is.
    Kill,
    /// Stops it where it is.
    Stop,
    /// Lets it go on.
    Continue,
}

impl Signal {
    fn option(self) -> &'static str {
        match self {
            Self::Kill => "-KILL",
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
        }
    }
}

/// Signals the agents of some nodes.
pub fn signal_agents(lab: &Lab, nodes: &[&str], signal: Signal) -> Result<()> {
    for node in nodes {
        lab.node(node)?
            .exec(&["pkill", signal.option(), "-x", "veer-agent"])?;
    }
    Ok(())
}

/// How often agents' containers were started again, on all nodes.
pub fn agent_restarts(lab: &Lab) -> Result<u64> {
    let selector = "app.kubernetes.io/name=veer-agent";
    let list = lab
        .kubectl()
        .json(&["-n", NAMESPACE, "get", "pods", "-l", selector])?;
    let items = list["items"].as_array().context("a list without items")?;
    Ok(items
        .iter()
        .filter_map(|p| p["status"]["containerStatuses"][0]["restartCount"].as_u64())
        .sum())
}

/// Kills the agents of some nodes and waits until the kubelets have started
/// them again.
pub fn kill_agents(lab: &Lab, nodes: &[&str]) -> Result<()> {
    let before = agent_restarts(lab)?;
    signal_agents(lab, nodes, Signal::Kill)?;
    let wanted = before + u64::try_from(nodes.len()).unwrap_or(u64::MAX);
    await_condition("the killed agents run again", REPLACED, || {
        let now = agent_restarts(lab).map_err(|e| format!("{e:#}"))?;
        if now >= wanted {
            Ok(Some(()))
        } else {
            Err(format!("{now} restarts of {wanted}"))
        }
    })?;
    lab.cluster.await_rollout(NAMESPACE, AGENT, REPLACED)?;
    Ok(())
}

/// Kills the operator's process that leads, by its Lease; returns its pod's
/// name.
pub fn kill_leader(lab: &Lab) -> Result<String> {
    let kubectl = lab.kubectl();
    let lease = kubectl.json(&["-n", NAMESPACE, "get", "lease", "veer-operator"])?;
    let holder = lease["spec"]["holderIdentity"]
        .as_str()
        .context("nobody holds the operator's Lease")?
        .to_owned();
    let pod = kubectl.json(&["-n", NAMESPACE, "get", "pod", &holder])?;
    let node = pod["spec"]["nodeName"]
        .as_str()
        .context("the leader runs nowhere")?;
    // The replicas are on different nodes.
    lab.node(node)?
        .exec(&["pkill", "-KILL", "-x", "veer-operator"])?;
    Ok(holder)
}
