//! One question to the agent, its failures told with the pod they are about.

use std::time::Duration;

use serde::de::DeserializeOwned;
use veer_agent_api::client::{self, AskError};
use veer_agent_api::{Request, SOCKET};

use crate::config::Config;
use crate::error::Error;

/// Asks the node's agent; `subject` is what errors name.
pub(crate) fn ask<T: DeserializeOwned>(
    config: &Config,
    request: &Request,
    subject: &str,
    deadline: Duration,
) -> Result<T, Error> {
    let socket = config.on_node(SOCKET);
    client::ask(&socket, request, deadline).map_err(|error| match error {
        AskError::Absent(source) => Error::AgentAbsent {
            subject: subject.to_owned(),
            socket,
            source,
        },
        AskError::NotUnderstood(source) => Error::DecodeAnswer {
            subject: subject.to_owned(),
            source,
        },
        AskError::Refused(failure) => Error::Refused(failure),
    })
}
