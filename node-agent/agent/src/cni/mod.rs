//! The CNI side: the socket that veer-cni and the `veer` command talk to, and
//! what it does for them.

mod add;
mod check;
pub(crate) mod conflist;
mod del;
mod drops;
pub(crate) mod foreign;
pub(crate) mod gc;
pub(crate) mod portmap;
mod query;
pub(crate) mod recover;
pub(crate) mod results;
pub(crate) mod rewire;
pub(crate) mod server;

pub(crate) use query::readable_counters;

use veer_agent_api::{Failure, code};

/// A failure of the agent's own.
pub(crate) fn internal(msg: String) -> Failure {
    Failure {
        code: code::INTERNAL,
        msg,
        details: String::new(),
    }
}
