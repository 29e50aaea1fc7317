//! What can go wrong when a cluster is made, used or removed. Each text says
//! what was tried; where the reader can do something about it, also what.

use std::{io, process::ExitStatus, time::Duration};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the cluster library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A command ended with another status than 0.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Its standard error, or its output where that is empty.
        output: String,
    },
    /// A condition did not come true before its deadline.
    #[error("{what}: not so after {} s; last seen: {seen}", waited.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// What the last look found instead.
        seen: String,
    },
    /// Something is missing or in the way; the text says what to do.
    #[error("{0}")]
    State(String),
    /// What should be JSON is not, or lacks a field.
    #[error("{what}: {source}")]
    Json {
        /// What was read.
        what: String,
        /// Where it went wrong.
        source: serde_json::Error,
    },
    /// A capture file cannot be read.
    #[error("no capture of Ethernet frames: {0}")]
    Capture(#[source] pcap_file::PcapError),
    /// A certificate could not be made.
    #[error("make the certificate of {subject}: {source}")]
    Certificate {
        /// Its common name.
        subject: String,
        /// Why.
        source: rcgen::Error,
    },
}

/// Adds what was tried to an I/O result.
pub(crate) trait IoContext<T> {
    /// Names what was tried.
    fn what(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}
