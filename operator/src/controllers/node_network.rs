//! NodeNetwork: marks that of a Node that is gone, and removes it once none of its
//! blocks is claimed any more. Until then other nodes still route to it: deleting
//! a Node does not stop the pods that run there.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use veer_crds::v1alpha1::NodeNetwork;

use super::node::{MANAGER, build};
use crate::context::Context;
use crate::error::{Error, api, found};
use crate::slim::SlimNode;

/// How often one is looked at without a cause.
const SLOW: Duration = Duration::from_mins(10);

/// Brings one NodeNetwork to its end, if that is due.
pub(crate) async fn reconcile(
    network: Arc<NodeNetwork>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let name = network.name_any();
    // The claims' end or the Node's queues this again.
    if context.nodes.get(&name).is_some() {
        return Ok(Action::requeue(SLOW));
    }
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    if found(nodes.get(&name).await)
        .map_err(api(format!("look for node {name}")))?
        .is_some()
    {
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    let claimed = {
        let mut ledger = context.ledger.lock().await;
        let claims = ledger.claims(context.claims.all());
        claims.iter().any(|claim| claim.spec.node_name == name)
    };
    if claimed {
        let marked = build::spec("", &network.spec.pod_cidrs);
        if !build::is_as_wanted(&network.spec, &marked) {
            let version = network.metadata.resource_version.as_deref();
            crate::apply::spec(&networks, &name, MANAGER, &marked, version).await?;
        }
        return Ok(Action::requeue(SLOW));
    }
    crate::apply::delete(&networks, network.as_ref()).await?;
    tracing::info!(
        node = name,
        "removed the NodeNetwork of a Node that is gone"
    );
    Ok(Action::await_change())
}
