//! Pods and Namespaces with only the fields that count, so that a watch keeps
//! and parses little.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

/// A Pod of the own node.
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SlimNamespace {
    /// Metadata.
    #[serde(default)]
    pub(crate) metadata: ObjectMeta,
}

macro_rules! core_resource {
    ($type:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = $scope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }
            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }
            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

core_resource!(SlimPod, "Pod", "pods", k8s_openapi::NamespaceResourceScope);
core_resource!(
    SlimNamespace,
    "Namespace",
    "namespaces",
    k8s_openapi::ClusterResourceScope
);
