//! How long the entry of a translated flow lasts: as long as `nf_conntrack` keeps
//! its own (`net/netfilter/nf_conntrack_proto_*.c`), which alone can translate the
//! replies.

use crate::{
    flow::Flow,
    ip::{ICMP, ICMP_V6, TCP, UDP},
    l4::{FIN, RST},
};
use veer_bpf_common::tables::FlowEntry;

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// An entry is not written while that would move its expiry by less than this.
const COARSENESS: u64 = SECOND;

/// Both ends' FINs.
const FINS: u32 = FlowEntry::FIN_THERE | FlowEntry::FIN_BACK;

/// After how many ticks of [`tick`] an answered UDP flow is a stream: conntrack waits
/// two seconds, so more than two whole seconds must lie between.
const STREAM: u32 = 31;

/// Time in units of 67 ms, cheap to make of nanoseconds; never 0.
#[inline(always)]
const fn tick(now: u64) -> u32 {
    let tick = (now >> 26) as u32;
    if tick == 0 { 1 } else { tick }
}

/// Nanoseconds that a flow in this state lasts without a packet. `stream`: it has
/// been there for some seconds.
#[inline(always)]
const fn lifetime(protocol: u8, state: u32, stream: bool) -> u64 {
    let replied = state & FlowEntry::REPLIED != 0;
    let seconds = match protocol {
        TCP if state & FlowEntry::CLOSING != 0 => 120,
        // Half-closed: kube-proxy sets `nf_conntrack_tcp_timeout_close_wait` to this.
        TCP if state & FINS != 0 => 3600,
        TCP if replied => 5 * 24 * 3600,
        TCP => 120,
        // `udp_timeouts` in nf_conntrack_proto_udp.c, since kernel commit
        // d535c8a69c19.
        UDP if replied && stream => 120,
        UDP | ICMP | ICMP_V6 => 30,
        _ => 600,
    };
    seconds * SECOND
}

/// The state of a flow after a packet of it.
#[inline(always)]
const fn next_state(state: u32, flow: &Flow, reply: bool) -> u32 {
    let mut state = if reply {
        state | FlowEntry::REPLIED
    } else if flow.opens() {
        0
    } else {
        state
    };
    if flow.tcp_flags & FIN != 0 {
        state |= if reply {
            FlowEntry::FIN_BACK
        } else {
            FlowEntry::FIN_THERE
        };
    }
    if flow.tcp_flags & RST != 0 || state & FINS == FINS {
        state |= FlowEntry::CLOSING;
    }
    state
}

/// An entry after a packet of its flow at time `now`, in nanoseconds; `None` where
/// the difference is too small to write. `reply` says that the packet went against
/// the entry's direction.
#[inline(always)]
pub fn refreshed(entry: &FlowEntry, flow: &Flow, reply: bool, now: u64) -> Option<FlowEntry> {
    let state = next_state(entry.state, flow, reply);
    let stream = tick(now).wrapping_sub(entry.began) >= STREAM;
    let expires_at = now.wrapping_add(lifetime(flow.key.protocol, state, stream));
    if state == entry.state && expires_at < entry.expires_at.wrapping_add(COARSENESS) {
        return None;
    }
    Some(FlowEntry {
        expires_at,
        state,
        began: entry.began,
    })
}

/// The first entry of a flow.
#[inline(always)]
pub fn new(flow: &Flow, now: u64) -> FlowEntry {
    FlowEntry {
        expires_at: now.wrapping_add(lifetime(flow.key.protocol, 0, false)),
        state: 0,
        began: tick(now),
    }
}

