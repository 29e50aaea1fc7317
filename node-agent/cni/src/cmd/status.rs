//! STATUS: asks the agent whether ADD can be served.
//!
//! A runtime that hears no turns its node `NotReady`, and the node's pods leave
//! their Services. So an agent that restarts, or has just started, is no reason:
//! the answer is no only when ADD has not worked for [`PATIENCE`], which the file
//! tells that a serving agent touches in every round.

use std::time::{Duration, SystemTime};

use serde::de::IgnoredAny;
use veer_agent_api::{Failure, Request, SERVED_NAME, SOCKET, code};

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;

/// How long ADD may not work before STATUS says so.
const PATIENCE: Duration = Duration::from_mins(1);

/// Succeeds when the agent serves ADD or did so a moment ago. An agent that does
/// not answer is "not available" here and not "try again", as the specification
/// has it.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<(), Error> {
    super::require(config, "STATUS", "1.1.0")?;
    let subject = environment.subject();
    match agent::ask::<IgnoredAny>(config, &Request::Status, &subject, super::SHORT) {
        Ok(IgnoredAny) => Ok(()),
        Err(Error::AgentAbsent { .. } | Error::Refused(_)) if served_lately(config) => Ok(()),
        Err(absent @ Error::AgentAbsent { .. }) => {
            let details = std::error::Error::source(&absent).map(ToString::to_string);
            Err(Error::Refused(Failure {
                code: code::NOT_AVAILABLE,
                msg: absent.to_string(),
                details: details.unwrap_or_default(),
            }))
        }
        Err(error) => Err(error),
    }
}

/// Whether pods could be wired within [`PATIENCE`]. A time in the future is that
/// of a clock that was set back since.
fn served_lately(config: &Config) -> bool {
    let file = config.on_node(SOCKET).with_file_name(SERVED_NAME);
    std::fs::metadata(file)
        .and_then(|found| found.modified())
        .is_ok_and(|at| {
            SystemTime::now()
                .duration_since(at)
                .is_ok_and(|age| age < PATIENCE)
        })
}
