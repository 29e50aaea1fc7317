//! The flow table: what is to be remembered of flows.
//!
//! A packet that came down from the stack between two ends whose replies the
//! programs would redirect belongs to a flow that was translated there
//! (kube-proxy, hostPorts). It gets a flow entry; its replies go up the stack.
//!
//! Entries are in one hash map for the node, under a key that both directions share, so
//! one look-up answers for either. A pod that opens very many translated flows must take
//! nothing from others, so every entry has a *place* among those of its opener
//! ([`super::places`]), of which there are as many as the map has room for: an insert
//! never meets a full map, and no entry is evicted. Where an opener has no place left, a
//! new entry replaces another of its own that is not established; where there is none,
//! the new flow's packet is dropped. Only the first packet of a translated flow pays for
//! that. Nothing is counted that could get out of step, and nothing needs an agent.

use veer_bpf_common::{
    outcome::{DropReason, FlowState, Observation, Outcome, Verdict},
    tables::{End, FlowEntry, FlowKey, Tuple},
};
use veer_bpf_net::{
    bytes::Bytes,
    conntrack::{self, Way},
    flow::{self, Flow},
    ip::Ip,
};

use super::{counters, flows_before, fragments::FragmentMap, maps::FLOW_TABLE, places};
use crate::ctx::{clock::now, direct, skb::Skb};

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
pub(super) const CREATE: u64 = 1;
/// `BPF_EXIST`.
const REPLACE: u64 = 2;

/// What a packet is to the flow that its entry is of.
#[derive(Clone, Copy)]
pub(crate) enum Answer {
    /// No answer: it goes where its destination is.
    No,
    /// No answer, but the client's in a flow that the programs translate.
    Asks,
    /// One to a flow that the stack translated.
    OfStack,
    /// One to a flow that the programs translate.
    Of(Translation),
}

/// What packets of a translated flow are to show instead.
#[derive(Clone, Copy)]
pub(crate) struct Translation {
    /// The place of the entry that has it as its key.
    pub(super) place: u32,
    /// The end of that key that sends them.
    pub(super) from: End,
    /// What packets they are.
    pub(super) kind: Kind,
}

/// Packets of a translated flow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The client's.
    There,
    /// Answers.
    Back,
    /// ICMP errors about the client's, which carry one.
    Error,
}

impl Translation {
    /// Of ICMP errors about packets from the client to the backend, which have this entry.
    #[inline(always)]
    const fn error(entry: &FlowEntry) -> Self {
        Self {
            place: entry.partner(),
            from: entry.partner_opener(),
            kind: Kind::Error,
        }
    }

    /// Of answers to it, which have this entry.
    #[inline(always)]
    const fn back(entry: &FlowEntry) -> Self {
        Self {
            place: entry.partner(),
            from: entry.partner_opener().other(),
            kind: Kind::Back,
        }
    }
}

/// The flow of a packet.
#[inline(always)]
pub(crate) fn of<I: Ip>(skb: &Skb, ip: &I) -> Result<Flow, DropReason> {
    flow::of(skb, ip, &FragmentMap)
}

/// A copy of what is found under a key: its entry, live or not, or another flow's, whose
/// tag differs, where the key's was deleted or replaced meanwhile.
#[inline(always)]
pub(crate) fn found(key: &FlowKey) -> Option<FlowEntry> {
    FLOW_TABLE.get_ptr(key).map(direct::entry)
}

/// A copy of the entry of a key, live or not. What was replaced while it was read is read
/// again.
#[inline(always)]
pub(crate) fn entry(key: &FlowKey) -> Option<FlowEntry> {
    let entry = found(key)?;
    if entry.tag == key.hash() {
        return Some(entry);
    }
    found(key).filter(|entry| entry.tag == key.hash())
}

/// The same, if it still counts.
#[inline(always)]
pub(super) fn live(key: &FlowKey) -> Option<FlowEntry> {
    entry(key).filter(|entry| conntrack::is_live(entry, now()))
}

/// Whether the flow was opened with packets like this one, and the stack translates it.
#[inline(always)]
pub(crate) fn is_recorded(tuple: &Tuple) -> bool {
    let (key, from) = tuple.canonical();
    match live(&key) {
        Some(entry) => is_from_opener(&entry, from) && !entry.is_translated(),
        None => flows_before::is_recorded(tuple),
    }
}

/// Whether the packet belongs to a flow that is translated: it answers one, or is an ICMP
/// error about one.
///
/// A packet that opens a connection answers nothing, whatever its ports. One that a pod
/// opens directly on a recorded tuple proves the entry outdated, and deletes it.
#[inline(always)]
pub(crate) fn answers(skb: &mut Skb, flow: &Flow) -> Answer {
    let found = answer(flow);
    skb.decision.flow = match found {
        Answer::No | Answer::Asks => FlowState::NoEntry,
        Answer::OfStack | Answer::Of(_) => FlowState::Reply,
    } as u16;
    found
}

