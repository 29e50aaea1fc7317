//! `FLOWS`: flows that the host's stack translated.

use super::{MapKind, PairWords, Table};
use crate::address::Address;

/// Entries of translated flows, by tuple.
#[derive(Debug)]
pub enum Flows {}

impl Table for Flows {
    type Key = FlowKey;
    type Value = FlowEntry;
    const NAME: &'static str = "FLOWS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 65_536;
}

/// A flow that the host's stack translated; its replies go up the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// Nanoseconds as `bpf_ktime_get_ns` counts, after which the entry is void.
    pub expires_at: u64,
    /// Bits of what was seen: [`FlowEntry::REPLIED`] and the others.
    pub state: u32,
    /// When the flow began, by the same clock in units of 67 ms (2²⁶ ns); 0: not
    /// known.
    pub began: u32,
}

impl FlowEntry {
    /// [`FlowEntry::state`]: a reply was seen.
    pub const REPLIED: u32 = 1;
    /// [`FlowEntry::state`]: RST was seen, or the FINs of both ends.
    pub const CLOSING: u32 = 2;
    /// [`FlowEntry::state`]: the FIN of the end that opened the flow was seen.
    pub const FIN_THERE: u32 = 4;
    /// [`FlowEntry::state`]: the FIN of the other end was seen.
    pub const FIN_BACK: u32 = 8;
}

/// One direction of a flow, exactly as its packets show it. ICMP echo has its
/// identifier in both ports; other protocols without ports have zeros.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// As in [`crate::address::IpKey`].
    pub source: [u8; 16],
    /// As in [`crate::address::IpKey`].
    pub destination: [u8; 16],
    /// Network byte order.
    pub source_port: [u8; 2],
    /// Network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// As in [`crate::address::IpKey`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// A flow; all in network byte order.
    #[inline(always)]
    pub fn new<A: Address>(
        source: A,
        destination: A,
        source_port: [u8; 2],
        destination_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        let ([a, b], [c, d]) = (source.words(), destination.words());
        let (from, to) = (source_port, destination_port);
        Self::of(PairWords {
            addresses: [a, b, c, d],
            middle: u32::from_ne_bytes([from[0], from[1], to[0], to[1]]),
            end: u32::from_ne_bytes([protocol, A::FAMILY, 0, 0]),
        })
    }

    /// The source of a flow of this family.
    #[inline(always)]
    pub fn source_address<A: Address>(&self) -> A {
        let [a, b, ..] = self.words().addresses;
        A::from_words([a, b])
    }

    /// The destination of a flow of this family.
    #[inline(always)]
    pub fn destination_address<A: Address>(&self) -> A {
        let [.., c, d] = self.words().addresses;
        A::from_words([c, d])
    }

    /// The tuple that a reply to this one shows.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        let mut words = self.words();
        let [a, b, c, d] = words.addresses;
        words.addresses = [c, d, a, b];
        words.middle = words.middle.rotate_left(16);
        Self::of(words)
    }

    /// A hash of the tuple.
    #[inline(always)]
    pub const fn mixed(&self) -> u32 {
        // FNV's offset and prime, a word at a time, and a final mix, since its low bits
        // do not depend on the words' high ones.
        // SAFETY: as many bytes, and any of them make integers.
        let words = unsafe { core::mem::transmute::<Self, [u32; 10]>(*self) };
        let mut mixed = 0x811c_9dc5u32;
        let mut at = 0;
        while at < words.len() {
            mixed = (mixed ^ words[at]).wrapping_mul(0x0100_0193);
            at += 1;
        }
        mixed ^= mixed >> 15;
        mixed = mixed.wrapping_mul(0x2c1b_3c6d);
        mixed ^ (mixed >> 13)
    }

    #[inline(always)]
    const fn words(&self) -> PairWords {
        // SAFETY: as many bytes, and any of them make integers.
        unsafe { core::mem::transmute::<Self, PairWords>(*self) }
    }

    #[inline(always)]
    const fn of(words: PairWords) -> Self {
        // SAFETY: as many bytes, and all fields are integers. In words for the
        // same reason as in [`crate::address::IpKey`].
        unsafe { core::mem::transmute::<PairWords, Self>(words) }
    }
}

plain!(FlowEntry, 16);
plain!(FlowKey, 40);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{FAMILY_V4, IpKey};

    #[test]
    fn words_are_the_fields() {
        let key = FlowKey::new([10, 0, 0, 1], [10, 0, 0, 2], [1, 2], [3, 4], 6);
        let expected = FlowKey {
            source: *IpKey::v4([10, 0, 0, 1]).addr(),
            destination: *IpKey::v4([10, 0, 0, 2]).addr(),
            source_port: [1, 2],
            destination_port: [3, 4],
            protocol: 6,
            family: FAMILY_V4,
            pad: [0; 2],
        };
        assert_eq!(key, expected);
        assert_eq!(expected.source[..5], [10, 0, 0, 1, 0]);
        let back = key.reversed();
        assert_eq!(
            (back.source, back.source_port, back.destination_port),
            (expected.destination, [3, 4], [1, 2])
        );
        assert_eq!((back.protocol, back.family), (6, FAMILY_V4));
    }

    #[test]
    fn reversed_twice_is_the_same_flow() {
        let key = FlowKey {
            source: [1; 16],
            destination: [2; 16],
            source_port: [3; 2],
            destination_port: [4; 2],
            protocol: 6,
            family: FAMILY_V4,
            pad: [0; 2],
        };
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }
}
