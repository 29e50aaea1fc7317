//! Who talks to whom, as the programs of a node count it.

use serde::{Deserialize, Serialize};

/// Packets from one identity to another that a program ended alike. Those between pods of
/// two nodes are counted on both: as sent on the one, as delivered on the other.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct TrafficRow {
    /// Security identity of the sender; 0: not known.
    pub source: u32,
    /// Security identity of the receiver; 0: not known.
    pub destination: u32,
    /// The program.
    pub program: String,
    /// What became of them: a verdict, or the reason of a drop.
    pub outcome: String,
    /// They were dropped.
    pub dropped: bool,
    /// How many.
    pub packets: u64,
    /// Their bytes together, of the frames.
    pub bytes: u64,
}
