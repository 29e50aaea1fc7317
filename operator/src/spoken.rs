//! The last report of a node's agent.

use std::borrow::Cow;

use crate::slim::{SlimReport, SlimReportStatus};

/// The agent's report; one without a boot id if there is none yet.
pub(crate) fn spoken(report: Option<&SlimReport>) -> Cow<'_, SlimReportStatus> {
    report.map_or_else(
        || Cow::Owned(SlimReportStatus::default()),
        |report| Cow::Borrowed(&report.status),
    )
}
