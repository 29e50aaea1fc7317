//! `FLOW_SLOTS`: to whom the entries of translated flows are charged.

use super::{Endpoints, FlowKey, Flows, MapKind, Table};
use crate::address::{Address, V6};

/// Tuples of flow entries, by opener and place.
#[derive(Debug)]
pub enum FlowSlots {}

impl Table for FlowSlots {
    type Key = FlowSlot;
    type Value = FlowKey;
    const NAME: &'static str = "FLOW_SLOTS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = Flows::CAPACITY;
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "places and shares have few bits"
)]
impl FlowSlots {
    /// Entries of one local pod, a power of two.
    pub const PER_ENDPOINT: usize = 4096;
    /// Shares, by address, of clients elsewhere that open translated flows to pods here;
    /// a power of two.
    pub const FOREIGN_SHARES: u16 = 32;
    /// Entries of one such share, a power of two.
    pub const PER_FOREIGN_SHARE: usize = 1024;
    /// The number of the first share in [`FlowSlot`]; pods have smaller ones.
    pub const FIRST_FOREIGN_SHARE: u16 = u16::MAX - (Self::FOREIGN_SHARES - 1);
    /// How many places are tried for a new entry.
    pub const ATTEMPTS: u32 = 8;

    /// The share whose places flows opened by an address elsewhere take. Pods here do
    /// not pay for clients elsewhere, and those only for clients of the same share.
    #[inline(always)]
    pub fn foreign_share<A: Address>(source: A) -> u16 {
        let [a, b, c, d] = V6(source.words()).quarters().map(u32::from_be);
        // Knuth's multiplicative hash; its high bits depend on all below.
        let mixed = (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d).wrapping_mul(0x9e37_79b1);
        Self::FIRST_FOREIGN_SHARE + (mixed >> (32 - Self::FOREIGN_SHARES.trailing_zeros())) as u16
    }

    /// The place, among those of `opener` (a pod's number, or [`Self::foreign_share`]),
    /// that the entry of `key` takes if the ones before are in use: [`Self::ATTEMPTS`]
    /// different ones, spread over all.
    #[inline(always)]
    pub const fn place(opener: u16, key: &FlowKey, attempt: u32) -> u16 {
        let mask = if opener < Self::FIRST_FOREIGN_SHARE {
            Self::PER_ENDPOINT as u32 - 1
        } else {
            Self::PER_FOREIGN_SHARE as u32 - 1
        };
        let mixed = key.mixed();
        // An odd step comes back to the same place only after all the others.
        let step = (mixed >> 16) | 1;
        (mixed.wrapping_add(attempt.wrapping_mul(step)) & mask) as u16
    }
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

/// A place for one entry among those of its opener.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowSlot {
    /// [`super::Endpoint::endpoint_id`], or [`FlowSlots::FIRST_FOREIGN_SHARE`] and more.
    pub endpoint_id: u16,
    /// Below [`FlowSlots::PER_ENDPOINT`].
    pub slot: u16,
}

plain!(FlowSlot, 4);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::address::V6;
    use std::collections::BTreeSet;

    #[test]
    fn the_places_of_a_flow_are_different_and_all_are_used() {
        for (opener, count) in [
            (7, FlowSlots::PER_ENDPOINT),
            (FlowSlots::FIRST_FOREIGN_SHARE, FlowSlots::PER_FOREIGN_SHARE),
        ] {
            let mut used = BTreeSet::new();
            for port in 0..8000u16 {
                let [a, b] = port.to_be_bytes();
                let key = FlowKey::new([10, 0, 0, 1], [10, 0, 0, 2], [a, b], [0, 80], 6);
                let places: BTreeSet<u16> = (0..FlowSlots::ATTEMPTS)
                    .map(|i| FlowSlots::place(opener, &key, i))
                    .collect();
                assert_eq!(places.len(), FlowSlots::ATTEMPTS as usize, "port {port}");
                used.extend(places);
            }
            assert_eq!(used.len(), count);
        }
    }

    #[test]
    fn addresses_elsewhere_are_spread_over_all_shares() {
        let v6 = |i| V6::from_octets([0xfd, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, i]);
        let of_v4 = |i| FlowSlots::foreign_share([10, 0, 2, i]);
        let of_v6 = |i| FlowSlots::foreign_share(v6(i));
        for shares in [
            (0..=255).map(of_v4).collect::<BTreeSet<u16>>(),
            (0..=255).map(of_v6).collect(),
        ] {
            assert_eq!(shares.len(), usize::from(FlowSlots::FOREIGN_SHARES));
            assert_eq!(shares.first(), Some(&FlowSlots::FIRST_FOREIGN_SHARE));
            assert_eq!(shares.last(), Some(&u16::MAX));
        }
    }
}
