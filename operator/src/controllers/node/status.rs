//! The condition `CIDRAllocated` of a NodeNetwork, the one condition there that
//! is the operator's.

use ipnet::IpNet;
use kube::Api;
use serde_json::json;
use veer_crds::v1alpha1::NodeNetwork;

use crate::condition::Report;
use crate::error::Error;

use super::apply::Outcome;

/// Field manager of the condition: not the agent's, so neither drops the
/// other's.
const MANAGER: &str = "veer-operator/node-condition";

/// Type of the condition.
pub(crate) const CIDR_ALLOCATED: &str = "CIDRAllocated";

fn report(outcome: &Outcome) -> Report {
    match &outcome.problem {
        None => Report {
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
        Some(problem) => Report {
            type_: CIDR_ALLOCATED,
            status: false,
            reason: problem.reason(),
            message: problem.to_string(),
        },
    }
}

/// Writes the condition if it is not as it should be.
pub(crate) async fn settle(
    api: &Api<NodeNetwork>,
    name: &str,
    current: Option<&NodeNetwork>,
    outcome: &Outcome,
) -> Result<(), Error> {
    let old = current
        .and_then(|n| n.status.as_ref())
        .map(|s| s.conditions.as_slice());
    let old = old.unwrap_or_default();
    let generation = current.and_then(|n| n.metadata.generation);
    let wanted = report(outcome).over(old, generation);
    if old.contains(&wanted) {
        return Ok(());
    }
    let status = json!({ "conditions": [wanted] });
    crate::apply::status(api, name, MANAGER, status, None).await?;
    Ok(())
}
