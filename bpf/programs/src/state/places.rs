//! Places of flow entries: whom a flow is charged to, and which entry is replaced where
//! all places of its opener are taken.

use aya_ebpf::helpers::generated::{bpf_spin_lock, bpf_spin_unlock};
use veer_bpf_common::tables::{FlowKey, Place, Places, Share, Table as _};
use veer_bpf_net::{
    conntrack::{self, TAKEN},
    ip::Ip,
};

use super::{flows, lookup, maps::FLOW_PLACES};

/// What the search for a place finds, in an integer, as functions that the kernel
/// verifies by themselves return it.
#[derive(Clone, Copy)]
struct Found(u64);

impl Found {
    /// No place.
    const NONE: Self = Self(u64::MAX);
    /// A live entry has the place.
    const REPLACES: u64 = 1 << 31;

    /// The place with this index, while its turn is `turn`.
    #[inline(always)]
    const fn new(index: u32, replaces: bool, turn: u32) -> Self {
        const { assert!(Places::CAPACITY < Self::REPLACES as usize) };
        let replaces = if replaces { Self::REPLACES } else { 0 };
        Self(((turn as u64) << 32) | replaces | index as u64)
    }

    #[inline(always)]
    const fn index(self) -> u32 {
        (self.0 & (Self::REPLACES - 1)) as u32
    }

    #[inline(always)]
    const fn replaces(self) -> bool {
        self.0 & Self::REPLACES != 0
    }

    #[inline(always)]
    const fn turn(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A place that was taken for a new entry, and is to be released.
pub(crate) struct Taken {
    /// Its index.
    pub(crate) place: u32,
    /// Its turn, an odd one.
    turn: u32,
    /// Whether a live entry lost it.
    pub(crate) replaced: bool,
}

/// To whom a new flow is charged: the local pod that opened it, or a share of those
/// elsewhere.
#[inline(always)]
pub(crate) fn opener<I: Ip>(ip: &I) -> Share {
    lookup::endpoint(ip.source()).map_or_else(
        || Share::of_address(ip.source()),
        |pod| Share::of_pod(pod.endpoint_id),
    )
}

/// Takes a place for the entry of `key`, whose hash is `hash`, and deletes the entry that
/// had it: of those that are tried a free one, or that of the share's own entry that is
/// worth least. `None` where established flows have all of them, or where another CPU
/// took the place, or the entry became established, meanwhile. Until it is released with
/// the new entry in the table, nobody else takes it for free.
#[inline(always)]
pub(crate) fn take(share: u16, key: &FlowKey, hash: u32, now: u64) -> Option<Taken> {
    let found = Found(search_for_place(share.into(), hash, now));
    if found.0 == Found::NONE.0 {
        return None;
    }
    let taken = Taken {
        place: found.index(),
        turn: found.turn().wrapping_add(1),
        replaced: found.replaces(),
    };
    let place = FLOW_PLACES.get_ptr_mut(taken.place)?;
    if !pass_turn(place, found.turn()) {
        return None;
    }
    // SAFETY: a live map value, whose odd turn keeps all others from the key.
    let before: &FlowKey = unsafe { &(*place).key };
    if let Some(entry) = flows::entry(before)
        && entry.place() == taken.place
    {
        if entry.firm_until > now {
            release(&taken);
            return None;
        }
        flows::forget(before, &entry);
    }
    // SAFETY: as above.
    unsafe { (*place).key = *key };
    Some(taken)
}

/// The key of the entry in a place, which another CPU may change meanwhile.
#[inline(always)]
pub(super) fn key(place: u32) -> Option<&'static FlowKey> {
    let place = FLOW_PLACES.get_ptr(place)?;
    // SAFETY: integers of a map value that is never freed.
    Some(unsafe { &(*place).key })
}

/// Lets others judge a place.
#[inline(always)]
pub(crate) fn release(taken: &Taken) {
    if let Some(place) = FLOW_PLACES.get_ptr_mut(taken.place) {
        pass_turn(place, taken.turn);
    }
}

/// A [`Found`]. A *global* function, which the verifier walks once, with any arguments:
/// the loop would multiply with all that comes before and after.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_for_place(share: u32, hash: u32, now: u64) -> u64 {
    let share = share as u16;
    let (mut least, mut best) = (TAKEN, Found::NONE);
    let mut attempt = 0;
    while attempt < Share::ATTEMPTS {
        let index = Share::numbered(share).place(hash, attempt);
        let Some(tried) = FLOW_PLACES.get_ptr_mut(index) else {
            break;
        };
        // SAFETY: an integer of a live map value; it is compared again under the lock.
        let turn = unsafe { (&raw const (*tried).turn).read_volatile() };
        let worth = worth(tried, index, share, now);
        if turn & 1 == 0 && worth < least {
            (least, best) = (worth, Found::new(index, worth != 0, turn));
        }
        if least == 0 {
            break;
        }
        attempt += 1;
    }
    best.0
}

/// All bits where `a` and `b` differ, else none; without branches for the same reason as
/// [`conntrack::worth`].
#[inline(always)]
fn differ(a: u32, b: u32) -> u64 {
    (u64::from(a ^ b).wrapping_neg().cast_signed() >> 63).cast_unsigned()
}

/// See [`conntrack::worth`]. Free, too, is the place of an entry that has another; taken
/// is that of one that changes just now.
#[inline(always)]
fn worth(tried: *mut Place, index: u32, share: u16, now: u64) -> u64 {
    // By reference: the kernel reads the key where it lies, and the stack of this
    // function and its callers has no room for copies (512 bytes for all).
    // SAFETY: integers of a live map value; where another CPU changes them meanwhile,
    // another entry or none is found, and `turn` has changed.
    let key = unsafe { &(*tried).key };
    let Some(entry) = flows::found(key) else {
        return 0;
    };
    let worth = conntrack::worth(&entry, entry.share() != share, now);
    (worth & !differ(entry.place(), index)) | differ(entry.tag, key.hash())
}

/// Raises a place's turn if it still is `turn`; whether it was.
#[inline(always)]
fn pass_turn(place: *mut Place, turn: u32) -> bool {
    // SAFETY: a live map value with a lock in it, which is released on the only way on.
    unsafe {
        let lock = (&raw mut (*place).lock).cast();
        let at = &raw mut (*place).turn;
        bpf_spin_lock(lock);
        let found = at.read_volatile();
        if found == turn {
            at.write_volatile(turn.wrapping_add(1));
        }
        bpf_spin_unlock(lock);
        found == turn
    }
}
