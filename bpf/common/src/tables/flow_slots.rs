//! `FLOW_SLOTS`: whose the notes of translated flows are.

use super::{Endpoints, FlowKey, Flows, MapKind, Table};

/// Noted tuples, by who opened the flow and place.
#[derive(Debug)]
pub enum FlowSlots {}

impl Table for FlowSlots {
    type Key = FlowSlot;
    type Value = FlowKey;
    const NAME: &'static str = "FLOW_SLOTS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = Flows::CAPACITY;
}

impl FlowSlots {
    /// Notes of one local pod, a power of two.
    pub const PER_ENDPOINT: usize = 4096;
    /// Shares, by their address, of those elsewhere who open translated flows to pods
    /// here; a power of two.
    pub const FOREIGN_SHARES: u16 = 32;
    /// Notes of one such share, a power of two.
    pub const PER_FOREIGN_SHARE: usize = 1024;
    /// The first share in the place of a pod's number in [`FlowSlot`]; pods have less.
    pub const FIRST_FOREIGN_SHARE: u16 = u16::MAX - (Self::FOREIGN_SHARES - 1);
}

const _: () = {
    assert!(FlowSlots::PER_ENDPOINT.is_power_of_two());
    assert!(FlowSlots::FOREIGN_SHARES.is_power_of_two());
    assert!(FlowSlots::PER_FOREIGN_SHARE.is_power_of_two());
    assert!(
        FlowSlots::FOREIGN_SHARES as usize * FlowSlots::PER_FOREIGN_SHARE <= Flows::CAPACITY / 2
    );
    assert!(Endpoints::CAPACITY < FlowSlots::FIRST_FOREIGN_SHARE as usize);
};

/// A place for one note among those of a local pod.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowSlot {
    /// [`super::Endpoint::endpoint_id`], or [`FlowSlots::FIRST_FOREIGN_SHARE`] and more.
    pub endpoint_id: u16,
    /// Below [`FlowSlots::PER_ENDPOINT`].
    pub slot: u16,
}

plain!(FlowSlot, 4);
