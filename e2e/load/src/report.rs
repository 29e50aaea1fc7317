//! What the ends of flows saw.

use serde::{Deserialize, Serialize};

/// Length of a [`Moment`] in milliseconds.
pub const MOMENT_MS: u64 = 100;

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
    /// Its ends of flows.
    pub ends: Vec<End>,
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
    /// Longest time between two arrivals, microseconds.
    pub longest_gap_us: u64,
    /// When that ended, nanoseconds since 1970.
    pub longest_gap_at: u64,
    /// The furthest that sending was behind its own clock, microseconds: the
    /// share of this process, and of the machine under it, in a gap.
    pub longest_delay_us: u64,
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
