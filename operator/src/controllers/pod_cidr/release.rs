//! The end of a claim of a node that is gone, or that takes no part any more.
//!
//! The NodeNetwork is deleted first: other nodes route to the block, and accept
//! packets from it, until then. The claim follows, and with it the block is free.

use std::sync::Arc;

use kube::api::ListParams;
use kube::{Api, ResourceExt};
use veer_crds::v1alpha1::{NodeNetwork, PodCIDR};

use crate::context::Context;
use crate::controllers::node::believed::uncontested;
use crate::controllers::node::ledger::Ledger;
use crate::controllers::node::{MANAGER, build};
use crate::error::{Error, api, found};
use crate::slim::SlimPod;

/// Gives a block back.
pub(crate) async fn release(
    context: &Context,
    ledger: &mut Ledger,
    claim: &PodCIDR,
) -> Result<(), Error> {
    let name = &claim.spec.node_name;
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    let what = format!("look for the NodeNetwork of node {name}");
    if let Some(network) = found(networks.get(name).await).map_err(api(what))?
        && network.spec.pod_cidrs.contains(&claim.spec.cidr)
    {
        let mut left = network.spec.pod_cidrs.clone();
        left.retain(|block| *block != claim.spec.cidr);
        if left.is_empty() {
            remove(&networks, network).await?;
        } else {
            let spec = build::spec("", &left, &network.spec.addresses);
            let version = network.resource_version();
            crate::apply::spec(&networks, name, MANAGER, &spec, version.as_deref()).await?;
        }
    }
    forget(context, ledger, claim).await
}

/// Deletes a NodeNetwork. Agents do not trust the deletion of one that has blocks
/// unless its node was asked to remove veer, so the blocks are removed first.
pub(crate) async fn remove(
    networks: &Api<NodeNetwork>,
    mut network: NodeNetwork,
) -> Result<(), Error> {
    if !network.spec.decommission && !network.spec.pod_cidrs.is_empty() {
        let (name, version) = (network.name_any(), network.resource_version());
        let spec = build::spec("", &[], &network.spec.addresses);
        network = crate::apply::spec(networks, &name, MANAGER, &spec, version.as_deref()).await?;
    }
    crate::apply::delete(networks, &network).await
}

/// Makes the NodeNetwork of a node that is gone, or takes no part any more, again from
/// its claims, where somebody deleted it: pods may run there.
pub(super) async fn make_again(
    context: &Context,
    name: &str,
    claims: &[Arc<PodCIDR>],
) -> Result<(), Error> {
    let node = context.nodes.get(name);
    let addresses: Vec<_> = node.iter().flat_map(|node| node.addresses()).collect();
    let addresses = uncontested(&addresses, node.as_deref(), &context.nodes.all());
    let blocks: Vec<_> = claims.iter().map(|claim| claim.spec.cidr).collect();
    let object = build::object(name, &build::spec("", &blocks, &addresses));
    let networks: Api<NodeNetwork> = Api::all(context.client.clone());
    crate::apply::create(&networks, MANAGER, &object).await?;
    tracing::info!(
        node = name,
        "made the NodeNetwork of a Node without a part again"
    );
    Ok(())
}

/// Deletes a claim whose block neither the agent nor the NodeNetwork has.
pub(super) async fn forget(
    context: &Context,
    ledger: &mut Ledger,
    claim: &PodCIDR,
) -> Result<(), Error> {
    let claims: Api<PodCIDR> = Api::all(context.client.clone());
    crate::apply::delete(&claims, claim).await?;
    ledger.forget(&claim.name_any());
    Ok(())
}

/// Whether a list read from the server shows no pod on the node that has, or will
/// have, a network of its own.
pub(crate) async fn is_empty(context: &Context, node: &str) -> Result<bool, Error> {
    let pods: Api<SlimPod> = Api::all(context.client.clone());
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let list = pods.list(&on_node).await;
    let list = list.map_err(api(format!("list the pods of node {node}")))?;
    Ok(!list.items.iter().any(SlimPod::has_network))
}
