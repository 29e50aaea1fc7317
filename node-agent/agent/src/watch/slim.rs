//! Pods and Namespaces with only the fields that count, so that a watch keeps
//! and parses little.

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::Deserialize;

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
