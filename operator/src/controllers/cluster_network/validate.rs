//! Faults of a ClusterNetwork that CEL cannot see, because they lie between it
//! and other objects. They are reported and disturb nothing that works.

use std::sync::Arc;

use kube::core::Selector;
use veer_crds::v1alpha1::ClusterNetworkSpec;

use crate::selection::Selection;
use crate::slim::SlimNode;

/// Each as a sentence with the next step.
pub(crate) fn problems(spec: &ClusterNetworkSpec, nodes: &[Arc<SlimNode>]) -> Vec<String> {
    let mut problems = Vec::new();
    let canary = spec.rollout.canary.clone().unwrap_or_default();
    if let Err(error) = Selector::try_from(canary) {
        problems.push(format!(
            "spec.rollout.canary is not a selector ({error}): correct it; until then no node \
             is told to switch"
        ));
    }
    if Selection::of(Some(spec)) == Selection::Unknown {
        problems.push(
            "spec.nodeSelector is not a selector: correct it; until then the nodes that take part \
             stay, and no other is added"
                .to_owned(),
        );
    }
    for entry in &spec.pod_cidrs {
        let inside = nodes.iter().find_map(|node| {
            let address = node
                .addresses()
                .find(|address| entry.cidr.contains(address))?;
            Some((node.name(), address))
        });
        if let Some((node, address)) = inside {
            problems.push(format!(
                "{address} of node {node} lies in the pod block {}: set that block to Draining \
                 and add one without node addresses",
                entry.cidr
            ));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_canary_selector_that_selects_nothing_by_mistake_is_named() {
        let canary = "{matchExpressions: [{key: a, operator: Maybe}]}";
        let spec: ClusterNetworkSpec = serde_yaml::from_str(&format!(
            "{{podCIDRs: [{{cidr: 10.0.0.0/8, nodeMaskSize: 24}}], rollout: {{canary: {canary}}}}}"
        ))
        .unwrap();
        let found = problems(&spec, &[]);
        assert!(found[0].starts_with("spec.rollout.canary is not a selector"));
    }

    #[test]
    fn a_pod_block_over_a_nodes_address_is_named() {
        let spec: ClusterNetworkSpec = serde_yaml::from_str(
            "podCIDRs: [{cidr: 10.0.0.0/8, nodeMaskSize: 24}, {cidr: fd00::/48, nodeMaskSize: 64}]",
        )
        .unwrap();
        let node: SlimNode = serde_json::from_value(json!({
            "metadata": { "name": "a" },
            "status": { "addresses": [
                { "type": "Hostname", "address": "a" },
                { "type": "InternalIP", "address": "10.1.2.3" },
            ]},
        }))
        .unwrap();
        let found = problems(&spec, &[Arc::new(node)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("10.1.2.3 of node a lies in the pod block 10.0.0.0/8"));
        assert!(problems(&spec, &[]).is_empty());
    }
}
