//! What the engine is told.

use std::sync::mpsc::Sender;

use veer_agent_core::{index::Event, switch::Answer};

/// A trigger of the engine.
#[derive(Debug)]
pub(crate) enum Input {
    /// The API server said something.
    Api(Event),
    /// Local pods changed in a way that wants a look at their identities.
    Identities,
    /// A pod with hostPorts came or went. The sender waits for their rules.
    HostPorts(Option<Sender<Result<(), String>>>),
    /// Links, addresses or routes of the node changed.
    Kernel,
    /// A job of probes has ended.
    Probed {
        /// The round it belongs to.
        round: u64,
        /// What came of it; `None`: it could not be done.
        answers: Option<Vec<Answer>>,
    },
}
