//! Which nodes take part, by `spec.nodeSelector` of the ClusterNetwork.

use kube::core::{Selector, SelectorExt};
use veer_crds::v1alpha1::ClusterNetworkSpec;

use crate::slim::SlimNode;

/// The selector, read once for many nodes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Selection {
    /// There is none.
    All,
    /// Those that match.
    By(Selector),
    /// It cannot be read: those that take part already.
    Unreadable,
}

impl Selection {
    /// That of a spec; all, as long as there is none.
    pub(crate) fn of(spec: Option<&ClusterNetworkSpec>) -> Self {
        let Some(labels) = spec.and_then(|spec| spec.node_selector.clone()) else {
            return Self::All;
        };
        Selector::try_from(labels).map_or(Self::Unreadable, Self::By)
    }

    /// Whether a node takes part. `known`: it has a NodeNetwork.
    pub(crate) fn takes(&self, node: &SlimNode, known: bool) -> bool {
        match self {
            Self::All => true,
            Self::By(selector) => selector.matches(&node.labels()),
            Self::Unreadable => known,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_selector_that_cannot_be_read_changes_nothing_for_anybody() {
        let of = |selector: serde_json::Value| {
            let spec = json!({
                "podCIDRs": [{ "cidr": "10.0.0.0/8", "nodeMaskSize": 24 }],
                "nodeSelector": selector,
            });
            Selection::of(Some(&serde_json::from_value(spec).unwrap()))
        };
        let node = |os: &str| -> SlimNode {
            let labels = json!({ "kubernetes.io/os": os });
            serde_json::from_value(json!({ "metadata": { "labels": labels } })).unwrap()
        };
        let linux = of(json!({ "matchLabels": { "kubernetes.io/os": "linux" } }));
        assert!(linux.takes(&node("linux"), false) && !linux.takes(&node("windows"), true));
        let broken = of(json!({ "matchExpressions": [{ "key": "a", "operator": "Maybe" }] }));
        assert!(broken.takes(&node("linux"), true) && !broken.takes(&node("linux"), false));
        assert!(Selection::of(None).takes(&node("linux"), false));
    }
}
