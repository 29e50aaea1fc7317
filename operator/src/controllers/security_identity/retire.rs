//! Removes unused identities.
//!
//! Unused for a while → Retiring: agents stop assigning it. Every agent has
//! acknowledged that, and lists read from the server show no Pod and no PodEndpoint
//! that has it → deleted, in exactly the version that was judged. Only then may the
//! number be assigned again. A pod that appears in between makes the identity active
//! again, which changes its version.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use serde_json::json;
use veer_crds::labels::NAMESPACE;
use veer_crds::v1alpha1::{IdentityState, SecurityIdentity};

use super::MANAGER;
use super::state::number;
use crate::context::Context;
use crate::error::{Error, api};
use crate::slim::{SlimEndpoint, SlimPod};
use crate::spoken::spoken;

/// How often agents' acknowledgements are looked at.
const ACKNOWLEDGE: Duration = Duration::from_secs(5);
/// How often an identity in use is looked at.
const SLOW: Duration = Duration::from_hours(1);

/// Takes one identity a step towards its deletion, if that is due.
pub(crate) async fn reconcile(
    identity: Arc<SecurityIdentity>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    let used = context.usage.lock().in_use(&identity.spec.labels);
    let since = identity
        .status
        .as_ref()
        .and_then(|s| s.unused_since.as_deref());
    let since: Option<Timestamp> = since.and_then(|text| text.parse().ok());
    let younger = used == Some(true) && is_younger_twin(&identity, &context);
    match (used, since) {
        (None, _) => Ok(Action::requeue(Duration::from_secs(1))),
        (Some(true), _) if younger => retire(&identity, &context).await,
        (Some(true), Some(_)) => {
            mark(&identity, &context, None).await?;
            Ok(Action::requeue(SLOW))
        }
        // A retiring one is made active by whoever assigns.
        (Some(true), None) => Ok(Action::requeue(SLOW)),
        (Some(false), None) => {
            mark(&identity, &context, Some(Timestamp::now())).await?;
            Ok(Action::requeue(context.settings.unused))
        }
        (Some(false), Some(since)) => {
            let passed = Timestamp::now()
                .duration_since(since)
                .max(SignedDuration::ZERO);
            let left = context
                .settings
                .unused
                .saturating_sub(passed.unsigned_abs());
            if left.is_zero() {
                retire(&identity, &context).await
            } else {
                Ok(Action::requeue(left))
            }
        }
    }
}

/// Whether another number stands for the same set and is older: two leaders at
/// once can make two, which is harmless; the younger goes.
fn is_younger_twin(identity: &SecurityIdentity, context: &Context) -> bool {
    let twins = context.usage.numbers().of(&identity.spec.labels);
    let age = |i: &SecurityIdentity| (i.creation_timestamp(), number(i));
    twins
        .iter()
        .filter_map(|twin| context.identities.get(&twin.to_string()))
        .any(|other| {
            other.spec.labels == identity.spec.labels
                && other.spec.state == IdentityState::Active
                && age(&other) < age(identity)
        })
}

/// From active to retiring, or from retiring to gone.
async fn retire(identity: &SecurityIdentity, context: &Context) -> Result<Action, Error> {
    let identities: Api<SecurityIdentity> = Api::all(context.client.clone());
    let name = identity.name_any();
    if identity.spec.state == IdentityState::Active {
        let patch = json!({
            "metadata": { "resourceVersion": identity.metadata.resource_version },
            "spec": { "state": IdentityState::Retiring },
        });
        let params = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        let what = format!("retire identity {name}");
        identities
            .patch(&name, &params, &Patch::Merge(patch))
            .await
            .map_err(api(what))?;
        tracing::info!(number = name, "identity is retiring");
        return Ok(Action::await_change());
    }
    if !acknowledged(identity, context) || is_used_live(identity, context).await? {
        return Ok(Action::requeue(ACKNOWLEDGE));
    }
    crate::apply::delete(&identities, identity).await?;
    tracing::info!(number = name, "identity is gone");
    Ok(Action::await_change())
}

/// Whether every agent that ever reported has seen the identity in its current
/// version. A node that is down delays this: its pods may still have the identity.
fn acknowledged(identity: &SecurityIdentity, context: &Context) -> bool {
    let Some(version) = identity
        .metadata
        .resource_version
        .as_deref()
        .and_then(serial)
    else {
        return false;
    };
    context.node_networks.all().iter().all(|network| {
        let report = context.reports.get(&network.name_any());
        let Some(status) = &network.status else {
            return true;
        };
        let said = spoken(report.as_deref());
        status.decommissioned || serial(&said.identity_serial).is_some_and(|seen| seen >= version)
    })
}

fn serial(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Whether a list read from the server shows a Pod or PodEndpoint that has it.
async fn is_used_live(identity: &SecurityIdentity, context: &Context) -> Result<bool, Error> {
    let Some(namespace) = identity.spec.labels.get(NAMESPACE) else {
        return Ok(false);
    };
    let what = format!("look for users of identity {}", identity.name_any());
    let endpoints: Api<SlimEndpoint> = Api::namespaced(context.client.clone(), namespace);
    let list = endpoints
        .list(&ListParams::default())
        .await
        .map_err(api(what.clone()))?;
    let number = number(identity).map(i64::from);
    if list
        .items
        .iter()
        .any(|endpoint| endpoint.spec.identity == number)
    {
        return Ok(true);
    }
    let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), namespace);
    let list = pods.list(&ListParams::default()).await.map_err(api(what))?;
    let usage = context.usage.lock();
    Ok(list
        .items
        .iter()
        .filter(|pod| pod.has_network())
        .any(|pod| {
            // The namespace of a pod is known unless it is new: then wait.
            usage
                .canonical(pod)
                .is_none_or(|set| set == identity.spec.labels)
        }))
}

/// Writes since when it is unused.
async fn mark(
    identity: &SecurityIdentity,
    context: &Context,
    since: Option<Timestamp>,
) -> Result<(), Error> {
    let identities: Api<SecurityIdentity> = Api::all(context.client.clone());
    let name = identity.name_any();
    let status = since.map_or_else(|| json!({}), |at| json!({ "unusedSince": at.to_string() }));
    crate::apply::status(&identities, &name, MANAGER, status, None).await?;
    Ok(())
}
