//! Pods, Namespaces, Services, their endpoints and Nodes with only the fields that count,
//! so that a watch keeps and parses little.

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A Pod of the own node.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Pod")]
pub(crate) struct SlimPod {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
    /// The part of the spec that counts.
    #[serde(default)]
    pub(crate) spec: SlimPodSpec,
    /// The part of the status that counts.
    #[serde(default)]
    pub(crate) status: SlimPodStatus,
}

/// See [`SlimPod`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimPodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`.
    #[serde(default)]
    pub(crate) phase: String,
    /// Its addresses.
    #[serde(default, rename = "podIPs")]
    pub(crate) pod_ips: Vec<SlimPodIp>,
}

/// See [`SlimPodStatus`].
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlimPodIp {
    /// One address.
    #[serde(default)]
    pub(crate) ip: String,
}

/// See [`SlimPod`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimPodSpec {
    /// Service account.
    #[serde(default)]
    pub(crate) service_account_name: String,
    /// In the node's own network: not veer's.
    #[serde(default)]
    pub(crate) host_network: bool,
}

/// A Namespace.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Namespace")]
pub(crate) struct SlimNamespace {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
}

/// A Service.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Service")]
pub(crate) struct SlimService {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
    /// The part of the spec that counts.
    #[serde(default)]
    pub(crate) spec: SlimServiceSpec,
    /// The part of the status that counts.
    #[serde(default)]
    pub(crate) status: SlimServiceStatus,
}

/// See [`SlimService`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimServiceSpec {
    /// `ExternalName` or another.
    #[serde(default, rename = "type")]
    pub(crate) kind: String,
    /// Its own addresses; `None` in words: it has none.
    #[serde(default, rename = "clusterIPs", deserialize_with = "or_default")]
    pub(crate) cluster_ips: Vec<String>,
    /// Addresses that lead to it from outside.
    #[serde(default, rename = "externalIPs", deserialize_with = "or_default")]
    pub(crate) external_ips: Vec<String>,
    /// Only these may use the load balancer; empty: all may.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) load_balancer_source_ranges: Vec<String>,
    /// Its ports.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ports: Vec<SlimPort>,
    /// `ClientIP` or `None`.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) session_affinity: String,
    /// How long that lasts.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) session_affinity_config: SlimAffinity,
    /// `Local` or `Cluster`.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) internal_traffic_policy: String,
    /// `Local` or `Cluster`; empty: no client is outside.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) external_traffic_policy: String,
}

/// A port of a [`SlimService`] or of a [`SlimEndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimPort {
    /// Its name.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) name: String,
    /// `TCP`, `UDP` or `SCTP`; empty: the first of them.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) protocol: String,
    /// Its number; 0: none.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) port: i32,
    /// Its `NodePort`, of a Service; 0: none.
    #[serde(default, rename = "nodePort", deserialize_with = "or_default")]
    pub(crate) node_port: i32,
}

/// See [`SlimServiceSpec`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimAffinity {
    /// That of clients by their address.
    #[serde(default, rename = "clientIP", deserialize_with = "or_default")]
    pub(crate) client_ip: SlimClientIp,
}

/// See [`SlimAffinity`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimClientIp {
    /// Seconds.
    pub(crate) timeout_seconds: Option<i32>,
}

/// See [`SlimService`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimServiceStatus {
    /// What is known of its load balancer.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) load_balancer: SlimLoadBalancer,
}

/// See [`SlimServiceStatus`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimLoadBalancer {
    /// Where it is reached.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ingress: Vec<SlimIngress>,
}

/// See [`SlimLoadBalancer`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimIngress {
    /// Its address; empty: a name.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip: String,
    /// `Proxy`: packets arrive with another destination. `VIP` or empty: they do not.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ip_mode: String,
}

/// An `EndpointSlice`.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "EndpointSlice")]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimEndpointSlice {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub(crate) address_type: String,
    /// Its endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) endpoints: Vec<SlimEndpoint>,
    /// The target ports of its endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) ports: Vec<SlimPort>,
}

/// See [`SlimEndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimEndpoint {
    /// Its addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) addresses: Vec<String>,
    /// How it is.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) conditions: SlimConditions,
    /// Its node.
    pub(crate) node_name: Option<String>,
    /// Whose traffic is to go to it.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) hints: SlimHints,
}

/// See [`SlimEndpoint`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimConditions {
    /// Unknown counts as yes.
    pub(crate) ready: Option<bool>,
    /// Unknown counts as yes.
    pub(crate) serving: Option<bool>,
    /// Unknown counts as no.
    pub(crate) terminating: Option<bool>,
}

/// See [`SlimEndpoint`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimHints {
    /// That of zones.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) for_zones: Vec<SlimHint>,
    /// That of nodes.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) for_nodes: Vec<SlimHint>,
}

/// See [`SlimHints`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimHint {
    /// Of the zone or node.
    #[serde(default)]
    pub(crate) name: String,
}

/// A Node: its labels.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "Node")]
pub(crate) struct SlimNode {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
}

/// A field that is `null` counts as one that is not there: Go writes empty lists so.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
