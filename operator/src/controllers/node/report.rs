//! The NodeReport of a node: the object that its agent reports in, and there the
//! condition `CIDRAllocated`, the one that is the operator's.

use ipnet::IpNet;
use kube::Api;
use serde_json::json;
use veer_crds::condition::Judgement;
use veer_crds::v1alpha1::{NodeReport, NodeReportSpec};

use crate::context::Context;
use crate::error::Error;
use crate::slim::{SlimNode, SlimReport};

use super::MANAGER;
use super::apply::Outcome;

/// Field manager of the condition. The agent has another, so neither removes the
/// other's fields.
const CONDITION_MANAGER: &str = "veer-operator/node-condition";

/// Type of the condition.
pub(crate) const CIDR_ALLOCATED: &str = "CIDRAllocated";

fn condition(outcome: &Outcome) -> Judgement {
    match &outcome.problem {
        None => Judgement {
            type_: CIDR_ALLOCATED,
            status: true,
            reason: "Allocated",
            message: outcome
                .blocks
                .iter()
                .map(IpNet::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        },
        Some(problem) => Judgement {
            type_: CIDR_ALLOCATED,
            status: false,
            reason: problem.reason(),
            message: problem.to_string(),
        },
    }
}

/// Makes the object if there is none.
pub(crate) async fn ensure(
    context: &Context,
    node: &SlimNode,
    found: Option<&SlimReport>,
) -> Result<(), Error> {
    let spec = NodeReportSpec {
        node_uid: node.uid().to_owned(),
    };
    if found.is_some_and(|report| report.spec.node_uid == spec.node_uid) {
        return Ok(());
    }
    let api: Api<NodeReport> = Api::all(context.client.clone());
    crate::apply::spec(&api, node.name(), MANAGER, &spec, None).await?;
    Ok(())
}

/// Writes the condition if it is not as it should be.
pub(crate) async fn settle(
    context: &Context,
    node: &SlimNode,
    found: Option<&SlimReport>,
    outcome: &Outcome,
) -> Result<(), Error> {
    let old = found.map(|report| report.status.conditions.as_slice());
    let old = old.unwrap_or_default();
    let wanted = condition(outcome).over(old, None);
    if old.contains(&wanted) {
        return Ok(());
    }
    let api: Api<NodeReport> = Api::all(context.client.clone());
    let status = json!({ "conditions": [wanted] });
    crate::apply::status(&api, node.name(), CONDITION_MANAGER, status, None).await?;
    Ok(())
}
