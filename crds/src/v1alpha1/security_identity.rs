//! SecurityIdentity: a number that stands for a set of labels.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{self, CONDITIONS_KEYS, rules};

/// A security identity. Its name is the number (256 to 16777215), so a number
/// never means two sets. Written by the operator only.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "SecurityIdentity",
    plural = "securityidentities",
    singular = "securityidentity",
    shortname = "sid",
    category = "veer",
    status = "SecurityIdentityStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Namespace","type":"string","jsonPath":".spec.labels.io\\.kubernetes\\.pod\\.namespace"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".spec.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityIdentitySpec {
    /// The canonical label set. Cannot be changed.
    #[schemars(length(min = 1, max = 512), extend(
        "x-kubernetes-validations" = rules(&[rules::LABELS_IMMUTABLE]),
    ))]
    pub labels: BTreeMap<String, String>,
    /// Whether agents may assign it.
    #[serde(default)]
    pub state: IdentityState,
}

/// Whether agents may assign an identity.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum IdentityState {
    /// They may.
    #[default]
    Active,
    /// They may not; it goes once nobody uses it.
    Retiring,
}

/// Where the identity is in its life.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SecurityIdentityStatus {
    /// When it was first seen unused (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unused_since: Option<String>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = CONDITIONS_KEYS,
    ))]
    pub conditions: Vec<Condition>,
}
