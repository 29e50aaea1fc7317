//! Old paths of [`crate::tables`]' values.

pub use crate::tables::{
    CONFIG_PAD, Config, Counter, Decision, DropSample, Endpoint, FORM_NATIVE, FORM_NONE,
    FORM_TUNNEL, FlowNote, FragmentPorts, Interface, IpcacheEntry, Remote, SAMPLE_BYTES,
};

/// Node id in [`crate::tables::IpcacheEntry::node_id`] for what is not on any node.
pub const NODE_ID_NONE: u32 = 0;
/// Node id in [`crate::tables::IpcacheEntry::node_id`], with identity `world`: what is not on any
/// node and may send nothing to this one. Nodes and pods have longer prefixes,
/// or the same with their own ids.
pub const NODE_ID_DENIED: u32 = u32::MAX;
/// Node id of the node itself.
pub const NODE_ID_LOCAL: u32 = 1;
/// The first id of another node; ids are this agent's own, not cluster-wide,
/// and index [`crate::tables::Remotes`].
pub const NODE_ID_FIRST_REMOTE: u32 = 2;

/// See [`Config::DENIES`].
pub const CONFIG_DENIES: u32 = Config::DENIES;
/// See [`Remote::ACCEPT_NATIVE`].
pub const REMOTE_ACCEPT_NATIVE: u32 = Remote::ACCEPT_NATIVE;
