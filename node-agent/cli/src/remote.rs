//! Runs the same command in the agent's pod of another node, by kubectl.
//!
//! The agent's image contains the same command, and its socket is local to the node:
//! only users who may exec into the agent's pod may ask.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, bail};

use crate::arguments::Arguments;
use crate::command::View;

/// Selects the agents' pods.
pub(crate) const SELECTOR: &str = "app.kubernetes.io/name=veer-agent";

/// Becomes `kubectl exec … -- /veer <words>`; returns only with an error.
pub(crate) fn run(node: &str, arguments: &Arguments, view: View) -> anyhow::Result<()> {
    let (namespace, pod) = agent_pod(node, arguments)?;
    let error = kubectl(arguments)
        .args([
            "exec",
            "--namespace",
            &namespace,
            &pod,
            "--container",
            "agent",
            "--",
            "/veer",
        ])
        .args(view.words())
        .args(["--output", arguments.output.name()])
        .exec();
    Err(error).context("cannot run kubectl: is it installed and in PATH?")
}

/// Namespace and name of the agent's pod on `node`.
fn agent_pod(node: &str, arguments: &Arguments) -> anyhow::Result<(String, String)> {
    let path = "jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name}{\"\\n\"}{end}";
    let output = kubectl(arguments)
        .args(["get", "pods", "--all-namespaces", "--selector", SELECTOR])
        .args([
            "--field-selector",
            &format!("spec.nodeName={node}"),
            "--output",
            path,
        ])
        .output()
        .context("cannot run kubectl: is it installed and in PATH?")?;
    if !output.status.success() {
        bail!(
            "kubectl cannot list pods: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let listed = String::from_utf8_lossy(&output.stdout);
    let Some((namespace, pod)) = listed.lines().find_map(|line| line.split_once(' ')) else {
        bail!(
            "no veer-agent runs on node {node}: kubectl get nodes shows which there are, kubectl \
             get pods -A -o wide -l {SELECTOR} where the agents are"
        );
    };
    Ok((namespace.to_owned(), pod.to_owned()))
}

fn kubectl(arguments: &Arguments) -> Command {
    let mut kubectl = Command::new("kubectl");
    if let Some(file) = &arguments.kubeconfig {
        kubectl.arg("--kubeconfig").arg(file);
    }
    if let Some(context) = &arguments.context {
        kubectl.arg("--context").arg(context);
    }
    kubectl
}
