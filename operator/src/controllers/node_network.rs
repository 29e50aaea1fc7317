//! NodeNetwork: removes that of a Node that is gone, once none of its blocks is
//! claimed any more. Until then other nodes still route to it: deleting a Node
//! does not stop the pods that run there.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use veer_crds::v1alpha1::NodeNetwork;

use crate::context::Context;
use crate::error::{Error, api, found};
use crate::slim::SlimNode;

/// Brings one NodeNetwork to its end, if that is due.
pub(crate) async fn reconcile(
    network: Arc<NodeNetwork>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let name = network.name_any();
    let claimed = {
        let mut ledger = context.ledger.lock().await;
        let claims = ledger.claims(context.claims.all());
        claims.iter().any(|claim| claim.spec.node_name == name)
    };
    // The claims' end or the Node's queues this again.
    if claimed || context.nodes.get(&name).is_some() {
        return Ok(Action::requeue(Duration::from_mins(10)));
    }
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    if found(nodes.get(&name).await)
        .map_err(api(format!("look for node {name}")))?
        .is_some()
    {
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    crate::apply::delete(&networks, network.as_ref()).await?;
    tracing::info!(
        node = name,
        "removed the NodeNetwork of a Node that is gone"
    );
    Ok(Action::await_change())
}
