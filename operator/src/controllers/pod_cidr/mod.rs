//! PodCIDR: the life of a claim after it was made.
//!
//! `kubectl delete node` under running pods must not free their addresses: a
//! claim whose Node is gone is kept for the quarantine, unless the node's agent
//! confirmed that everything of veer is gone from it. A Node that comes back
//! under its name, whatever its UID, takes its claim with it. A Node that takes no
//! part any more is treated alike once no pod needs its block.

pub(crate) mod leaving;
pub(crate) mod life;
pub(crate) mod release;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use veer_crds::v1alpha1::PodCIDR;

use crate::context::Context;
use crate::error::{self, Error, found};
use crate::slim::SlimNode;
use crate::spoken::spoken;
use life::{ClaimFacts, Life};

/// Field manager of this controller.
const MANAGER: &str = "veer-operator/pod-cidr";

/// How often the pods of a node that takes no part any more are looked at.
const LOOK: Duration = Duration::from_secs(15);

/// Reconciles one claim.
pub(crate) async fn reconcile(claim: Arc<PodCIDR>, context: Arc<Context>) -> Result<Action, Error> {
    let node_name = claim.spec.node_name.clone();
    let node = context.member(&node_name);
    let leaving = node.is_none() && context.nodes.get(&node_name).is_some();
    let network = context.node_networks.get(&node_name);
    let claims: Vec<Arc<PodCIDR>> = context
        .claims
        .all()
        .into_iter()
        .filter(|c| c.spec.node_name == node_name)
        .collect();
    // A node that takes part creates its own again.
    let lost = node.is_none() && network.is_none();
    if leaving && !may_end(&claim, &context).await? {
        if lost {
            release::make_again(&context, &node_name, &claims).await?;
        }
        return Ok(Action::requeue(LOOK));
    }
    let report = context.reports.get(&node_name);
    let others = claims.iter().filter(|c| c.name_any() != claim.name_any());
    let siblings: Vec<Arc<PodCIDR>> = others.cloned().collect();
    let is_ipv4 = claim.spec.cidr.addr().is_ipv4();
    let cluster = context.network();
    let view = ClaimFacts {
        claim: &claim,
        node_uid: node.as_ref().map(|n| n.uid()),
        leaving,
        network: network.as_deref(),
        endpoints: spoken(report.as_deref()).endpoints,
        given_up: cluster.is_some_and(|c| c.spec.gives_up(is_ipv4)),
        siblings: &siblings,
        now: Timestamp::now(),
        quarantine: context.settings.quarantine,
    };
    let api: Api<PodCIDR> = Api::all(context.client.clone());
    let name = claim.name_any();
    match life::decide(&view) {
        Life::Is(status, again) => {
            if claim.status.as_ref() != Some(&status) {
                crate::apply::status(&api, &name, MANAGER, &status, None).await?;
            }
            if lost {
                release::make_again(&context, &node_name, &claims).await?;
            }
            let again = again.unwrap_or(Duration::from_mins(10));
            Ok(Action::requeue(if leaving {
                LOOK.min(again)
            } else {
                again
            }))
        }
        Life::Surplus => {
            let mut ledger = context.ledger.lock().await;
            release::forget(&context, &mut ledger, &claim).await?;
            tracing::info!(node = node_name, cidr = %claim.spec.cidr, "removed a claim that its node does not need");
            Ok(Action::await_change())
        }
        Life::Over => {
            let nodes: Api<SlimNode> = Api::all(context.client.clone());
            let what = format!("look for node {node_name}");
            let there = found(nodes.get(&node_name).await).map_err(error::api(what))?;
            if there.is_some() != leaving {
                return Ok(Action::requeue(Duration::from_secs(5)));
            }
            let mut ledger = context.ledger.lock().await;
            release::release(&context, &mut ledger, &claim).await?;
            tracing::info!(node = node_name, cidr = %claim.spec.cidr, "released");
            Ok(Action::await_change())
        }
    }
}

/// The Node is there and takes no part any more: whether its claim's end may be
/// judged. It is kept while a pod with a network of its own is bound to the node,
/// whether its agent still runs or not. After that the agent is asked to remove all
/// of veer, so that it wires no pod with an address that is another node's by then.
async fn may_end(claim: &PodCIDR, context: &Context) -> Result<bool, Error> {
    let name = &claim.spec.node_name;
    if !release::is_empty(context, name).await? {
        let status = life::used(claim);
        if claim.status.as_ref() != Some(&status) {
            let api: Api<PodCIDR> = Api::all(context.client.clone());
            crate::apply::status(&api, &claim.name_any(), MANAGER, &status, None).await?;
        }
        return Ok(false);
    }
    if let Some(network) = context.node_networks.get(name)
        && !network.spec.decommission
    {
        leaving::ask(context, &network).await?;
    }
    Ok(true)
}
