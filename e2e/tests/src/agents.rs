//! The agents' processes: killed, found again, timed.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use veer_e2e_cluster::await_condition;

use crate::{client, lab::Lab};

/// An agent's process, by the node's count.
pub type Pid = u32;
/// How long an agent may take to be there again. The kubelet's part of it is
/// seconds on a busy machine.
const BACK: Duration = Duration::from_mins(1);
/// Clock ticks per second of /proc (`USER_HZ`).
const TICKS: f64 = 100.0;

/// How long an agent was away.
#[derive(Debug, Clone, Copy)]
pub struct Back {
    /// From its end until it was ready again: the kubelet's time included.
    pub since_end: Duration,
    /// From the new process's start until it was ready.
    pub since_start: Duration,
}

/// The agent's process on a node.
pub fn pid(lab: &Lab, node: &str) -> Result<Option<Pid>> {
    let out = lab.node(node)?.exec_any(&["pgrep", "-nx", "veer-agent"])?;
    Ok(out.stdout.trim().parse().ok())
}

/// Sends the agent of a node a signal (`KILL`, `TERM`).
pub fn signal(lab: &Lab, node: &str, signal: &str) -> Result<()> {
    // The node has process ids of its own: only its agent is meant.
    let signal = format!("-{signal}");
    lab.node(node)?
        .exec(&["pkill", &signal, "-x", "veer-agent"])?;
    Ok(())
}

/// Whether the agent of a node says that it is ready.
pub fn is_ready(lab: &Lab, node: &str) -> Result<bool> {
    let to = (Ipv4Addr::LOCALHOST, 9917).into();
    Ok(client::http_get(&lab.node_site(node)?, to, "/readyz").is_ok())
}

/// Waits until another process than `old` serves the node; `ended` is when
/// `old` ended.
pub fn await_back(lab: &Lab, node: &str, old: Option<Pid>, ended: Instant) -> Result<Back> {
    let what = format!("the agent of {node} is back");
    Ok(await_condition(&what, BACK, || {
        let text = |e: anyhow::Error| format!("{e:#}");
        let now = pid(lab, node).map_err(text)?;
        if now.is_none() || now == old {
            return Err(format!("process {now:?}"));
        }
        if !is_ready(lab, node).map_err(text)? {
            return Err(format!("process {now:?} is not ready"));
        }
        let since_end = ended.elapsed();
        let since_start = age(lab, node).map_err(text)?;
        Ok(Some(Back {
            since_end,
            since_start,
        }))
    })?)
}

/// Ends the agent of a node by a signal and waits for the next one.
pub fn end(lab: &Lab, node: &str, by: &str) -> Result<Back> {
    let old = pid(lab, node)?;
    signal(lab, node, by)?;
    await_back(lab, node, old, Instant::now())
}

/// How long the agent's process of a node has run.
fn age(lab: &Lab, node: &str) -> Result<Duration> {
    let script = "read now idle </proc/uptime; \
                  echo $now $(awk '{print $22}' /proc/$(pgrep -nx veer-agent)/stat)";
    let out = lab.node(node)?.exec(&["sh", "-c", script])?.stdout;
    let numbers = || -> Option<(f64, f64)> {
        let (now, start) = out.trim().split_once(' ')?;
        Some((now.parse().ok()?, start.parse().ok()?))
    };
    let (now, start) = numbers().with_context(|| format!("the age of an agent: {out:?}"))?;
    Ok(Duration::from_secs_f64((now - start / TICKS).max(0.0)))
}
