//! One question to the agent, its failures told with the pod they are about.

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use veer_agent_api::Request;
use veer_agent_api::client::{self, AskError};

use crate::error::Error;

/// Asks the agent that listens on `socket`; `subject` is what errors name.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    subject: &str,
    deadline: Duration,
) -> Result<T, Error> {
    client::ask(socket, request, deadline).map_err(|error| match error {
        AskError::Absent(source) => Error::AgentAbsent {
            subject: subject.to_owned(),
            socket: socket.to_owned(),
            source,
        },
        AskError::NotUnderstood(source) => Error::DecodeAnswer {
            subject: subject.to_owned(),
            source,
        },
        AskError::Refused(failure) => Error::Refused(failure),
    })
}
