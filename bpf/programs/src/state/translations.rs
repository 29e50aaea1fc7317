//! Flows to Services, which the programs translate.
//!
//! Such a flow has two entries, as its packets have one form between client and program,
//! and another between program and backend: {client, frontend} and {client, backend}.
//! Each names the other's place, whose key is what its own packets become. They are made
//! together, refreshed together and deleted together.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_get_prandom_u32};
use veer_bpf_common::{
    address::{Address, FAMILY_V4},
    outcome::{DropReason, FlowState, Observation},
    tables::{End, FlowEntry, FlowKey, Frontend, Question, Share, Tuple},
};
use veer_bpf_net::{
    bytes::Bytes as _,
    conntrack::{self, Way},
    ethernet,
    flow::Flow,
    ip::{Ip, TCP, UDP, v4::Ipv4, v6::Ipv6},
    l4,
};

use super::{
    counters,
    flows::{self, Answer, CREATE, Kind, Translation},
    maps::{ASKED, FLOW_TABLE},
    places, services,
};
use crate::ctx::{
    clock::now,
    rewrite::{rewrite, rewrite_error},
    skb::Skb,
};

/// This CPU's question. `None` cannot be: it is an element of an array.
#[inline(always)]
pub(super) fn question() -> Option<&'static mut Question> {
    let question = ASKED.get_ptr_mut(0)?;
    // SAFETY: as of the decision records, a slot of this CPU.
    Some(unsafe { &mut *question })
}

/// No place: the packet goes on as it is.
const NONE: u32 = u32::MAX;
/// No place either: the packet cannot go on.
const REFUSED: u32 = u32::MAX - 1;

/// What the last packet that was translated on this CPU showed before.
#[inline(always)]
pub(crate) fn before() -> Option<&'static Tuple> {
    Some(&question()?.tuple)
}

/// Asks what a packet that a pod sends is to become. `share`: the pod's. Whether there is
/// anything to ask.
#[inline(always)]
pub(crate) fn ask(flow: &Flow, share: Share) -> bool {
    if flow.is_error {
        return false;
    }
    let Some(question) = question() else {
        return false;
    };
    question.tuple = flow.tuple;
    question.tcp_flags = flow.tcp_flags;
    question.share = share.number();
    question.whose = 0;
    true
}

/// The same of a packet to a node, `other` or this one. What is in no flow of the programs'
/// is asked about where it is for a `NodePort`.
#[inline(always)]
pub(crate) fn ask_node(flow: &Flow, answer: &Answer, share: Share, other: bool) -> bool {
    let asks = match answer {
        Answer::Asks => true,
        Answer::No => services::is_node_port(&Frontend::of(&flow.tuple).at_node(other)),
        Answer::OfStack | Answer::Of(_) => false,
    };
    if !asks || !ask(flow, share) {
        return false;
    }
    if let Some(question) = question() {
        question.whose = if other {
            Question::OTHER_NODE
        } else {
            Question::OWN_NODE
        };
    }
    true
}

/// Whether the packet that was asked about is sent to a node.
#[inline(always)]
pub(crate) fn is_to_node() -> bool {
    question().is_some_and(|question| question.whose != 0)
}

/// What was answered; `None`: the packet goes on as it is. [`DropReason::NoPlaceForFlow`]
/// where the stack could not translate it either: its answers would be another flow's.
#[inline(always)]
pub(crate) fn answered(skb: &mut Skb) -> Result<Option<Translation>, DropReason> {
    let Some(question) = question() else {
        return Ok(None);
    };
    if question.flow != FlowState::NotAsked as u8 {
        skb.decision.flow = question.flow.into();
    }
    if question.flow == FlowState::New as u8 && question.replaced != 0 {
        counters::observe(skb.program, skb.length(), Observation::FlowReplaced);
    }
    let from = sender(question.way.into());
    match question.place {
        NONE => Ok(None),
        REFUSED => Err(DropReason::NoPlaceForFlow),
        place => Ok(Some(Translation {
            place,
            from,
            kind: Kind::There,
        })),
    }
}

/// Answers this CPU's question. A packet that may begin a flow to a Service gives it its
/// entries.
///
/// Some *global* functions, which the verifier walks once each, one after the other: none
/// has room for another on the stack.
#[inline(always)]
pub(crate) fn answer() {
    if go_on() == 0 && services::choose_backend() != 0 && choose_source() != 0 && begin_flow() == 0
    {
        // Another CPU may have had a packet of the same flow.
        go_on();
    }
}

/// Goes by the entry of the flow. 0 where it has none and the packet may begin it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn go_on() -> u32 {
    let Some(question) = question() else {
        return 1;
    };
    question.place = NONE;
    question.flow = FlowState::NotAsked as u8;
    question.replaced = 0;
    if goes_on(question) {
        question.flow = FlowState::Established as u8;
        return 1;
    }
    u32::from(!may_begin(question))
}

