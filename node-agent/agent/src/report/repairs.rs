//! What the agent did on its own: counted for the statuses and the metrics, told in log
//! and Events.

use std::collections::BTreeMap;

use veer_agent_core::repair::{Kind, Ledger, Note, RoundLog};
use veer_agent_kernel::lock::Lock;

use super::events::Events;

/// Repairs since the agent started.
#[derive(Debug)]
pub(crate) struct Repairs {
    ledger: Lock<Ledger>,
    events: Events,
}

impl Repairs {
    /// None yet.
    pub(crate) fn new(events: Events) -> Self {
        Self {
            ledger: Lock::default(),
            events,
        }
    }

    /// Counts one thing that somebody else changed or removed and that was put
    /// back. `what` says what was found: "route 10.244.2.0/24 was removed".
    pub(crate) fn enter(&self, kind: Kind, what: String) {
        self.ledger.lock().enter(kind, what);
    }

    /// Tells in log and Events what was put back since the last call.
    pub(crate) fn tell(&self) {
        let sentences = self.ledger.lock().sentences();
        for sentence in sentences {
            tracing::warn!("{sentence}");
            self.events.warn("Repaired", sentence);
        }
    }

    /// Enters the repairs of a log and tells its notes.
    pub(crate) fn take_in(&self, mut done: RoundLog) {
        let (repairs, notes) = done.take();
        for (kind, what) in repairs {
            self.enter(kind, what);
        }
        for Note {
            reason,
            text,
            warning,
        } in notes
        {
            if warning {
                tracing::warn!("{text}");
                self.events.warn(reason, text);
            } else {
                tracing::info!("{text}");
                self.events.normal(reason, text);
            }
        }
    }

    /// How often what was put back, by kind.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.ledger.lock().counts()
    }
}
