//! The agent's status, in two objects with different readers.
//!
//! NodeNetwork.status is what other nodes' datapath needs: every agent watches it,
//! so a write goes to every node of the cluster. It is written when it changes, and
//! nothing that changes with every pod is in it. NodeReport.status is for people
//! and the operator; no agent watches it. It is written at most every few seconds,
//! at once where the operator waits for it.
//!
//! Both are compared with what the API server has, so that a foreign edit is put
//! back.

mod content;
mod keep;
mod network;
mod report;

use kube::{Api, Client};
use tokio::sync::watch;

use super::repairs::Repairs;
pub(crate) use content::{ReportInputs, StatusReport};
use veer_agent_core::repair::Kind;

/// Keeps both statuses of the node `name` as the engine reports, until it ends.
pub(crate) async fn run(
    client: Client,
    name: &str,
    repairs: &Repairs,
    reports: watch::Receiver<StatusReport>,
) {
    let repaired = |what: String| {
        repairs.enter(Kind::Status, what);
        repairs.tell();
    };
    let (networks, nodes) = (Api::all(client.clone()), Api::all(client));
    tokio::join!(
        network::keep(networks, name, reports.clone(), repaired),
        report::keep(nodes, name, reports, repaired),
    );
}

#[cfg(test)]
mod tests;
