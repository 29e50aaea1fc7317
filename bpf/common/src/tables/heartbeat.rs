//! `HEARTBEAT`: when the agent had its last round.

use super::{MapKind, Table};

/// The time of the agent's last round, as `bpf_ktime_get_ns` counts, at index 0; 0: it
/// has had none.
#[derive(Debug)]
pub enum Heartbeat {}

impl Table for Heartbeat {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "HEARTBEAT";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = 1;
}

impl Heartbeat {
    /// Nanoseconds without a round after which an agent counts as dead.
    pub const LASTS: u64 = 30_000_000_000;

    /// Whether an agent whose last round was at `last` counts as dead. `now` gives
    /// nanoseconds as `last` counts them; it is not called where there was no round.
    #[inline(always)]
    pub fn is_silent(last: u64, now: impl FnOnce() -> u64) -> bool {
        last != 0 && now() > last.saturating_add(Self::LASTS)
    }
}
