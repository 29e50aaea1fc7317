//! What the demo prints, as tables.

use anyhow::{Context, Result};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL};
use serde_json::Value;
use veer_e2e_cluster::Family;
use veer_e2e_tests::lab::{Lab, Mode};

use crate::scenes::{Cast, Scene};

/// Columns of what is no terminal.
const WIDTH: u16 = 100;

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    if table.width().is_none() {
        table.set_width(WIDTH);
    }
    table
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join("\n"),
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
        let addresses = node["status"]["addresses"].as_array();
        let own = |a: &&Value| a["type"] == "InternalIP";
        let addresses = addresses.into_iter().flatten().filter(own);
        let addresses: Vec<String> = addresses.map(|a| text(&a["address"])).collect();
        table.add_row([
            text(&node["metadata"]["name"]),
            addresses.join("\n"),
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
                lines(&pod.addresses),
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

/// One text per line.
fn lines<T: ToString>(texts: &[T]) -> String {
    let texts: Vec<String> = texts.iter().map(T::to_string).collect();
    texts.join("\n")
}

/// The scenes of one mode, each with its families side by side.
pub(crate) fn scenes(mode: Mode, families: &[Family], scenes: &[Scene]) -> String {
    let mut header = vec![format!("{} mode", mode.name())];
    header.extend(families.iter().map(Family::to_string));
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = table(&header);
    for family_scenes in scenes.chunks(families.len()) {
        let Some(first) = family_scenes.first() else {
            continue;
        };
        let mut row = vec![format!("{}\n{}", first.what, first.path)];
        row.extend(families.iter().map(|family| {
            let own = family_scenes.iter().find(|s| s.family == *family);
            own.map_or_else(String::new, |scene| sight(scene, first))
        }));
        table.add_row(row);
    }
    table.to_string()
}

/// What was seen of a scene; its path only where it is not that of the first one, which
/// the row names.
fn sight(scene: &Scene, first: &Scene) -> String {
    let as_promised = if scene.good {
        "as promised"
    } else {
        "NOT AS PROMISED"
    };
    let mut all = vec![
        format!("{as_promised}: {}", scene.result),
        format!("TTL {}", scene.ttl),
    ];
    if scene.path != first.path {
        all.push(scene.path.clone());
    }
    all.extend(scene.evidence.iter().map(|line| format!("- {line}")));
    lines(&all)
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
