//! One module per thing shown: its question to the agent and its table.

mod drops;
mod endpoint;
pub(crate) mod flow;
mod identity;
mod ipcache;
mod metrics;
mod remote;
pub(crate) mod service;
mod status;
pub(crate) mod traffic;
mod tunnel;

use anyhow::Context;
use serde::de::DeserializeOwned;
use veer_agent_api::Request;

use crate::arguments::{Bpf, Command, Flow, Format, Service, Traffic};
use crate::output;

/// Asks the agent and gives back its answer.
pub(crate) type Ask<'a> = &'a dyn Fn(&Request) -> anyhow::Result<serde_json::Value>;

/// A command's question and its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View<'a> {
    Status,
    Endpoint,
    Identity,
    Ipcache,
    Tunnel,
    Remote,
    Metrics,
    Drops,
    Flow(&'a flow::Options),
    Service(&'a service::Options),
    Traffic(&'a traffic::Options),
}

impl<'a> View<'a> {
    /// The view of a command, if it is one that asks the agent.
    pub(crate) fn of(command: &'a Command) -> Option<Self> {
        match command {
            Command::Status => Some(Self::Status),
            Command::Endpoint(_) | Command::Bpf(Bpf::Endpoint(_)) => Some(Self::Endpoint),
            Command::Identity(_) => Some(Self::Identity),
            Command::Ipcache(_) | Command::Bpf(Bpf::Ipcache(_)) => Some(Self::Ipcache),
            Command::Tunnel(_) | Command::Bpf(Bpf::Tunnel(_)) => Some(Self::Tunnel),
            Command::Remote(_) => Some(Self::Remote),
            Command::Metrics(_) | Command::Bpf(Bpf::Metrics(_)) => Some(Self::Metrics),
            Command::Drops(_) => Some(Self::Drops),
            Command::Flow(Flow::List(options)) => Some(Self::Flow(options)),
            Command::Service(Service::List(options)) => Some(Self::Service(options)),
            Command::Traffic(Traffic::List(options)) => Some(Self::Traffic(options)),
            Command::Monitor(_) | Command::Version | Command::Completion { .. } => None,
        }
    }

    /// Whether it is shown again and again, until somebody ends it.
    pub(crate) fn goes_on(self) -> bool {
        matches!(self, Self::Flow(options) if options.watch)
    }

    /// The words of the command line that show it.
    pub(crate) fn words(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Status => &["status"],
            Self::Endpoint => &["endpoint", "list"],
            Self::Identity => &["identity", "list"],
            Self::Ipcache => &["ipcache", "list"],
            Self::Tunnel => &["tunnel", "list"],
            Self::Remote => &["remote", "list"],
            Self::Metrics => &["metrics", "list"],
            Self::Drops => &["drops", "list"],
            Self::Flow(_) => &["flow", "list"],
            Self::Service(_) => &["service", "list"],
            Self::Traffic(_) => &["traffic", "list"],
        };
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::Flow(options) => options.add_to(&mut words),
            Self::Service(options) => options.add_to(&mut words),
            Self::Traffic(options) => options.add_to(&mut words),
            Self::Status
            | Self::Endpoint
            | Self::Identity
            | Self::Ipcache
            | Self::Tunnel
            | Self::Remote
            | Self::Metrics
            | Self::Drops => {}
        }
        words
    }
}

/// Text of `view`.
pub(crate) fn show(view: View<'_>, format: Format, ask: Ask<'_>) -> anyhow::Result<String> {
    match view {
        View::Status => {
            let status = answer(ask, &Request::NodeStatus)?;
            output::render(&status, format, status::table)
        }
        View::Endpoint => {
            let rows: Vec<_> = answer(ask, &Request::Endpoints)?;
            output::render(&rows, format, |rows| endpoint::table(rows))
        }
        View::Identity => {
            let rows: Vec<_> = answer(ask, &Request::Identities)?;
            output::render(&rows, format, |rows| identity::table(rows))
        }
        View::Ipcache => {
            let rows: Vec<_> = answer(ask, &Request::Ipcache)?;
            output::render(&rows, format, |rows| ipcache::table(rows))
        }
        View::Tunnel => {
            let rows = tunnel::rows(answer(ask, &Request::Remotes)?);
            output::render(&rows, format, |rows| tunnel::table(rows))
        }
        View::Remote => {
            let rows: Vec<_> = answer(ask, &Request::Remotes)?;
            output::render(&rows, format, |rows| remote::table(rows))
        }
        View::Metrics => {
            let rows: Vec<_> = answer(ask, &Request::Counters)?;
            output::render(&rows, format, |rows| metrics::table(rows))
        }
        View::Drops => {
            let rows: Vec<_> = answer(ask, &Request::Drops)?;
            output::render(&rows, format, |rows| drops::table(rows))
        }
        View::Flow(options) => flow::list(options, format, ask),
        View::Service(options) => service::list(options, format, ask),
        View::Traffic(options) => traffic::list(options, format, ask),
    }
}

/// The agent's answer to a question.
pub(crate) fn answer<T: DeserializeOwned>(ask: Ask<'_>, request: &Request) -> anyhow::Result<T> {
    serde_json::from_value(ask(request)?).context(
        "the answer of veer-agent is not understood: command and agent may differ in version \
         (veer version, kubectl get nodenetworks -o yaml)",
    )
}
