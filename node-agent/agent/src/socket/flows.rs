//! Flows that have an entry, as people read them.

use std::{collections::HashMap, net::SocketAddr};

use veer_agent_api::{FlowRow, flow_state, packet::protocol};
use veer_bpf_common::{
    address::to_ip,
    tables::{FlowEntry, FlowKey, Tuple},
};

use super::query::SECOND;
use crate::report::sources::Sources;
use veer_agent_kernel::datapath::Error;

/// Flows that have an entry, by protocol and ends.
pub(crate) fn flows(sources: &Sources) -> Result<Vec<FlowRow>, Error> {
    let mut entries = sources.maps.flows()?;
    let now = veer_agent_kernel::clock::monotonic();
    entries.sort_by_cached_key(|(key, entry)| order(&key.tuple_from(entry.opener())));
    // An entry that a program replaces meanwhile may be read twice.
    entries.dedup_by_key(|(key, _)| *key);
    Ok(rows(&entries, now))
}

/// The key of each entry that backends' packets find, by its own place and its partner's.
type Backs<'a> = HashMap<(u32, u32), &'a FlowKey>;

/// The flows of these entries at `now`. One that the programs translate has two entries and
/// is shown once: as its client sees it.
fn rows(entries: &[(FlowKey, FlowEntry)], now: u64) -> Vec<FlowRow> {
    let backs: Backs<'_> = entries
        .iter()
        .filter(|(key, entry)| is_back(entry) && entry.tag == key.hash())
        .map(|(key, entry)| ((entry.place(), entry.partner()), key))
        .collect();
    let shown = |(key, entry): &(FlowKey, FlowEntry)| {
        if is_back(entry) {
            return None;
        }
        let row = row(key, entry, now)?;
        let backend = backend(entry, &backs);
        Some(FlowRow { backend, ..row })
    };
    entries.iter().filter_map(shown).collect()
}

/// Whether it is the one of a translated flow's entries that the backend's packets find.
const fn is_back(entry: &FlowEntry) -> bool {
    entry.is_translated() && !entry.is_front()
}

/// The backend of a flow that the programs translate. `None` where they do not, and where
/// its other entry is not there: programs go on while the table is read.
fn backend(entry: &FlowEntry, backs: &Backs<'_>) -> Option<String> {
    if !entry.is_translated() {
        return None;
    }
    let key = backs.get(&(entry.partner(), entry.place()))?;
    let tuple = key.tuple_from(entry.partner_opener());
    Some(end(&tuple, tuple.destination, tuple.destination_port))
}

/// A tuple as people look for it.
type Order = (u8, u8, [u8; 16], [u8; 2], [u8; 16], [u8; 2], u8);

const fn order(tuple: &Tuple) -> Order {
    (
        tuple.protocol,
        tuple.family,
        tuple.source,
        tuple.source_port,
        tuple.destination,
        tuple.destination_port,
        tuple.asker,
    )
}

/// A flow at `now`, nanoseconds of `CLOCK_MONOTONIC`, without its backend. `None`: the entry
/// is void, or it is another flow's by now.
fn row(key: &FlowKey, entry: &FlowEntry, now: u64) -> Option<FlowRow> {
    if entry.expires_at <= now || entry.tag != key.hash() {
        return None;
    }
    let tuple = key.tuple_from(entry.opener());
    let protocol = protocol(tuple.protocol);
    Some(FlowRow {
        state: state(&protocol, entry).into(),
        protocol,
        source: end(&tuple, tuple.source, tuple.source_port),
        destination: end(&tuple, tuple.destination, tuple.destination_port),
        translation: if entry.is_translated() {
            "veer"
        } else {
            "host"
        }
        .into(),
        backend: None,
        age: (entry.began != 0).then(|| now.saturating_sub(began(entry)) / SECOND),
        expires_in: (entry.expires_at - now) / SECOND,
    })
}

/// When a flow began, in nanoseconds; 67 ms too early at most.
fn began(entry: &FlowEntry) -> u64 {
    u64::from(entry.began) << 26
}

