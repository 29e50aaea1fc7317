//! STATUS: asks the agent whether ADD can be served.

use serde::de::IgnoredAny;
use veer_agent_api::{Failure, Request, code};

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;

/// Succeeds when the agent serves ADD. An agent that does not answer is
/// "not available" here and not "try again", as the specification has it.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<(), Error> {
    super::require(config, "STATUS", "1.1.0")?;
    let subject = environment.subject();
    match agent::ask::<IgnoredAny>(config, &Request::Status, &subject, super::SHORT) {
        Ok(IgnoredAny) => Ok(()),
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
