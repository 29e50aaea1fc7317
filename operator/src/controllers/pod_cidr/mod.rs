//! PodCIDR: the life of a claim after it was made.
//!
//! `kubectl delete node` under running pods must not free their addresses: a
//! claim whose Node is gone is kept for the quarantine, unless the node's agent
//! confirmed that everything of veer is gone from it. A Node that comes back
//! under its name, whatever its UID, takes its claim with it.

pub(crate) mod life;
pub(crate) mod release;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use veer_crds::v1alpha1::{PodCIDR, PodCIDRStatus};

use crate::context::Context;
use crate::error::{self, Error, found};
use crate::slim::SlimNode;
use crate::spoken::spoken;
use life::{Life, View};

/// Field manager of this controller.
const MANAGER: &str = "veer-operator/pod-cidr";

/// How often the pods of a node that takes no part any more are looked at.
const LOOK: Duration = Duration::from_secs(15);

/// Brings one claim to where it should be.
pub(crate) async fn reconcile(claim: Arc<PodCIDR>, context: Arc<Context>) -> Result<Action, Error> {
    let node_name = claim.spec.node_name.clone();
    let node = context.member(&node_name);
    if node.is_none() && context.nodes.get(&node_name).is_some() {
        return leave(&claim, &context).await;
    }
    let network = context.node_networks.get(&node_name);
    let report = context.reports.get(&node_name);
    let siblings: Vec<Arc<PodCIDR>> = context
        .claims
        .all()
        .into_iter()
        .filter(|c| c.spec.node_name == node_name && c.name_any() != claim.name_any())
        .collect();
    let view = View {
        claim: &claim,
        node_uid: node.as_ref().map(|n| n.uid()),
        network: network.as_deref(),
        endpoints: spoken(report.as_deref()).endpoints,
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
            Ok(Action::requeue(again.unwrap_or(Duration::from_mins(10))))
        }
        Life::Surplus => {
            let mut ledger = context.ledger.lock().await;
            release::forget(&context, &mut ledger, &claim).await?;
            tracing::info!(node = node_name, cidr = %claim.spec.cidr, "removed a second claim");
            Ok(Action::await_change())
        }
        Life::Over => {
            let nodes: Api<SlimNode> = Api::all(context.client.clone());
            let what = format!("look for node {node_name}");
            if found(nodes.get(&node_name).await)
                .map_err(error::api(what))?
                .is_some()
            {
                return Ok(Action::requeue(Duration::from_secs(5)));
            }
            let mut ledger = context.ledger.lock().await;
            release::release(&context, &mut ledger, &claim).await?;
            tracing::info!(node = node_name, cidr = %claim.spec.cidr, "released");
            Ok(Action::await_change())
        }
    }
}

/// The Node is there and takes no part any more: its block is kept while a pod with
/// a network of its own is bound to it, whether its agent still runs or not.
async fn leave(claim: &PodCIDR, context: &Context) -> Result<Action, Error> {
    let node = &claim.spec.node_name;
    if release::is_empty(context, node).await? {
        let mut ledger = context.ledger.lock().await;
        release::release(context, &mut ledger, claim).await?;
        tracing::info!(node, cidr = %claim.spec.cidr, "released: the node takes no part");
        return Ok(Action::await_change());
    }
    let old = claim.status.clone().unwrap_or_default();
    let status = PodCIDRStatus {
        state: life::LEAVING.to_owned(),
        orphaned_since: None,
        ..old.clone()
    };
    if status != old {
        let api: Api<PodCIDR> = Api::all(context.client.clone());
        crate::apply::status(&api, &claim.name_any(), MANAGER, &status, None).await?;
    }
    Ok(Action::requeue(LOOK))
}
