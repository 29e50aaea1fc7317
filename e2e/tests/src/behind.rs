//! What is behind the API on every node: devices, map entries, routes, files.
//! Compared before and after, it says what was left behind.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, await_condition};

use crate::{lab::Lab, maps, pods};

/// How long nodes may take to know of each other.
const SETTLED: Duration = Duration::from_mins(1);

/// Everything of pods on all nodes and in the API, one line per thing.
pub fn everything(lab: &Lab) -> Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    // Light nodes, too.
    for info in &lab.cluster.state().nodes {
        let name = &info.name;
        let node = lab.node(name)?;
        let site = lab.node_site(name)?;
        for link in pods::links(&site)? {
            if link.name.starts_with("veer") {
                all.insert(format!("{name}: device {}", link.name));
            }
        }
        for map in ["ENDPOINTS", "INTERFACES", "IPCACHE", "NODES"] {
            for (key, _) in maps::dump(&node, map)? {
                all.insert(format!("{name}: {map} {key:?}"));
            }
        }
        let routes = site.exec(&["ip", "-j", "route", "show", "table", "all"])?;
        let routes: Vec<Value> = serde_json::from_str(&routes.stdout).context("ip -j route")?;
        for route in routes {
            let (to, device) = (&route["dst"], &route["dev"]);
            if device.as_str().is_some_and(|d| d.starts_with("veer")) {
                all.insert(format!("{name}: route {to} {device} {}", route["table"]));
            }
        }
        let neighbours = site.exec(&["ip", "-j", "neigh", "show", "nud", "permanent"])?;
        let neighbours: Vec<Value> =
            serde_json::from_str(&neighbours.stdout).context("ip -j neigh")?;
        for neighbour in neighbours {
            all.insert(format!(
                "{name}: neighbour {} {}",
                neighbour["dst"], neighbour["dev"]
            ));
        }
        for folder in [
            "/var/lib/veer",
            "/sys/fs/bpf/veer",
            "/run/netns",
            "/run/veer",
        ] {
            let files = node.exec_any(&["find", folder, "-mindepth", "1"])?;
            // The agent's own memory, one file each whatever comes and goes.
            let own = ["held.json", "released.json", "sysctl.json"];
            let of_pods = |l: &&str| !own.iter().any(|name| l.ends_with(name));
            for line in files.stdout.lines().filter(of_pods) {
                all.insert(format!("{name}: file {line}"));
            }
        }
    }
    for kind in ["podendpoints", "podcidrs", "nodenetworks"] {
        let list = lab.kubectl().json(&["get", kind, "-A"])?;
        for object in list["items"].as_array().into_iter().flatten() {
            let meta = &object["metadata"];
            all.insert(format!("{kind} {}/{}", meta["namespace"], meta["name"]));
        }
    }
    Ok(all)
}

/// As a list of octets is printed.
fn octets(octets: &[u8]) -> String {
    let texts: Vec<String> = octets.iter().map(u8::to_string).collect();
    texts.join(", ")
}

/// [`everything`], once each node has its rows of each other: a node that joined
/// is known to itself first.
pub fn everything_settled(lab: &Lab) -> Result<BTreeSet<String>> {
    let nodes = &lab.cluster.state().nodes;
    let mut blocks = Vec::new();
    for node in nodes {
        for family in lab.cluster.families().all() {
            let address = lab.address(&node.name, *family)?;
            blocks.push((&node.name, address, lab.pod_cidr(&node.name, *family)?));
        }
    }
    let all = await_condition("the nodes know each other", SETTLED, || {
        let all = everything(lab).map_err(|e| format!("{e:#}"))?;
        for own in nodes {
            for (peer, address, block) in &blocks {
                if own.name == **peer {
                    continue;
                }
                let key = maps::key(*address);
                let bits = 32 + u32::from(Family::of(*address).bits());
                let (key, bits) = (octets(&key), octets(&bits.to_ne_bytes()));
                for row in [
                    format!("{}: NODES [{key}", own.name),
                    format!("{}: IPCACHE [{bits}, {key}", own.name),
                    format!("{}: route {block:?} ", own.name),
                ] {
                    if !all.iter().any(|line| line.starts_with(&row)) {
                        return Err(format!("{row:?} is missing"));
                    }
                }
            }
        }
        Ok(Some(all))
    })?;
    Ok(all)
}

/// Nothing that was not there before.
pub fn nothing_new(before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<()> {
    let new: Vec<&str> = after
        .difference(before)
        .map(String::as_str)
        .take(20)
        .collect();
    ensure!(
        new.is_empty(),
        "left behind, among others:\n{}",
        new.join("\n")
    );
    Ok(())
}
