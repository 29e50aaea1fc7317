//! Node: gives every Node a NodeNetwork with a block of each configured family
//! and a NodeReport, and taints it until its agent has reported since the node's
//! boot.
//!
//! Invariants: a block is taken by creating its PodCIDR and in no other way; a
//! block that any NodeNetwork holds is never given to another node; a node that
//! has a block keeps it, whatever happens to the ClusterNetwork.

pub(crate) mod allocate;
pub(crate) mod apply;
pub(crate) mod believed;
pub(crate) mod build;
mod condition;
pub(crate) mod held;
pub(crate) mod ledger;
mod report;
mod taint;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;
use kube_runtime::events::EventType;
use veer_crds::v1alpha1::NodeNetwork;

use crate::context::Context;
use crate::controllers::pod_cidr::leaving;
use crate::error::Error;
use crate::selection::{Part, Selection};
use crate::slim::SlimNode;
use crate::spoken::spoken;

/// Field manager of this controller.
pub(crate) const MANAGER: &str = "veer-operator/node";

/// How often a node that lacks nothing is looked at.
const SLOW: Duration = Duration::from_mins(10);
/// How often a node that waits for a block is looked at.
const WAITING: Duration = Duration::from_secs(15);

/// Reconciles one Node.
pub(crate) async fn reconcile(node: Arc<SlimNode>, context: Arc<Context>) -> Result<Action, Error> {
    let name = node.name().to_owned();
    let held = context.node_networks.get(&name);
    let network = context.network();
    let selection = Selection::of(network.as_ref().map(|network| &network.spec));
    match selection.part(&node, held.is_some()) {
        Part::Takes => {}
        Part::Leaves => {
            // Its block is released with its last pod, as for a Node that is gone.
            taint::leave(&context, &node).await?;
            return Ok(Action::requeue(SLOW));
        }
        // The ClusterNetwork's appearance queues every node.
        Part::Unknown => return Ok(Action::requeue(SLOW)),
    }
    if let Some((kind, why)) = context.unreadable(&name) {
        // Its correction queues this node.
        let text = format!(
            "{kind} {name} cannot be read ({why}): its agent, or who else has its token, wrote \
             that; this node gets nothing until it is corrected"
        );
        context
            .event(node.as_ref(), EventType::Warning, "Unreadable", text)
            .await;
        return Ok(Action::requeue(SLOW));
    }
    if let Some(held) = held.as_deref().filter(|held| held.spec.decommission) {
        leaving::take_back(&context, held).await?;
    }
    let report = context.reports.get(&name);
    report::ensure(&context, &node, report.as_deref()).await?;
    taint::settle(&context, &node, held.as_deref(), report.as_deref()).await?;
    condition::settle(&context, &node, report.as_deref()).await?;

    let Some(network) = network else {
        return Ok(Action::requeue(SLOW));
    };
    let said = spoken(report.as_deref());
    let claims = context.claims.all();
    let claimed = |block: &IpNet| {
        let mut claims = claims.iter().map(|claim| &claim.spec);
        claims.any(|claim| claim.cidr == *block && claim.node_name == name)
    };
    let wanted = validate::validate(&node, held.as_deref(), &said, &network.spec, claimed);
    let outcome = apply::settle(&context, &wanted, &network.spec).await?;

    let nodes = context.nodes.all();
    // A missing report withdraws nothing.
    let told = || held.iter().flat_map(|held| held.spec.addresses.clone());
    let reported = if said.boot_id.is_empty() {
        told().collect()
    } else {
        said.addresses.clone()
    };
    let addresses = believed::believed(&node, &reported, &network.spec, &nodes);
    let spec = build::spec(node.uid(), &outcome.blocks, &addresses);
    let api: Api<NodeNetwork> = Api::all(context.client.clone());
    // Under the version read or not at all: a leader that was stopped for longer than
    // its Lease must not restore a block that another node has by now.
    match held.as_deref() {
        Some(held) if build::is_as_wanted(&held.spec, &spec) => {}
        Some(held) => {
            let version = held.metadata.resource_version.as_deref();
            crate::apply::spec(&api, &name, MANAGER, &spec, version).await?;
        }
        None => {
            let network = build::object(&name, &spec);
            crate::apply::create(&api, MANAGER, &network).await?;
        }
    }
    take_over(&context, &node, &nodes).await?;
    report::settle(&context, &node, report.as_deref(), &outcome).await?;
    for block in &outcome.allocated {
        let text = format!("{block} is this node's block of pod addresses");
        tracing::info!(node = name, %block, "allocated");
        context
            .event(node.as_ref(), EventType::Normal, "PodCIDRAllocated", text)
            .await;
    }
    if !wanted.refused.is_empty() {
        let text = format!(
            "this node's agent says that it holds {}; refused, since each block must be a share \
             of an entry of spec.podCIDRs of ClusterNetwork default, one of each family: see who \
             has this agent's token; where the block is meant, add its entry",
            held::listed(&wanted.refused)
        );
        context
            .event(node.as_ref(), EventType::Warning, "BlockRefused", text)
            .await;
    }
    Ok(match &outcome.problem {
        None => Action::requeue(SLOW),
        Some(problem) => {
            let text = problem.to_string();
            context
                .event(node.as_ref(), EventType::Warning, problem.reason(), text)
                .await;
            Action::requeue(WAITING)
        }
    })
}

/// Takes this node's addresses from those that have no claim to them any more: a
/// Node that is gone, or another name of the same machine.
async fn take_over(
    context: &Context,
    node: &SlimNode,
    nodes: &[Arc<SlimNode>],
) -> Result<(), Error> {
    let api: Api<NodeNetwork> = Api::all(context.client.clone());
    for other in context.node_networks.all() {
        let (name, told) = (other.name_any(), &other.spec);
        if name == node.name() || !node.addresses().any(|a| told.addresses.contains(&a)) {
            continue;
        }
        let its = context.nodes.get(&name);
        let left = believed::uncontested(&told.addresses, its.as_deref(), nodes);
        if left != told.addresses {
            let spec = build::spec(&told.node_uid, &told.pod_cidrs, &left);
            let version = other.metadata.resource_version.as_deref();
            crate::apply::spec(&api, &name, MANAGER, &spec, version).await?;
            tracing::info!(
                node = name,
                to = node.name(),
                "addresses are another node's now"
            );
        }
    }
    Ok(())
}
