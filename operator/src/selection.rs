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
    /// Unknown: there is no ClusterNetwork, or it or the selector cannot be read.
    Unknown,
}

/// Whether a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It does.
    Takes,
    /// It does not, and what it has is taken from it.
    Leaves,
    /// Unknown: the node is left as it is.
    Unknown,
}

impl Selection {
    /// That of the cluster's network; `None`: there is none that can be read.
    pub(crate) fn of(spec: Option<&ClusterNetworkSpec>) -> Self {
        let Some(spec) = spec else {
            return Self::Unknown;
        };
        let Some(labels) = spec.node_selector.clone() else {
            return Self::All;
        };
        Selector::try_from(labels).map_or(Self::Unknown, Self::By)
    }

    /// Whether a node takes part. `known`: it has a NodeNetwork; such a node keeps
    /// what it has while the answer is unknown.
    pub(crate) fn part(&self, node: &SlimNode, known: bool) -> Part {
        match self {
            Self::All => Part::Takes,
            Self::By(selector) if selector.matches(&node.labels()) => Part::Takes,
            Self::By(_) => Part::Leaves,
            Self::Unknown if known => Part::Takes,
            Self::Unknown => Part::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_read_changes_nothing_for_anybody() {
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
        assert_eq!(linux.part(&node("linux"), false), Part::Takes);
        assert_eq!(linux.part(&node("windows"), true), Part::Leaves);
        let broken = of(json!({ "matchExpressions": [{ "key": "a", "operator": "Maybe" }] }));
        for unknown in [broken, Selection::of(None)] {
            assert_eq!(unknown.part(&node("linux"), true), Part::Takes);
            assert_eq!(unknown.part(&node("windows"), false), Part::Unknown);
        }
        let network = json!({ "podCIDRs": [{ "cidr": "10.0.0.0/8", "nodeMaskSize": 24 }] });
        let network = serde_json::from_value(network).unwrap();
        assert_eq!(
            Selection::of(Some(&network)).part(&node("windows"), false),
            Part::Takes
        );
    }
}
