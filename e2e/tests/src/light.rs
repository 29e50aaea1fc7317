//! Light nodes with the product on them: the agent's binary with an agent's
//! rights on a machine without kubelet, and pods that are an object in the API
//! and a network namespace, wired by the CNI plugin. For hundreds of pods,
//! which real kubelets would need minutes and gigabytes for.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use veer_e2e_cluster::{LightPod, Machine, Role, await_condition};

use crate::lab::{Lab, NAMESPACE};

/// How long an agent may take until it serves ADD.
const READY: Duration = Duration::from_secs(30);
/// How long an agent's token is good for.
const TOKEN: &str = "--duration=6h";

/// Adds a light node and starts the agent that the cluster's other nodes run.
pub fn add_node(lab: &mut Lab, name: &str) -> Result<Machine> {
    lab.cluster.add_node(name, Role::Light)?;
    let machine = lab.node(name)?;
    take_binaries(lab, &machine)?;
    write_credentials(lab, &machine)?;
    start_agent(lab, name)?;
    Ok(machine)
}

/// Starts the agent of a light node and waits until it serves.
pub fn start_agent(lab: &Lab, name: &str) -> Result<()> {
    let machine = lab.node(name)?;
    let addresses = lab.cluster.addresses(name)?;
    let address = addresses.first().context("a node without address")?;
    let address = format!("NODE_IP={address}");
    let node = format!("NODE_NAME={name}");
    machine.daemon(
        "veer-agent",
        &[
            "env",
            "KUBECONFIG=/etc/kubernetes/veer-agent.conf",
            &node,
            &address,
            "/opt/veer-agent",
            "--cni-conf-dir=/etc/cni/net.d",
            "--cni-bin-dir=/opt/cni/bin",
        ],
    )?;
    let what = format!("the agent of {name} is ready");
    let probe = [
        "curl",
        "-s",
        "-m",
        "2",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ];
    let probe = [&probe[..], &["http://127.0.0.1:9917/readyz"]].concat();
    await_condition(&what, READY, || {
        let out = machine.exec_any(&probe).map_err(|e| e.to_string())?;
        if out.stdout == "200" {
            return Ok(Some(()));
        }
        let log = fs::read_to_string(machine.log("veer-agent")).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(3).collect();
        Err(format!(
            "/readyz says {}; its log: {}",
            out.stdout,
            last.join(" | ")
        ))
    })?;
    Ok(())
}

/// The agent and the plugin as a node with a kubelet runs them now.
fn take_binaries(lab: &Lab, machine: &Machine) -> Result<()> {
    let names = lab.cluster.node_names();
    let real = lab.node(names.first().context("a cluster without nodes")?)?;
    real.exec(&[
        "sh",
        "-ec",
        "cp /proc/$(pgrep -ox veer-agent)/exe /tmp/veer-agent",
    ])?;
    let plugins = "opt/cni/bin";
    for (from, to) in [
        ("tmp/veer-agent".to_owned(), "opt/veer-agent".to_owned()),
        (format!("{plugins}/veer-cni"), format!("{plugins}/veer-cni")),
    ] {
        let from = real.disk().join(from);
        fs::copy(&from, machine.disk().join(to))
            .with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

/// A kubeconfig with a token of the agents' service account, bound to the node
/// as the kubelet's tokens for a pod there are.
fn write_credentials(lab: &Lab, machine: &Machine) -> Result<()> {
    let name = machine.name();
    let kubectl = lab.kubectl();
    let node = kubectl.json(&["get", "node", name])?;
    let uid = node["metadata"]["uid"].as_str().unwrap_or_default();
    let bound = format!("--bound-object-name={name}");
    let uid = format!("--bound-object-uid={uid}");
    let token = kubectl.run(&[
        "-n",
        NAMESPACE,
        "create",
        "token",
        "veer-agent",
        "--bound-object-kind=Node",
        &bound,
        &uid,
        TOKEN,
    ])?;
    let admin =
        fs::read(lab.cluster.kubeconfig()).context("read the administrator's kubeconfig")?;
    let admin: Value = serde_json::from_slice(&admin)?;
    let conf = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": admin["clusters"],
        "users": [{"name": "agent", "user": {"token": token.stdout.trim()}}],
        "contexts": [{"name": "agent", "context": {
            "cluster": admin["clusters"][0]["name"], "user": "agent"}}],
        "current-context": "agent",
    });
    let path = machine.disk().join("kubernetes/veer-agent.conf");
    fs::write(&path, conf.to_string()).with_context(|| format!("write {}", path.display()))
}

