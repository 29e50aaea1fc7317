//! Whether veer really has to be removed.
//!
//! That the Job runs proves nothing: for everybody who applies a rendered chart,
//! Helm's hooks are ordinary objects. Proof is Helm's own record of the release,
//! which has the status `uninstalling` before Helm starts the Job, or an annotation
//! that a person gave the ClusterNetwork. Input: the Secrets (or, with another
//! storage driver of Helm, the config maps) of the release, by their labels alone,
//! and the ClusterNetwork.
//!
//! Invariant: nothing is written before there is proof.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use veer_crds::v1alpha1::{CLUSTER_NETWORK, ClusterNetwork};

use crate::error::{Error, api, found};

/// Annotation of the ClusterNetwork by which a person, with the value `true`, asks
/// for the removal of veer where Helm does not.
pub(super) const UNINSTALL: &str = "veer.dev/uninstall";

/// A release of Helm.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Release {
    /// Name of the Helm release that is being uninstalled.
    #[arg(long, default_value = "veer")]
    pub(crate) release: String,
    /// Namespace in which Helm keeps the release; the operator's if not given.
    #[arg(long)]
    pub(crate) release_namespace: Option<String>,
}

/// What the API server knows of the release, for the text of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReleaseState {
    /// Its latest revision is being uninstalled.
    Uninstalling,
    /// Its latest revision has another status.
    Status(String),
    /// There is no record of it.
    Nothing,
}

/// The status of the release in Helm's records in `namespace`.
pub(super) async fn release(
    client: &Client,
    name: &str,
    namespace: &str,
) -> Result<ReleaseState, Error> {
    // Helm's own labels. Only metadata is asked for: the content has all values.
    let its = ListParams::default().labels(&format!("owner=helm,name={name}"));
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secrets = secrets.list_metadata(&its).await;
    let secrets = secrets.map_err(api(format!("list secrets in {namespace}")))?;
    let seen = latest(secrets.items.iter().map(|secret| &secret.metadata));
    if seen != ReleaseState::Nothing {
        return Ok(seen);
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let maps = maps.list_metadata(&its).await;
    let maps = maps.map_err(api(format!("list configmaps in {namespace}")))?;
    Ok(latest(maps.items.iter().map(|map| &map.metadata)))
}

/// The status of the latest revision. An earlier one may still have the status of an
/// uninstall that was aborted.
fn latest<'a>(records: impl Iterator<Item = &'a ObjectMeta>) -> ReleaseState {
    let label = |record: &ObjectMeta, key: &str| {
        let labels = record.labels.as_ref();
        labels.and_then(|labels| labels.get(key)).cloned()
    };
    let revision =
        |record: &&ObjectMeta| label(record, "version").and_then(|v| v.parse::<u64>().ok());
    let Some(record) = records.max_by_key(revision) else {
        return ReleaseState::Nothing;
    };
    match label(record, "status").unwrap_or_default() {
        status if status == "uninstalling" => ReleaseState::Uninstalling,
        status => ReleaseState::Status(status),
    }
}

/// Whether a person asked for the removal.
pub(super) async fn annotated(client: &Client) -> Result<bool, Error> {
    let networks: Api<ClusterNetwork> = Api::all(client.clone());
    let network = networks.get_metadata_opt(CLUSTER_NETWORK).await;
    let network = network.map_err(api("get clusternetwork default"))?;
    Ok(network.is_some_and(|network| {
        network
            .annotations()
            .get(UNINSTALL)
            .is_some_and(|value| value == "true")
    }))
}

/// Removes the annotation: its request is fulfilled, and a later installation must
/// not find it.
pub(super) async fn fulfilled(client: &Client) -> Result<(), Error> {
    let networks: Api<ClusterNetwork> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "metadata": { "annotations": { UNINSTALL: null } } }));
    let params = PatchParams::default();
    let network = networks.patch_metadata(CLUSTER_NETWORK, &params, &patch);
    found(network.await).map_err(api("take the annotation from clusternetwork default"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(version: &str, status: &str) -> ObjectMeta {
        let labels = [("version", version), ("status", status)];
        ObjectMeta {
            labels: Some(
                labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn latest_revision_counts_by_number() {
        let given_up_then_upgraded = [
            record("9", "uninstalling"),
            record("10", "deployed"),
            record("8", "superseded"),
        ];
        let seen = latest(given_up_then_upgraded.iter());
        assert_eq!(seen, ReleaseState::Status("deployed".into()));
        let upgraded_then_uninstalled = [record("9", "superseded"), record("10", "uninstalling")];
        assert_eq!(
            latest(upgraded_then_uninstalled.iter()),
            ReleaseState::Uninstalling
        );
    }

    #[test]
    fn no_record_is_no_proof() {
        assert_eq!(latest([].iter()), ReleaseState::Nothing);
        let unlabelled = [ObjectMeta::default()];
        assert_eq!(
            latest(unlabelled.iter()),
            ReleaseState::Status(String::new())
        );
    }
}
