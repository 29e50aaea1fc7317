//! `IPCACHE`: who an address is.

use super::{MapKind, Table};
use crate::address::PrefixKey;

/// Pods of the cluster, and one row per pod CIDR and node address; the longest prefix
/// wins.
#[derive(Debug)]
pub enum Ipcache {}

impl Table for Ipcache {
    type Key = PrefixKey;
    type Value = IpcacheEntry;
    const NAME: &'static str = "IPCACHE";
    const KIND: MapKind = MapKind::LpmTrie;
    const CAPACITY: usize = 131_072;
}

/// Who a prefix is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// Security identity.
    pub identity: u32,
    /// Where it is: [`crate::value::NODE_ID_LOCAL`], a remote's id, [`crate::value::NODE_ID_NONE`] or
    /// [`crate::value::NODE_ID_DENIED`].
    pub node_id: u32,
}

plain!(IpcacheEntry, 8);