fn state(protocol: &str, entry: &FlowEntry) -> &'static str {
    let has = |bits: u16| entry.state & bits != 0;
    match protocol {
        "tcp" if has(FlowEntry::CLOSING) => flow_state::CLOSED,
        "tcp" if has(FlowEntry::FIN_THERE | FlowEntry::FIN_BACK) => flow_state::HALF_CLOSED,
        "tcp" if has(FlowEntry::CONFIRMED) => flow_state::ESTABLISHED,
        "tcp" if has(FlowEntry::REPLIED) => flow_state::SYN_RECEIVED,
        "tcp" => flow_state::SYN_SENT,
        _ if !has(FlowEntry::REPLIED) => flow_state::UNREPLIED,
        "udp" if is_stream(entry) => flow_state::STREAM,
        _ => flow_state::REPLIED,
    }
}

/// Whether the last packet of an answered UDP flow made it a stream: one that came at
/// least 31 × 67 ms after the first (`veer_bpf_net::conntrack`). The entry does not say
/// when that was, but a stream lasts 120 s after it and any other such flow 30 s.
fn is_stream(entry: &FlowEntry) -> bool {
    entry.expires_at >= began(entry) + (31 << 26) + 30 * SECOND
}

/// Address and port. Where neither end has a port, the address alone.
fn end(tuple: &Tuple, bytes: [u8; 16], port: [u8; 2]) -> String {
    let Some(address) = to_ip(tuple.family, bytes) else {
        return "?".into();
    };
    if [tuple.source_port, tuple.destination_port] == [[0; 2]; 2] {
        return address.to_string();
    }
    SocketAddr::new(address, u16::from_be_bytes(port)).to_string()
}

#[cfg(test)]
mod tests {
    use veer_bpf_common::{address::V6, tables::End};

    use super::*;

    const NOW: u64 = 1000 * SECOND;

    fn tuple(protocol: u8) -> Tuple {
        let (client, service) = ([10, 0, 1, 5], [10, 96, 0, 10]);
        Tuple::new(
            client,
            service,
            4000_u16.to_be_bytes(),
            53_u16.to_be_bytes(),
            protocol,
        )
    }

    /// The entry of a flow that this tuple opened, with bits of a state; it began now.
    fn opened(tuple: &Tuple, bits: u16, expires_at: u64) -> (FlowKey, FlowEntry) {
        let (key, opener) = tuple.canonical();
        let entry = FlowEntry {
            tag: key.hash(),
            began: u32::try_from(NOW >> 26).unwrap(),
            expires_at,
            state: bits | opener.as_opener(),
            ..FlowEntry::default()
        };
        (key, entry)
    }