/// Whether an end opened the flow, alone or together with the other one.
#[inline(always)]
fn is_from_opener(entry: &FlowEntry, from: End) -> bool {
    entry.state & FlowEntry::BY_BOTH != 0 || entry.opener() == from
}

#[inline(always)]
fn answer(flow: &Flow) -> Answer {
    let (key, from) = flow.tuple.canonical();
    if flow.opens() {
        flows_before::forget(&flow.tuple);
    }
    let Some(entry) = live(&key) else {
        return of_stack(flows_before::is_answer(flow));
    };
    if entry.is_front() {
        // The client's packets alone go by it: what comes from a Service's own address, or
        // is about a packet to it, is the stack's.
        return if !flow.is_error && entry.opener() == from {
            Answer::Asks
        } else {
            Answer::No
        };
    }
    if flow.is_error {
        // The packet that it is about went the way of the opener's.
        return if !is_from_opener(&entry, from) {
            Answer::No
        } else if entry.is_translated() {
            Answer::Of(Translation::error(&entry))
        } else {
            Answer::OfStack
        };
    }
    let by_opener = entry.opener() == from;
    if flow.opens() {
        if by_opener {
            forget(&key, &entry);
        }
        return Answer::No;
    }
    if by_opener {
        return of_stack(entry.state & FlowEntry::BY_BOTH != 0);
    }
    refresh(
        &key,
        &entry,
        (flow.tuple.protocol, flow.tcp_flags),
        Way::Back,
    );
    if !entry.is_translated() {
        Answer::OfStack
    } else if has_partner(&entry) {
        Answer::Of(Translation::back(&entry))
    } else {
        Answer::No
    }
}

#[inline(always)]
const fn of_stack(is_answer: bool) -> Answer {
    if is_answer {
        Answer::OfStack
    } else {
        Answer::No
    }
}

/// Deletes an entry, and its partner where it has one. Another CPU may have been faster.
#[inline(always)]
pub(super) fn forget(key: &FlowKey, entry: &FlowEntry) {
    let _ = FLOW_TABLE.remove(key);
    if entry.is_translated() {
        forget_partner(entry.partner(), entry.place());
    }
}

/// Deletes the entry of a key, live or not, if there is one, with its partner.
#[inline(always)]
pub(super) fn clear(key: &FlowKey) {
    if let Some(entry) = entry(key) {
        forget(key, &entry);
    }
}

/// Deletes the entry in the place `at`, whose partner has the place `partner`. Whether it
/// did. A *global* function, as [`refresh_partner`]: the verifier walks them once, and
/// what they need of the stack is not their callers'.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget_partner(at: u32, partner: u32) -> u32 {
    match places::key(at) {
        Some(key) if partner_at(key, at, partner).is_some() => {
            u32::from(FLOW_TABLE.remove(key).is_ok())
        }
        Some(_) | None => 0,
    }
}

/// Whether the entry in the place `at` is there and has its partner in the place
/// `partner`. A *global* function, as [`forget_partner`]; 0: no.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_paired(at: u32, partner: u32) -> u32 {
    u32::from(places::key(at).is_some_and(|key| partner_at(key, at, partner).is_some()))
}

/// Whether an entry of a translated flow has its partner. Where another CPU deletes both,
/// the place may be another flow's already.
#[inline(always)]
pub(super) fn has_partner(entry: &FlowEntry) -> bool {
    is_paired(entry.partner(), entry.place()) != 0
}

/// The entry of a key, if it is in the place `at` and its partner in the place `partner`.
#[inline(always)]
fn partner_at(key: &FlowKey, at: u32, partner: u32) -> Option<FlowEntry> {
    let entry = entry(key)?;
    let is_it = entry.is_translated() && entry.place() == at && entry.partner() == partner;
    is_it.then_some(entry)
}

