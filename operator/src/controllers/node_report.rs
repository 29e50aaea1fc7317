//! NodeReport: removed once neither a Node nor a NodeNetwork has its name. Until then
//! the agent's last report is all that is known of the pods that may still run there.

use std::sync::Arc;
use std::time::Duration;

use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use veer_crds::v1alpha1::NodeNetwork;

use crate::context::Context;
use crate::error::{Error, api, found};
use crate::slim::{SlimNode, SlimReport};

/// How often one is looked at without a cause.
const SLOW: Duration = Duration::from_mins(10);

/// Removes one NodeReport, if that is due.
pub(crate) async fn reconcile(
    report: Arc<SlimReport>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let name = report.name_any();
    if context.member(&name).is_some() || context.node_networks.get(&name).is_some() {
        return Ok(Action::requeue(SLOW));
    }
    let what = || format!("look for node {name}");
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    // One that is there and takes no part needs none.
    let node = context.nodes.get(&name).is_none()
        && found(nodes.get(&name).await)
            .map_err(api(what()))?
            .is_some();
    let network = found(networks.get(&name).await).map_err(api(what()))?;
    if node || network.is_some() {
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    let reports: Api<SlimReport> = Api::all(context.client.clone());
    crate::apply::delete(&reports, report.as_ref()).await?;
    Ok(Action::await_change())
}
