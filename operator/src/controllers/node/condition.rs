//! The Node's condition `NetworkUnavailable`. Some clouds create nodes with it true,
//! and the node stays tainted until somebody sets it to false.

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use veer_crds::condition::{is_true, now};

use crate::context::Context;
use crate::error::{Error, api};
use crate::slim::{SlimNode, SlimReport};
use crate::spoken::spoken;

use super::MANAGER;

const TYPE: &str = "NetworkUnavailable";

/// Whether the condition has to be set: the agent is ready in this boot, and the
/// condition is not false yet.
fn is_due(node: &SlimNode, report: Option<&SlimReport>) -> bool {
    let said = spoken(report);
    let mut conditions = node.status.conditions.iter();
    let there = conditions.any(|c| c.type_ == TYPE && c.status == "False");
    !there
        && !said.boot_id.is_empty()
        && said.boot_id == node.status.node_info.boot_id
        && is_true(&said.conditions, "Ready")
}

/// Sets it if necessary.
pub(crate) async fn settle(
    context: &Context,
    node: &SlimNode,
    report: Option<&SlimReport>,
) -> Result<(), Error> {
    if !is_due(node, report) {
        return Ok(());
    }
    let time = now();
    let patch = json!({ "status": { "conditions": [{
        "type": TYPE, "status": "False", "reason": "VeerIsUp",
        "message": "the agent of veer is ready on this node",
        "lastHeartbeatTime": time, "lastTransitionTime": time,
    }]}});
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let name = node.name();
    nodes
        .patch_status(name, &params, &Patch::Strategic(patch))
        .await
        .map_err(api(format!("say that the network of node {name} is there")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_set_once_the_agent_is_ready_and_then_left_alone() {
        let report = |ready: &str| -> SlimReport {
            serde_json::from_value(json!({ "metadata": {}, "status": {
                "bootID": "b", "conditions": [{ "type": "Ready", "status": ready, "reason": "R",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" }] }}))
            .unwrap()
        };
        let node = |network: Option<&str>| -> SlimNode {
            let conditions: Vec<_> = network
                .map(|status| json!({ "type": TYPE, "status": status }))
                .into_iter()
                .collect();
            serde_json::from_value(json!({ "metadata": {}, "status": {
                "nodeInfo": { "bootID": "b" }, "conditions": conditions }}))
            .unwrap()
        };
        for (now, ready, due) in [
            (None, "True", true),
            (Some("True"), "True", true),
            (Some("False"), "True", false),
            (Some("True"), "False", false),
        ] {
            let seen = is_due(&node(now), Some(&report(ready)));
            assert_eq!(seen, due, "{now:?} {ready}");
        }
    }
}
