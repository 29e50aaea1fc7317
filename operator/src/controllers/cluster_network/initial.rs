//! Creates the ClusterNetwork from the installer's values if there is none, and never
//! writes it again, so that an upgrade or a rollback does not change the routing
//! mode.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{Api, PostParams};
use tokio::time::sleep;
use veer_crds::v1alpha1::{CLUSTER_NETWORK, ClusterNetwork, ClusterNetworkSpec};

use crate::context::Context;
use crate::error::{api, code, found};

/// Reads the spec from a file.
///
/// # Errors
/// When the file cannot be read or is not such a spec; the text says which
/// field.
pub(crate) fn read(path: &Path) -> anyhow::Result<ClusterNetworkSpec> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the initial network from {}", path.display()))?;
    serde_yaml::from_str(&text).with_context(|| {
        format!(
            "{} is not the spec of a ClusterNetwork: correct the field named",
            path.display()
        )
    })
}

/// Creates `default` if it is absent; returns once it is there.
pub(crate) async fn ensure(context: Arc<Context>, spec: ClusterNetworkSpec) {
    let networks: Api<ClusterNetwork> = Api::all(context.client.clone());
    let network = ClusterNetwork::new(CLUSTER_NETWORK, spec);
    let params = PostParams {
        field_manager: Some(super::MANAGER.into()),
        ..PostParams::default()
    };
    let mut wait = Duration::from_secs(1);
    loop {
        let made = match found(networks.get(CLUSTER_NETWORK).await) {
            Ok(Some(_)) => return,
            Ok(None) => networks.create(&params, &network).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(_) => {
                tracing::info!("created ClusterNetwork default from the initial values");
                return;
            }
            Err(error) if code(&error) == Some(409) => return,
            Err(error) => {
                let error = api("create ClusterNetwork default from the initial values")(error);
                tracing::error!("{}", error.chain());
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}
