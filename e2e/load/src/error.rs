//! What can go wrong in the program itself. What becomes of traffic is no
//! error: it is in the report.

use std::{io, net::SocketAddr};

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An order that cannot be carried out, or a program that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody greets back at a flow's target.
    #[error("{to} did not answer the greeting of flow {flow}")]
    NoWelcome {
        /// The flow.
        flow: u32,
        /// Its target.
        to: SocketAddr,
    },
    /// An order or an answer that is none.
    #[error("not understood: {0}")]
    Order(#[from] serde_json::Error),
}

/// Says what was to be done when a system call failed.
pub(crate) trait What<T> {
    /// Adds it to the error.
    fn what(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> What<T> for std::result::Result<T, E> {
    fn what(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source: source.into(),
        })
    }
}
