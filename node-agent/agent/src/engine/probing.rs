//! Jobs of probes: one at a time, in a separate thread.

use std::thread;

use super::{Engine, Probing};
use crate::state::input::Input;
use veer_agent_core::switch::Answer;
use veer_agent_kernel::probe;

impl Engine {
    /// Takes in what a job of probes found. Returns whether there is anything.
    pub(super) fn probed(&mut self, round: u64, answers: Option<Vec<Answer>>) -> bool {
        let Some(answers) = answers else {
            self.probing = Probing::Resting;
            return false;
        };
        self.probing = Probing::Idle;
        self.converger.probed(&self.index.read(), round, answers);
        true
    }

    /// Starts a job of probes where one is wanted and none is under way.
    pub(super) fn probe(&mut self) {
        if self.waiting {
            return;
        }
        if self.probing != Probing::Idle || self.converger.decommissioned {
            return;
        }
        let Some((from, round, asks)) = self.converger.asks(&self.index.read()) else {
            return;
        };
        let engine = self.inbox.clone();
        let job = move || {
            let answers = probe::run(&from, asks)
                .inspect_err(|error| tracing::error!(%error, "cannot probe other nodes"))
                .ok();
            // The engine ends with the process.
            let _ = engine.send(Input::Probed { round, answers });
        };
        match thread::Builder::new().name("probes".into()).spawn(job) {
            Ok(_) => self.probing = Probing::Running,
            Err(error) => tracing::error!(%error, "cannot start a thread for probes"),
        }
    }
}
