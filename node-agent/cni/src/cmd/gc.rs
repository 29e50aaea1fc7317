//! GC: has the agent unwire every sandbox that the runtime does not name.

use serde::de::IgnoredAny;
use veer_agent_api::Request;

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;

/// Collects what no sandbox uses.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<(), Error> {
    super::require(config, "GC", "1.1.0")?;
    let request = Request::Gc {
        valid: config.valid_attachments()?,
    };
    agent::ask::<IgnoredAny>(config, &request, &environment.subject(), super::LONG)?;
    Ok(())
}
