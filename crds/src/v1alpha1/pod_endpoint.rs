//! PodEndpoint: a wired pod.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use crate::rules::{self, NUMBER_MAX, rules};

/// A wired pod, in the pod's namespace, named by the pod's name and eight
/// digits of its UID; where another node's agent took that name, by the node's too.
/// Written by the pod's node's agent only.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "PodEndpoint",
    plural = "podendpoints",
    singular = "podendpoint",
    shortname = "pep",
    category = "veer",
    namespaced,
    derive = "PartialEq",
    printcolumn = r#"{"name":"Pod","type":"string","jsonPath":".spec.podName"}"#,
    printcolumn = r#"{"name":"Node","type":"string","jsonPath":".spec.nodeName"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Identity","type":"integer","jsonPath":".spec.identity"}"#,
    printcolumn = r#"{"name":"State","type":"string","jsonPath":".spec.state"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[rules::ENDPOINT_IMMUTABLE])))]
pub struct PodEndpointSpec {
    /// The pod.
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: String,
    /// Its UID.
    #[serde(rename = "podUID")]
    #[schemars(length(min = 1, max = 64))]
    pub pod_uid: String,
    /// The node it runs on.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Its number on that node (1 to 65535).
    #[schemars(range(min = 1, max = 65535))]
    pub endpoint_id: i32,
    /// Its addresses, at most one of each family.
    #[schemars(with = "Vec<String>", length(min = 1, max = 2), inner(length(max = 45)), extend(
        "x-kubernetes-validations" = rules(&[rules::ONE_ADDRESS_PER_FAMILY]),
    ))]
    pub addresses: Vec<IpAddr>,
    /// Its security identity.
    #[schemars(range(min = 1, max = 16_777_215))]
    pub identity: i64,
    /// Rises with each allocation on the node: of two claims of one address the
    /// higher wins.
    #[schemars(range(min = 0, max = NUMBER_MAX))]
    pub serial: i64,
    /// Where it is in its life.
    #[serde(default)]
    pub state: PodEndpointState,
}

/// Where a wired pod is in its life.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum PodEndpointState {
    /// Wired with the reserved identity `init`: its own number is not known yet.
    Init,
    /// Wired with its identity.
    #[default]
    Ready,
}
