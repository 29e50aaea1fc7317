//! How long the entry of a translated flow lasts: as long as `nf_conntrack` keeps
//! its own (`net/netfilter/nf_conntrack_proto_*.c`), which alone can translate the
//! replies of what the stack translated. Those of the programs last as long.

use crate::{
    ip::{ICMP, ICMP_V6, TCP, UDP},
    l4::{self, FIN, RST},
};
use veer_bpf_common::tables::FlowEntry;

/// Nanoseconds of a second.
pub const SECOND: u64 = 1_000_000_000;

/// An entry is not written while that would move its expiry by less than this.
const COARSENESS: u64 = SECOND;

/// How long a closed connection has kept its entry when others may have its place, too:
/// its last packets have passed. In nanoseconds.
const PASSED: u64 = 10 * SECOND;
/// How long it keeps it at most.
const CLOSING_FOR: u64 = 120 * SECOND;

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the end that opened it.
    There,
    /// To that end.
    Back,
    /// To that end and down from the stack: of a flow that the other end opened.
    BackFromStack,
}

/// Both ends' FINs.
const FINS: u16 = FlowEntry::FIN_THERE | FlowEntry::FIN_BACK;

/// After how many ticks of [`tick`] an answered UDP flow is a stream: conntrack waits
/// two seconds, so more than two whole seconds must lie between.
const STREAM: u32 = 31;

/// Time in units of 67 ms, cheap to make of nanoseconds; never 0.
#[inline(always)]
pub const fn tick(now: u64) -> u32 {
    let tick = (now >> 26) as u32;
    if tick == 0 { 1 } else { tick }
}

/// Nanoseconds that a flow in this state lasts without a packet. `stream`: it has
/// been there for some seconds.
#[inline(always)]
const fn lifetime(protocol: u8, state: u16, stream: bool) -> u64 {
    let replied = state & FlowEntry::REPLIED != 0;
    let seconds = match protocol {
        TCP if state & FlowEntry::CLOSING != 0 => CLOSING_FOR / SECOND,
        // Half-closed: kube-proxy sets `nf_conntrack_tcp_timeout_close_wait` to this.
        TCP if state & FINS != 0 => 3600,
        TCP if state & FlowEntry::CONFIRMED != 0 => 5 * 24 * 3600,
        TCP if replied => 60,
        TCP => 120,
        // `udp_timeouts` in nf_conntrack_proto_udp.c, since kernel commit
        // d535c8a69c19.
        UDP if replied && stream => 120,
        UDP | ICMP | ICMP_V6 => 30,
        _ => 600,
    };
    seconds * SECOND
}

/// For how many of the nanoseconds that a flow in this state lasts nothing takes its
/// place. As with `IPS_ASSURED` (`nf_conntrack`), a flow has to have been more than asked
/// and answered once: else who opens many would keep out his own next.
#[inline(always)]
const fn firmness(protocol: u8, state: u16, stream: bool, lifetime: u64) -> u64 {
    let confirmed = state & FlowEntry::CONFIRMED != 0;
    match protocol {
        TCP if confirmed && state & FlowEntry::CLOSING == 0 => FlowEntry::FIRM,
        TCP | ICMP | ICMP_V6 => 0,
        UDP if !stream => 0,
        _ if confirmed => lifetime,
        _ => 0,
    }
}

/// The state of a flow after a packet of it.
#[inline(always)]
const fn next_state(state: u16, flags: u8, way: Way) -> u16 {
    let reply = !matches!(way, Way::There);
    let mut state = if matches!(way, Way::BackFromStack) {
        state | FlowEntry::REPLIED | FlowEntry::BY_BOTH
    } else if reply {
        state | FlowEntry::REPLIED
    } else if l4::opens(flags) {
        state & (FlowEntry::MADE_WITH | FlowEntry::BY_BOTH)
    } else if state & FlowEntry::REPLIED != 0 {
        state | FlowEntry::CONFIRMED
    } else {
        state
    };
    if flags & FIN != 0 {
        state |= if reply {
            FlowEntry::FIN_BACK
        } else {
            FlowEntry::FIN_THERE
        };
    }
    if flags & RST != 0 || state & FINS == FINS {
        state |= FlowEntry::CLOSING;
    }
    state
}

/// The entry in this state at `now`.
#[inline(always)]
const fn at(entry: &FlowEntry, protocol: u8, state: u16, now: u64) -> FlowEntry {
    let stream = tick(now).wrapping_sub(entry.began) >= STREAM;
    let lifetime = lifetime(protocol, state, stream);
    let firmness = firmness(protocol, state, stream, lifetime);
    FlowEntry {
        expires_at: now.wrapping_add(lifetime),
        firm_until: if firmness == 0 {
            0
        } else {
            now.wrapping_add(firmness)
        },
        state,
        ..*entry
    }
}

