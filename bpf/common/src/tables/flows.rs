//! `FLOW_TABLE`: what is to be remembered of flows.

use super::{MapKind, PairWords, Share, Table};
use crate::address::Address;

/// Entries of flows, one for both directions. Only flows that something must be
/// remembered of have one: those that the host's stack or the programs translate.
#[derive(Debug)]
pub enum Flows {}

impl Table for Flows {
    type Key = FlowKey;
    type Value = FlowEntry;
    const NAME: &'static str = "FLOW_TABLE";
    const KIND: MapKind = MapKind::Hash;
    /// As many as there are places, so an entry with a place always finds room.
    const CAPACITY: usize = super::Places::CAPACITY;
}

/// A flow that the host's stack translated, whose replies go up the stack, or one of the
/// two entries of a flow that the programs translate ([`FlowEntry::TRANSLATED`]).
///
/// The kernel uses the memory of a deleted entry again at once, so a program that has
/// found an entry may read another flow's. It reads [`FlowEntry::tag`] last, and an
/// entry with another flow's tag counts as none. Programs never write into an entry
/// that is in the map; they replace it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowEntry {
    /// [`FlowKey::hash`] of the entry's own key.
    pub tag: u32,
    /// When the flow began, as `bpf_ktime_get_ns` counts, in units of 67 ms (2²⁶ ns);
    /// 0: not known.
    pub began: u32,
    /// Nanoseconds of the same clock, after which the entry is void.
    pub expires_at: u64,
    /// Nanoseconds of the same clock, until which no flow of the same opener may take
    /// its place; 0: any may.
    pub firm_until: u64,
    /// [`FlowEntry::place`], and above it the lower bits of [`FlowEntry::partner`].
    pub place_bits: u32,
    /// Bits of what was seen: [`FlowEntry::REPLIED`] and the others.
    pub state: u16,
    /// [`FlowEntry::share`], and above it the upper bits of [`FlowEntry::partner`].
    pub share_bits: u16,
}

impl FlowEntry {
    /// [`FlowEntry::state`]: a reply was seen.
    pub const REPLIED: u16 = 1;
    /// [`FlowEntry::state`]: RST was seen, or the FINs of both ends.
    pub const CLOSING: u16 = 2;
    /// [`FlowEntry::state`]: the FIN of the end that opened the flow was seen.
    pub const FIN_THERE: u16 = 4;
    /// [`FlowEntry::state`]: the FIN of the other end was seen.
    pub const FIN_BACK: u16 = 8;
    /// [`FlowEntry::state`]: the end that opened the flow went on after a reply.
    pub const CONFIRMED: u16 = 16;
    /// [`FlowEntry::state`]: the second end of the key opened the flow; else the first.
    pub const OPENED_BY_SECOND: u16 = 32;
    /// [`FlowEntry::state`]: the other end opened one too, between the same ports, and the
    /// stack translated both. What either sends is an answer then.
    pub const BY_BOTH: u16 = 64;
    /// [`FlowEntry::state`]: one of the two entries of a flow to a Service, which the
    /// programs translate. The other is in the place [`FlowEntry::partner`].
    pub const TRANSLATED: u16 = 128;
    /// [`FlowEntry::state`]: of a translated flow the entry that the client's packets find.
    /// Its other end is the Service's; that of its partner is the backend.
    pub const FRONT: u16 = 256;
    /// [`FlowEntry::state`]: in the key of the partner, the client is the second end.
    pub const PARTNER_BY_SECOND: u16 = 512;
    /// [`FlowEntry::state`]: what is set when the entry is made.
    pub const MADE_WITH: u16 =
        Self::OPENED_BY_SECOND | Self::TRANSLATED | Self::FRONT | Self::PARTNER_BY_SECOND;

    /// Nanoseconds for which an established TCP connection without a packet is not
    /// replaced. It lasts longer than that while its opener has room.
    pub const FIRM: u64 = 3600 * 1_000_000_000;

    /// Bits of a place's index.
    const PLACE_BITS: u32 = 18;
    /// Where the upper bits of the partner's place are.
    const PARTNER_AT: u32 = 12;

