//! `FLOW_PLACES`: to whom the entries of flows are charged.
//!
//! ```text
//! 0        65,536      81,920          180,224         262,144
//! | 256 pods'  | 256 of     | pods in        | elsewhere in  |
//! | × 256      | elsewhere  | common: a      | common: a     |
//! |            | × 64       | window of      | window of     |
//! |            |            | 32,768 each    | 32,768 each   |
//! ```
//!
//! Every entry has a place, and an opener of flows has places of its own that nobody
//! else can take. Beyond those it has a window of places that it shares with others, in
//! which it takes what is free.

use super::{FlowKey, MapKind, Table};
use crate::address::{Address, V6};

/// Places of flow entries, by index.
#[derive(Debug)]
pub enum Places {}

impl Table for Places {
    type Key = u32;
    type Value = Place;
    const NAME: &'static str = "FLOW_PLACES";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = (ELSEWHERE_IN_COMMON.end) as usize;
}

/// Shares of each kind of opener; a power of two.
const SHARES: u32 = 256;
/// Places of one pod's share alone; a power of two.
const OF_A_POD: u32 = 256;
/// Places of one share of addresses elsewhere alone; a power of two.
const OF_ELSEWHERE: u32 = 64;
/// Places of a window; a power of two.
const WINDOW: u32 = 32_768;
/// By how many of [`SHARES`] the windows of neighbours begin apart: odd, and close to the
/// golden section, so that several in a row are spread evenly.
const APART: u32 = 159;

/// A range of places.
#[derive(Clone, Copy)]
struct Range {
    start: u32,
    end: u32,
}

impl Range {
    const fn behind(self, count: u32) -> Self {
        Self {
            start: self.end,
            end: self.end + count,
        }
    }

    const fn count(self) -> u32 {
        self.end - self.start
    }
}

const PODS: Range = Range {
    start: 0,
    end: SHARES * OF_A_POD,
};
const ELSEWHERE: Range = PODS.behind(SHARES * OF_ELSEWHERE);
const PODS_IN_COMMON: Range = ELSEWHERE.behind(98_304);
const ELSEWHERE_IN_COMMON: Range = PODS_IN_COMMON.behind(81_920);

const _: () = {
    assert!(PODS_IN_COMMON.count().is_multiple_of(SHARES));
    assert!(ELSEWHERE_IN_COMMON.count().is_multiple_of(SHARES));
    assert!(WINDOW <= PODS_IN_COMMON.count() && WINDOW <= ELSEWHERE_IN_COMMON.count());
    assert!(Places::CAPACITY.is_power_of_two());
};

/// Whose places a flow may take: one of [`SHARES`] of pods, or one of as many of
/// addresses elsewhere behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u16);

#[expect(
    clippy::cast_possible_truncation,
    reason = "there are a few hundred shares"
)]
impl Share {
    /// The number of the first share of addresses elsewhere.
    const FIRST_ELSEWHERE: u32 = SHARES;
    /// How many there are.
    pub const COUNT: u16 = 2 * SHARES as u16;
    /// How many places of the opener's own are tried for a new entry.
    pub const ATTEMPTS_OWN: u32 = 8;
    /// How many places are tried for a new entry, those in common included. A pod with
    /// 10,000 connections has taken a third of its window, of which twelve places are all
    /// taken once in half a million times.
    pub const ATTEMPTS: u32 = Self::ATTEMPTS_OWN + 12;
    /// With how many attempts all places of a share's window have been tried.
    pub const ALL_ATTEMPTS: u32 = Self::ATTEMPTS_OWN + WINDOW;
    /// The most entries that one share can have.
    pub const LARGEST: u32 = OF_A_POD + WINDOW;

    /// That of a local pod by its number, [`super::Endpoint::endpoint_id`]. Pods whose
    /// numbers differ by a multiple of 256 have one together.
    #[inline(always)]
    pub const fn of_pod(endpoint_id: u16) -> Self {
        Self(endpoint_id & (SHARES as u16 - 1))
    }

    /// That of an address elsewhere, the node's own included: pods here do not pay for
    /// clients elsewhere, and those only for clients of the same share.
    #[inline(always)]
    pub fn of_address<A: Address>(source: A) -> Self {
        let [a, b, c, d] = V6(source.words()).quarters().map(u32::from_be);
        // Knuth's multiplicative hash; its high bits depend on all below.
        let mixed = (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d).wrapping_mul(0x9e37_79b1);
        Self((Self::FIRST_ELSEWHERE + (mixed >> (32 - SHARES.trailing_zeros()))) as u16)
    }

    /// The one with this [`Self::number`].
    #[inline(always)]
    pub const fn numbered(number: u16) -> Self {
        Self(number)
    }

    /// Its number, as [`super::FlowEntry::share`] has it.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// How many places nobody else can take.
    pub const fn own(self) -> u32 {
        if (self.0 as u32) < Self::FIRST_ELSEWHERE {
            OF_A_POD
        } else {
            OF_ELSEWHERE
        }
    }