/// An entry after a packet of its flow, with this protocol and these flags of TCP, at time
/// `now`, in nanoseconds; `None` where the difference is too small to write.
#[inline(always)]
pub const fn refreshed(
    entry: &FlowEntry,
    (protocol, tcp_flags): (u8, u8),
    way: Way,
    now: u64,
) -> Option<FlowEntry> {
    let state = next_state(entry.state, tcp_flags, way);
    let new = at(entry, protocol, state, now);
    if state == entry.state && new.expires_at < entry.expires_at.wrapping_add(COARSENESS) {
        return None;
    }
    Some(new)
}

/// The first entry of a flow, without tag, place and share. `state`: of the bits
/// [`FlowEntry::MADE_WITH`].
#[inline(always)]
pub const fn new(protocol: u8, state: u16, now: u64) -> FlowEntry {
    let blank = FlowEntry {
        tag: 0,
        began: tick(now),
        expires_at: 0,
        firm_until: 0,
        place_bits: 0,
        state: 0,
        share_bits: 0,
    };
    at(&blank, protocol, state, now)
}

/// What the entry in a place is worth to a new flow that looks for one: 0 where the
/// place is free, [`TAKEN`] where it may not have it, and the less the sooner it is to
/// be given up: flows without a reply first, then those that are closing, of each those
/// first that would expire first. `is_others`: the entry is of another share, and is to be
/// had only after it was closing for a while.
///
/// Without branches: the verifier would follow each, for each place that is tried.
#[inline(always)]
pub const fn worth(entry: &FlowEntry, is_others: bool, now: u64) -> u64 {
    let replied = (entry.state & FlowEntry::REPLIED) as u64;
    let closing = ((entry.state & FlowEntry::CLOSING) >> 1) as u64;
    let rank = 1 + replied * (2 - closing);
    let worth = (rank << 61) | (entry.expires_at >> 3);
    let passed = before(entry.expires_at, now.wrapping_add(CLOSING_FOR - PASSED));
    let others = (is_others as u64).wrapping_neg() & !(closing.wrapping_neg() & passed);
    let kept = before(now, entry.firm_until) | others;
    (worth | kept) & before(now, entry.expires_at)
}

/// See [`worth`].
pub const TAKEN: u64 = u64::MAX;

