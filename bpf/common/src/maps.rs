//! Old names of [`crate::tables`].

pub use crate::tables::{ALL, MapKind, MapSpec};
use crate::tables::{
    Configuration, Counters, Decisions, Endpoints, FlowSlots, Flows, Fragments, Heartbeat,
    Interfaces, Ipcache, Nodes, Remotes, Samples, Table,
};

/// See [`Configuration`].
pub const CONFIG: &str = Configuration::NAME;
/// See [`Endpoints`].
pub const ENDPOINTS: &str = Endpoints::NAME;
/// See [`Interfaces`].
pub const INTERFACES: &str = Interfaces::NAME;
/// See [`Ipcache`].
pub const IPCACHE: &str = Ipcache::NAME;
/// See [`Nodes`].
pub const NODES: &str = Nodes::NAME;
/// See [`Remotes`].
pub const REMOTES: &str = Remotes::NAME;
/// See [`Flows`].
pub const FLOWS: &str = Flows::NAME;
/// See [`FlowSlots`].
pub const FLOW_SLOTS: &str = FlowSlots::NAME;
/// See [`Fragments`].
pub const FRAGMENTS: &str = Fragments::NAME;
/// See [`Counters`].
pub const COUNTERS: &str = Counters::NAME;
/// See [`Decisions`].
pub const DECISIONS: &str = Decisions::NAME;
/// See [`Samples`].
pub const SAMPLES: &str = Samples::NAME;
/// See [`Heartbeat`].
pub const HEARTBEAT: &str = Heartbeat::NAME;
/// See [`Remotes`].
pub const REMOTES_MAX: usize = Remotes::CAPACITY;
/// See [`FlowSlots`].
pub const FIRST_FOREIGN_SHARE: u16 = FlowSlots::FIRST_FOREIGN_SHARE;
