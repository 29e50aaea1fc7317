//! NodeNetwork.status: what the agent reports, by server-side apply under its
//! own field manager.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;
use veer_crds::v1alpha1::{Epoch, NodeNetwork, NodeNetworkStatus, ProbeReport, UplinkStatus};

use crate::{
    attachments::Attachments, desired::Facts, held::Held, publish::FIELD_MANAGER, shared::Shared,
};

/// Least time between two writes.
const PACE: Duration = Duration::from_millis(200);
/// Wait before a failed write is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// The status is written again after this, whatever happened to it.
const REFRESH: Duration = Duration::from_mins(5);

/// What is reported, without times.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    /// Not reported: the object that holds a report. One that was made again, or
    /// lost its status, makes this a new report.
    object: String,
    held_pod_cidrs: Vec<IpNet>,
    addresses: Vec<IpAddr>,
    applied: Option<Epoch>,
    probes: Option<ProbeReport>,
    identity_serial: String,
    uplinks: Vec<UplinkStatus>,
    mtu: u32,
    endpoints: usize,
    repairs: BTreeMap<String, i64>,
    not_ready: String,
    degraded: String,
    decommissioned: bool,
}

impl Report {
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of the report; a struct of them would be the report again"
    )]
    pub(crate) fn new(
        shared: &Shared,
        held: &Held,
        facts: &Facts,
        attachments: &Attachments,
        applied: Option<Epoch>,
        probes: Option<ProbeReport>,
        mtu: u32,
        degraded: &str,
        decommissioned: bool,
    ) -> Self {
        let (identity_serial, object) = {
            let index = shared.index();
            let own = index.nodes.get(index.own());
            (
                index.identity_serial.clone(),
                own.map(|n| n.reported.clone()).unwrap_or_default(),
            )
        };
        let not_ready = shared.plan().not_ready.clone();
        Self {
            object,
            held_pod_cidrs: if decommissioned {
                Vec::new()
            } else {
                held.pod_cidrs.clone()
            },
            addresses: facts.addresses.clone(),
            applied,
            probes,
            identity_serial,
            uplinks: attachments.uplinks(facts),
            mtu,
            endpoints: shared.store().len(),
            repairs: shared
                .counts()
                .into_iter()
                .map(|(kind, times)| (kind, i64::try_from(times).unwrap_or(i64::MAX)))
                .collect(),
            not_ready,
            degraded: degraded.to_owned(),
            decommissioned,
        }
    }

    fn status(&self, boot_id: &str, conditions: Vec<Condition>) -> NodeNetworkStatus {
        NodeNetworkStatus {
            held_pod_cidrs: self.held_pod_cidrs.clone(),
            addresses: self.addresses.clone(),
            applied: self.applied.clone(),
            kept_form: None,
            path_mtu: 0,
            probes: self.probes.clone(),
            identity_serial: self.identity_serial.clone(),
            uplinks: self.uplinks.clone(),
            mtu: i32::try_from(self.mtu).unwrap_or(i32::MAX),
            host_routing: "BPF".into(),
            endpoints: i32::try_from(self.endpoints).unwrap_or(i32::MAX),
            boot_id: boot_id.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            decommissioned: self.decommissioned,
            repairs: self.repairs.clone(),
            conditions,
        }
    }

    fn conditions(&self) -> [(&'static str, bool, &'static str, String); 2] {
        let ready = self.not_ready.is_empty();
        let reason = if self.decommissioned {
            "Decommissioned"
        } else if ready {
            "Serving"
        } else {
            "NotServing"
        };
        let message = if ready {
            "pods can be wired".to_owned()
        } else {
            self.not_ready.clone()
        };
        let degraded = !self.degraded.is_empty();
        [
            ("Ready", ready, reason, message),
            (
                "Degraded",
                degraded,
                if degraded {
                    "RepairFailed"
                } else {
                    "AsDesired"
                },
                if degraded {
                    self.degraded.clone()
                } else {
                    "devices, programs, maps and routes are as they should be".to_owned()
                },
            ),
        ]
    }
}

/// Times of the conditions' last changes.
#[derive(Default)]
struct Transitions(BTreeMap<&'static str, (bool, Time)>);

impl Transitions {
    fn conditions(&mut self, report: &Report) -> Vec<Condition> {
        report
            .conditions()
            .into_iter()
            .map(|(kind, status, reason, message)| {
                let since = match self.0.get(kind) {
                    Some((old, since)) if *old == status => since.clone(),
                    _ => Time(Timestamp::now()),
                };
                self.0.insert(kind, (status, since.clone()));
                Condition {
                    type_: kind.to_owned(),
                    status: if status { "True" } else { "False" }.to_owned(),
                    reason: reason.to_owned(),
                    message,
                    last_transition_time: since,
                    observed_generation: None,
                }
            })
            .collect()
    }

    /// Takes over what an earlier agent reported.
    fn adopt(&mut self, status: &NodeNetworkStatus) {
        for condition in &status.conditions {
            for kind in ["Ready", "Degraded"] {
                if condition.type_ == kind {
                    let status = condition.status == "True";
                    self.0
                        .insert(kind, (status, condition.last_transition_time.clone()));
                }
            }
        }
    }
}

/// Writes each new report until the engine ends.
pub(crate) async fn run(client: Client, shared: Arc<Shared>, mut reports: watch::Receiver<Report>) {
    let api: Api<NodeNetwork> = Api::all(client.clone());
    let name = shared.options.node.clone();
    let mut transitions = Transitions::default();
    if let Ok(Some(node)) = api.get_opt(&name).await
        && let Some(status) = node.status
    {
        transitions.adopt(&status);
    }
    if reports.changed().await.is_err() {
        return;
    }
    loop {
        let report = reports.borrow_and_update().clone();
        let status = report.status(&shared.boot_id, transitions.conditions(&report));
        let wait = match write(&api, &name, &status).await {
            Ok(()) => REFRESH,
            // The operator makes the object; until then there is nowhere to
            // report to.
            Err(kube::Error::Api(e)) if e.code == 404 => AGAIN,
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "cannot report; trying again");
                AGAIN
            }
        };
        tokio::time::sleep(PACE).await;
        if let Ok(Err(_)) = tokio::time::timeout(wait, reports.changed()).await {
            return;
        }
    }
}

async fn write(
    api: &Api<NodeNetwork>,
    name: &str,
    status: &NodeNetworkStatus,
) -> Result<(), kube::Error> {
    let object = json!({
        "apiVersion": "veer.dev/v1alpha1",
        "kind": "NodeNetwork",
        "metadata": { "name": name },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(name, &params, &Patch::Apply(&object))
        .await
        .map(drop)
}