/// Attempts to find a source port that is free towards the backend.
const ATTEMPTS: u32 = 6;
/// The first source port that a client gets which has a flow with its own already. The
/// ports from here on are beyond those that Linux gives to sockets by itself
/// (`net.ipv4.ip_local_port_range`).
const FIRST_SPARE: u32 = 61_000;
/// How many there are.
const SPARE: u32 = 65_536 - FIRST_SPARE;

/// Chooses the source port towards the backend: the client's own, or another one where
/// that one's answers would be another translated flow's. 0 where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_source() -> u32 {
    let Some(question) = question() else {
        return 0;
    };
    // SAFETY: no arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let (back, _) = question.to.canonical();
        let Some(entry) = flows::live(&back) else {
            return 1;
        };
        if !entry.is_translated() {
            // The stack's, which translated the flow before the programs did, or knows
            // another one there and what to do about it.
            return 0;
        }
        let port = FIRST_SPARE + random.wrapping_add(attempt.wrapping_mul(977)) % SPARE;
        question.to.source_port = (port as u16).to_be_bytes();
        attempt += 1;
    }
    question.place = REFUSED;
    0
}

/// [`begin`]. 0 where there are no entries.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begin_flow() -> u32 {
    let Some(question) = question() else {
        return 0;
    };
    question.flow = FlowState::New as u8;
    begin(question);
    u32::from(question.place != NONE)
}

/// Where a packet goes on by the entry of its flow.
#[inline(always)]
fn set(question: &mut Question, entry: &FlowEntry) {
    question.place = entry.partner();
    question.way = entry.partner_opener().as_opener();
}

/// Whether the flow has an entry that the packet goes on by.
#[inline(always)]
fn goes_on(question: &mut Question) -> bool {
    let (key, from) = question.tuple.canonical();
    let Some(entry) = flows::live(&key) else {
        return false;
    };
    if !entry.is_front() || entry.opener() != from {
        return false;
    }
    if !flows::has_partner(&entry) {
        // Nothing would translate its answers.
        flows::forget(&key, &entry);
        return false;
    }
    let is_known = match is_backend(question, &entry) {
        Backend::Gone => {
            flows::forget(&key, &entry);
            return false;
        }
        Backend::There => true,
        Backend::OfNoService => false,
    };
    // Nobody would tell of a backend that is gone, so only answers keep such a flow.
    if is_known {
        let seen = (question.tuple.protocol, question.tcp_flags);
        flows::refresh(&key, &entry, seen, Way::There);
    }
    set(question, &entry);
    true
}

/// Whether a packet may be the first of a flow that is translated here.
#[inline(always)]
fn may_begin(question: &Question) -> bool {
    match question.tuple.protocol {
        TCP => l4::opens(question.tcp_flags),
        UDP => true,
        _ => false,
    }
}

/// What is known of the backend of a flow.
#[derive(Clone, Copy)]
enum Backend {
    /// The Service has it, or the packet stays with it anyhow.
    There,
    /// The Service does not have it, and the packet begins something that another backend
    /// can have: a connection, or it is a datagram.
    Gone,
    /// The programs know no such Service any more.
    OfNoService,
}

#[inline(always)]
fn is_backend(question: &Question, entry: &FlowEntry) -> Backend {
    if question.tuple.protocol != UDP && !l4::opens(question.tcp_flags) {
        return Backend::There;
    }
    let Some(partner) = places::key(entry.partner()) else {
        return Backend::Gone;
    };
    let to = partner.tuple_from(entry.partner_opener());
    let new = l4::opens(question.tcp_flags);
    let (address, port) = (to.destination, to.destination_port);
    match services::leads_to(&question.frontend(), address, port, new) {
        Some(true) => Backend::There,
        Some(false) => Backend::Gone,
        None if new => Backend::Gone,
        None => Backend::OfNoService,
    }
}

/// Gives a flow its two entries; without them the packet goes on as it is.
#[inline(always)]
fn begin(question: &mut Question) {
    let ((front, of_front), (back, of_back)) =
        (question.tuple.canonical(), question.to.canonical());
    if flows::live(&front).is_some_and(|entry| entry.is_front()) {
        // Another CPU was faster.
        return;
    }
    flows::clear(&front);
    flows::clear(&back);
    let (now, share, protocol) = (now(), question.share, question.tuple.protocol);
    let Some(of_back_place) = places::take(share, &back, back.hash(), now) else {
        return;
    };
    let Some(of_front_place) = places::take(share, &front, front.hash(), now) else {
        places::release(&of_back_place);
        return;
    };
    let (at_front, at_back) = (of_front_place.place, of_back_place.place);
    // An answer may be there before the second entry is.
    let state = FlowEntry::TRANSLATED | of_back.as_opener() | as_partner(of_front);
    if insert(&back, protocol, state, (at_back, share, at_front), now) {
        let state =
            FlowEntry::TRANSLATED | FlowEntry::FRONT | of_front.as_opener() | as_partner(of_back);
        if insert(&front, protocol, state, (at_front, share, at_back), now) {
            question.place = at_back;
            question.way = of_back.as_opener();
        } else {
            // Another CPU was faster; the next packet goes by its entries.
            flows::clear(&back);
        }
    }
    question.replaced = u8::from(of_front_place.replaced || of_back_place.replaced);
    places::release(&of_front_place);
    places::release(&of_back_place);
}

