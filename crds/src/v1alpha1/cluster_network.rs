//! ClusterNetwork: what the user asks of the network of the whole cluster.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use super::{PolicyEnforcement, ServiceTranslation, XdpMode};
use crate::rules::{self, CONDITIONS_KEYS, rules};

/// The pod network of the cluster. There is one, named `default`; its spec is
/// the user's and its status the operator's.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[kube(
    group = "veer.dev",
    version = "v1alpha1",
    kind = "ClusterNetwork",
    plural = "clusternetworks",
    singular = "clusternetwork",
    shortname = "cn",
    category = "veer",
    status = "ClusterNetworkStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".status.activeMode"}"#,
    printcolumn = r#"{"name":"Target","type":"string","jsonPath":".status.targetMode"}"#,
    printcolumn = r#"{"name":"Phase","type":"string","jsonPath":".status.phase"}"#,
    printcolumn = r#"{"name":"Progress","type":"string","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Failed Pairs","type":"integer","jsonPath":".status.failedPairCount"}"#,
    printcolumn = r#"{"name":"Waiting For","type":"string","priority":1,"jsonPath":".status.conditions[?(@.type=='Progressing')].message"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[rules::NATIVE_FAMILY])))]
pub struct ClusterNetworkSpec {
    /// Address blocks for pods, at least one, none overlapping another.
    #[serde(rename = "podCIDRs")]
    #[schemars(length(min = 1, max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["cidr"],
        "x-kubernetes-validations" = rules(&[rules::NO_OVERLAP]),
    ))]
    pub pod_cidrs: Vec<PodCidrEntry>,
    /// How pod traffic moves between nodes.
    #[serde(default)]
    pub routing: Routing,
    /// How a change of mode is carried out.
    #[serde(default)]
    pub rollout: RolloutPolicy,
    /// MTU of the underlay in bytes; 0 takes it from each node's uplink.
    #[serde(default)]
    #[schemars(range(min = 0, max = 65535), extend(
        "x-kubernetes-validations" = rules(&[rules::MTU]),
    ))]
    pub mtu: i32,
    /// Source translation of traffic that leaves the cluster.
    #[serde(default)]
    pub masquerade: Masquerade,
    /// Sources outside the cluster from which no packet gets past a node's
    /// uplinks. Nodes and pods are never denied. What else the nodes need must
    /// not be in here: the API server where it is on no node, and the addresses
    /// of nodes still to come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 256), inner(length(max = 43)), extend(
        "x-kubernetes-validations" = rules(&[rules::BLOCKS]),
    ))]
    pub denied_prefixes: Vec<IpNet>,
    /// Whether and how an XDP program sits on the uplinks.
    #[serde(default)]
    pub xdp: XdpMode,
    /// Who translates what is sent to Services: to a `ClusterIP`, an external IP or the
    /// address of a load balancer. `KubeProxy`: the host's stack, by kube-proxy's rules.
    /// `Pods`: the programs at the pods' veths, past the stack where the backend is a pod
    /// or another node; kube-proxy goes on for the nodes themselves, for `NodePorts`, and
    /// for what the programs leave to it. `Full`: also what the nodes' own processes send,
    /// and what pods and those send to `NodePorts`: only clients outside the cluster, and
    /// SCTP, still need kube-proxy. It may be changed at any time: connections stay
    /// with whoever translated them first; a datagram flow may get another backend.
    #[serde(default)]
    pub services: ServiceTranslation,
    /// Which pod labels make an identity.
    #[serde(default)]
    pub identity_labels: IdentityLabels,
    /// When network policies are enforced.
    #[serde(default)]
    pub policy_enforcement: PolicyEnforcement,
    /// The nodes that take part, by their labels; absent: all. The chart gives the
    /// agents' DaemonSet the same selector. Other nodes get no block and no taint,
    /// and no change of mode waits for them. A node that matches no more keeps its
    /// block until no pod with a network of its own is bound to it (move them away by
    /// `kubectl drain`), and then until its agent has removed veer, or where none
    /// answers for as long as that of a Node that is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = rules(&[rules::SELECTOR])))]
    pub node_selector: Option<LabelSelector>,
    /// Addresses that a node has beside those in its Node's status, and that other
    /// nodes may believe when its agent reports them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["node"],
    ))]
    pub extra_node_addresses: Vec<ExtraNodeAddresses>,
    /// Uplinks by name; empty: the devices of the default routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 15)))]
    pub uplinks: Vec<String>,
}

