//! The CRDs in the cluster: made if absent, replaced if their schema is older
//! than this program's, never if it is newer (an older operator running during
//! a rollback must not take fields away).

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::sleep;
use veer_crds::manifests;

use crate::error::{Error, api, found};

/// Field manager of the CRDs.
const MANAGER: &str = "veer-operator/crds";

/// Applies what is missing or older, and returns once the API server serves all.
pub(crate) async fn settle(client: &Client) -> Result<(), Error> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in manifests::all() {
        let name = crd.name_any();
        let what = format!("apply CRD {name}");
        let there = found(crds.get(&name).await).map_err(api(what.clone()))?;
        let version = there
            .as_ref()
            .map(|c| manifests::schema_version(c).unwrap_or_default());
        if version.is_some_and(|v| v >= manifests::SCHEMA_VERSION) {
            tracing::debug!(name, ?version, "the CRD is not older");
            continue;
        }
        let params = PatchParams::apply(MANAGER).force();
        crds.patch(&name, &params, &Patch::Apply(&crd))
            .await
            .map_err(api(what))?;
        tracing::info!(name, from = ?version, to = manifests::SCHEMA_VERSION, "applied the CRD");
    }
    for crd in manifests::all() {
        let name = crd.name_any();
        loop {
            let what = format!("read CRD {name}");
            let there = found(crds.get(&name).await).map_err(api(what))?;
            if there.is_some_and(|crd| established(&crd)) {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

fn established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c.type_ == "Established" && c.status == "True")
    })
}
