//! veer's CNI plugin.
//!
//! Input: the CNI environment variables and a network configuration on standard
//! input. Output: a CNI result or a CNI error as JSON on standard output; the
//! exit status is 1 with an error. The work is the agent's: the plugin checks
//! what it was given, asks over the agent's socket and puts the answer into the
//! shape that the configuration's CNI version has.
//!
//! Invariants: it never waits without a deadline; it writes nothing but the
//! queue of DELs that found no agent; the one other program that it runs is
//! portmap, for a pod whose hostPorts that made; DEL succeeds when veer is gone, and the last
//! one then takes away what is left of veer.

#![forbid(unsafe_code)]

mod agent;
mod cmd;
mod config;
mod environment;
mod error;
mod farewell;
mod portmap;
mod queue;
mod result;
mod version;

use std::io::{Read, Write};
use std::process::ExitCode;

use crate::config::Config;
use crate::environment::Environment;
use crate::error::{Error, ErrorObject};

/// Longest configuration taken from standard input, in bytes. A GC names every
/// attachment of the node: 250 pods make about 40 KiB.
const MAX_STDIN: usize = 4 << 20;

fn main() -> ExitCode {
    let mut cni_version = version::NEWEST.to_owned();
    let (output, code) = match run(&mut cni_version) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => (
            ErrorObject::new(&error, &cni_version).to_json(),
            ExitCode::FAILURE,
        ),
    };
    // A verb without a result (DEL, CHECK, GC, STATUS) prints nothing.
    if output.is_empty() {
        return code;
    }
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{output}").and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs one verb. `cni_version` becomes the configuration's as soon as it is
/// known, so that an error is reported in it.
fn run(cni_version: &mut String) -> Result<String, Error> {
    let environment = Environment::from_process()?;
    let config = Config::parse(&read_bounded(std::io::stdin().lock(), MAX_STDIN)?)?;
    if version::is_supported(&config.cni_version) {
        cni_version.clone_from(&config.cni_version);
    }
    cmd::run(&environment, &config)
}

/// Everything up to the end of `input`, or an error when that is more than
/// `limit` bytes.
fn read_bounded(input: impl Read, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    input
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::ReadConfig)?;
    if bytes.len() > limit {
        return Err(Error::OversizedConfig { limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
        assert_eq!(read_bounded(&b"1234"[..], 4).unwrap(), b"1234");
        assert!(matches!(
            read_bounded(&b"12345"[..], 4),
            Err(Error::OversizedConfig { limit: 4 })
        ));
    }

    #[test]
    fn endless_configuration_ends_at_the_limit() {
        assert!(matches!(
            read_bounded(std::io::repeat(b' '), MAX_STDIN),
            Err(Error::OversizedConfig { .. })
        ));
    }
}
