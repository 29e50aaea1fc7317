//! Runs the same command in the agent's pod of another node, by kubectl.
//!
//! The agent's image contains the same command, and its socket is local to the node:
//! only users who may exec into the agent's pod may ask.

use std::io::Read as _;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::Signal;

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

/// Becomes `kubectl exec … -- /veer <words>`, and then returns only with an error. What
/// goes on it runs until it ends.
pub(crate) fn run(node: &str, arguments: &Arguments, view: View<'_>) -> anyhow::Result<()> {
    let agents = agents(Some(node), arguments)?;
    let agent = agents.first().context("no agent")?;
    let options: &[&str] = if view.goes_on() { &["--stdin"] } else { &[] };
    let mut kubectl = command(agent, arguments, options);
    kubectl
        .args(view.words())
        .args(["--output", arguments.output.name()]);
    if view.goes_on() {
        kubectl.arg("--until-stdin-ends");
        return hold(&mut kubectl);
    }
    Err(kubectl.exec()).context(NO_KUBECTL)
}

/// Runs kubectl until it ends. Its standard input is open, without a byte, for as long as
/// this process lives: that of this process may have ended already.
fn hold(kubectl: &mut Command) -> anyhow::Result<()> {
    let mut child = kubectl.stdin(Stdio::piped()).spawn().context(NO_KUBECTL)?;
    // `wait` would close it.
    let stdin = child.stdin.take();
    let status = child.wait().context("cannot wait for kubectl")?;
    drop(stdin);
    // A reader that ends early (`veer … | head`) is not an error.
    let unread = status.signal() == Some(Signal::SIGPIPE as i32);
    ensure!(status.success() || unread, "kubectl has ended: {status}");
    Ok(())
}

/// Ends the process when nobody holds its standard input any more. What `kubectl exec`
/// started is not ended with it, and would go on where nothing is to be told.
pub(crate) fn end_with_stdin() -> anyhow::Result<()> {
    let wait = || {
        let mut rest = [0; 64];
        let mut stdin = std::io::stdin().lock();
        while stdin.read(&mut rest).is_ok_and(|read| read != 0) {}
        std::process::exit(0);
    };
    thread::Builder::new()
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
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
