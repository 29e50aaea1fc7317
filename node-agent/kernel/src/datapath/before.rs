//! Takes over the flows of layout 4, which another map holds under other keys.
//!
//! The map is pinned among this layout's own, and its entries are copied into the flow
//! table before the first program is replaced. From then on the programs that ask for
//! flows look into both, since those of layout 4 that record some are replaced last. A
//! day later the next start of an agent removes the pin, once no other layout is left.
//! After a downgrade flows that the stack translates are recorded anew with their next
//! packet.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData};
use veer_agent_api::file;
use veer_bpf_common::{
    address::{FAMILY_V6, IpKey, V6},
    tables::{
        Endpoint, Endpoints, FlowBefore, FlowEntry, FlowKey, Flows, FlowsBefore, Place, Places,
        Share, Table, Tuple, bpf_spin_lock,
    },
};

use super::{Error, drop_foreign_pin, handover::TakeoverError, raw};
use crate::clock;

/// How long a copied entry lasts at least, in nanoseconds: programs of layout 4 go on
/// to refresh the one that it was copied from. That of a connection lasts a day.
const AT_LEAST: u64 = 30 * 1_000_000_000;

const TCP: u8 = 6;

/// Nanoseconds that an established connection lasted without a packet.
const ESTABLISHED: u64 = 5 * 24 * 3600 * 1_000_000_000;

/// Until when the programs to be loaded look into the map of layout 4, as
/// [`FlowsBefore::UNTIL`] says: a day from when it was pinned in the folder `own`, or from
/// now while programs of another layout may run, which `is_under_way` says. Removes the
/// pin afterwards.
pub(super) fn until(own: &Path, is_under_way: bool) -> Result<u64, Error> {
    let path = own.join(FlowsBefore::NAME);
    drop_foreign_pin(&path, &FlowsBefore::SPEC)?;
    let Ok(pinned) = fs::metadata(&path).and_then(|pin| pin.modified()) else {
        return Ok(0);
    };
    // A clock that was set back gives it more time, not less.
    let age = SystemTime::now().duration_since(pinned).unwrap_or_default();
    let Some(left) = left(age, is_under_way) else {
        file::remove(&path).map_err(|source| Error::Bpffs { path, source })?;
        return Ok(0);
    };
    let left = u64::try_from(left.as_nanos()).unwrap_or(FlowsBefore::FOR);
    Ok(clock::monotonic() + left)
}

/// For how much longer a map is looked into that was pinned so long ago.
fn left(age: Duration, is_under_way: bool) -> Option<Duration> {
    let whole = Duration::from_nanos(FlowsBefore::FOR);
    if is_under_way {
        Some(whole)
    } else {
        whole.checked_sub(age)
    }
}

/// Copies the live entries into the flow table, whose folder is `own`. Returns how many
/// were copied, and how many found no place.
pub(super) fn copy(own: &Path) -> Result<(usize, usize), TakeoverError> {
    let pinned = |name| MapData::from_pin(own.join(name));
    let before = pinned(FlowsBefore::NAME)?;
    let endpoints: HashMap<IpKey, Endpoint> =
        raw::all(&pinned(Endpoints::NAME)?)?.into_iter().collect();
    let map = Map::HashMap(pinned(Flows::NAME)?);
    let mut flows = BpfHashMap::<_, FlowKey, FlowEntry>::try_from(map)?;
    let mut places = Array::<_, Place>::try_from(Map::Array(pinned(Places::NAME)?))?;
    let now = clock::monotonic();
    let mut taken = HashSet::new();
    let (mut copied, mut left_out) = (0, 0);
    let mut rows = raw::all::<Tuple, FlowBefore>(&before)?;
    // Where places run short, connections go before queries.
    rows.sort_unstable_by_key(|(_, old)| Reverse(old.expires_at));
    for (tuple, old) in rows {
        let Some((key, entry)) = as_now(&tuple, &old, now) else {
            continue;
        };
        if let Ok(mut known) = flows.get(&key, 0) {
            known.state |= FlowEntry::BY_BOTH;
            flows.insert(key, known, 0)?;
            continue;
        }
        let share = share(&tuple, &endpoints);
        let mut tried = (0..Share::ALL_ATTEMPTS).map(|i| share.place(entry.tag, i));
        let Some(place) = tried.find(|place| !taken.contains(place)) else {
            left_out += 1;
            continue;
        };
        taken.insert(place);
        let entry = entry.placed(place, share.number(), 0);
        let lock = bpf_spin_lock::default();
        places.set(place, Place { lock, turn: 2, key }, 0)?;
        flows.insert(key, entry, 0)?;
        copied += 1;
    }
    Ok((copied, left_out))
}

