//! Old paths of [`crate::tables`]' values.

use crate::node::NodeId;
pub use crate::tables::{
    CONFIG_PAD, Config, Counter, Decision, DropSample, Endpoint, FORM_NATIVE, FORM_NONE,
    FORM_TUNNEL, FlowEntry as FlowNote, FragmentPorts, Interface, IpcacheEntry, Remote,
    SAMPLE_BYTES,
};

/// See [`NodeId::NONE`].
pub const NODE_ID_NONE: u32 = NodeId::NONE.get();
/// See [`NodeId::DENIED`].
pub const NODE_ID_DENIED: u32 = NodeId::DENIED.get();
/// See [`NodeId::LOCAL`].
pub const NODE_ID_LOCAL: u32 = NodeId::LOCAL.get();
/// See [`NodeId::FIRST_REMOTE`].
pub const NODE_ID_FIRST_REMOTE: u32 = NodeId::FIRST_REMOTE.get();

/// See [`Config::DENIES`].
pub const CONFIG_DENIES: u32 = Config::DENIES;
/// See [`Remote::ACCEPT_NATIVE`].
pub const REMOTE_ACCEPT_NATIVE: u32 = Remote::ACCEPT_NATIVE;
