//! NodeReport.status: written at most every few seconds, or at once if a client
//! waits for it, and read about every minute, because the agent does not watch it.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use veer_api_client::chain;
use veer_crds::v1alpha1::{NodeReport, NodeReportStatus};

use super::{
    content::{StatusReport, Urgent},
    keep::{self, Todo, Written, own_part, todo},
};
use crate::report::retry;

/// Least time between two writes.
const LEAST: Duration = Duration::from_millis(200);
/// Time between two writes that are not urgent, from the shortest to the longest.
const PACE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(6));
/// Time between two looks at the object, in the same sense.
const LOOK: (Duration, Duration) = (Duration::from_mins(1), Duration::from_secs(90));
/// Waits after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// Conditions that are the agent's.
const KINDS: [&str; 3] = ["Degraded", "Ready", "UniformMTU"];

fn status_of(report: &NodeReport) -> Value {
    own_part(&report.status.clone().unwrap_or_default(), &KINDS)
}

/// State of the task.
#[derive(Default)]
struct Memory {
    /// The conditions as last reported, by an earlier agent too.
    conditions: Vec<Condition>,
    written: Option<Written>,
    urgent: Option<Urgent>,
    failures: u32,
}

impl Memory {
    fn wanted(&mut self, report: &StatusReport) -> Value {
        let judgements = report.judgements.iter().cloned();
        self.conditions = judgements
            .map(|judgement| judgement.over(&self.conditions, None))
            .collect();
        let status = NodeReportStatus {
            conditions: self.conditions.clone(),
            ..report.node.clone()
        };
        own_part(&status, &KINDS)
    }
}

/// Keeps it until the engine ends. `repaired` is called for foreign edits.
pub(super) async fn keep(
    api: Api<NodeReport>,
    name: &str,
    mut reports: watch::Receiver<StatusReport>,
    repaired: impl Fn(String),
) {
    let mut memory = Memory::default();
    if let Ok(Some(found)) = api.get_opt(name).await
        && let Some(status) = found.status
    {
        memory.conditions = status.conditions;
    }
    if reports.changed().await.is_err() {
        return;
    }
    // When the next write is due, urgent or not, and the next look.
    let (mut soon, mut paced) = (Instant::now(), Instant::now());
    let mut look = Instant::now() + retry::between(LOOK);
    loop {
        let report = reports.borrow_and_update().clone();
        let wanted = memory.wanted(&report);
        let urgent = report.urgent();
        let news = memory.written.as_ref().is_none_or(|w| w.wanted != wanted);
        let due = match (&memory.urgent, news) {
            (Some(told), true) if *told == urgent => Some(paced),
            (_, true) => Some(soon),
            (_, false) => None,
        };
        let now = Instant::now();
        let result = if due.is_some_and(|due| due <= now) {
            write(&api, name, wanted, &mut memory).await.map(|()| {
                memory.urgent = Some(urgent);
                soon = Instant::now() + LEAST;
                paced = Instant::now() + retry::between(PACE);
            })
        } else if look <= now {
            look = now + retry::between(LOOK);
            put_back(&api, name, wanted, &mut memory, &repaired).await
        } else {
            let next = due.unwrap_or(look).min(look);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                changed = reports.changed() => if changed.is_err() { return },
            }
            continue;
        };
        match result {
            Ok(()) => memory.failures = 0,
            Err(error) => {
                // The operator makes the object; until then there is nowhere to
                // report to.
                if !matches!(&error, kube::Error::Api(e) if e.code == 404) {
                    tracing::warn!(error = %chain(&error), "cannot write the NodeReport; trying again");
                }
                tokio::time::sleep(retry::after(&error, memory.failures, BACKOFF)).await;
                memory.failures += 1;
            }
        }
    }
}

async fn write(
    api: &Api<NodeReport>,
    name: &str,
    wanted: Value,
    memory: &mut Memory,
) -> Result<(), kube::Error> {
    let object = keep::write(api, name, &wanted, status_of).await?;
    memory.written = Some(Written {
        stored: status_of(&object),
        wanted,
    });
    Ok(())
}

/// Looks at the object, and writes it again where somebody else did.
async fn put_back(
    api: &Api<NodeReport>,
    name: &str,
    wanted: Value,
    memory: &mut Memory,
    repaired: &impl Fn(String),
) -> Result<(), kube::Error> {
    let found = api.get(name).await?;
    match todo(&wanted, &status_of(&found), memory.written.as_ref()) {
        Todo::PutBack => {
            write(api, name, wanted, memory).await?;
            repaired(format!("the status of NodeReport {name} was changed"));
        }
        // Changes are written when they are due.
        Todo::Nothing | Todo::Write => {}
    }
    Ok(())
}
