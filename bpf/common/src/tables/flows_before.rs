//! `FLOWS`: the flows of layout 4, which programs of that layout may still record while
//! an upgrade replaces them one after the other.

use super::{MapKind, Table, Tuple};

/// Entries of layout 4, by the tuple of the packets that opened the flow, without its
/// asker. Programs of that layout alone add to it.
#[derive(Debug)]
pub enum FlowsBefore {}

impl Table for FlowsBefore {
    type Key = Tuple;
    type Value = FlowBefore;
    const NAME: &'static str = "FLOWS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 65_536;
}

impl FlowsBefore {
    /// The constant of the programs until when they look here: nanoseconds as
    /// `bpf_ktime_get_ns` counts. 0: never, and the verifier removes the code.
    pub const UNTIL: &'static str = "FLOWS_BEFORE_UNTIL";
    /// For how long after the takeover, in nanoseconds: a day. A flow that has seen a
    /// packet of its opener has an entry in [`super::Flows`], and programs of layout 4
    /// may be left on devices for as long as no agent goes on with the takeover.
    pub const FOR: u64 = 24 * 3600 * 1_000_000_000;
}

/// An entry of layout 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowBefore {
    /// As [`super::FlowEntry::expires_at`].
    pub expires_at: u64,
    /// As [`super::FlowEntry::state`], of which there were the four lowest bits.
    pub state: u32,
    /// As [`super::FlowEntry::began`].
    pub began: u32,
}

plain!(FlowBefore, 16);