/// A live entry of layout 4 as this layout has it, without place and share.
fn as_now(tuple: &Tuple, old: &FlowBefore, now: u64) -> Option<(FlowKey, FlowEntry)> {
    if old.expires_at <= now {
        return None;
    }
    let tuple = if is_query(tuple) {
        tuple.asked_by(Tuple::SOURCE_ASKS)
    } else {
        *tuple
    };
    let (key, opener) = tuple.canonical();
    let mut state = u16::try_from(old.state & 0xf).unwrap_or_default() | opener.as_opener();
    // Whether its opener went on is not known; most did.
    if state & FlowEntry::REPLIED != 0 {
        state |= FlowEntry::CONFIRMED;
    }
    let is_connection = tuple.protocol == TCP && state & FlowEntry::CLOSING == 0;
    // A connection whose answers nobody has seen yet may be one all the same.
    let is_half_closed = state & (FlowEntry::FIN_THERE | FlowEntry::FIN_BACK) != 0;
    let at_least = if is_connection && !is_half_closed {
        FlowsBefore::FOR
    } else {
        AT_LEAST
    };
    let firm_until = match (is_connection, state & FlowEntry::CONFIRMED != 0) {
        (true, true) if is_half_closed => old.expires_at,
        // An hour from its last packet.
        (true, true) => old.expires_at.saturating_sub(ESTABLISHED - FlowEntry::FIRM),
        _ => 0,
    };
    let entry = FlowEntry {
        tag: key.hash(),
        began: old.began,
        expires_at: old.expires_at.max(now + at_least),
        firm_until,
        state,
        ..FlowEntry::default()
    };
    Some((key, entry))
}

/// Whether it opened with an ICMP query: what has an identifier in place of ports.
fn is_query(tuple: &Tuple) -> bool {
    const ICMP: u8 = 1;
    const ICMP_V6: u8 = 58;
    matches!(tuple.protocol, ICMP | ICMP_V6) && tuple.source_port != [0; 2]
}

/// Whose flow it is: see the programs' `places::opener`.
fn share(tuple: &Tuple, endpoints: &HashMap<IpKey, Endpoint>) -> Share {
    let source = if tuple.family == FAMILY_V6 {
        let source = tuple.source_address::<V6>();
        (IpKey::of(source), Share::of_address(source))
    } else {
        let source = tuple.source_address::<[u8; 4]>();
        (IpKey::of(source), Share::of_address(source))
    };
    endpoints
        .get(&source.0)
        .map_or(source.1, |pod| Share::of_pod(pod.endpoint_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000 * 1_000_000_000;

    fn tcp() -> Tuple {
        Tuple::new([10, 0, 0, 9], [10, 0, 0, 2], [1, 2], [0, 80], TCP)
    }

    fn old(state: u32, seconds: u64) -> FlowBefore {
        FlowBefore {
            expires_at: NOW + seconds * 1_000_000_000,
            state,
            began: 7,
        }
    }

    #[test]
    fn an_answered_connection_is_established_and_opened_by_the_same_end() {
        for tuple in [tcp(), tcp().reversed()] {
            let (key, entry) = as_now(&tuple, &old(1, 431_000), NOW).expect("a live one");
            assert_eq!(key.tuple_from(entry.opener()), tuple);
            assert_eq!(
                entry.state & !FlowEntry::OPENED_BY_SECOND,
                FlowEntry::REPLIED | FlowEntry::CONFIRMED
            );
            assert_eq!(entry.expires_at, old(1, 431_000).expires_at);
            // Its last packet was a thousand seconds ago.
            assert_eq!(entry.firm_until, NOW + 2_600 * 1_000_000_000);
            assert_eq!((entry.tag, entry.began), (key.hash(), 7));
        }
    }

    #[test]
    fn the_map_before_is_looked_into_for_a_day_and_as_long_as_its_programs_may_run() {
        let hours = Duration::from_hours;
        assert_eq!(left(hours(1), false), Some(hours(23)));
        assert_eq!(left(hours(25), false), None);
        assert_eq!(left(hours(25), true), Some(hours(24)));
    }

    #[test]
    fn what_expired_stays_behind_and_what_is_about_to_gets_time() {
        assert!(as_now(&tcp(), &old(0, 0), NOW).is_none());
        let udp = Tuple {
            protocol: 17,
            ..tcp()
        };
        for (tuple, state, at_least) in [
            (udp, 1, AT_LEAST),
            // What answers it has may come by programs of this layout alone.
            (tcp(), 0, FlowsBefore::FOR),
            (tcp(), 3, AT_LEAST),
        ] {
            let (_, entry) = as_now(&tuple, &old(state, 1), NOW).expect("a live one");
            assert_eq!((entry.expires_at, entry.firm_until), (NOW + at_least, 0));
        }
    }

    #[test]
    fn a_ping_of_layout_4_is_found_by_its_answers() {
        let ping = Tuple::new([10, 0, 0, 9], [10, 0, 0, 2], [0, 7], [0, 7], 1);
        let (key, entry) = as_now(&ping, &old(0, 20), NOW).expect("a live one");
        let answer = ping.reversed().asked_by(Tuple::DESTINATION_ASKS);
        let (same, from) = answer.canonical();
        assert_eq!(key, same);
        assert_ne!(entry.opener(), from);
    }

    #[test]
    fn a_flow_is_its_pods_or_its_addresses() {
        let pod = Endpoint {
            endpoint_id: 300,
            ..Endpoint::default()
        };
        let here = HashMap::from([(IpKey::of([10, 0, 0, 9]), pod)]);
        assert_eq!(share(&tcp(), &here), Share::of_pod(300));
        assert_eq!(
            share(&tcp(), &HashMap::new()),
            Share::of_address([10, 0, 0, 9])
        );
    }
}
