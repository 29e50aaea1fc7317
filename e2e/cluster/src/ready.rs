//! Waiting for what Kubernetes reports: nodes, rollouts, pods.

use std::time::Duration;

use serde_json::Value;

use crate::{cluster::Cluster, error::Result, wait::await_condition};

impl Cluster {
    /// Waits until every node is Ready.
    ///
    /// # Errors
    /// One is not before the deadline; the text has its reason.
    pub fn await_nodes_ready(&self, deadline: Duration) -> Result<()> {
        let wanted = self.node_names();
        await_condition("all nodes are Ready", deadline, || {
            let list = self
                .kubectl()
                .json(&["get", "nodes"])
                .map_err(|e| e.to_string())?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            let unready: Vec<String> = wanted
                .iter()
                .filter_map(|name| {
                    let Some(node) = items.iter().find(|n| n["metadata"]["name"] == **name) else {
                        return Some(format!("{name}: not registered"));
                    };
                    match condition(node, "Ready") {
                        Some((true, _)) => None,
                        Some((false, message)) => Some(format!("{name}: {message}")),
                        None => Some(format!("{name}: no condition")),
                    }
                })
                .collect();
            if unready.is_empty() {
                Ok(Some(()))
            } else {
                Err(unready.join("; "))
            }
        })
    }

    /// Waits until a workload (Deployment, `DaemonSet`, `StatefulSet`; as `kind/name`) has
    /// all its pods updated and available.
    ///
    /// # Errors
    /// It has not before the deadline; the text says what the pods wait for.
    pub fn await_rollout(&self, namespace: &str, what: &str, deadline: Duration) -> Result<()> {
        let description = format!("{what} in {namespace} is rolled out");
        await_condition(&description, deadline, || {
            let object = self
                .kubectl()
                .json(&["-n", namespace, "get", what])
                .map_err(|e| e.to_string())?;
            if rolled_out(&object) {
                return Ok(Some(()));
            }
            Err(format!(
                "status {}; pods: {}",
                object["status"],
                self.pods_seen(namespace)
            ))
        })
    }

    /// Waits until a pod is Ready and returns it.
    ///
    /// # Errors
    /// It is not before the deadline; the text has its events.
    pub fn await_pod_ready(&self, namespace: &str, pod: &str, deadline: Duration) -> Result<Value> {
        let description = format!("pod {namespace}/{pod} is Ready");
        await_condition(&description, deadline, || {
            let object = self
                .kubectl()
                .json(&["-n", namespace, "get", "pod", pod])
                .map_err(|e| e.to_string())?;
            if matches!(condition(&object, "Ready"), Some((true, _))) {
                return Ok(Some(object));
            }
            Err(format!(
                "{}; {}",
                object["status"]["phase"],
                self.events_seen(namespace, pod)
            ))
        })
    }

    /// One line about every pod of a namespace.
    fn pods_seen(&self, namespace: &str) -> String {
        let args = ["-n", namespace, "get", "pods", "-o", "wide", "--no-headers"];
        self.kubectl()
            .any(&args)
            .map(|out| out.stdout.trim().replace('\n', "; "))
            .unwrap_or_default()
    }

    /// The last events of an object.
    fn events_seen(&self, namespace: &str, name: &str) -> String {
        let field = format!("involvedObject.name={name}");
        let args = [
            "-n",
            namespace,
            "get",
            "events",
            "--field-selector",
            &field,
            "--no-headers",
        ];
        let out = self
            .kubectl()
            .any(&args)
            .map(|out| out.stdout)
            .unwrap_or_default();
        let lines: Vec<&str> = out.lines().rev().take(3).collect();
        lines.join("; ")
    }
}

/// A condition's truth and message.
fn condition(object: &Value, kind: &str) -> Option<(bool, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|c| c["type"] == kind)?;
    let message = found["message"].as_str().unwrap_or_default().to_owned();
    Some((found["status"] == "True", message))
}

/// Whether a workload's status is of its newest generation and complete.
fn rolled_out(object: &Value) -> bool {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_u64);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return false;
    }
    if object["kind"] == "DaemonSet" {
        let wanted = number("/status/desiredNumberScheduled");
        return wanted.is_some_and(|n| n > 0)
            && number("/status/updatedNumberScheduled") == wanted
            && number("/status/numberAvailable") == wanted;
    }
    let wanted = number("/spec/replicas");
    let available = if object["kind"] == "StatefulSet" {
        number("/status/readyReplicas")
    } else {
        number("/status/availableReplicas")
    };
    number("/status/updatedReplicas").or(Some(0)) == wanted
        && available.or(Some(0)) == wanted
        && number("/status/replicas").or(Some(0)) == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_daemon_set_with_an_old_pod_is_not_rolled_out() {
        let status = |updated| {
            json!({"kind": "DaemonSet", "metadata": {"generation": 2}, "status": {
                "observedGeneration": 2, "desiredNumberScheduled": 3,
                "updatedNumberScheduled": updated, "numberAvailable": 3}})
        };
        assert!(!rolled_out(&status(2)));
        assert!(rolled_out(&status(3)));
    }

    #[test]
    fn a_deployment_whose_new_generation_is_not_seen_yet_is_not_rolled_out() {
        let status = |observed| {
            json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 1},
                "status": {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1,
                    "availableReplicas": 1}})
        };
        assert!(!rolled_out(&status(1)));
        assert!(rolled_out(&status(2)));
    }
}
