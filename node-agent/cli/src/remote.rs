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

/// An agent's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    /// Its node.
    pub(crate) node: String,
    namespace: String,
    pod: String,
}

/// Becomes `kubectl exec … -- /veer <words>`; returns only with an error.
pub(crate) fn run(node: &str, arguments: &Arguments, view: View) -> anyhow::Result<()> {
    let agents = agents(Some(node), arguments)?;
    let agent = agents.first().context("no agent")?;
    let error = command(agent, arguments, &[])
        .args(view.words())
        .args(["--output", arguments.output.name()])
        .exec();
    Err(error).context(NO_KUBECTL)
}

/// Where kubectl does not start.
pub(crate) const NO_KUBECTL: &str = "cannot run kubectl: is it installed and in PATH?";

/// `kubectl exec` of the same command in an agent's pod, with these options of kubectl;
/// its words are to be added.
pub(crate) fn command(agent: &Agent, arguments: &Arguments, options: &[&str]) -> Command {
    let mut kubectl = kubectl(arguments);
    kubectl
        .arg("exec")
        .args(options)
        .args(["--namespace", &agent.namespace, &agent.pod])
        .args(["--container", "agent", "--", "/veer"]);
    kubectl
}

/// The agents' pods: of this node, or of all. At least one.
pub(crate) fn agents(node: Option<&str>, arguments: &Arguments) -> anyhow::Result<Vec<Agent>> {
    let path = "jsonpath={range .items[*]}{.spec.nodeName} {.metadata.namespace} \
                {.metadata.name}{\"\\n\"}{end}";
    let mut get = kubectl(arguments);
    get.args(["get", "pods", "--all-namespaces", "--selector", SELECTOR]);
    get.args(["--output", path]);
    if let Some(node) = node {
        get.args(["--field-selector", &format!("spec.nodeName={node}")]);
    }
    let output = get.output().context(NO_KUBECTL)?;
    if !output.status.success() {
        bail!(
            "kubectl cannot list pods: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    let found = listed(&String::from_utf8_lossy(&output.stdout));
    match node {
        _ if !found.is_empty() => Ok(found),
        Some(node) => bail!(
            "no veer-agent runs on node {node}: kubectl get nodes shows which there are, kubectl \
             get pods -A -o wide -l {SELECTOR} where the agents are"
        ),
        None => bail!("no veer-agent runs: is veer installed (kubectl get pods -A -l {SELECTOR})?"),
    }
}

/// Agents by lines of node, namespace and name. A pod that waits for a node has none.
fn listed(text: &str) -> Vec<Agent> {
    let agent = |line: &str| {
        let mut words = line.split_whitespace().map(ToOwned::to_owned);
        let agent = Agent {
            node: words.next()?,
            namespace: words.next()?,
            pod: words.next()?,
        };
        Some(agent)
    };
    text.lines().filter_map(agent).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_listed_with_their_nodes_and_pods_without_a_node_are_not() {
        let agents = listed("worker-1 kube-system veer-agent-x\n kube-system veer-agent-y\n\n");
        let expected = Agent {
            node: "worker-1".into(),
            namespace: "kube-system".into(),
            pod: "veer-agent-x".into(),
        };
        assert_eq!(agents, [expected]);
    }
}