    /// The same in this place, an index of [`super::Places`], of this share, with a
    /// partner in that place.
    #[must_use]
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "four bits are left of the partner's place"
    )]
    pub const fn placed(self, place: u32, share: u16, partner: u32) -> Self {
        const {
            assert!(super::Places::CAPACITY == 1 << Self::PLACE_BITS);
            assert!(Share::COUNT <= 1 << Self::PARTNER_AT);
        }
        let low = 32 - Self::PLACE_BITS;
        Self {
            place_bits: place | (partner << Self::PLACE_BITS),
            share_bits: share | ((partner >> low) << Self::PARTNER_AT) as u16,
            ..self
        }
    }

    /// Index of its place, [`super::Places`].
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        self.place_bits & ((1 << Self::PLACE_BITS) - 1)
    }

    /// Whose share the place is, [`super::Share`].
    #[inline(always)]
    pub const fn share(&self) -> u16 {
        self.share_bits & ((1 << Self::PARTNER_AT) - 1)
    }

    /// Index of its partner's place, where it is [`FlowEntry::TRANSLATED`].
    #[inline(always)]
    pub const fn partner(&self) -> u32 {
        let high = (self.share_bits >> Self::PARTNER_AT) as u32;
        (self.place_bits >> Self::PLACE_BITS) | (high << (32 - Self::PLACE_BITS))
    }

    /// Whether the programs translate the flow.
    #[inline(always)]
    pub const fn is_translated(&self) -> bool {
        self.state & Self::TRANSLATED != 0
    }

    /// Whether it is the entry that the client's packets find.
    #[inline(always)]
    pub const fn is_front(&self) -> bool {
        self.state & Self::FRONT != 0
    }

    /// Which end of the partner's key is the client.
    #[inline(always)]
    pub const fn partner_opener(&self) -> End {
        if self.state & Self::PARTNER_BY_SECOND == 0 {
            End::First
        } else {
            End::Second
        }
    }

    /// Which end opened the flow.
    #[inline(always)]
    pub const fn opener(&self) -> End {
        if self.state & Self::OPENED_BY_SECOND == 0 {
            End::First
        } else {
            End::Second
        }
    }
}

/// One of the two ends of a [`FlowKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that the key has first.
    First,
    /// The other one.
    Second,
}

impl End {
    /// The other one.
    #[must_use]
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// The bit of [`FlowEntry::state`] that says that this end opened the flow.
    #[inline(always)]
    pub const fn as_opener(self) -> u16 {
        match self {
            Self::First => 0,
            Self::Second => FlowEntry::OPENED_BY_SECOND,
        }
    }
}

/// One direction of a flow, as its packets show it. ICMP echo has its identifier in both
/// ports; other protocols without ports have zeros.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
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
    /// Of an ICMP query or its answer: which end asks, [`Tuple::SOURCE_ASKS`] or
    /// [`Tuple::DESTINATION_ASKS`]. So a query of either end is a flow of its own,
    /// whatever its identifier. Of all else 0.
    pub asker: u8,
    /// Zero.
    pub pad: u8,
}

impl Tuple {
    /// [`Tuple::asker`]: the packet is an ICMP query.
    pub const SOURCE_ASKS: u8 = 1;
    /// [`Tuple::asker`]: the packet answers an ICMP query.
    pub const DESTINATION_ASKS: u8 = 2;

    /// A flow without an asker; all in network byte order.
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

    /// The same flow with its [`Tuple::asker`].
    #[must_use]
    #[inline(always)]
    pub const fn asked_by(mut self, asker: u8) -> Self {
        self.asker = asker;
        self
    }

    /// The same to another destination, [`super::Backend::address`] and port.
    #[must_use]
    #[inline(always)]
    pub const fn sent_to(mut self, backend: &super::Backend) -> Self {
        self.destination = backend.address;
        self.destination_port = backend.port;
        self
    }

    /// The same from another source.
    #[must_use]
    #[inline(always)]
    pub fn sent_by<A: Address>(self, source: A) -> Self {
        let mut words = self.words();
        [words.addresses[0], words.addresses[1]] = source.words();
        Self {
            asker: self.asker,
            ..Self::of(words)
        }
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

    /// The tuple that a packet in the other direction shows.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        let mut words = self.words();
        let [a, b, c, d] = words.addresses;
        words.addresses = [c, d, a, b];
        words.middle = words.middle.rotate_left(16);
        let mut reversed = Self::of(words);
        // 1 and 2 change places, 0 stays.
        reversed.asker = ((self.asker & 1) << 1) | (self.asker >> 1);
        reversed
    }

    /// The key under which both directions find the flow's entry, and which of its ends
    /// this packet comes from.
    #[inline(always)]
    pub const fn canonical(&self) -> (FlowKey, End) {
        let words = self.words();
        let [a, b, c, d] = words.addresses;
        // Any order will do that both directions see alike: memory words as integers.
        let is_first = if a != c {
            a < c
        } else if b != d {
            b < d
        } else {
            words.middle <= words.middle.rotate_left(16)
        };
        if is_first {
            (FlowKey(*self), End::First)
        } else {
            (FlowKey(self.reversed()), End::Second)
        }
    }

    #[inline(always)]
    const fn words(&self) -> PairWords {
        // SAFETY: as many bytes, and any of them make integers.
        unsafe { core::mem::transmute::<Self, PairWords>(*self) }
    }