/// Records the flow of a packet that came down from the stack.
///
/// Later fragments are ignored: the first one recorded the flow, or was lost.
/// [`DropReason::NoPlaceForFlow`] where a new flow has no place: its replies would not be
/// translated.
#[inline(always)]
pub(crate) fn record<I: Ip>(skb: &mut Skb, ip: &I) -> Outcome {
    if ip.is_later_fragment() {
        return Ok(Verdict::Pass);
    }
    let Ok(flow) = of(skb, ip) else {
        // The stack sent it; a broken packet has no answer to redirect.
        return Ok(Verdict::Pass);
    };
    // An error travels within the flow it is about, which has its own entry.
    if flow.is_error {
        return Ok(Verdict::Pass);
    }
    let (key, from) = flow.tuple.canonical();
    if goes_on(&key, from, &flow) {
        skb.decision.flow = FlowState::Established as u16;
    } else {
        skb.decision.flow = FlowState::New as u16;
        let protocol = flow.tuple.protocol.into();
        let opener = places::opener(ip).number();
        match add(&key, protocol, from.as_opener(), opener) {
            ADDED => {}
            REPLACED => counters::observe(skb.program, skb.length(), Observation::FlowReplaced),
            _ => return Err(DropReason::NoPlaceForFlow),
        }
    }
    Ok(Verdict::PassNoted)
}

/// Whether the flow has a live entry, which then knows of the packet, too. That of a
/// connection that is over, or never was one, is as good as none to a connection which
/// the other end opens between the same ports.
#[inline(always)]
fn goes_on(key: &FlowKey, from: End, flow: &Flow) -> bool {
    let Some(entry) = live(key) else {
        return false;
    };
    let by_opener = entry.opener() == from;
    let is_open = entry.state & (FlowEntry::REPLIED | FlowEntry::CLOSING) == FlowEntry::REPLIED;
    if entry.is_translated() {
        // The stack gave another flow the tuple of one that the programs translate. That one
        // goes on; where it is over, the other one takes its place.
        return is_open || !flow.opens();
    }
    if !by_opener && flow.opens() && !is_open {
        return false;
    }
    let way = if by_opener {
        Way::There
    } else {
        Way::BackFromStack
    };
    refresh(key, &entry, (flow.tuple.protocol, flow.tcp_flags), way);
    true
}

/// [`add`]: the flow has an entry.
const ADDED: u32 = 0;
/// [`add`]: it has one, in the place of another live one.
const REPLACED: u32 = 1;
/// [`add`]: it has none.
const NO_PLACE: u32 = 2;

/// Gives a flow its entry. `opener`: [`End::as_opener`] of the packet's end.
///
/// A function of its own with integers for what comes of it: the verifier follows all
/// ways through it, and then need not follow what comes after once for each.
#[inline(never)]
fn add(key: &FlowKey, protocol: u32, opener: u16, share: u16) -> u32 {
    // One that ended, or is another opener's, whose place becomes free.
    clear(key);
    let (tag, now) = (key.hash(), now());
    let mut taken = places::take(share, key, tag, now);
    if taken.is_none() {
        // Another CPU may have been faster: its place is taken now, and another is found.
        taken = places::take(share, key, tag, now);
    }
    if let Some(taken) = taken {
        let new = FlowEntry {
            tag,
            ..conntrack::new(protocol as u8, opener, now)
        }
        .placed(taken.place, share, 0);
        let added = FLOW_TABLE.insert(key, new, CREATE).is_ok();
        places::release(&taken);
        if added {
            return if taken.replaced { REPLACED } else { ADDED };
        }
    }
    // Another CPU may have had a packet of the same flow.
    if live(key).is_some() { ADDED } else { NO_PLACE }
}

/// Tells a live entry, and its partner where it has one, of a packet of their flow with
/// this protocol and these flags of TCP. In its place goes a new one: a write into the
/// entry could meet another flow's, which took the memory meanwhile.
#[inline(always)]
pub(super) fn refresh(key: &FlowKey, entry: &FlowEntry, seen: (u8, u8), way: Way) {
    if let Some(new) = conntrack::refreshed(entry, seen, way, now()) {
        // Fails where the entry was deleted meanwhile. Another CPU may write it, too, and
        // either result is right.
        let _ = FLOW_TABLE.insert(key, new, REPLACE);
        if entry.is_translated() {
            let seen = u32::from(seen.0) << 8 | u32::from(seen.1);
            refresh_partner(entry.partner(), entry.place(), seen, way as u32);
        }
    }
}

/// Tells the entry in the place `at`, whose partner has the place `partner`. `seen`: the
/// protocol, and below it TCP's flags. Whether there was something to tell.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refresh_partner(at: u32, partner: u32, seen: u32, way: u32) -> u32 {
    let Some(key) = places::key(at) else {
        return 0;
    };
    let way = if way == Way::There as u32 {
        Way::There
    } else {
        Way::Back
    };
    let seen = ((seen >> 8) as u8, seen as u8);
    let new = partner_at(key, at, partner)
        .and_then(|entry| conntrack::refreshed(&entry, seen, way, now()));
    match new {
        Some(new) => u32::from(FLOW_TABLE.insert(key, new, REPLACE).is_ok()),
        None => 0,
    }
}
