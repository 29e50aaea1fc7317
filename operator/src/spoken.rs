//! What a node's agent said last.

use std::borrow::Cow;

use veer_crds::v1alpha1::NodeNetwork;

use crate::slim::{SlimReport, SlimReportStatus};

/// The agent's report; nothing, if it has said nothing yet. An agent of before
/// NodeReports says the same in its NodeNetwork.
pub(crate) fn spoken<'a>(
    network: Option<&NodeNetwork>,
    report: Option<&'a SlimReport>,
) -> Cow<'a, SlimReportStatus> {
    if let Some(report) = report.filter(|r| !r.status.boot_id.is_empty()) {
        return Cow::Borrowed(&report.status);
    }
    let status = network.and_then(|n| n.status.as_ref());
    Cow::Owned(
        status.map_or_else(SlimReportStatus::default, |old| SlimReportStatus {
            addresses: old.addresses.clone(),
            probes: old.probes.clone(),
            identity_serial: old.identity_serial.clone(),
            endpoints: old.endpoints,
            boot_id: old.boot_id.clone(),
            conditions: old.conditions.clone(),
        }),
    )
}
