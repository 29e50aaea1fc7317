//! The taint of a node whose agent has not reported since the node's boot.
//!
//! It is removed once the agent is ready under the node's current boot id. An agent
//! that is briefly not ready under the same boot id leaves it as it is: its
//! programs still run. If the container runtime calls another network's plugin, the
//! taint comes back, since new pods would not be veer's.

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use veer_crds::condition::is_true;
use veer_crds::v1alpha1::{FOREIGN_CONFLIST, NodeNetwork, TAINT_AGENT_NOT_READY};

use crate::context::Context;
use crate::error::{Error, api};
use crate::slim::{SlimNode, SlimReport};
use crate::spoken::spoken;

use super::MANAGER;

/// What to do with the taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TaintChange {
    Add,
    Remove,
    Leave,
}

fn step(
    node: &SlimNode,
    network: Option<&NodeNetwork>,
    report: Option<&SlimReport>,
) -> TaintChange {
    let tainted = is_tainted(node);
    let status = network.and_then(|n| n.status.as_ref());
    let said = spoken(report);
    // The report is gone, or the agent is an older one that writes none: neither
    // means a reboot.
    let silent = said.boot_id.is_empty() && status.is_some_and(|s| !s.held_pod_cidrs.is_empty());
    let of_this_boot = || said.boot_id == node.status.node_info.boot_id;
    let reported = silent || (!said.boot_id.is_empty() && of_this_boot());
    let ready = is_true(&said.conditions, "Ready") && !status.is_some_and(|s| s.decommissioned);
    // The agent works, but pods get another network.
    let diverted = said
        .conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status != "True" && c.reason == FOREIGN_CONFLIST);
    match (tainted, reported, ready) {
        (false, false, _) => TaintChange::Add,
        (false, true, _) if diverted => TaintChange::Add,
        (true, true, true) => TaintChange::Remove,
        (true, _, _) | (false, true, _) => TaintChange::Leave,
    }
}

/// Sets or removes the taint if need be. Nodes' taints are one atomic list, so
/// the version read is part of the write.
pub(crate) async fn settle(
    context: &Context,
    node: &SlimNode,
    network: Option<&NodeNetwork>,
    report: Option<&SlimReport>,
) -> Result<(), Error> {
    take(context, node, step(node, network, report)).await
}

/// Removes the taint from a node that takes no part, if it has it.
pub(crate) async fn leave(context: &Context, node: &SlimNode) -> Result<(), Error> {
    let step = if is_tainted(node) {
        TaintChange::Remove
    } else {
        TaintChange::Leave
    };
    take(context, node, step).await
}

fn is_tainted(node: &SlimNode) -> bool {
    let mut taints = node.spec.taints.iter();
    taints.any(|taint| taint.key == TAINT_AGENT_NOT_READY)
}

async fn take(context: &Context, node: &SlimNode, step: TaintChange) -> Result<(), Error> {
    let mut taints: Vec<_> = node
        .spec
        .taints
        .iter()
        .filter(|t| t.key != TAINT_AGENT_NOT_READY)
        .collect();
    let taint = k8s_openapi::api::core::v1::Taint {
        key: TAINT_AGENT_NOT_READY.to_owned(),
        effect: "NoSchedule".to_owned(),
        value: None,
        time_added: None,
    };
    match step {
        TaintChange::Leave => return Ok(()),
        TaintChange::Add => taints.push(&taint),
        TaintChange::Remove => {}
    }
    let name = node.name();
    let patch = json!({
        "metadata": { "resourceVersion": node.metadata.resource_version },
        "spec": { "taints": taints },
    });
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let what = format!("change the taint of node {name}");
    nodes
        .patch(name, &params, &Patch::Merge(patch))
        .await
        .map_err(api(what))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(boot: &str, tainted: bool) -> SlimNode {
        let taints = if tainted {
            json!([{ "key": TAINT_AGENT_NOT_READY, "effect": "NoSchedule" }])
        } else {
            json!([{ "key": "other", "effect": "NoExecute" }])
        };
        serde_json::from_value(json!({
            "metadata": { "name": "a" }, "spec": { "taints": taints },
            "status": { "nodeInfo": { "bootID": boot } },
        }))
        .unwrap()
    }

    fn report(boot: &str, ready: &str) -> SlimReport {
        serde_json::from_value(json!({
            "metadata": { "name": "a" },
            "status": { "bootID": boot, "conditions": [{
                "type": "Ready", "status": ready, "reason": "R", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z" }] },
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_tainted_until_its_agent_is_ready_after_this_boot() {
        let step = |node, report: Option<SlimReport>| step(&node, None, report.as_ref());
        assert_eq!(step(node("b1", false), None), TaintChange::Add);
        assert_eq!(step(node("b1", true), None), TaintChange::Leave);
        for (boot, tainted, said, ready, expected) in [
            ("b1", true, "b1", "False", TaintChange::Leave),
            ("b1", true, "b1", "True", TaintChange::Remove),
            ("b1", false, "b1", "True", TaintChange::Leave),
            ("b2", false, "b1", "True", TaintChange::Add),
            ("b2", true, "b1", "True", TaintChange::Leave),
        ] {
            let seen = step(node(boot, tainted), Some(report(said, ready)));
            assert_eq!(seen, expected, "{boot} {tainted} {said} {ready}");
        }
    }

    #[test]
    fn an_agent_that_restarts_does_not_bring_the_taint_back() {
        let said = report("b1", "False");
        assert_eq!(
            step(&node("b1", false), None, Some(&said)),
            TaintChange::Leave
        );
    }

    #[test]
    fn a_node_whose_pods_get_another_network_is_tainted_again() {
        let mut said = report("b1", "False");
        said.status.conditions[0].reason = FOREIGN_CONFLIST.into();
        assert_eq!(
            step(&node("b1", false), None, Some(&said)),
            TaintChange::Add
        );
    }

    #[test]
    fn a_report_that_is_missing_is_no_word_of_a_reboot() {
        let holds: NodeNetwork = serde_json::from_value(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "NodeNetwork", "metadata": { "name": "a" },
            "spec": {}, "status": { "heldPodCIDRs": ["10.0.0.0/24"] },
        }))
        .unwrap();
        let empty = SlimReport::default();
        for report in [None, Some(&empty)] {
            assert_eq!(
                step(&node("b1", false), Some(&holds), report),
                TaintChange::Leave
            );
            assert_eq!(
                step(&node("b1", true), Some(&holds), report),
                TaintChange::Leave
            );
        }
    }
}