/// The bit that says which end of the partner's key is the client.
#[inline(always)]
const fn as_partner(client: End) -> u16 {
    match client {
        End::First => 0,
        End::Second => FlowEntry::PARTNER_BY_SECOND,
    }
}

#[inline(always)]
fn insert(
    key: &FlowKey,
    protocol: u8,
    state: u16,
    (place, share, partner): (u32, u16, u32),
    now: u64,
) -> bool {
    let entry = FlowEntry {
        tag: key.hash(),
        ..conntrack::new(protocol, state, now)
    }
    .placed(place, share, partner);
    FLOW_TABLE.insert(key, entry, CREATE).is_ok()
}

/// Makes the packet what its translation says; its header is to be read again.
#[inline(always)]
pub(crate) fn apply<I: Ip>(skb: &mut Skb, ip: &I, to: Translation) -> Result<(), DropReason> {
    // Later fragments have no ports.
    let ports = if ip.is_later_fragment() {
        0
    } else {
        (ethernet::HEADER_LENGTH + ip.header_length()) as u32
    };
    let mut way = u32::from(to.from.as_opener());
    if to.kind == Kind::Back {
        way |= BACK;
    }
    // SAFETY: a valid context.
    let done = unsafe {
        let is_v4 = <I::Address as Address>::FAMILY == FAMILY_V4;
        match to.kind {
            Kind::There | Kind::Back if is_v4 => translate_v4(skb.raw(), to.place, way, ports),
            Kind::There | Kind::Back => translate_v6(skb.raw(), to.place, way, ports),
            Kind::Error if is_v4 => translate_error_v4(skb.raw(), to.place, way, ports),
            Kind::Error => translate_error_v6(skb.raw(), to.place, way, ports),
        }
    };
    if done == 0 {
        skb.decision.translated = 1;
        Ok(())
    } else {
        Err(DropReason::ForeignTranslation)
    }
}

/// [`translate`]: the packet is an answer.
const BACK: u32 = 1;

/// [`translate`] as a *global* function, which the verifier walks once.
///
/// # Safety
///
/// `raw` is the context that the kernel handed to the program.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn translate_v4(raw: *mut __sk_buff, place: u32, way: u32, ports: u32) -> u32 {
    translate::<Ipv4>(raw, place, way, ports)
}

/// The same for IPv6.
///
/// # Safety
///
/// As [`translate_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn translate_v6(raw: *mut __sk_buff, place: u32, way: u32, ports: u32) -> u32 {
    translate::<Ipv6>(raw, place, way, ports)
}

/// [`translate_error`] as a *global* function.
///
/// # Safety
///
/// As [`translate_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn translate_error_v4(
    raw: *mut __sk_buff,
    place: u32,
    way: u32,
    icmp: u32,
) -> u32 {
    translate_error::<Ipv4>(raw, place, way, icmp)
}

/// The same for IPv6.
///
/// # Safety
///
/// As [`translate_v4`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn translate_error_v6(
    raw: *mut __sk_buff,
    place: u32,
    way: u32,
    icmp: u32,
) -> u32 {
    translate_error::<Ipv6>(raw, place, way, icmp)
}

/// Gives the ICMP error whose header is at `icmp` the form of one about a packet of the
/// key in a place, as [`translate`].
#[inline(always)]
fn translate_error<I: Ip>(raw: *mut __sk_buff, place: u32, way: u32, icmp: u32) -> u32 {
    let (Some(key), Some(question)) = (places::key(place), question()) else {
        return 1;
    };
    question.to = key.tuple_from(sender(way));
    u32::from(!rewrite_error::<I>(raw, question, icmp))
}

/// The end that `way` says.
#[inline(always)]
fn sender(way: u32) -> End {
    if way & u32::from(End::Second.as_opener()) == 0 {
        End::First
    } else {
        End::Second
    }
}

/// Gives the packet the form of the key in a place. `way`: [`End::as_opener`] of the end
/// of that key that sends it, and [`BACK`]; `ports`: offset of the transport header, 0:
/// there is none. 0 where it did. What it needs is not on the stack, of which its callers
/// have nearly all.
#[inline(always)]
fn translate<I: Ip>(raw: *mut __sk_buff, place: u32, way: u32, ports: u32) -> u32 {
    let (Some(key), Some(question)) = (places::key(place), question()) else {
        return 1;
    };
    question.to = key.tuple_from(sender(way));
    let ports = (ports != 0).then_some(ports);
    u32::from(!rewrite::<I>(raw, question, ports, way & BACK != 0))
}
