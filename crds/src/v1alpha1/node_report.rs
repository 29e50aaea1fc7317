//! NodeReport: what one node's agent tells people and the operator.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProbeReport, UplinkStatus};
use crate::rules::{self, CONDITIONS_KEYS, rules};

/// What one node's agent tells people and the operator, named like the node. No
/// agent watches it: what other nodes' datapath needs is in the NodeNetwork.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "NodeReport",
    plural = "nodereports",
    singular = "nodereport",
    shortname = "nr",
    category = "veer",
    status = "NodeReportStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.endpoints"}"#,
    printcolumn = r#"{"name":"MTU","type":"integer","jsonPath":".status.mtu"}"#,
    printcolumn = r#"{"name":"Routing","type":"string","jsonPath":".status.hostRouting"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.agentVersion"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Degraded","type":"string","jsonPath":".status.conditions[?(@.type=='Degraded')].status"}"#,
    printcolumn = r#"{"name":"Message","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type=='Ready')].message"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportSpec {
    /// UID of the Node that this speaks of.
    #[serde(default)]
    pub node_uid: String,
}

/// What the agent sees and did. Lists are cut to a sample and a count.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeReportStatus {
    /// Global addresses seen on the node, the primary of each family first, at
    /// most 64. Others believe one only once the operator has found it in the
    /// Node's own status or in `spec.extraNodeAddresses` of the ClusterNetwork.
    #[serde(default)]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(max = 45)), extend(
        "x-kubernetes-validations" = rules(&[rules::REPORTED_ADDRESSES]),
    ))]
    pub addresses: Vec<IpAddr>,
    /// What probes of the other nodes in the target form came to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probes: Option<ProbeReport>,
    /// resourceVersion of the newest SecurityIdentity seen.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub identity_serial: String,
    /// Repairs since the agent started: how often something that another program
    /// changed or removed was put back, by kind.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub repairs: BTreeMap<String, i64>,
    /// Uplinks in use.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub uplinks: Vec<UplinkStatus>,
    /// MTU of pod routes to other nodes now, in bytes.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub mtu: i32,
    /// `BPF`: pod traffic does not pass the host's stack.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub host_routing: String,
    /// Pods wired on this node.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub endpoints: i32,
    /// The kernel's boot id, to tell a reboot.
    #[serde(default, rename = "bootID")]
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// Version of the agent.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub agent_version: String,
    /// `Ready` and `Degraded` of the agent, `CIDRAllocated` of the operator.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = CONDITIONS_KEYS,
    ))]
    pub conditions: Vec<Condition>,
}