    #[test]
    fn the_source_of_a_flow_is_the_end_that_opened_it() {
        let v6 = |last| V6::from_octets([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let port = 7_u16.to_be_bytes();
        let ping = Tuple::new(v6(1), v6(2), port, port, 58).asked_by(Tuple::SOURCE_ASKS);
        let gre = Tuple::new([10, 0, 1, 5], [192, 0, 2, 1], [0; 2], [0; 2], 47);
        for (tuple, protocol, ends) in [
            (tuple(6), "tcp", ["10.0.1.5:4000", "10.96.0.10:53"]),
            (ping, "icmpv6", ["[fd00::1]:7", "[fd00::2]:7"]),
            (gre, "47", ["10.0.1.5", "192.0.2.1"]),
        ] {
            let [source, destination] = ends;
            for (tuple, ends) in [
                (tuple, [source, destination]),
                (tuple.reversed(), [destination, source]),
            ] {
                let (key, entry) = opened(&tuple, FlowEntry::REPLIED, NOW + SECOND);
                let row = row(&key, &entry, NOW).unwrap();
                assert_eq!(row.protocol, protocol);
                assert_eq!([&*row.source, &*row.destination], ends);
                assert_eq!(row.translation, "host");
            }
        }
    }

    #[test]
    fn age_and_expiry_are_whole_seconds_and_void_entries_are_no_flows() {
        let (key, entry) = opened(&tuple(17), 0, NOW + 30 * SECOND);
        let times = |entry: &FlowEntry, now| {
            let row = row(&key, entry, now);
            row.map(|row| (row.age, row.expires_in))
        };
        assert_eq!(times(&entry, NOW), Some((Some(0), 30)));
        let later = NOW + 7 * SECOND + SECOND / 2;
        assert_eq!(times(&entry, later), Some((Some(7), 22)));
        assert_eq!(times(&entry, entry.expires_at), None);
        let unknown = FlowEntry { began: 0, ..entry };
        assert_eq!(times(&unknown, NOW), Some((None, 30)));
        let anothers = FlowEntry {
            tag: entry.tag ^ 1,
            ..entry
        };
        assert_eq!(times(&anothers, NOW), None);
    }

    #[test]
    fn the_state_of_a_flow_is_what_was_seen_of_it() {
        let (replied, closing) = (FlowEntry::REPLIED, FlowEntry::CLOSING);
        let open = replied | FlowEntry::CONFIRMED;
        let (there, back) = (FlowEntry::FIN_THERE, FlowEntry::FIN_BACK);
        // Seconds until it expires, as seen when it began.
        for (protocol, bits, lasts, expected) in [
            (6, 0, 120, flow_state::SYN_SENT),
            (6, replied, 60, flow_state::SYN_RECEIVED),
            (6, open, 432_000, flow_state::ESTABLISHED),
            (6, open | there, 3600, flow_state::HALF_CLOSED),
            (6, open | back, 3600, flow_state::HALF_CLOSED),
            (6, open | there | back | closing, 120, flow_state::CLOSED),
            (6, replied | closing, 120, flow_state::CLOSED),
            (17, 0, 30, flow_state::UNREPLIED),
            (17, 0, 500, flow_state::UNREPLIED),
            (17, replied, 30, flow_state::REPLIED),
            (17, open, 30 + 2, flow_state::REPLIED),
            (17, open, 120 + 3, flow_state::STREAM),
            (17, replied, 120 + 3, flow_state::STREAM),
            (1, 0, 30, flow_state::UNREPLIED),
            (1, open, 300, flow_state::REPLIED),
            (132, open, 600, flow_state::REPLIED),
        ] {
            let (key, entry) = opened(&tuple(protocol), bits, NOW + lasts * SECOND);
            let row = row(&key, &entry, NOW).unwrap();
            assert_eq!(row.state, expected, "{protocol} {bits} {lasts}");
            assert!(flow_state::ALL.contains(&expected));
        }
    }

    #[test]
    fn a_flow_that_the_programs_translate_is_shown_once_with_its_backend() {
        // Either end of the backend's key may be the client.
        for last in [3, 7] {
            let (client, port) = ([10, 0, 1, 5], 4000_u16.to_be_bytes());
            let there = Tuple::new(client, [10, 0, 1, last], port, 5353_u16.to_be_bytes(), 17);
            let client_is = match there.canonical().1 {
                End::First => 0,
                End::Second => FlowEntry::PARTNER_BY_SECOND,
            };
            let front = FlowEntry::TRANSLATED | FlowEntry::FRONT | client_is;
            let until = NOW + 30 * SECOND;
            let (front_key, front) = opened(&tuple(17), front, until);
            let (back_key, back) = opened(&there, FlowEntry::TRANSLATED, until);
            let with_back = |back: FlowEntry| {
                let entries = [(front_key, front.placed(1, 0, 2)), (back_key, back)];
                let mut shown = rows(&entries, NOW);
                assert_eq!(shown.len(), 1);
                shown.remove(0)
            };
            let shown = with_back(back.placed(2, 0, 1));
            assert_eq!(shown.source, "10.0.1.5:4000");
            assert_eq!(shown.destination, "10.96.0.10:53");
            assert_eq!(shown.backend, Some(format!("10.0.1.{last}:5353")));
            assert_eq!(shown.translation, "veer");
            // It is another flow's.
            assert_eq!(with_back(back.placed(2, 0, 3)).backend, None);
            let anothers = FlowEntry {
                tag: back.tag ^ 1,
                ..back.placed(2, 0, 1)
            };
            assert_eq!(with_back(anothers).backend, None);
        }
    }
}
