//! How long a note of a translated flow lasts: as long as `nf_conntrack` keeps
//! its own entry (`net/netfilter/nf_conntrack_proto_*.c`), which alone can
//! translate the replies.

use crate::{
    flow::{FIN, Flow, RST},
    ipv4::{ICMP, TCP, UDP},
};
use veer_bpf_common::{
    key::FlowKey,
    maps::NOTES_PER_ENDPOINT,
    value::{FLOW_CLOSING, FLOW_REPLIED, FlowNote},
};

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// A write is spared while it would move the expiry by less than this.
const COARSENESS: u64 = SECOND;

/// Nanoseconds that a flow in this state lasts without a packet.
#[inline(always)]
const fn lifetime(protocol: u8, state: u32) -> u64 {
    let replied = state & FLOW_REPLIED != 0;
    let seconds = match protocol {
        TCP if state & FLOW_CLOSING != 0 => 120,
        TCP if replied => 5 * 24 * 3600,
        TCP => 120,
        UDP if replied => 180,
        UDP | ICMP => 30,
        _ => 600,
    };
    seconds * SECOND
}

/// A note after a packet of its flow at time `now`, in nanoseconds; `None`
/// where it is hardly different and need not be written. `reply` says that the
/// packet went against the note's direction.
#[inline(always)]
pub fn refreshed(note: &FlowNote, flow: &Flow, reply: bool, now: u64) -> Option<FlowNote> {
    let mut state = note.state;
    if !reply && flow.opens() {
        state = 0;
    }
    if reply {
        state |= FLOW_REPLIED;
    }
    if flow.tcp_flags & (FIN | RST) != 0 {
        state |= FLOW_CLOSING;
    }
    let expires_at = now.wrapping_add(lifetime(flow.key.protocol, state));
    if state == note.state && expires_at < note.expires_at.wrapping_add(COARSENESS) {
        return None;
    }
    Some(FlowNote {
        expires_at,
        state,
        pad: 0,
    })
}

/// The first note of a flow.
#[inline(always)]
pub fn new(flow: &Flow, now: u64) -> FlowNote {
    FlowNote {
        expires_at: now.wrapping_add(lifetime(flow.key.protocol, 0)),
        state: 0,
        pad: 0,
    }
}

/// How many places are looked at for a new note.
pub const PLACES: u32 = 8;

/// The place, among those of a pod, that a note of `key` takes if the ones
/// before are in use: `PLACES` different ones, spread over all.
#[inline(always)]
pub const fn place(key: &FlowKey, attempt: u32) -> u16 {
    const MASK: u32 = NOTES_PER_ENDPOINT as u32 - 1;
    const { assert!(NOTES_PER_ENDPOINT.is_power_of_two()) };
    let mixed = key.mixed();
    // An odd step comes back to the same place only after all the others.
    let step = (mixed >> 16) | 1;
    (mixed.wrapping_add(attempt.wrapping_mul(step)) & MASK) as u16
}

/// Whether a note still counts at `now`.
#[inline(always)]
pub const fn is_live(note: &FlowNote, now: u64) -> bool {
    note.expires_at > now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{ACK, SYN};
    use veer_bpf_common::key::FlowKey;

    const NOW: u64 = 1000 * SECOND;

    fn flow(protocol: u8, tcp_flags: u8) -> Flow {
        Flow {
            key: FlowKey {
                source: [0; 16],
                destination: [0; 16],
                source_port: [0; 2],
                destination_port: [0; 2],
                protocol,
                family: 4,
                pad: [0; 2],
            },
            tcp_flags,
            is_error: false,
        }
    }

    fn seconds_left(note: &FlowNote, now: u64) -> u64 {
        (note.expires_at - now) / SECOND
    }

    #[test]
    fn a_new_note_lasts_as_an_unreplied_flow() {
        for (protocol, expected) in [(TCP, 120), (UDP, 30), (ICMP, 30), (132, 600)] {
            assert_eq!(seconds_left(&new(&flow(protocol, SYN), NOW), NOW), expected);
        }
    }

    #[test]
    fn a_tcp_connection_lives_five_days_and_closes_in_two_minutes() {
        let note = new(&flow(TCP, SYN), NOW);
        let note = refreshed(&note, &flow(TCP, SYN | ACK), true, NOW).unwrap();
        assert_eq!(seconds_left(&note, NOW), 432_000);
        for flag in [FIN | ACK, RST] {
            let closing = refreshed(&note, &flow(TCP, flag), false, NOW).unwrap();
            assert_eq!(seconds_left(&closing, NOW), 120);
        }
    }

    #[test]
    fn a_port_used_again_after_its_close_is_a_new_connection() {
        let note = new(&flow(TCP, SYN), NOW);
        let note = refreshed(&note, &flow(TCP, SYN | ACK), true, NOW).unwrap();
        let note = refreshed(&note, &flow(TCP, FIN | ACK), true, NOW).unwrap();
        let later = NOW + 60 * SECOND;
        let note = refreshed(&note, &flow(TCP, SYN), false, later).unwrap();
        assert_eq!((note.state, seconds_left(&note, later)), (0, 120));
    }

    #[test]
    fn an_answered_udp_flow_lasts_longer() {
        let note = new(&flow(UDP, 0), NOW);
        let note = refreshed(&note, &flow(UDP, 0), true, NOW).unwrap();
        assert_eq!(seconds_left(&note, NOW), 180);
    }

    #[test]
    fn a_note_is_written_at_most_once_a_second() {
        let note = new(&flow(UDP, 0), NOW);
        assert_eq!(
            refreshed(&note, &flow(UDP, 0), false, NOW + SECOND - 1),
            None
        );
        assert!(refreshed(&note, &flow(UDP, 0), false, NOW + SECOND).is_some());
    }

    #[test]
    fn the_places_of_a_flow_are_different_and_all_are_used() {
        extern crate std;
        use std::collections::BTreeSet;
        let mut used = BTreeSet::new();
        for port in 0..8000u16 {
            let [a, b] = port.to_be_bytes();
            let key = FlowKey::v4([10, 0, 0, 1], [10, 0, 0, 2], [a, b], [0, 80], TCP);
            let places: BTreeSet<u16> = (0..PLACES).map(|i| place(&key, i)).collect();
            assert_eq!(places.len(), PLACES as usize, "port {port}");
            used.extend(places);
        }
        assert_eq!(used.len(), NOTES_PER_ENDPOINT);
    }

    #[test]
    fn a_note_ends_at_its_expiry() {
        let note = new(&flow(UDP, 0), NOW);
        assert!(is_live(&note, note.expires_at - 1));
        assert!(!is_live(&note, note.expires_at));
    }
}
