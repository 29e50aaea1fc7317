//! This node's pods: what the CNI verbs do for them, what puts them right afterwards,
//! and their records on disk.

pub(crate) mod add;
pub(crate) mod check;
pub(crate) mod del;
pub(crate) mod gc;
mod handle;
pub(crate) mod identities;
pub(crate) mod local;
pub(crate) mod noticed;
pub(crate) mod objects;
pub(crate) mod portmap;
mod records;
pub(crate) mod recover;
mod results;
pub(crate) mod rewire;

pub(crate) use handle::Pods;
use veer_agent_api::{Failure, code};

/// A failure of the agent's own.
pub(crate) fn internal(msg: String) -> Failure {
    Failure {
        code: code::INTERNAL,
        msg,
        details: String::new(),
    }
}
