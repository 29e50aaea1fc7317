//! Asks the agent of a node that no longer takes part to remove all of veer, and
//! revokes the request if the node takes part again.

use kube::{Api, ResourceExt};
use serde_json::json;
use veer_crds::v1alpha1::NodeNetwork;

use crate::context::Context;
use crate::error::Error;

/// Field manager of `spec.decommission`, so that the request of an uninstall is not
/// revoked.
const MANAGER: &str = "veer-operator/leaving";

/// Asks the agent.
pub(super) async fn ask(context: &Context, network: &NodeNetwork) -> Result<(), Error> {
    apply(context, network, json!({ "decommission": true })).await?;
    tracing::info!(
        node = network.name_any(),
        "takes no part any more: asked to remove veer"
    );
    Ok(())
}

/// Revokes the request if it was made here.
pub(crate) async fn take_back(context: &Context, network: &NodeNetwork) -> Result<(), Error> {
    apply(context, network, json!({})).await
}

async fn apply(
    context: &Context,
    network: &NodeNetwork,
    spec: serde_json::Value,
) -> Result<(), Error> {
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    let version = network.metadata.resource_version.as_deref();
    crate::apply::spec(&networks, &network.name_any(), MANAGER, spec, version).await?;
    Ok(())
}
