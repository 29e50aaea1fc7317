//! What the ends of flows saw.

use serde::{Deserialize, Serialize};

/// Length of a [`Moment`] in milliseconds.
pub const MOMENT_MS: u64 = 100;
/// A process that does not run for longer than this, in milliseconds, has
/// paused.
pub const PAUSE_MS: u64 = 5;
/// How many gaps of one end of a flow are reported: the longest.
pub const GAPS: usize = 64;

/// Which end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Side {
    /// The one that opened it.
    Client,
    /// The one that was asked.
    Server,
}

/// What one process saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaceReport {
    /// Datagrams that arrived and found a socket's buffer full: lost by this
    /// process, not by the network.
    pub overflown: u64,
    /// When the process did not run for longer than [`PAUSE_MS`]. What is missing
    /// then was lost by the process or its machine, not by the network. In order; no
    /// two touch.
    pub pauses: Vec<Span>,
    /// Its ends of flows.
    pub ends: Vec<End>,
}

/// A stretch of time, nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// When it began.
    pub from: u64,
    /// When it ended.
    pub to: u64,
}

impl Span {
    /// Nanoseconds.
    pub fn length(self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// What one end of a flow saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The flow.
    pub flow: u32,
    /// Which end.
    pub side: Side,
    /// Datagrams, messages or octets sent by this end.
    pub sent: u64,
    /// The same, received, each once. The server of an echo counts none.
    pub received: u64,
    /// Datagrams that came again.
    pub duplicated: u64,
    /// Datagrams that came after one sent later.
    pub reordered: u64,
    /// Octets or messages of a connection that are not what was sent;
    /// datagrams from another source than the flow began with.
    pub corrupted: u64,
    /// Errors that ended the connection.
    pub resets: Vec<String>,
    /// The longest times between two arrivals, longest first, [`GAPS`] at
    /// most.
    pub gaps: Vec<Span>,
    /// Arrivals over time, from the start of the run.
    pub timeline: Vec<Moment>,
}

/// What arrived within [`MOMENT_MS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Octets of payload.
    pub octets: u32,
    /// The longest gap that ended in it, microseconds.
    pub gap_us: u32,
}