impl ClusterNetworkSpec {
    /// Whether the cluster gives up a family, IPv4 or else IPv6: new pods get addresses of
    /// the other alone.
    pub fn gives_up(&self, is_ipv4: bool) -> bool {
        let mut active = self
            .pod_cidrs
            .iter()
            .filter(|entry| entry.state == PodCidrState::Active)
            .map(|entry| entry.cidr.addr().is_ipv4())
            .peekable();
        active.peek().is_some() && active.all(|family| family != is_ipv4)
    }
}

/// Addresses that a node has beside those in its Node's status.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExtraNodeAddresses {
    /// The node.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// The addresses, of either family.
    #[schemars(with = "Vec<String>", length(max = 32), inner(length(max = 39)), extend(
        "x-kubernetes-validations" = rules(&[rules::NODE_ADDRESSES]),
    ))]
    pub addresses: Vec<IpAddr>,
}

/// A block of pod addresses that nodes get their share of.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    rules::UNICAST_BLOCK, rules::RESERVED_BLOCK, rules::MASK_FAMILY, rules::MASK_RANGE, rules::MASK_SHARES,
])))]
pub struct PodCidrEntry {
    /// The block, for example `10.244.0.0/16`, with no host bits set.
    #[schemars(with = "String", length(max = 43), extend(
        "x-kubernetes-validations" = rules(&rules::BLOCK),
    ))]
    pub cidr: IpNet,
    /// Prefix length of each node's share. Cannot be changed.
    #[schemars(range(min = 1, max = 128), extend(
        "x-kubernetes-validations" = rules(&[rules::MASK_IMMUTABLE]),
    ))]
    pub node_mask_size: i32,
    /// Draining blocks give out no new shares, and each node takes a share of an
    /// Active one once none of its pods has an address left. Where no block of a family
    /// is Active but one of the other is, the family is given up: new pods get no address
    /// of it, and nodes lose their shares once no pod has one.
    #[serde(default)]
    pub state: PodCidrState,
}

/// Whether a block gives out shares.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum PodCidrState {
    /// It does.
    #[default]
    Active,
    /// It does not; those given out stay until their nodes have no pods, or are gone.
    Draining,
}

/// How pod traffic moves between nodes.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// Tunnel, Native or Hybrid.
    #[serde(default)]
    pub mode: RoutingMode,
    /// The tunnel's settings.
    #[serde(default)]
    pub tunnel: Tunnel,
    /// The native mode's settings.
    #[serde(default)]
    pub native: NativeRouting,
}

/// The routing modes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq, Hash)]
pub enum RoutingMode {
    /// VXLAN between nodes; the VNI is the sender's identity.
    #[default]
    Tunnel,
    /// Bare packets; the underlay must carry pod addresses.
    Native,
    /// Bare packets between nodes on the same link, VXLAN between the others.
    Hybrid,
}

/// Settings of the tunnel.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Tunnel {
    /// UDP port. Cannot be changed.
    #[serde(default = "default_tunnel_port")]
    #[schemars(range(min = 1, max = 65535), extend(
        "x-kubernetes-validations" = rules(&[rules::PORT_IMMUTABLE]),
    ))]
    pub port: i32,
}

fn default_tunnel_port() -> i32 {
    8472
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            port: default_tunnel_port(),
        }
    }
}

/// Settings of the native mode.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NativeRouting {
    /// What the underlay routes natively beside the nodes' own pods: packets of pods to
    /// addresses in this block keep the pod's address as their source instead of the
    /// node's (as those to `masquerade.exclude` do). Absent: the pod CIDRs, between
    /// which no packet is ever translated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(max = 43), extend(
        "x-kubernetes-validations" = rules(&rules::BLOCK),
    ))]
    pub cidr: Option<IpNet>,
    /// Send straight to nodes on the same link, without a router that knows pod
    /// addresses.
    #[serde(default = "yes")]
    pub auto_direct_node_routes: bool,
}

impl Default for NativeRouting {
    fn default() -> Self {
        Self {
            cidr: None,
            auto_direct_node_routes: true,
        }
    }
}

fn yes() -> bool {
    true
}

/// How a change of mode is carried out.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutPolicy {
    /// Nodes that switch first; absent: none before the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<LabelSelector>,
    /// How many nodes switch at once; 0: all.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub max_concurrent: i32,
    /// Stay where the rollout is.
    #[serde(default)]
    pub paused: bool,
    /// Seconds in which a switched node must confirm, before it falls back.
    #[serde(default = "default_confirm_timeout")]
    #[schemars(range(min = 1, max = 3600))]
    pub confirm_timeout_seconds: i32,
    /// What becomes of pairs of nodes that fail the probes in the target form.
    #[serde(default)]
    pub failed_pairs: FailedPairs,
}

