//! What the product tells people of a node: its `NodeReport`, its events, its taint.

use anyhow::{Context, Result};
use serde_json::Value;
use veer_e2e_cluster::await_condition;

use crate::{lab::Lab, workloads::STARTED};

/// Name of a condition that says whether pods can start on the node.
pub const READY: &str = "Ready";
/// Name of a condition that says that something on the node breaks traffic.
pub const DEGRADED: &str = "Degraded";
/// The taint of a node on which pods cannot start.
pub const TAINT: &str = "node.veer.dev/agent-not-ready";

/// The status of a node's `NodeReport`.
pub fn report(lab: &Lab, node: &str) -> Result<Value> {
    let report = lab.kubectl().json(&["get", "nodereport", node])?;
    Ok(report["status"].clone())
}

/// Status and message of a condition of a node.
pub fn condition(lab: &Lab, node: &str, kind: &str) -> Result<(String, String)> {
    let status = report(lab, node)?;
    let conditions = status["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    let found = found.with_context(|| format!("{node} has no condition {kind}: {status}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("message")))
}

/// Waits until a condition of a node has a status, and its message all of the words.
pub fn await_told(lab: &Lab, node: &str, kind: &str, status: &str, words: &[&str]) -> Result<()> {
    let what = format!("{node} tells {kind} {status} with {words:?}");
    await_condition(&what, STARTED, || {
        let now = condition(lab, node, kind).map_err(|e| format!("{e:#}"))?;
        if now.0 == status && words.iter().all(|w| now.1.contains(w)) {
            Ok(Some(()))
        } else {
            Err(format!("{} {}", now.0, now.1))
        }
    })?;
    Ok(())
}

/// How often the agent of a node put back something of a kind.
pub fn repairs(lab: &Lab, node: &str, kind: &str) -> Result<i64> {
    Ok(report(lab, node)?["repairs"][kind].as_i64().unwrap_or(0))
}

/// What the events of an object say, one line each; with `reason` only those.
pub fn events(lab: &Lab, kind: &str, name: &str, reason: Option<&str>) -> Result<String> {
    let mut fields = vec![
        format!("involvedObject.kind={kind}"),
        format!("involvedObject.name={name}"),
    ];
    fields.extend(reason.map(|r| format!("reason={r}")));
    let fields = fields.join(",");
    let list = lab
        .kubectl()
        .json(&["get", "events", "-A", "--field-selector", &fields])?;
    let events = list["items"].as_array().context("a list without items")?;
    let said: Vec<String> = events
        .iter()
        .map(|e| format!("{} {} {}", e["reason"], e["message"], e["series"]["count"]))
        .collect();
    Ok(said.join("\n"))
}

/// Waits until an event of an object says all of the words, in one line.
pub fn await_event(lab: &Lab, kind: &str, name: &str, words: &[&str]) -> Result<()> {
    let what = format!("an event of {kind} {name} says {words:?}");
    await_condition(&what, STARTED, || {
        let said = events(lab, kind, name, None).map_err(|e| format!("{e:#}"))?;
        let told = said.lines().any(|l| words.iter().all(|w| l.contains(w)));
        if told { Ok(Some(())) } else { Err(said) }
    })?;
    Ok(())
}

/// Waits until a node is tainted as one on which no pod can start, or is not.
pub fn await_taint(lab: &Lab, node: &str, wanted: bool) -> Result<()> {
    let what = format!("{node} is tainted: {wanted}");
    await_condition(&what, STARTED, || {
        let node = lab.kubectl().json(&["get", "node", node]);
        let node = node.map_err(|e| e.to_string())?;
        let taints = node["spec"]["taints"].as_array();
        let tainted = taints.into_iter().flatten().any(|t| t["key"] == TAINT);
        if tainted == wanted {
            Ok(Some(()))
        } else {
            Err(node["spec"]["taints"].to_string())
        }
    })?;
    Ok(())
}
