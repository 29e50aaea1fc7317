//! DEL: has the agent unwire a sandbox, now or, when it does not answer, later.
//!
//! A DEL that fails keeps its pod from going away, so only one that can be
//! neither carried out nor kept does.

use serde::de::IgnoredAny;
use veer_agent_api::{DELETE_QUEUE, Del, Request};

use crate::agent;
use crate::config::Config;
use crate::environment::Environment;
use crate::error::Error;
use crate::farewell;
use crate::portmap;
use crate::queue::{self, Kept};

/// Unwires the sandbox.
pub(super) fn run(environment: &Environment, config: &Config) -> Result<(), Error> {
    let attachment = environment.attachment()?;
    // A namespace that is gone took the pod's side with it; the agent removes
    // the rest by the attachment.
    let netns = environment
        .netns()
        .and_then(|netns| super::resolve_netns(config, netns, environment).ok());
    // Its failure keeps nothing else from being undone; the DEL comes again.
    let portmap = portmap::remove(config, &attachment);
    let request = Request::Del(Del {
        attachment: attachment.clone(),
        netns,
    });
    let answer = agent::ask::<IgnoredAny>(config, &request, &environment.subject(), super::LONG);
    match answer {
        Ok(IgnoredAny) => portmap,
        Err(Error::AgentAbsent { .. } | Error::DecodeAnswer { .. }) => {
            match queue::keep(&config.on_node(DELETE_QUEUE), &attachment, &request)? {
                Kept::Queued => {}
                Kept::Uninstalled => farewell::after_last(config, &attachment),
            }
            portmap
        }
        Err(error) => Err(error),
    }
}
