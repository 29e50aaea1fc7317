//! Light nodes: a machine and a Node object without anything that runs pods. The
//! object is what a kubelet would create for the machine, so that controllers which
//! allot addresses or wait for nodes count it; a small loop renews its lease, so that
//! it stays Ready.

use serde_json::json;

use crate::{
    error::{IoContext, Result},
    family::Families,
    kubectl::Kubectl,
    machine::Machine,
    state::NodeInfo,
};

/// Renews the node's lease as the node itself, as often as a kubelet does.
const HEARTBEAT: &str = r#"while sleep 10; do
kubectl --kubeconfig=/etc/kubernetes/kubelet.conf -n kube-node-lease patch lease "$0" \
--type=merge -p "{\"spec\":{\"renewTime\":\"$(date -u +%FT%T.000000Z)\"}}"
done"#;

/// Makes the Node, or brings the one of before a reboot up to date.
///
/// It lacks the label `kubernetes.io/os`, which only a kubelet gives:
/// workloads that ask for it stay away, a chart's agents among them.
pub(crate) fn register(
    kubectl: &Kubectl,
    machine: &Machine,
    info: &NodeInfo,
    families: Families,
) -> Result<()> {
    let name = &info.name;
    let path = machine.disk().join("boot_id");
    let boot = std::fs::read_to_string(&path).what(|| format!("read {}", path.display()))?;
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        // Those of a kubelet's: the chart's agents, and so veer, select by the system.
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
        }},
        "spec": {"unschedulable": true},
    });
    kubectl.apply(&node.to_string())?;
    let now = machine.exec(&["date", "-u", "+%FT%TZ"])?.stdout;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": now.trim().replace('Z', ".000000Z")},
    });
    kubectl.apply(&lease.to_string())?;
    let unknown = ["machineID", "systemUUID", "kernelVersion", "osImage"];
    let versions = [
        "containerRuntimeVersion",
        "kubeletVersion",
        "kubeProxyVersion",
    ];
    let mut system = json!({
        "bootID": boot.trim(), "operatingSystem": "linux",
        "architecture": std::env::consts::ARCH,
    });
    for field in unknown.iter().chain(&versions) {
        system[field] = json!("light");
    }
    let mut addresses: Vec<_> = families
        .planned(info.address)
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": name}));
    let status = json!({"status": {
        "addresses": addresses,
        "capacity": {"pods": "400"}, "allocatable": {"pods": "400"},
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Light",
            "message": "a light node: pods are only wired", "lastHeartbeatTime": now.trim(),
            "lastTransitionTime": now.trim(),
        }],
        "nodeInfo": system,
    }});
    let status = status.to_string();
    kubectl.run(&[
        "patch",
        "node",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    machine.daemon("heartbeat", &["sh", "-c", HEARTBEAT, name])
}
