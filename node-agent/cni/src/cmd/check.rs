//! CHECK: asks the agent whether a sandbox is still wired as ADD left it.

use serde::de::IgnoredAny;
use veer_agent_api::{Check, Request};

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;

/// Checks the sandbox.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<(), Error> {
    super::require(config, "CHECK", "0.4.0")?;
    if config.prev_result.is_none() {
        return Err(Error::InvalidConfig(
            "CHECK needs prevResult, the result of the ADD",
        ));
    }
    let attachment = environment.attachment()?;
    let netns = environment.required_netns()?;
    let path = super::resolve_netns(config, netns, environment)?;
    let request = Request::Check(Check {
        attachment,
        netns: path,
        addresses: config.previous_addresses(),
    });
    agent::ask::<IgnoredAny>(config, &request, &environment.subject(), super::SHORT)?;
    Ok(())
}
