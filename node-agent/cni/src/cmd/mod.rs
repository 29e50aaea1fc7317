//! One module per verb of CNI.

mod add;
mod check;
mod del;
mod gc;
mod status;
mod version;

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::Config;
use crate::environment::{Environment, Verb};
use crate::error::Error;
use crate::version as cni_version;

/// How long ADD, DEL and GC may take. The agent gives up earlier and says why;
/// the kubelet gives a sandbox 4 minutes.
const LONG: Duration = Duration::from_secs(90);
/// How long CHECK and STATUS, which change nothing, may take.
const SHORT: Duration = Duration::from_secs(10);

/// Directory in which container runtimes name the network namespaces of sandboxes.
const NETNS: &str = "/run/netns";

/// Carries out the verb of `environment`. The text is what to print: empty for
/// verbs that have no result.
pub(crate) fn run(environment: &Environment, config: &Config) -> Result<String, Error> {
    if environment.verb == Verb::Version {
        return version::run(config);
    }
    if !cni_version::is_supported(&config.cni_version) {
        return Err(Error::IncompatibleVersion {
            version: config.cni_version.clone(),
        });
    }
    if config.name.is_empty() {
        return Err(Error::InvalidConfig(
            "name of the network is missing: give it one",
        ));
    }
    let nothing = |()| String::new();
    match environment.verb {
        Verb::Add => add::run(environment, config),
        Verb::Del => del::run(environment, config).map(nothing),
        Verb::Check => check::run(environment, config).map(nothing),
        Verb::Gc => gc::run(environment, config).map(nothing),
        Verb::Status => status::run(environment, config).map(nothing),
        Verb::Version => version::run(config),
    }
}

/// Refuses `verb` in a configuration of a CNI version before `since`.
fn require(config: &Config, verb: &'static str, since: &'static str) -> Result<(), Error> {
    if cni_version::has(&config.cni_version, since) {
        return Ok(());
    }
    Err(Error::VerbOfLaterVersion {
        verb,
        since,
        version: config.cni_version.clone(),
    })
}

/// The path by which the agent finds the namespace that the runtime calls
/// `netns`. The agent looks from its own mount namespace, where the node's
/// symbolic links (/var/run to /run) need not exist, so the directory's are
/// resolved here. The file's own name stays: in /proc it is a link to no file.
/// The agent cannot see a path that is not below [`NETNS`], because it is not in the
/// node's process namespace.
fn resolve_netns(config: &Config, netns: &str, environment: &Environment) -> Result<String, Error> {
    let resolve = || {
        let path = Path::new(netns);
        fs::metadata(path)?;
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
            _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
        }
    };
    let named = config.on_node(NETNS);
    let named = fs::canonicalize(&named).unwrap_or(named);
    match resolve() {
        Ok(path) if path.starts_with(named) => Ok(path.to_string_lossy().into_owned()),
        Ok(_) => Err(Error::UnnamedNetns {
            pod: environment.subject(),
            netns: netns.to_owned(),
        }),
        Err(source) => Err(Error::NoNetns {
            pod: environment.subject(),
            netns: netns.to_owned(),
            source,
        }),
    }
}
