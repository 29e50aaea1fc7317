//! `EVENTS`: what the programs decide, for those who listen.

use super::{Decision, MapKind, MapSpec, Table, Tuple};

/// A ring of [`Record`]s. Programs write it only while [`super::Listen`] says so; the
/// agent reads it at short intervals, so no program wakes it.
#[derive(Debug)]
pub enum Events {}

impl Table for Events {
    type Key = [u8; 0];
    type Value = Record;
    const NAME: &'static str = "EVENTS";
    const KIND: MapKind = MapKind::RingBuf;
    /// Bytes, a power of two and a multiple of the page size (`ringbuf_map_alloc`,
    /// `kernel/bpf/ringbuf.c`): the records of 10 ms at 240,000 a second.
    const CAPACITY: usize = 512 << 10;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the capacity is a small constant"
    )]
    const SPEC: MapSpec = MapSpec {
        name: Self::NAME,
        kind: Self::KIND,
        key_size: 0,
        // The kernel takes records of any length.
        value_size: 0,
        max_entries: Self::CAPACITY as u32,
        flags: Self::KIND.flags(),
    };
}

/// Bytes of a packet that an event holds at most: an `ICMPv6` error with the headers of
/// the packet that it is about.
pub const EVENT_BYTES: usize = 112;

/// A packet, and what a program decided on it. [`super::Samples`] holds those of drops
/// in place, so a reader may see parts of two there; [`Events`] holds whole ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Nanoseconds as `bpf_ktime_get_ns` counts; 0: no packet yet.
    pub at: u64,
    /// What the program had found out.
    pub decision: Decision,
    /// Interface index of the program's device.
    pub ifindex: u32,
    /// `skb->len` or XDP frame length.
    pub length: u32,
    /// How many bytes of `head` are the packet's.
    pub captured: u32,
    /// [`crate::outcome::Program`] as a number.
    pub program: u32,
    /// Zero.
    pub pad: u32,
    /// How the frame begins, Ethernet header first, as it was when the program ended:
    /// what it sent on has its new addresses and TTL.
    pub head: [u8; EVENT_BYTES],
}

impl Event {
    /// The captured part of the frame, whatever `captured` says.
    pub fn frame(&self) -> &[u8] {
        self.head
            .get(..self.captured as usize)
            .unwrap_or(&self.head)
    }
}

plain!(Event, 56 + EVENT_BYTES);

/// What those who listen are told of a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The decision.
    pub event: Event,
    /// See [`Record::before`]; where the programs did not translate the packet, anything.
    pub before: Tuple,
}

impl Record {
    /// Bytes of a record.
    pub const SIZE: usize = size_of::<Self>();

    /// What the packet showed before the programs translated it, if they did; of an ICMP
    /// error, what the packet in it showed.
    pub const fn before(&self) -> Option<&Tuple> {
        if self.event.decision.translated == 0 {
            None
        } else {
            Some(&self.before)
        }
    }

    /// A record from its bytes, integers in host byte order; `None` where there are
    /// fewer or more.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        // SAFETY: as many bytes, and any of them make integers.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; Self::SIZE] {
        // SAFETY: integers and byte arrays without hidden padding, as `plain!` asserts.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

plain!(Record, size_of::<Event>() + size_of::<Tuple>());

const _: () = assert!(Events::CAPACITY.is_power_of_two() && Events::CAPACITY % 4096 == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_from_its_own_bytes_alone() {
        let mut record = Record::from_bytes(&[7; Record::SIZE]).unwrap();
        record.event.captured = 14;
        assert_eq!(Record::from_bytes(record.as_bytes()), Some(record));
        assert_eq!(record.event.frame(), [7; 14]);
        record.event.captured = u32::MAX;
        assert_eq!(record.event.frame().len(), EVENT_BYTES);
        for length in [0, Record::SIZE - 1, Record::SIZE + 1] {
            assert_eq!(Record::from_bytes(&[0; 2 * Record::SIZE][..length]), None);
        }
    }
}
