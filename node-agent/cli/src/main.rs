//! The `veer` command, which kubectl also finds as `kubectl veer`.
//!
//! Input: the answers of a node's agent, over its socket on the node itself or
//! through `kubectl exec` into the agent's pod (`--node`). Output: a table, JSON
//! or YAML on standard output; errors with the next step on standard error.
//!
//! Invariant: it changes nothing.

#![forbid(unsafe_code)]

mod arguments;
mod command;
mod filter;
mod labels;
mod monitor;
mod output;
mod remote;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use veer_agent_api::client::{self, AskError};
use veer_agent_api::{Request, SOCKET};

use crate::arguments::{Arguments, Command};
use crate::command::View;

/// How long the agent may take for an answer.
const DEADLINE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last way to report an error; a failure here cannot be reported.
            let _ = writeln!(std::io::stderr().lock(), "veer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let mut definition = Arguments::command();
    if std::env::args()
        .next()
        .is_some_and(|name| name.ends_with("kubectl-veer"))
    {
        definition = definition.bin_name("kubectl veer");
    }
    let arguments = Arguments::from_arg_matches(&definition.get_matches_mut())?;
    if let Some(why) = arguments.contradiction() {
        definition.error(ErrorKind::ArgumentConflict, why).exit();
    }
    if let Command::Monitor(options) = &arguments.command {
        return monitor::run(&arguments, options);
    }
    let text = if let Some(view) = View::of(&arguments.command) {
        if let Some(node) = &arguments.node {
            return remote::run(node, &arguments, view);
        }
        let ask = |request: &Request| ask(&arguments, request);
        if let View::Flow(options) = view
            && options.watch
        {
            return command::flow::watch(options, arguments.output, &ask);
        }
        command::show(view, arguments.output, &ask)?
    } else if let Command::Completion { shell } = arguments.command {
        completion(shell)?
    } else {
        format!("veer {}", env!("CARGO_PKG_VERSION"))
    };
    // It is the last output: whoever reads may be gone.
    output::print(text.trim_end())?;
    Ok(())
}

/// Asks this node's agent.
fn ask(arguments: &Arguments, request: &Request) -> anyhow::Result<serde_json::Value> {
    client::ask(&arguments.socket, request, DEADLINE).map_err(|error| explain(arguments, error))
}

/// Why there is no answer, and what to do.
fn explain(arguments: &Arguments, error: AskError) -> anyhow::Error {
    match error {
        AskError::Absent(error) if !arguments.socket.exists() => anyhow::Error::new(error).context(format!(
            "there is no agent at {}: from another machine name a node (veer --node NODE status), \
             on the node look at its agent (kubectl get pods -A -o wide -l {})",
            arguments.socket.display(),
            remote::SELECTOR
        )),
        AskError::Absent(error) => anyhow::Error::new(error).context(format!(
            "veer-agent does not answer on {}: run as root, or look at its log (kubectl logs -n \
             kube-system -l {})",
            arguments.socket.display(),
            remote::SELECTOR
        )),
        AskError::NotUnderstood(_) | AskError::Refused(_) => error.into(),
    }
}

fn completion(shell: clap_complete::Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "veer", &mut script);
    String::from_utf8(script).context("the completion script is not text")
}

/// Default path of the agent's socket.
const fn default_socket() -> &'static str {
    SOCKET
}