/// Makes a namespace, if absent, and waits until pods can be made there.
pub fn namespace(lab: &Lab, name: &str) -> Result<()> {
    let kubectl = lab.kubectl();
    let own = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    kubectl.apply(&own.to_string())?;
    await_condition("the namespace has its service account", READY, || {
        let there = kubectl.run(&["-n", name, "get", "serviceaccount", "default"]);
        there.map(Some).map_err(|e| e.to_string())
    })?;
    Ok(())
}

/// Makes the objects of `count` pods of one label set on a node, named
/// `<prefix>-<number>`, in a namespace that is made if absent.
pub fn create_pods(
    lab: &Lab,
    namespace: &str,
    node: &str,
    prefix: &str,
    count: usize,
) -> Result<Vec<LightPod>> {
    self::namespace(lab, namespace)?;
    let kubectl = lab.kubectl();
    let pods: Vec<Value> = (0..count)
        .map(|number| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("{prefix}-{number}"), "namespace": namespace,
                    "labels": {"app": "light", "light": prefix}},
                "spec": {"nodeName": node, "automountServiceAccountToken": false,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "none", "image": "none", "imagePullPolicy": "Never"}]},
            })
        })
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    kubectl.apply(&list.to_string())?;
    let selector = format!("light={prefix}");
    let list = kubectl.json(&["-n", namespace, "get", "pods", "-l", &selector])?;
    let items = list["items"].as_array().context("a list without items")?;
    Ok(items
        .iter()
        .map(|pod| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let uid = text(&pod["metadata"]["uid"]);
            LightPod {
                namespace: namespace.to_owned(),
                name: text(&pod["metadata"]["name"]),
                container: uid.replace('-', "").repeat(2),
                uid,
            }
        })
        .collect())
}

/// Removes the objects that [`create_pods`] made with a prefix.
pub fn delete_pods(lab: &Lab, namespace: &str, prefix: &str) -> Result<()> {
    let selector = format!("light={prefix}");
    lab.kubectl().run(&[
        "-n",
        namespace,
        "delete",
        "pods",
        "--force",
        "--grace-period=0",
        // By one watch per pod, at a few pods a second.
        "--wait=false",
        "-l",
        &selector,
    ])?;
    Ok(())
}

/// ADDs all of them at once, each in a thread of its own; returns their
/// addresses in the same order.
pub fn wire(machine: &Machine, pods: &[LightPod]) -> Result<Vec<String>> {
    at_once(pods, |pod| {
        let result = machine.cni_add(pod)?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let (address, _) = address
            .split_once('/')
            .with_context(|| format!("ADD of {} returned {result}", pod.name))?;
        Ok(address.to_owned())
    })
}

/// DELs all of them at once.
pub fn unwire(machine: &Machine, pods: &[LightPod]) -> Result<()> {
    at_once(pods, |pod| Ok(machine.cni_del(pod)?)).map(|_| ())
}

fn at_once<T: Send>(
    pods: &[LightPod],
    act: impl Fn(&LightPod) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let act = &act;
    thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(move || act(pod)))
            .collect();
        let results: Vec<Result<T>> = threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
            })
            .collect();
        results.into_iter().collect()
    })
}
