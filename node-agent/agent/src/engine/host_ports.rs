//! hostPorts between two rounds: a pod's ADD waits for their rules.

use std::sync::mpsc::Sender;

use veer_api_client::chain;

use super::Engine;
use veer_agent_core::repair::RoundLog;

impl Engine {
    /// Writes the rules of hostPorts, and tells those who wait for them.
    pub(super) fn host_ports(&mut self, waiting: Vec<Sender<Result<(), String>>>) {
        if self.converger.decommissioned || self.told_to_go() {
            return;
        }
        let mut done = RoundLog::default();
        let outcome = self.converger.rules(&self.index.read(), &mut done);
        self.repairs.take_in(done);
        let outcome = outcome.map_err(|error| chain(&error));
        if let Err(error) = &outcome {
            tracing::error!(%error, "cannot write hostPorts; the next round will");
        }
        for one in waiting {
            // A caller that has given up undoes its own changes.
            let _ = one.send(outcome.clone());
        }
    }
}
