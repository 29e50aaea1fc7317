//! NodeNetwork: one node's share of the network.

use ipnet::IpNet;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use super::{NodeReason, RoutingMode, XdpMode};
use crate::rules::{self, NUMBER_MAX, TEXT_MAX, rules};

/// One node's share of the network, named like the node: what other nodes need, and
/// nothing else, since every agent watches it. The operator writes the spec, the
/// node's agent the status.
#[derive(CustomResource, Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "NodeNetwork",
    plural = "nodenetworks",
    singular = "nodenetwork",
    shortname = "nn",
    category = "veer",
    status = "NodeNetworkStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"PodCIDRs","type":"string","jsonPath":".spec.podCIDRs"}"#,
    printcolumn = r#"{"name":"Addresses","type":"string","jsonPath":".spec.addresses"}"#,
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".status.applied.mode"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.applied.phase"}"#,
    printcolumn = r#"{"name":"Path MTU","type":"integer","jsonPath":".status.pathMtu"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkSpec {
    /// The node's blocks of pod addresses, one of each family in use.
    #[serde(default, rename = "podCIDRs")]
    #[schemars(with = "Vec<String>", length(max = 2), inner(length(max = 43)), extend(
        "x-kubernetes-validations" = rules(&[rules::ONE_BLOCK_PER_FAMILY]),
    ))]
    pub pod_cidrs: Vec<IpNet>,
    /// The node's addresses that others may believe, the primary of each family
    /// first: of those its agent reports, the ones that stand in the Node's own
    /// status or in `spec.extraNodeAddresses` of the ClusterNetwork.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(max = 39)))]
    pub addresses: Vec<IpAddr>,
    /// UID of the Node this is for; another one is another machine. Empty: the Node
    /// is gone, and its block is kept for the pods that may still run there. Other
    /// nodes go on routing to it, and wait for it in nothing.
    #[serde(default)]
    pub node_uid: String,
    /// The routing epoch the node is to be in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// Detach and remove everything of veer: set at uninstall.
    #[serde(default)]
    pub decommission: bool,
}

/// A step of a change of mode. Agents act on difference, not on order.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Epoch {
    /// UID of the ClusterNetwork that counts.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub cluster_network_uid: String,
    /// Higher with every change by the user.
    #[schemars(range(min = 0, max = NUMBER_MAX))]
    pub number: i64,
    /// The mode this epoch leads to.
    pub mode: RoutingMode,
    /// The step.
    pub phase: Phase,
    /// Higher with every new attempt of the operator at the same step.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub attempt: i32,
}

/// Steps of a change of mode.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum Phase {
    /// Probing the target form between all pairs.
    Preflight,
    /// Accepting both forms, at the smaller MTU of the two.
    Prepare,
    /// Sending in the target form.
    Switch,
    /// Taking the target's MTU, no longer accepting the other form.
    Finalize,
    /// Nothing is under way.
    #[default]
    Ready,
}

/// What other nodes need to know of what the node's agent did; the rest of its word
/// is in the NodeReport.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkStatus {
    /// Blocks the agent holds on disk and assigns from.
    #[serde(default, rename = "heldPodCIDRs")]
    #[schemars(with = "Vec<String>", length(max = 16), inner(length(max = 43)), extend(
        "x-kubernetes-validations" = rules(&[rules::HELD_BLOCKS]),
    ))]
    pub held_pod_cidrs: Vec<IpNet>,
    /// The epoch applied in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Epoch>,
    /// Peers to which the node keeps the old form, since the new one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_form: Option<KeptForm>,
    /// Smallest MTU of the node's uplinks in bytes; 0: not known. The MTU of a pair
    /// of nodes is the smaller of both ends'.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub path_mtu: i32,
    /// Everything of veer is gone from the node (after `spec.decommission`).
    #[serde(default)]
    pub decommissioned: bool,
}

/// Peers to which a node keeps the form that the epoch leads away from.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct KeptForm {
    /// Number of the epoch.
    #[schemars(range(min = 0, max = NUMBER_MAX))]
    pub number: i64,
    /// The peers by name, at most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub peers: Vec<String>,
    /// There are more than fit: the form is kept to any peer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// What probes of the other nodes in an epoch's target form came to. The
/// operator reads it together with `applied`: a node has done Preflight when
/// `probes` is of the epoch's number and attempt, and Switch when `applied` says
/// so, which it does only once every pair is confirmed or fell back.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ProbeReport {
    /// Number of the epoch.
    #[schemars(range(min = 0, max = NUMBER_MAX))]
    pub number: i64,
    /// Its attempt.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub attempt: i32,
    /// The mode that was probed.
    pub mode: RoutingMode,
    /// How many other nodes answered in every size.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub passed: i32,
    /// How many do not answer in the target form: the pair keeps the other form,
    /// which this node goes on to send and to accept.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub failed_count: i32,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failed: Vec<NodeReason>,
    /// To how many this one switched, did not confirm in time, and fell back.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub fell_back_count: i32,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub fell_back: Vec<NodeReason>,
}

impl ProbeReport {
    /// How many nodes of each sort are named.
    pub const SAMPLES: usize = 16;

    /// Counts a node that does not answer, and names it if there is room.
    pub fn add_failed(&mut self, node: NodeReason) {
        self.failed_count = self.failed_count.saturating_add(1);
        if self.failed.len() < Self::SAMPLES {
            self.failed.push(node);
        }
    }

    /// Counts a node from which this one fell back, and names it if there is room.
    pub fn add_fell_back(&mut self, node: NodeReason) {
        self.fell_back_count = self.fell_back_count.saturating_add(1);
        if self.fell_back.len() < Self::SAMPLES {
            self.fell_back.push(node);
        }
    }
}

/// One uplink of a node.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct UplinkStatus {
    /// Device name.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Its MTU in bytes.
    #[schemars(range(min = 0, max = i32::MAX))]
    pub mtu: i32,
    /// `Driver`, `Generic` or `Off`.
    pub xdp: XdpMode,
    /// Why XDP is as it is.
    #[serde(default)]
    #[schemars(length(max = TEXT_MAX))]
    pub xdp_reason: String,
    /// Whether veer's programs come first on its hooks.
    pub first: bool,
}
