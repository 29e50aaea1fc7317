//! Nodes, Pods, Namespaces and NodeReports with only the fields that the operator
//! reads. A Node carries a list of images, a Pod its whole specification and a
//! NodeReport details for people; the operator keeps none of that in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;
use veer_crds::v1alpha1::{NodeNetwork, NodeReport, PodEndpoint, ProbeReport};

/// A Node.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Node")]
pub(crate) struct SlimNode {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: SlimNodeSpec,
    #[serde(default)]
    pub(crate) status: SlimNodeStatus,
}

/// Of a Node's spec.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimNodeSpec {
    #[serde(default)]
    pub(crate) taints: Vec<Taint>,
}

/// Of a Node's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimNodeStatus {
    #[serde(default)]
    pub(crate) conditions: Vec<SlimCondition>,
    #[serde(default)]
    pub(crate) node_info: SlimNodeInfo,
    #[serde(default)]
    pub(crate) addresses: Vec<SlimAddress>,
}

/// Of a Node's condition.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimCondition {
    #[serde(rename = "type")]
    pub(crate) type_: String,
    pub(crate) status: String,
}

/// Of a Node's info.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimNodeInfo {
    #[serde(default, rename = "bootID")]
    pub(crate) boot_id: String,
}

/// One address of a Node; none: a host name.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimAddress {
    #[serde(default, deserialize_with = "address")]
    pub(crate) address: Option<IpAddr>,
}

fn address<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    Ok(String::deserialize(from)?.parse().ok())
}

impl SlimNode {
    /// Its name; the API server gives every object one.
    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its UID.
    pub(crate) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether the kubelet says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.status
            .conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True")
    }

    /// Since when it is registered; none where the clocks disagree.
    pub(crate) fn age(&self) -> Duration {
        let made = self.metadata.creation_timestamp.as_ref();
        made.and_then(|made| Duration::try_from(Timestamp::now().duration_since(made.0)).ok())
            .unwrap_or_default()
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.metadata.labels.clone().unwrap_or_default()
    }

    /// Its addresses (host names left out).
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.status.addresses.iter().filter_map(|a| a.address)
    }
}

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Pod")]
pub(crate) struct SlimPod {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: SlimPodSpec,
    #[serde(default)]
    pub(crate) status: SlimPodStatus,
}

/// Of a Pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimPodSpec {
    #[serde(default)]
    pub(crate) host_network: bool,
    #[serde(default)]
    pub(crate) service_account_name: String,
}

/// Of a Pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimPodStatus {
    #[serde(default)]
    pub(crate) phase: String,
}

impl SlimPod {
    /// Whether it has, or will have, a network of its own.
    pub(crate) fn has_network(&self) -> bool {
        !self.spec.host_network && self.status.phase != "Succeeded" && self.status.phase != "Failed"
    }

    /// Its labels.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.metadata.labels.clone().unwrap_or_default()
    }

    /// What made it, as `Kind name`.
    pub(crate) fn owner(&self) -> Option<String> {
        let owners = self.metadata.owner_references.iter().flatten();
        let mut controllers = owners.filter(|owner| owner.controller == Some(true));
        let owner = controllers.next()?;
        Some(format!("{} {}", owner.kind, owner.name))
    }
}

/// As [`strip`], but what made the pod stays.
pub(crate) fn strip_pod(pod: &mut SlimPod) {
    let owners = pod.metadata.owner_references.take();
    strip(pod);
    pod.metadata.owner_references = owners;
}

/// A PodEndpoint. A list is read as a whole or not at all, and agents write these:
/// only what the schema keeps readable is read.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "PodEndpoint")]
pub(crate) struct SlimEndpoint {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: SlimEndpointSpec,
}

/// Of a PodEndpoint's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimEndpointSpec {
    #[serde(default)]
    pub(crate) identity: Option<i64>,
}

/// A NodeNetwork, as far as its removal goes; read like [`SlimEndpoint`].
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "NodeNetwork")]
pub(crate) struct SlimNetwork {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: SlimNetworkSpec,
    pub(crate) status: Option<SlimNetworkStatus>,
}

/// Of a NodeNetwork's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimNetworkSpec {
    #[serde(default)]
    pub(crate) node_uid: String,
    #[serde(default)]
    pub(crate) decommission: bool,
}

/// Of a NodeNetwork's status.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct SlimNetworkStatus {
    #[serde(default)]
    pub(crate) decommissioned: bool,
}

/// A Namespace.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "Namespace")]
pub(crate) struct SlimNamespace {
    pub(crate) metadata: ObjectMeta,
}

/// A NodeReport.
#[derive(Clone, Debug, Default, Deserialize, Resource)]
#[resource(inherit = "NodeReport")]
pub(crate) struct SlimReport {
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: SlimReportSpec,
    #[serde(default)]
    pub(crate) status: SlimReportStatus,
}

/// Of a NodeReport's spec.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimReportSpec {
    #[serde(default)]
    pub(crate) node_uid: String,
}

/// What a node's agent says, as far as decisions hang on it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SlimReportStatus {
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    #[serde(default)]
    pub(crate) probes: Option<ProbeReport>,
    #[serde(default)]
    pub(crate) identity_serial: String,
    #[serde(default)]
    pub(crate) endpoints: i32,
    #[serde(default, rename = "bootID")]
    pub(crate) boot_id: String,
    #[serde(default)]
    pub(crate) conditions: Vec<Condition>,
}

impl SlimReport {
    /// Whether nothing changed on which a decision hangs: agents report every pod
    /// that comes or goes, and every identity that they have seen.
    pub(crate) fn says_the_same(&self, before: &Self) -> bool {
        let (new, old) = (&self.status, &before.status);
        self.metadata.uid == before.metadata.uid
            && self.spec == before.spec
            && new.addresses == old.addresses
            && new.probes == old.probes
            && new.boot_id == old.boot_id
            && new.conditions == old.conditions
            && (new.endpoints == 0) == (old.endpoints == 0)
    }
}

/// Drops the metadata that every object carries and nothing here reads.
pub(crate) fn strip<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    meta.owner_references = None;
    meta.finalizers = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    #[test]
    fn a_node_is_as_old_as_its_registration_unless_the_clocks_disagree() {
        let age = |seconds: Option<i64>| {
            let made = seconds.map(|s| Timestamp::now() - SignedDuration::from_secs(s));
            let mut node = SlimNode::default();
            node.metadata.creation_timestamp = made.map(Time);
            node.age().as_secs()
        };
        assert!((60..90).contains(&age(Some(60))));
        assert_eq!(age(Some(-60)), 0);
        assert_eq!(age(None), 0);
    }
}
