//! `DECISIONS`: what each program last decided.

use super::{MapKind, Table};
use crate::outcome::Program;

/// Decision records, by [`Program`].
#[derive(Debug)]
pub enum Decisions {}

impl Table for Decisions {
    type Key = u32;
    type Value = Decision;
    const NAME: &'static str = "DECISIONS";
    const KIND: MapKind = MapKind::PerCpuArray;
    const CAPACITY: usize = Program::ALL.len();
}

/// What the last packet of one program on one CPU was decided to be. A redirect
/// verdict does not tell its target; this does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// [`crate::outcome::Verdict`] or [`crate::outcome::DropReason`] as a number.
    pub outcome: u32,
    /// Redirect target; 0: none.
    pub ifindex: u32,
    /// VNI written; 0: none.
    pub vni: u32,
    /// Id of the remote node; 0: none.
    pub node_id: u32,
    /// Identity of the sender as derived here.
    pub source_identity: u32,
    /// Identity of the destination as derived here.
    pub destination_identity: u32,
    /// [`crate::outcome::FlowState`] as a number.
    pub flow: u16,
    /// 1: the programs translated the packet, see [`super::Record::before`].
    pub translated: u16,
}

plain!(Decision, 28);
