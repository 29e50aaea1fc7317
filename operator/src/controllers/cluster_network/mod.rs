//! ClusterNetwork: reports what there is, and moves the routing mode.
//!
//! The spec is the user's and never written here. The epoch is written to the status
//! first, under the version read, so that of two leaders one fails; the nodes get
//! their orders after that.

mod build;
pub(crate) mod epoch;
pub(crate) mod initial;
mod news;
mod rollout;
mod status;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Resource, ResourceExt};
use kube_runtime::controller::Action;
use kube_runtime::events::EventType;
use veer_crds::condition;
use veer_crds::v1alpha1::{
    CLUSTER_NETWORK, ClusterNetwork, ClusterNetworkStatus, Epoch, NodeNetwork,
};

use crate::context::{Context, GuardedNetwork};
use crate::error::Error;
use build::ClusterObjects;
use news::News;

/// Field manager of this controller.
const MANAGER: &str = "veer-operator/cluster-network";

/// How often it is looked at without a change.
const SLOW: Duration = Duration::from_mins(5);
/// How many nodes get their orders at a time.
const TELL: usize = 8;

/// Brings the status and the nodes' epochs to where they should be.
pub(crate) async fn reconcile(
    network: Arc<GuardedNetwork>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let network = match &network.0 {
        Ok(network) if network.name_any() == CLUSTER_NETWORK => network,
        // Any other name is refused by the CRD's own rule.
        Ok(_) => return Ok(Action::await_change()),
        Err(invalid) => return refuse(&context, invalid).await,
    };
    let seen = ClusterObjects::read(&context, &network.spec).await;
    let problems = validate::problems(&network.spec, &seen.nodes);
    let wish = build::wish(network);
    let now = condition::now().0;
    let plan = epoch::plan(&wish, &build::members(network, &seen), now);
    let status = status::build(network, &seen, &plan, &problems, now);

    let api: Api<ClusterNetwork> = Api::all(context.client.clone());
    if network.status.as_ref() != Some(&status) {
        let version = network.meta().resource_version.as_deref();
        crate::apply::status(&api, CLUSTER_NETWORK, MANAGER, &status, version).await?;
        announce(&context, network, &status, &plan).await;
    }
    tell(&context, &seen, &plan).await?;
    let retry = plan.retry_at.map(|time| time.as_second() - now.as_second());
    let retry = retry.and_then(|seconds| u64::try_from(seconds.max(1)).ok());
    Ok(Action::requeue(retry.map_or(SLOW, |seconds| {
        SLOW.min(Duration::from_secs(seconds))
    })))
}

/// Writes the epoch to each node whose order differs.
async fn tell(context: &Context, seen: &ClusterObjects, plan: &epoch::Plan) -> Result<(), Error> {
    let api: Api<NodeNetwork> = Api::all(context.client.clone());
    let mut orders = Vec::new();
    for (name, order) in &plan.orders {
        let Some(network) = seen.networks.get(name) else {
            continue;
        };
        if network.spec.epoch.as_ref() != Some(order) {
            let version = network.meta().resource_version.clone();
            orders.push(tell_one(api.clone(), name.clone(), order.clone(), version));
        }
    }
    stream::iter(orders)
        .buffer_unordered(TELL)
        .try_collect()
        .await
}

async fn tell_one(
    api: Api<NodeNetwork>,
    name: String,
    order: Epoch,
    version: Option<String>,
) -> Result<(), Error> {
    let spec = serde_json::json!({ "epoch": order });
    crate::apply::spec(&api, &name, MANAGER, spec, version.as_deref()).await?;
    Ok(())
}

async fn announce(
    context: &Context,
    network: &ClusterNetwork,
    status: &ClusterNetworkStatus,
    plan: &epoch::Plan,
) {
    let old = network.status.clone().unwrap_or_default();
    if old.epoch != status.epoch {
        let Epoch {
            mode,
            number,
            phase,
            attempt,
            ..
        } = plan.epoch;
        tracing::info!(?mode, number, ?phase, attempt, "routing epoch");
    }
    for News {
        type_,
        reason,
        note,
    } in news::news(&old, status, plan)
    {
        if type_ == EventType::Warning {
            // A pair that fails in every attempt is reported once.
            context.event(network, type_, reason, note).await;
        } else if let Err(error) = context.publish(network, type_, reason, note).await {
            tracing::warn!(reason, "cannot publish an event: {error}");
        }
    }
}

/// Reports that the object cannot be read; the nodes keep their orders.
async fn refuse(
    context: &Context,
    invalid: &kube::core::error_boundary::InvalidObject,
) -> Result<Action, Error> {
    tracing::error!("ClusterNetwork default cannot be read: {}", invalid.error);
    let api: Api<ClusterNetwork> = Api::all(context.client.clone());
    let condition = status::unreadable(&invalid.error, invalid.metadata.generation);
    let body = serde_json::json!({ "conditions": [condition] });
    // The answer would be as unreadable as the object that was read.
    let manager = "veer-operator/cluster-network-unreadable";
    match crate::apply::status(&api, CLUSTER_NETWORK, manager, body, None).await {
        Err(Error::Api { source, .. }) if matches!(*source, kube::Error::SerdeError(_)) => {}
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    Ok(Action::await_change())
}
