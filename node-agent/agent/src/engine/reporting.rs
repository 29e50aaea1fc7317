//! What the engine tells.

use super::Engine;
use crate::report::status::{ReportInputs, StatusReport};

impl Engine {
    /// Tells of the beginning and the end of a time in which not all is well.
    pub(super) fn tell_degraded(&self, reason: &str) {
        let before = &self.converger.degraded;
        if !self.started || before == reason {
            return;
        }
        if reason.is_empty() {
            let note = "devices, programs, maps and routes are as they should be again";
            self.events.normal("AsDesired", note);
        } else {
            self.events.warn("Degraded", reason);
        }
    }

    /// Reports, but not before everything that a report says is known: a status
    /// without addresses would take the node off its peers' maps.
    pub(super) fn report(&self) {
        if self.waiting {
            return;
        }
        let complete = self.index.read().complete;
        if !(complete.nodes_listed && complete.identities) {
            return;
        }
        let not_ready = self.plan.read().not_ready.clone();
        let report = StatusReport::new(ReportInputs {
            index: &self.index.read(),
            not_ready,
            foreign: self.files.foreign().to_owned(),
            repairs: self.repairs.counts(),
            endpoints: self.local.store().len(),
            boot_id: &self.boot_id,
            held: self.held.get(),
            facts: &self.converger.facts,
            attachments: &self.converger.attachments,
            switch: &self.converger.switch,
            mtu: self.converger.pod_mtus.route,
            degraded: (self.converger.degraded_reason, &self.converger.degraded),
            decommissioned: self.converger.decommissioned,
        });
        self.report.send_if_modified(|old| {
            let changed = *old != report;
            if changed {
                *old = report;
            }
            changed
        });
    }
}
