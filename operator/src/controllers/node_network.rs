//! NodeNetwork: marks that of a Node that is gone, and removes it once none of its
//! blocks is claimed any more. Until then other nodes still route to it: deleting
//! a Node does not stop the pods that run there.

use std::sync::Arc;
use std::time::Duration;

use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use veer_crds::v1alpha1::NodeNetwork;

use super::node::apply::keep;
use super::node::believed::uncontested;
use super::node::{MANAGER, build};
use super::pod_cidr::release::remove;
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
    if context.member(&name).is_some() {
        return Ok(Action::requeue(SLOW));
    }
    let nodes: Api<SlimNode> = Api::all(context.client.clone());
    if context.nodes.get(&name).is_none()
        && found(nodes.get(&name).await)
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
        let all = context.nodes.all();
        let addresses = uncontested(&network.spec.addresses, None, &all);
        let marked = build::spec("", &network.spec.pod_cidrs, &addresses);
        if !build::is_as_wanted(&network.spec, &marked) {
            let version = network.metadata.resource_version.as_deref();
            crate::apply::spec(&networks, &name, MANAGER, &marked, version).await?;
        }
        return Ok(Action::requeue(SLOW));
    }
    // A release deletes the NodeNetwork first and the claim afterwards. So if only
    // the claim is gone, somebody else deleted it, and pods may still run.
    let there = found(networks.get(&name).await)
        .map_err(api(format!("look for the NodeNetwork of node {name}")))?;
    let Some(there) = there else {
        return Ok(Action::await_change());
    };
    let mut kept = false;
    for block in &there.spec.pod_cidrs {
        kept |= keep(&context, &name, block).await?;
    }
    if kept {
        tracing::info!(node = name, "claimed again what a Node that is gone had");
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    remove(&networks, there).await?;
    tracing::info!(
        node = name,
        "removed the NodeNetwork of a Node that is gone"
    );
    Ok(Action::await_change())
}
