//! Orders to a process and its answers: one JSON value per line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::report::{PlaceReport, Side};

/// Name of the abstract Unix socket on which a process takes orders. There is
/// one per network namespace.
pub const SOCKET: &str = "veer-load";

/// An order. Times are of the machine's clock, nanoseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Open these flows: connect, greet, and wait for the answer. Nothing else
    /// happens meanwhile, so all are opened before any runs.
    Open(Vec<FlowSpec>),
    /// Count, and send on the flows opened here, from this time on.
    Run(u64),
    /// How far are the flows?
    Progress,
    /// Send nothing more from this time on.
    Halt(u64),
    /// Say what was seen, close everything and forget it.
    Report,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// Not done, for this reason.
    Refused(String),
    /// To [`Order::Progress`].
    Progress(Vec<Progress>),
    /// To [`Order::Report`].
    Report(PlaceReport),
}

/// A flow to open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSpec {
    /// Its number, the same at both ends and unique in a run.
    pub flow: u32,
    /// What it carries.
    pub kind: Kind,
    /// Where the other end is, maybe by way of a service.
    pub to: SocketAddr,
}

/// What a flow carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Numbered datagrams, both ways.
    Datagrams {
        /// Per second and direction.
        rate: u32,
        /// Octets of payload, 20 at least.
        size: u16,
    },
    /// Numbered messages on a TCP connection, each answered.
    Echo {
        /// Per second.
        rate: u32,
    },
    /// Octets on a TCP connection, both ways, whose content is checked.
    Bulk {
        /// Octets per second and direction.
        rate: u32,
    },
}

/// How far one end of a flow is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The flow.
    pub flow: u32,
    /// Which end.
    pub side: Side,
    /// Datagrams, messages or octets sent by this end.
    pub sent: u64,
    /// The same, received, each once.
    pub received: u64,
}
