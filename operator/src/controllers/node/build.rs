//! The part of a NodeNetwork's spec that this controller writes: pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;
use veer_crds::v1alpha1::{NodeNetwork, NodeNetworkSpec};

/// What this controller applies; the routing epoch is another's field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OwnSpec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    addresses: Vec<IpAddr>,
    node_uid: String,
}

/// Builds it.
pub(crate) fn spec(node_uid: &str, blocks: &[IpNet], addresses: &[IpAddr]) -> OwnSpec {
    OwnSpec {
        pod_cidrs: blocks.to_vec(),
        addresses: addresses.to_vec(),
        node_uid: node_uid.to_owned(),
    }
}

/// The object of a node that has none.
pub(crate) fn object(name: &str, spec: &OwnSpec) -> NodeNetwork {
    let spec = NodeNetworkSpec {
        pod_cidrs: spec.pod_cidrs.clone(),
        addresses: spec.addresses.clone(),
        node_uid: spec.node_uid.clone(),
        ..NodeNetworkSpec::default()
    };
    NodeNetwork::new(name, spec)
}

/// Whether there is nothing to write.
pub(crate) fn is_as_wanted(found: &NodeNetworkSpec, wanted: &OwnSpec) -> bool {
    // Destructured, so that a new field is given to one writer or the other.
    let NodeNetworkSpec {
        pod_cidrs,
        node_uid,
        addresses,
        epoch: _,
        decommission: _,
    } = found;
    *pod_cidrs == wanted.pod_cidrs && *addresses == wanted.addresses && *node_uid == wanted.node_uid
}
