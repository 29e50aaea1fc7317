//! PodCIDR: one claim of one block of pod addresses.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, CONDITIONS_KEYS, rules};

/// A claim of a block by a node. Its name is made from the block (the base
/// address with dashes), so a block cannot be claimed twice. Written by the
/// operator only; the spec never changes.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "PodCIDR",
    plural = "podcidrs",
    singular = "podcidr",
    shortname = "pcidr",
    category = "veer",
    status = "PodCIDRStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"CIDR","type":"string","jsonPath":".spec.cidr"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[rules::CLAIM_IMMUTABLE])))]
pub struct PodCIDRSpec {
    /// The block.
    #[schemars(with = "String", length(max = 43), extend(
        "x-kubernetes-validations" = rules(&rules::BLOCK),
    ))]
    pub cidr: IpNet,
    /// The node it belongs to.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// UID of that Node when the claim was made.
    #[serde(rename = "nodeUID")]
    #[schemars(length(max = 64))]
    pub node_uid: String,
}

/// Where the claim is in its life.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodCIDRStatus {
    /// `Bound`; `Orphaned` once the Node is gone; `Leaving` on a Node that takes no part
    /// any more, while pods run there and until its agent has removed veer.
    #[serde(default)]
    pub state: String,
    /// UID of the Node that holds it now, where that is a later one than the
    /// spec's (the Node came back under its name).
    #[serde(default, rename = "heldByUID", skip_serializing_if = "Option::is_none")]
    pub held_by_uid: Option<String>,
    /// When the Node was first seen to be gone, or to take no part and have no pods
    /// (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphaned_since: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = CONDITIONS_KEYS,
    ))]
    pub conditions: Vec<Condition>,
}