/// All bits where `a` is less than `b`, else none; both below 2⁶³.
#[inline(always)]
const fn before(a: u64, b: u64) -> u64 {
    (a.wrapping_sub(b).cast_signed() >> 63).cast_unsigned()
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
    use veer_bpf_common::tables::End;

    const NOW: u64 = 1000 * SECOND;

    fn seconds_left(entry: &FlowEntry, now: u64) -> u64 {
        (entry.expires_at - now) / SECOND
    }

    #[test]
    fn a_new_entry_lasts_as_an_unreplied_flow() {
        for (protocol, expected) in [(TCP, 120), (UDP, 30), (ICMP, 30), (132, 600)] {
            let entry = new(protocol, End::First.as_opener(), NOW);
            assert_eq!(seconds_left(&entry, NOW), expected);
        }
    }

    /// An entry after these packets: flags, and whether it is a reply.
    fn after(packets: &[(u8, bool)]) -> FlowEntry {
        let first = new(TCP, End::First.as_opener(), NOW);
        packets.iter().fold(first, |entry, (flags, reply)| {
            let way = if *reply { Way::Back } else { Way::There };
            refreshed(&entry, (TCP, *flags), way, NOW).unwrap_or(entry)
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
        let entry = new(TCP, End::First.as_opener(), NOW);
        let entry = refreshed(&entry, (TCP, SYN | ACK), Way::Back, NOW).unwrap();
        let entry = refreshed(&entry, (TCP, FIN | ACK), Way::Back, NOW).unwrap();
        let later = NOW + 60 * SECOND;
        let entry = refreshed(&entry, (TCP, SYN), Way::There, later).unwrap();
        assert_eq!((entry.state, seconds_left(&entry, later)), (0, 120));
    }

    #[test]
    fn an_answered_udp_flow_lasts_longer_once_it_goes_on() {
        let asked = new(UDP, End::First.as_opener(), NOW);
        let answered = refreshed(&asked, (UDP, 0), Way::Back, NOW).unwrap();
        assert_eq!(seconds_left(&answered, NOW), 30);
        // Conntrack calls it a stream from two seconds on.
        let soon = NOW + 2 * SECOND;
        let entry = refreshed(&answered, (UDP, 0), Way::There, soon).unwrap();
        assert_eq!(seconds_left(&entry, soon), 30);
        let later = NOW + 3 * SECOND;
        let entry = refreshed(&answered, (UDP, 0), Way::There, later).unwrap();
        assert_eq!(seconds_left(&entry, later), 120);
        // One-sided it never is one.
        let entry = refreshed(&asked, (UDP, 0), Way::There, later).unwrap();
        assert_eq!(seconds_left(&entry, later), 30);
    }

    #[test]
    fn an_entry_is_written_at_most_once_a_second() {
        let entry = new(UDP, End::First.as_opener(), NOW);
        assert_eq!(
            refreshed(&entry, (UDP, 0), Way::There, NOW + SECOND - 1),
            None
        );
        assert!(refreshed(&entry, (UDP, 0), Way::There, NOW + SECOND).is_some());
    }

    #[test]
    fn an_entry_ends_at_its_expiry() {
        let entry = new(UDP, End::First.as_opener(), NOW);
        assert!(is_live(&entry, entry.expires_at - 1));
        assert!(!is_live(&entry, entry.expires_at));
    }
    #[test]
    fn a_handshake_without_its_last_packet_ends_within_a_minute() {
        assert_eq!(seconds_left(&after(&[(SYN | ACK, true)]), NOW), 60);
        let open = after(&[(SYN | ACK, true), (ACK, false)]);
        assert_eq!(open.state, FlowEntry::REPLIED | FlowEntry::CONFIRMED);
    }

    #[test]
    fn who_opened_the_flow_is_kept_when_its_port_is_used_again() {
        let entry = new(TCP, End::Second.as_opener(), NOW);
        let entry = refreshed(&entry, (TCP, SYN | ACK), Way::Back, NOW).unwrap();
        let entry = refreshed(&entry, (TCP, SYN), Way::There, NOW).unwrap();
        assert_eq!(
            (entry.state, entry.opener()),
            (End::Second.as_opener(), End::Second)
        );
    }

    /// In the order in which they are given up.
    #[test]
    fn flows_without_reply_are_given_up_first_then_closing_ones_and_established_never() {
        let asked = after(&[]);
        let closing = after(&[(SYN | ACK, true), (ACK, false), (RST, false)]);
        let answered = after(&[(SYN | ACK, true)]);
        let open = after(&[(SYN | ACK, true), (ACK, false)]);
        let worth = |entry: &FlowEntry, later: u64| worth(entry, false, NOW + later * SECOND);
        assert!(0 < worth(&asked, 0));
        assert!(worth(&asked, 0) < worth(&closing, 0));
        assert!(worth(&closing, 0) < worth(&answered, 0));
        assert!(worth(&answered, 0) < TAKEN);
        for (later, is_taken) in [(0, true), (3599, true), (3600, false), (431_999, false)] {
            assert_eq!(worth(&open, later) == TAKEN, is_taken, "after {later} s");
        }
        assert_eq!(worth(&open, 432_000), 0, "expired");
        assert_eq!(super::worth(&asked, true, NOW), TAKEN, "of another share");
        assert_eq!(super::worth(&asked, true, NOW + 120 * SECOND), 0);
        let others = |later: u64| super::worth(&closing, true, NOW + later * SECOND);
        assert_eq!(others(9), TAKEN, "its last packets may come");
        assert!((1..TAKEN).contains(&others(11)));
    }

    #[test]
    fn a_udp_flow_is_firm_once_it_is_a_stream() {
        let asked = new(UDP, End::First.as_opener(), NOW);
        let later = NOW + 3 * SECOND;
        let answered = refreshed(&asked, (UDP, 0), Way::Back, later).unwrap();
        assert_eq!(answered.firm_until, 0, "asked once and answered late");
        let goes_on = refreshed(&answered, (UDP, 0), Way::There, later).unwrap();
        assert_eq!(goes_on.firm_until, goes_on.expires_at);
    }

    #[test]
    fn a_flow_that_the_other_end_opened_as_well_is_known_as_that() {
        let entry = new(UDP, End::First.as_opener(), NOW);
        let both = refreshed(&entry, (UDP, 0), Way::BackFromStack, NOW).unwrap();
        assert_eq!(both.state, FlowEntry::REPLIED | FlowEntry::BY_BOTH);
        let again = refreshed(&both, (UDP, 0), Way::BackFromStack, NOW);
        assert_eq!(again, None, "nothing new");
    }
}