/// Whether an entry still counts at `now`.
#[inline(always)]
pub const fn is_live(entry: &FlowEntry, now: u64) -> bool {
    entry.expires_at > now
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::l4::{ACK, SYN};
    use std::vec;
    use veer_bpf_common::tables::FlowKey;

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

    fn seconds_left(entry: &FlowEntry, now: u64) -> u64 {
        (entry.expires_at - now) / SECOND
    }

    #[test]
    fn a_new_entry_lasts_as_an_unreplied_flow() {
        for (protocol, expected) in [(TCP, 120), (UDP, 30), (ICMP, 30), (132, 600)] {
            assert_eq!(seconds_left(&new(&flow(protocol, SYN), NOW), NOW), expected);
        }
    }

    /// An entry after these packets: flags, and whether it is a reply.
    fn after(packets: &[(u8, bool)]) -> FlowEntry {
        let first = new(&flow(TCP, SYN), NOW);
        packets.iter().fold(first, |entry, (flags, reply)| {
            refreshed(&entry, &flow(TCP, *flags), *reply, NOW).unwrap_or(entry)
        })
    }

    #[test]
    fn a_tcp_connection_lives_five_days_and_closes_in_two_minutes() {
        let open = [(SYN | ACK, true), (ACK, false)];
        let (fin, rst) = (FIN | ACK, RST);
        for (what, packets, seconds) in [
            ("established", vec![], 432_000),
            ("the client's FIN", vec![(fin, false)], 3600),
            ("the server's FIN", vec![(fin, true)], 3600),
            ("acknowledged", vec![(fin, false), (ACK, true)], 3600),
            ("sent again", vec![(fin, false), (fin, false)], 3600),
            ("both", vec![(fin, false), (fin, true)], 120),
            (
                "and the last ACK",
                vec![(fin, true), (fin, false), (ACK, true)],
                120,
            ),
            ("broken off", vec![(rst, true)], 120),
            (
                "broken off half-closed",
                vec![(fin, false), (rst, false)],
                120,
            ),
        ] {
            let packets = [&open[..], &packets].concat();
            assert_eq!(seconds_left(&after(&packets), NOW), seconds, "{what}");
        }
    }

    #[test]
    fn a_port_used_again_after_its_close_is_a_new_connection() {
        let entry = new(&flow(TCP, SYN), NOW);
        let entry = refreshed(&entry, &flow(TCP, SYN | ACK), true, NOW).unwrap();
        let entry = refreshed(&entry, &flow(TCP, FIN | ACK), true, NOW).unwrap();
        let later = NOW + 60 * SECOND;
        let entry = refreshed(&entry, &flow(TCP, SYN), false, later).unwrap();
        assert_eq!((entry.state, seconds_left(&entry, later)), (0, 120));
    }

    #[test]
    fn an_answered_udp_flow_lasts_longer_once_it_goes_on() {
        let asked = new(&flow(UDP, 0), NOW);
        let answered = refreshed(&asked, &flow(UDP, 0), true, NOW).unwrap();
        assert_eq!(seconds_left(&answered, NOW), 30);
        // Conntrack calls it a stream from two seconds on.
        let soon = NOW + 2 * SECOND;
        let entry = refreshed(&answered, &flow(UDP, 0), false, soon).unwrap();
        assert_eq!(seconds_left(&entry, soon), 30);
        let later = NOW + 3 * SECOND;
        let entry = refreshed(&answered, &flow(UDP, 0), false, later).unwrap();
        assert_eq!(seconds_left(&entry, later), 120);
        // One-sided it never is one.
        let entry = refreshed(&asked, &flow(UDP, 0), false, later).unwrap();
        assert_eq!(seconds_left(&entry, later), 30);
    }

    #[test]
    fn an_entry_is_written_at_most_once_a_second() {
        let entry = new(&flow(UDP, 0), NOW);
        assert_eq!(
            refreshed(&entry, &flow(UDP, 0), false, NOW + SECOND - 1),
            None
        );
        assert!(refreshed(&entry, &flow(UDP, 0), false, NOW + SECOND).is_some());
    }

    #[test]
    fn an_entry_ends_at_its_expiry() {
        let entry = new(&flow(UDP, 0), NOW);
        assert!(is_live(&entry, entry.expires_at - 1));
        assert!(!is_live(&entry, entry.expires_at));
    }
}