    /// Becomes a flow like another one, between these ends (memory words of source and
    /// destination) and without ports.
    #[inline(always)]
    pub const fn show(&mut self, ends: &[u64; 4], like: &Self) {
        *self = Self::of(PairWords {
            addresses: *ends,
            middle: 0,
            end: u32::from_ne_bytes([like.protocol, like.family, 0, 0]),
        });
    }

    #[inline(always)]
    const fn of(words: PairWords) -> Self {
        // SAFETY: as many bytes, and all fields are integers. In words for the
        // same reason as in [`crate::address::IpKey`].
        unsafe { core::mem::transmute::<PairWords, Self>(words) }
    }
}

/// The two ends of a flow in an order that does not depend on the packet's direction:
/// made by [`Tuple::canonical`] alone.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey(Tuple);

impl FlowKey {
    /// The tuple of packets that the end sends.
    #[inline(always)]
    pub const fn tuple_from(&self, end: End) -> Tuple {
        match end {
            End::First => self.0,
            End::Second => self.0.reversed(),
        }
    }

    /// A hash of the key: its places follow from it, and an entry carries it.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        // Rotate, xor and multiply, a word at a time, with 2⁶⁴ / golden ratio; the high
        // half depends on all bits below. Ports that follow each other then are an
        // arithmetic progression, which a final mix ends: their places would be, too.
        // SAFETY: as many bytes, and any of them make integers.
        let words = unsafe { core::mem::transmute::<Self, [u64; 5]>(*self) };
        let mut hash = 0u64;
        let mut at = 0;
        while at < words.len() {
            hash = (hash.rotate_left(25) ^ words[at]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            at += 1;
        }
        let mut mixed = (hash >> 32) as u32;
        mixed ^= mixed >> 15;
        mixed = mixed.wrapping_mul(0x2c1b_3c6d);
        mixed ^ (mixed >> 13)
    }
}

plain!(FlowEntry, 32);
plain!(Tuple, 40);
plain!(FlowKey, 40);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{FAMILY_V4, IpKey};

    #[test]
    fn words_are_the_fields() {
        let tuple = Tuple::new([10, 0, 0, 1], [10, 0, 0, 2], [1, 2], [3, 4], 6);
        let expected = Tuple {
            source: *IpKey::v4([10, 0, 0, 1]).addr(),
            destination: *IpKey::v4([10, 0, 0, 2]).addr(),
            source_port: [1, 2],
            destination_port: [3, 4],
            protocol: 6,
            family: FAMILY_V4,
            asker: 0,
            pad: 0,
        };
        assert_eq!(tuple, expected);
        assert_eq!(expected.source[..5], [10, 0, 0, 1, 0]);
        let back = tuple.reversed();
        assert_eq!(
            (back.source, back.source_port, back.destination_port),
            (expected.destination, [3, 4], [1, 2])
        );
        assert_eq!((back.protocol, back.family), (6, FAMILY_V4));
    }

    #[test]
    fn both_directions_have_one_key_and_different_ends() {
        // Another address, another port, and one end that speaks with itself.
        for (other, port) in [([10, 0, 0, 2], [0, 1]), ([10, 0, 0, 1], [0, 2])] {
            for asker in [0, Tuple::SOURCE_ASKS, Tuple::DESTINATION_ASKS] {
                let there = Tuple::new([10, 0, 0, 1], other, [0, 1], port, 6).asked_by(asker);
                let back = there.reversed();
                assert_ne!(there, back);
                assert_eq!(back.reversed(), there);
                let ((key, from), (same, to)) = (there.canonical(), back.canonical());
                assert_eq!(key, same);
                assert_ne!(from, to);
                assert_eq!((key.tuple_from(from), key.tuple_from(to)), (there, back));
            }
        }
    }

    #[test]
    fn a_places_index_its_share_and_its_partner_do_not_get_into_each_others_way() {
        let last = u32::try_from(super::super::Places::CAPACITY - 1).unwrap();
        let top = Share::COUNT - 1;
        for (place, share, partner) in [
            (0, 0, last),
            (last, 0, 0),
            (0, top, 0),
            (last, top, last),
            (5, 7, 0x2_0001),
        ] {
            let entry = FlowEntry::default().placed(place, share, partner);
            assert_eq!(
                (entry.place(), entry.share(), entry.partner()),
                (place, share, partner)
            );
        }
    }

    #[test]
    fn queries_of_both_ends_are_different_flows_and_answers_belong_to_theirs() {
        let query = |a, b| Tuple::new(a, b, [0, 7], [0, 7], 1).asked_by(Tuple::SOURCE_ASKS);
        let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let (there, back) = (query(one, two), query(two, one));
        assert_ne!(there.canonical().0, back.canonical().0);
        let answer = Tuple::new(two, one, [0, 7], [0, 7], 1).asked_by(Tuple::DESTINATION_ASKS);
        assert_eq!(answer.canonical().0, there.canonical().0);
    }
}
