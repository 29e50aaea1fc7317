//! NodeNetwork.status: written when it changes, and when the watch shows that it
//! is not as it was written.

use std::time::Duration;

use kube::Api;
use serde_json::Value;
use tokio::{sync::watch, time::Instant};
use veer_api_client::{chain, version};
use veer_crds::v1alpha1::NodeNetwork;

use super::{
    content::StatusReport,
    keep::{self, Todo, Written, own_part, todo},
};
use crate::report::retry;

/// How long what the watch shows may be older than what was written.
const ECHO: Duration = Duration::from_secs(10);
/// A look without a reason.
const LOOK: Duration = Duration::from_secs(30);
/// Waits after failures.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

fn status_of(network: &NodeNetwork) -> Value {
    own_part(&network.status.clone().unwrap_or_default(), &[])
}

/// Keeps it until the engine ends. `repaired` is called for foreign edits.
pub(super) async fn keep(
    api: Api<NodeNetwork>,
    name: &str,
    mut reports: watch::Receiver<StatusReport>,
    repaired: impl Fn(String),
) {
    let mut written: Option<(Written, u64, Instant)> = None;
    let mut failures = 0;
    if reports.changed().await.is_err() {
        return;
    }
    loop {
        let mut wait = LOOK;
        let report = reports.borrow_and_update().clone();
        // The operator makes the object; until then there is nowhere to report to.
        if let Some(seen) = &report.seen {
            let wanted = own_part(&report.network, &[]);
            let last = written.as_ref();
            let behind = last.filter(|(_, at, _)| seen.version < *at);
            let found = match behind {
                None => Some(own_part(&seen.status, &[])),
                Some((_, _, since)) if since.elapsed() < ECHO => None,
                // The watch is long behind what was written, or the store was set
                // back.
                Some(_) => api.get(name).await.ok().map(|o| status_of(&o)),
            };
            let last = last.map(|(w, ..)| w);
            let work = match (&found, last) {
                (Some(found), _) => todo(&wanted, found, last),
                (None, Some(last)) if last.wanted == wanted => Todo::Nothing,
                (None, _) => Todo::Write,
            };
            if work != Todo::Nothing {
                match keep::write(&api, name, &wanted, status_of).await {
                    Ok(object) => {
                        failures = 0;
                        if work == Todo::PutBack {
                            repaired(format!("the status of NodeNetwork {name} was changed"));
                        }
                        let done = Written {
                            stored: status_of(&object),
                            wanted,
                        };
                        written = Some((done, version::of(&object), Instant::now()));
                    }
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "cannot write NodeNetwork.status; trying again");
                        wait = retry::after(&error, failures, BACKOFF);
                        failures += 1;
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                }
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(wait, reports.changed()).await {
            return;
        }
    }
}
