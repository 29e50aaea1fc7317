//! `NODES`: which node has an address.

use super::{MapKind, Table};
use crate::{address::IpKey, node::NodeId};

/// Which node has an address, the own ones included: the bare number of a
/// [`NodeId`].
#[derive(Debug)]
pub enum Nodes {}

impl Table for Nodes {
    type Key = IpKey;
    type Value = u32;
    const NAME: &'static str = "NODES";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 16_384;
}

impl Nodes {
    /// The other node that an entry names; `None`: the node itself.
    #[inline(always)]
    pub const fn other(entry: u32) -> Option<NodeId> {
        if entry >= NodeId::FIRST_REMOTE.get() {
            Some(NodeId::stored(entry))
        } else {
            None
        }
    }
}
