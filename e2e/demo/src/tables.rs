//! What the demo prints, as tables.

use anyhow::{Context, Result};
use comfy_table::{
    ColumnConstraint, ContentArrangement, Table, Width, presets::UTF8_FULL_CONDENSED,
};
use serde_json::Value;
use veer_e2e_tests::lab::{Lab, Mode};

use crate::scenes::{Cast, Scene};

/// Columns of a terminal in which evidence fits on its lines.
const ROOMY: u16 = 150;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if table.width().is_none() {
        // Not a terminal: wide enough for every row.
        table.set_width(160);
    }
    table
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

fn items(lab: &Lab, kind: &str) -> Result<Vec<Value>> {
    let list = lab.kubectl().json(&["get", kind])?;
    list["items"]
        .as_array()
        .cloned()
        .with_context(|| format!("{kind}: no list"))
}

fn is_true(object: &Value, condition: &str) -> String {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|c| c.iter().find(|c| c["type"] == condition));
    found.map_or_else(|| "-".to_owned(), |c| text(&c["status"]))
}

/// Kubernetes' own view before the installation.
pub(crate) fn nodes_before(lab: &Lab) -> Result<String> {
    let mut table = table(&["node", "address", "Ready", "why not"]);
    for node in items(lab, "nodes")? {
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.and_then(|c| c.iter().find(|c| c["type"] == "Ready"));
        table.add_row([
            text(&node["metadata"]["name"]),
            text(&node["status"]["addresses"][0]["address"]),
            is_true(&node, "Ready"),
            ready.map_or_else(|| "-".to_owned(), |c| text(&c["message"])),
        ]);
    }
    Ok(table.to_string())
}

/// Nodes and their CIDRs.
pub(crate) fn nodes(lab: &Lab) -> Result<String> {
    let mut table = table(&[
        "node",
        "addresses",
        "pod CIDRs",
        "mode",
        "phase",
        "MTU",
        "host routing",
        "Ready",
    ]);
    let reports = items(lab, "nodereports")?;
    for node in items(lab, "nodenetworks")? {
        let name = &node["metadata"]["name"];
        let report = reports.iter().find(|r| r["metadata"]["name"] == *name);
        let report = report.unwrap_or(&Value::Null);
        let applied = &node["status"]["applied"];
        table.add_row([
            text(name),
            text(&node["spec"]["addresses"]),
            text(&node["spec"]["podCIDRs"]),
            text(&applied["mode"]),
            text(&applied["phase"]),
            text(&report["status"]["mtu"]),
            text(&report["status"]["hostRouting"]),
            is_true(report, "Ready"),
        ]);
    }
    Ok(table.to_string())
}

/// The demo's pods and their wires.
pub(crate) fn pods(cast: &Cast) -> Result<String> {
    let mut table = table(&[
        "pod",
        "node",
        "address",
        "identity",
        "host side of its veth",
    ]);
    for (pods, identity) in [
        (&cast.demo, cast.identities.0),
        (&cast.other, cast.identities.1),
    ] {
        for pod in pods {
            table.add_row([
                pod.name.clone(),
                pod.node.clone(),
                pod.address.to_string(),
                identity.to_string(),
                pod.wire()?.host_name,
            ]);
        }
    }
    Ok(table.to_string())
}

/// Identities with the labels they stand for.
pub(crate) fn identities(lab: &Lab, cast: &Cast) -> Result<String> {
    let mut table = table(&["identity", "state", "labels", "pods of the demo"]);
    for identity in items(lab, "securityidentities")? {
        let labels = identity["spec"]["labels"].as_object();
        let labels: Vec<String> = labels
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", text(value)))
            .collect();
        let name = text(&identity["metadata"]["name"]);
        let users: Vec<&str> = [
            (&cast.demo, cast.identities.0),
            (&cast.other, cast.identities.1),
        ]
        .into_iter()
        .filter(|(_, number)| name == number.to_string())
        .flat_map(|(pods, _)| pods.iter().map(|p| p.name.as_str()))
        .collect();
        let state = text(&identity["spec"]["state"]);
        table.add_row([name, state, labels.join("\n"), users.join("\n")]);
    }
    Ok(table.to_string())
}

/// The scenes of one mode.
pub(crate) fn scenes(mode: Mode, scenes: &[Scene]) -> String {
    let title = format!("{} mode", mode.name());
    let mut table = table(&[&title, "as promised", "answered", "TTL", "path", "evidence"]);
    for scene in scenes {
        table.add_row([
            scene.what.clone(),
            if scene.good { "yes" } else { "NO" }.to_owned(),
            scene.result.clone(),
            scene.ttl.clone(),
            scene.path.clone(),
            scene.evidence.join("\n"),
        ]);
    }
    // Evidence is what the table is for: it gets the room that there is.
    if table.width().is_some_and(|width| width >= ROOMY)
        && let Some(column) = table.column_mut(5)
    {
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(76)));
    }
    table.to_string()
}

/// What there is to do on a cluster that was left up.
pub(crate) fn what_to_try(name: &str) -> String {
    let programs = veer_e2e_cluster::paths::programs();
    let programs = programs.display();
    let patch = |mode| {
        format!(
            "  kubectl patch clusternetwork default --type=merge \
             -p '{{\"spec\":{{\"routing\":{{\"mode\":\"{mode}\"}}}}}}'"
        )
    };
    format!(
        "The cluster is up. To try:\n\
         \x20 export KUBECONFIG=/var/lib/veer-e2e/{name}/kubeconfig PATH={programs}:$PATH\n\
         \x20 kubectl get veer\n\
         \x20 kubectl get podendpoints -A\n\
         \x20 kubectl -n kube-system exec ds/veer-agent -- /veer status\n\
         \x20 kubectl -n kube-system exec ds/veer-agent -- /veer drops list\n\
         \x20 kubectl -n {name} exec ds/demo -- ping -c 3 POD-ADDRESS\n\
         and the mode, back and forth:\n{}\n{}\n\
         `make demo-down` removes every trace.",
        patch("Tunnel"),
        patch("Native")
    )
}