    /// The index of the place that a flow with this [`FlowKey::hash`] takes if the ones
    /// before are in use, below [`Places::CAPACITY`]. First those of its own, then those
    /// in common, which from attempt [`Self::ALL_ATTEMPTS`] on repeat.
    #[inline(always)]
    pub const fn place(self, hash: u32, attempt: u32) -> u32 {
        let share = self.0 as u32;
        // An odd step comes back to the same place only after all the others.
        let step = (hash >> 16) | 1;
        let spread = hash.wrapping_add(attempt.wrapping_mul(step));
        if attempt < Self::ATTEMPTS_OWN {
            if share < Self::FIRST_ELSEWHERE {
                PODS.start + share * OF_A_POD + (spread & (OF_A_POD - 1))
            } else {
                let nth = share - Self::FIRST_ELSEWHERE;
                ELSEWHERE.start + nth * OF_ELSEWHERE + (spread & (OF_ELSEWHERE - 1))
            }
        } else {
            let (range, nth) = if share < Self::FIRST_ELSEWHERE {
                (PODS_IN_COMMON, share)
            } else {
                (ELSEWHERE_IN_COMMON, share - Self::FIRST_ELSEWHERE)
            };
            // Shares with numbers next to each other have windows far from each other.
            let start = ((nth * APART) & (SHARES - 1)) * (range.count() / SHARES);
            range.start + (start + (spread & (WINDOW - 1))) % range.count()
        }
    }
}

/// The kernel finds the lock of a value by this name (`btf_find_spin_lock` in
/// kernel/bpf/btf.c).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct bpf_spin_lock {
    /// The kernel's own.
    pub val: u32,
}

/// A place for one entry.
///
/// It is free where its key has no entry, or one that names another place. Whoever takes
/// it raises `turn` under the lock, if that still is what it was when the place was
/// judged, writes the key, and raises `turn` again: an odd one says that it is being
/// taken.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Held for the comparison alone.
    pub lock: bpf_spin_lock,
    /// How many times it was taken, twice; odd: it is being taken now.
    pub turn: u32,
    /// Whose it is; zeros: nobody's yet.
    pub key: FlowKey,
}

plain!(Place, 48);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::{address::V6, tables::Tuple};
    use std::collections::BTreeSet;

    fn key(port: u16) -> FlowKey {
        Tuple::new([10, 0, 0, 1], [10, 0, 0, 2], port.to_be_bytes(), [0, 80], 6)
            .canonical()
            .0
    }

    #[test]
    fn the_places_of_a_flow_are_different_and_all_are_used() {
        for share in [
            Share::of_pod(0),
            Share::of_pod(7),
            Share::of_pod(255),
            Share(256),
            Share(511),
        ] {
            let mut used = BTreeSet::new();
            for port in 0..50_000 {
                let hash = key(port).hash();
                let places: BTreeSet<u32> =
                    (0..Share::ATTEMPTS).map(|i| share.place(hash, i)).collect();
                assert_eq!(places.len(), Share::ATTEMPTS as usize, "port {port}");
                used.extend(places);
            }
            let all = share.own() + WINDOW;
            assert_eq!(used.len(), all as usize, "{share:?}");
            assert!(used.iter().all(|p| (*p as usize) < Places::CAPACITY));
        }
    }

    #[test]
    fn nobody_elses_flow_comes_to_the_places_of_a_shares_own() {
        let places = |share: Share, attempts: std::ops::Range<u32>| {
            (0..5_000).flat_map(move |port| {
                let hash = key(port).hash();
                attempts.clone().map(move |i| share.place(hash, i))
            })
        };
        let shares = || (0..512).step_by(31).map(Share);
        let mut owners = std::collections::BTreeMap::new();
        for share in shares() {
            for place in places(share, 0..Share::ATTEMPTS_OWN) {
                assert_eq!(*owners.entry(place).or_insert(share), share);
            }
        }
        for share in shares() {
            let mut common = places(share, Share::ATTEMPTS_OWN..Share::ATTEMPTS);
            assert!(
                common.all(|place| !owners.contains_key(&place)),
                "{share:?}"
            );
        }
    }

    #[test]
    fn pods_with_numbers_next_to_each_other_have_nothing_in_common() {
        let window = |share: Share| -> BTreeSet<u32> {
            (0..WINDOW)
                .map(|i| share.place(0, Share::ATTEMPTS_OWN + i))
                .collect()
        };
        for id in [0, 7, 254] {
            let (one, next) = (window(Share::of_pod(id)), window(Share::of_pod(id + 1)));
            assert_eq!(one.len(), WINDOW as usize);
            assert!(one.is_disjoint(&next), "pods {id} and {}", id + 1);
        }
    }

    #[test]
    fn flows_are_spread_evenly_over_a_window() {
        let share = Share::of_pod(3);
        let mut counts = std::collections::BTreeMap::new();
        for port in 0..=u16::MAX {
            let place = share.place(key(port).hash(), Share::ATTEMPTS_OWN);
            *counts.entry(place).or_insert(0) += 1;
        }
        // 65,536 flows on 32,768 places: 86 % of them have one at least, and hardly any
        // has a dozen.
        assert!(counts.len() > 27_000, "{} places", counts.len());
        assert!(counts.values().all(|count| *count < 14));
    }

    #[test]
    fn addresses_elsewhere_are_spread_over_many_shares() {
        let v6 = |i| V6::from_octets([0xfd, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, i]);
        let of_v4 = |i| Share::of_address([10, 0, 2, i]).0;
        let of_v6 = |i| Share::of_address(v6(i)).0;
        for shares in [
            (0..=255).map(of_v4).collect::<BTreeSet<u16>>(),
            (0..=255).map(of_v6).collect(),
        ] {
            assert!(shares.len() > 150, "{} shares", shares.len());
            assert!(shares.iter().all(|s| (256..512).contains(s)));
        }
    }
}
