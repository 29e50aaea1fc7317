//! What veer has on a node, with its values: map entries, programs, devices,
//! routes, neighbours, rules, files. Two of them compared say whether a node is
//! as it was; [`agrees`] says whether all nodes are as the API wants them.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use veer_e2e_cluster::await_condition;

use crate::{foreign, lab::Lab, maps};

/// Maps that hold what was decided, as against what traffic left.
const DECIDED: [&str; 6] = [
    "CONFIG",
    "ENDPOINTS",
    "INTERFACES",
    "IPCACHE",
    "NODES",
    "REMOTES",
];
/// Identities with these numbers are no pods': host, world, unmanaged, health
/// and remote-node. A pod may be `init`, 5.
const RESERVED: [u32; 5] = [1, 2, 3, 4, 6];

/// All things of a node or a cluster, one line each.
pub type Snapshot = BTreeSet<String>;

/// Prints routes, addresses, neighbours, devices, rules, sysctls and files of
/// veer, one per line.
const LINES: &str = r#"
ip -o route show table all | grep -E 'veer|proto 118' | sed 's/^/route /' || true
ip -o neigh show nud permanent | grep veer | sed 's/^/neighbour /' || true
ip -o address show dev lo scope host | sed 's/^/address /'
for link in /sys/class/net/veer* /sys/class/net/eth*; do
    [ -e "$link" ] || continue
    name=${link##*/}
    echo "device $name $(cat $link/mtu) $(cat $link/address) flags $(cat $link/flags)"
    ip -d -o link show $name | grep -q prog/xdp && echo "xdp $name"
    echo "rp_filter $name $(cat /proc/sys/net/ipv4/conf/$name/rp_filter)"
    echo "forwarding $name $(cat /proc/sys/net/ipv4/conf/$name/forwarding)"
done
echo "ip_forward $(cat /proc/sys/net/ipv4/ip_forward)"
nft -s -n list table inet veer | sed 's/^/nft /'
for file in /etc/cni/net.d/*veer* /opt/cni/bin/*; do
    [ -f "$file" ] && echo "file $(sha256sum $file)"
done
find /var/lib/veer /run/veer -not -type d -not -path '*/endpoints/*' \
    -not -name held.json -not -name released.json -not -name sysctl.json | sed 's/^/file /'
find /var/lib/veer/endpoints -name '*.json' -exec sha256sum {} + | sed 's/^/file /'
find /run/netns -mindepth 1 | sed 's/^/netns /'
"#;

/// What is on one node.
pub fn node(lab: &Lab, name: &str) -> Result<Snapshot> {
    let machine = lab.node(name)?;
    let mut all = Snapshot::new();
    for map in DECIDED {
        for (key, mut value) in maps::dump(&machine, map)? {
            if map == "REMOTES"
                && let Some(number) = value.get_mut(maps::REMOTE_EPOCH)
            {
                number.fill(0);
            }
            // An array has an entry of zeros at every unused place.
            if value.iter().any(|octet| *octet != 0) {
                all.insert(format!("{map} {key:?} = {value:?}"));
            }
        }
    }
    let programs = maps::programs(&machine)?;
    let devices = programs
        .iter()
        .filter_map(|(pin, _)| pin.strip_suffix("-ingress"));
    for (device, [ingress, egress]) in foreign::counts(&lab.node_site(name)?, devices)? {
        all.insert(format!("hooks {device} {ingress} {egress}"));
    }
    for (pin, program) in programs {
        all.insert(format!("program {pin} {program}"));
    }
    let lines = machine.exec(&["sh", "-c", LINES])?.stdout;
    all.extend(lines.lines().map(|l| l.trim_end().to_owned()));
    Ok(all)
}

/// What is on all nodes that run a kubelet, each line after its node's name.
pub fn cluster(lab: &Lab) -> Result<Snapshot> {
    let names = lab.cluster.node_names();
    let nodes: Vec<Result<Snapshot>> = thread::scope(|scope| {
        let threads: Vec<_> = names
            .iter()
            .map(|name| {
                scope.spawn(move || {
                    let lines = node(lab, name)?.into_iter();
                    Ok(lines.map(|line| format!("{name}: {line}")).collect())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect()
    });
    let nodes: Result<Vec<Snapshot>> = nodes.into_iter().collect();
    Ok(nodes?.into_iter().flatten().collect())
}

/// It is an error when two snapshots differ; the text has the first
/// differences.
pub fn same(before: &Snapshot, after: &Snapshot) -> Result<()> {
    let gone = before.difference(after).map(|l| format!("- {l}"));
    let new = after.difference(before).map(|l| format!("+ {l}"));
    let all: Vec<String> = gone.chain(new).collect();
    let first = all.iter().take(12).cloned().collect::<Vec<_>>();
    ensure!(
        all.is_empty(),
        "{} differences, among them\n{}",
        all.len(),
        first.join("\n")
    );
    Ok(())
}

/// Waits until all nodes are as in `before`; returns how long that took.
pub fn await_same(lab: &Lab, before: &Snapshot, deadline: Duration) -> Result<Duration> {
    let start = Instant::now();
    await_condition("all nodes are as they were", deadline, || {
        let after = cluster(lab).map_err(|e| format!("{e:#}"))?;
        same(before, &after).map(Some).map_err(|e| format!("{e:#}"))
    })?;
    Ok(start.elapsed())
}

/// Whether every node knows exactly the pods that are, where they are and with
/// the identity they have: an entry too many is stale.
pub fn agrees(lab: &Lab) -> Result<()> {
    let wanted = pods_of_api(lab)?;
    let nodes = node_addresses(lab)?;
    for name in lab.cluster.node_names() {
        let machine = lab.node(&name)?;
        let mut seen = BTreeSet::new();
        for row in maps::ipcache(&machine)? {
            if !row.is_whole() || RESERVED.contains(&row.identity) {
                continue;
            }
            let on = if row.node_id == maps::LOCAL_NODE {
                name.clone()
            } else {
                let remote = maps::remote(&machine, row.node_id)?
                    .tunnel_address
                    .to_string();
                nodes.get(&remote).cloned().unwrap_or(remote)
            };
            seen.insert(format!("{} on {on} of {}", row.address, row.identity));
        }
        same(&wanted, &seen).with_context(|| format!("the ipcache of {name} against the API"))?;
        let suffix = format!(" on {name} of ");
        let own = wanted.iter().filter(|line| line.contains(&suffix));
        let own: BTreeSet<String> = own.cloned().collect();
        let local = maps::endpoints(&machine)?;
        let local = local
            .iter()
            .map(|e| format!("{}{suffix}{}", e.address, e.identity));
        same(&own, &local.collect())
            .with_context(|| format!("the endpoints of {name} against the API"))?;
    }
    Ok(())
}

/// Waits until [`agrees`] holds; returns how long that took.
pub fn await_agrees(lab: &Lab, deadline: Duration) -> Result<Duration> {
    let start = Instant::now();
    await_condition("every node knows the pods that are", deadline, || {
        agrees(lab).map(Some).map_err(|e| format!("{e:#}"))
    })?;
    Ok(start.elapsed())
}

/// Names of nodes by all their addresses.
fn node_addresses(lab: &Lab) -> Result<BTreeMap<String, String>> {
    let list = lab.kubectl().json(&["get", "nodes"])?;
    let mut all = BTreeMap::new();
    for node in list["items"].as_array().into_iter().flatten() {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        for address in node["status"]["addresses"].as_array().into_iter().flatten() {
            let address = address["address"].as_str().unwrap_or_default();
            all.insert(address.to_owned(), name.to_owned());
        }
    }
    Ok(all)
}

/// The `PodEndpoints`, checked against the pods themselves.
fn pods_of_api(lab: &Lab) -> Result<Snapshot> {
    let list = |kind| -> Result<Vec<Value>> {
        let list = lab.kubectl().json(&["get", kind, "-A"])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    };
    let pods = list("pods")?;
    let endpoints = list("podendpoints")?;
    let mut wanted = Snapshot::new();
    for pod in &pods {
        let running =
            pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        if !running || pod["spec"]["hostNetwork"] == true {
            continue;
        }
        let own = endpoints
            .iter()
            .find(|e| e["spec"]["podUID"] == pod["metadata"]["uid"]);
        let own = own.with_context(|| format!("no PodEndpoint of {}", pod["metadata"]["name"]))?;
        let listed = pod["status"]["podIPs"].as_array();
        let addresses: Vec<Value> = listed
            .into_iter()
            .flatten()
            .map(|ip| ip["ip"].clone())
            .collect();
        ensure!(
            own["spec"]["addresses"] == Value::from(addresses),
            "the pod {} has {}, its PodEndpoint {}",
            pod["metadata"]["name"],
            pod["status"]["podIPs"],
            own["spec"]["addresses"]
        );
    }
    for endpoint in &endpoints {
        let spec = &endpoint["spec"];
        ensure!(
            pods.iter().any(|p| p["metadata"]["uid"] == spec["podUID"]),
            "a PodEndpoint without a pod: {}",
            endpoint["metadata"]["name"]
        );
        for address in spec["addresses"].as_array().into_iter().flatten() {
            wanted.insert(format!(
                "{} on {} of {}",
                address.as_str().unwrap_or_default(),
                spec["nodeName"].as_str().unwrap_or_default(),
                spec["identity"]
            ));
        }
    }
    Ok(wanted)
}
