//! `NODES`: which node has an address.

use super::{MapKind, Table};
use crate::address::IpKey;

/// Node ids by the addresses of nodes.
#[derive(Debug)]
pub enum Nodes {}

impl Table for Nodes {
    type Key = IpKey;
    type Value = u32;
    const NAME: &'static str = "NODES";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 16_384;
}