/// What becomes of pairs of nodes that fail the probes in the target form.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub enum FailedPairs {
    /// The change goes no further until they succeed or it is turned round.
    #[default]
    Stop,
    /// They keep the old form and are probed again; all others change.
    Keep,
}

fn default_confirm_timeout() -> i32 {
    30
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        Self {
            canary: None,
            max_concurrent: 0,
            paused: false,
            confirm_timeout_seconds: default_confirm_timeout(),
            failed_pairs: FailedPairs::default(),
        }
    }
}

/// Source translation of pod traffic that leaves the cluster.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Masquerade {
    /// Translate to the node's address what pods send to the world.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Destinations that see pod addresses all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>", length(max = 64), inner(length(max = 43)), extend(
        "x-kubernetes-validations" = rules(&[rules::BLOCKS]),
    ))]
    pub exclude: Vec<IpNet>,
}

impl Default for Masquerade {
    fn default() -> Self {
        Self {
            enabled: true,
            exclude: Vec::new(),
        }
    }
}

/// Which pod labels make an identity. Keys that differ per pod, per revision or per
/// run of a job (`pod-template-hash`, `job-name`, …) never do.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdentityLabels {
    /// Key prefixes that count; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 317)))]
    pub include: Vec<String>,
    /// Key prefixes that do not count, stronger than `include`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 317)))]
    pub exclude: Vec<String>,
}

/// What the operator sees and does.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetworkStatus {
    /// The mode traffic moves by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_mode: Option<RoutingMode>,
    /// The mode it is being moved to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_mode: Option<RoutingMode>,
    /// Where the change is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<super::Phase>,
    /// The epoch that nodes are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<super::Epoch>,
    /// Nodes by what they reported.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// How many nodes have done the present phase, for people: `2/3`.
    #[serde(default)]
    pub progress: String,
    /// When the present phase or attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When the present change, or the last one, began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Time>,
    /// Ready nodes that the present phase waits for, at most 16, those that were
    /// told first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub slowest: Vec<NodeReason>,
    /// Nodes that fell back to the old form in the present attempt, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub failed_nodes: Vec<NodeReason>,
    /// Nodes that are not ready and hold nobody up, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub excluded_nodes: Vec<NodeReason>,
    /// Pairs that failed the probes in the target form, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub failed_pairs: Vec<FailedPair>,
    /// How many pairs failed, also those not listed.
    #[serde(default)]
    pub failed_pair_count: i32,
    /// Capacity and use of each block.
    #[serde(default, rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = ["cidr"],
    ))]
    pub pod_cidrs: Vec<PodCidrStatus>,
    /// `Ready`, `CIDRsAvailable`, `Progressing` and others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend(
        "x-kubernetes-list-type" = "map",
        "x-kubernetes-list-map-keys" = CONDITIONS_KEYS,
    ))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec that this status speaks of.
    #[serde(default)]
    pub observed_generation: i64,
}

/// Nodes by what they reported of the current epoch.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// All.
    #[serde(default)]
    pub total: i32,
    /// With a ready agent.
    #[serde(default)]
    pub ready: i32,
    /// That have probed all their pairs in the target form.
    #[serde(default)]
    pub probed: i32,
    /// Accepting both forms, at the smaller MTU.
    #[serde(default)]
    pub prepared: i32,
    /// Sending in the target form, confirmed by probes.
    #[serde(default)]
    pub switched: i32,
    /// At the target's MTU, no longer accepting the other form.
    #[serde(default)]
    pub finalized: i32,
    /// Fell back to the old form.
    #[serde(default)]
    pub failed: i32,
    /// Not ready when the change began, or since.
    #[serde(default)]
    pub excluded: i32,
}

/// A node by name, and why it is listed.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct NodeReason {
    /// The node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// Why, for people.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// Two nodes between which the target form does not work, in this direction.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
pub struct FailedPair {
    /// The node that probed.
    pub from: String,
    /// The node that it probed.
    pub to: String,
    /// What failed and what to look at, for people.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub reason: String,
}

/// Capacity and use of a block.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodCidrStatus {
    /// The block.
    #[schemars(with = "String", length(max = 43))]
    pub cidr: IpNet,
    /// How many nodes' shares it has.
    pub capacity: i64,
    /// How many are claimed.
    pub claimed: i64,
    /// No share is claimed and none will be: the entry may be removed.
    #[serde(default)]
    pub drained: bool,
}
