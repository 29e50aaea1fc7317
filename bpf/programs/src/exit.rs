//! What surrounds every program: the choice of the family, the decision record, and the
//! one way out, which turns the outcome into code and counter.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    programs::XdpContext,
};
use veer_bpf_common::{
    device::IfIndex,
    outcome::{Outcome, Program, Verdict},
    tables::Decision,
};
use veer_bpf_net::{
    bytes::Bytes,
    ethernet,
    ip::{Ip, v4::Ipv4, v6::Ipv6},
};

use crate::{
    ctx::{direct, skb::Skb, xdp::Frame},
    event,
    state::{counters, maps::DECISIONS},
};

/// A tc program.
pub(crate) trait Hook {
    /// Which one it is.
    const PROGRAM: Program;
    /// Whether it lets packets with this mark of veer's pass as they are.
    #[inline(always)]
    fn passes(_mark: u32) -> bool {
        false
    }
    /// Looks at a packet that the kernel takes for one of the family `I`; frames of
    /// neither family come as IPv4's.
    fn inner<I: Ip>(skb: &mut Skb) -> Outcome;
    /// Whether `inner` may say [`Verdict::Beyond`].
    const GOES_BEYOND: bool = false;
    /// Finds out what `beyond` needs to know.
    #[inline(always)]
    fn between() {}
    /// Goes on with what `inner` said that of.
    #[inline(always)]
    fn beyond<I: Ip>(_skb: &mut Skb) -> Outcome {
        Ok(Verdict::ToStack)
    }
}

/// What the function of the first look returns for [`Verdict::Beyond`]: no code of tc's.
const BEYOND: i32 = -2;

/// Runs a tc program on the kernel's context.
#[inline(always)]
pub(crate) fn tc<H: Hook>(raw: *mut __sk_buff) -> i32 {
    if H::passes(Skb::mark_of(raw)) {
        untouched(H::PROGRAM, raw)
    } else if Skb::protocol(raw) == ethernet::IPV6 {
        looks::<H, Ipv6>(raw)
    } else {
        looks::<H, Ipv4>(raw)
    }
}

/// The looks at a packet, each a function of its own and none within another, so that each
/// has the whole stack: two families, or two looks, in one function would need more than
/// the 512 bytes that the kernel allows for a function and its callers.
#[inline(always)]
fn looks<H: Hook, I: Ip>(raw: *mut __sk_buff) -> i32 {
    let code = first::<H, I>(raw);
    if H::GOES_BEYOND && code == BEYOND {
        H::between();
        return second::<H, I>(raw);
    }
    code
}

/// Lets a packet pass that needs no look.
#[inline(always)]
fn untouched(program: Program, raw: *mut __sk_buff) -> i32 {
    let Some(decision) = record(program) else {
        return TC_ACT_SHOT;
    };
    let outcome = Ok(Verdict::Pass);
    decision.outcome = number(outcome);
    end_tc(program, Skb::new(raw, program, decision).length(), outcome)
}

/// The first look.
#[inline(never)]
fn first<H: Hook, I: Ip>(raw: *mut __sk_buff) -> i32 {
    let Some(decision) = record(H::PROGRAM) else {
        return TC_ACT_SHOT;
    };
    let mut skb = Skb::new(raw, H::PROGRAM, decision);
    let outcome = H::inner::<I>(&mut skb);
    if H::GOES_BEYOND && matches!(outcome, Ok(Verdict::Beyond)) {
        return BEYOND;
    }
    end::<H>(skb, outcome)
}

/// The second look, at what the first one said is beyond pods and nodes.
#[inline(never)]
fn second<H: Hook, I: Ip>(raw: *mut __sk_buff) -> i32 {
    let Some(decision) = DECISIONS.get_ptr_mut(H::PROGRAM as u32) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: as in `record`, which the first look has called.
    let mut skb = Skb::new(raw, H::PROGRAM, unsafe { &mut *decision });
    let outcome = H::beyond::<I>(&mut skb);
    end::<H>(skb, outcome)
}

/// Records an outcome, tells those who keep or listen, and gives the code.
#[inline(always)]
fn end<H: Hook>(skb: Skb, outcome: Outcome) -> i32 {
    skb.decision.outcome = number(outcome);
    if let Err(reason) = outcome {
        event::keep(H::PROGRAM, reason, &skb, skb.ifindex(), skb.decision);
    }
    if is_told(H::PROGRAM, outcome)
        && let Some(listen) = event::listener()
    {
        event::tell(
            listen,
            H::PROGRAM,
            outcome,
            &skb,
            skb.ifindex(),
            skb.decision,
        );
    }
    // The length is read last, and each time: it would take a place on the stack. No
    // program changes that of what it does not answer.
    counters::talk(H::PROGRAM, skb.length(), outcome, skb.decision);
    end_tc(H::PROGRAM, skb.length(), outcome)
}

/// Whether those who listen hear of an outcome. What passes by an uplink is the host's
/// own: its number says nothing of pods, and the stream that tells of it would be told
/// of in turn.
#[inline(always)]
fn is_told(program: Program, outcome: Outcome) -> bool {
    let by_uplink = matches!(program, Program::UplinkIngress | Program::UplinkEgress);
    !(by_uplink && matches!(outcome, Ok(Verdict::Pass)))
}

/// Runs `inner` as the XDP program `program`.
#[inline(always)]
pub(crate) fn xdp(
    program: Program,
    ctx: &XdpContext,
    inner: impl FnOnce(&Frame) -> Outcome,
) -> u32 {
    let frame = Frame::new(ctx.data(), ctx.data_end());
    let Some(decision) = record(program) else {
        return xdp_action::XDP_DROP;
    };
    let outcome = inner(&frame);
    decision.outcome = number(outcome);
    if let Err(reason) = outcome {
        // SAFETY: the kernel hands a valid context to the program.
        let ifindex = IfIndex::from_kernel(unsafe { (*ctx.ctx).ingress_ifindex });
        event::keep(program, reason, &frame, ifindex, decision);
        // What passes is judged, and told of, by the tc program of the device.
        if let Some(listen) = event::listener() {
            event::tell(listen, program, outcome, &frame, ifindex, decision);
        }
    }
    end_xdp(program, frame.length(), outcome)
}

/// Counts the packet and gives the code for the kernel.
///
/// A packet that passes does so with `TC_ACT_UNSPEC`: unlike `TC_ACT_OK` it lets
/// the other programs of the device run (`sch_handle_ingress`, and
/// `bpf_mprog` since kernel commit e420bed02507).
#[inline(always)]
fn end_tc(program: Program, length: u32, outcome: Outcome) -> i32 {
    counters::count(program, length, number(outcome));
    match outcome {
        Ok(
            Verdict::Pass
            | Verdict::PassNoted
            | Verdict::ToStack
            | Verdict::ToStackNoted
            | Verdict::ToStackException
            | Verdict::Beyond,
        ) => TC_ACT_UNSPEC,
        // On the tunnel device itself the packet only has to go on.
        Ok(Verdict::Overlay) if matches!(program, Program::OverlayEgress) => TC_ACT_UNSPEC,
        Ok(Verdict::Deliver | Verdict::Overlay | Verdict::Native | Verdict::Answer) => {
            TC_ACT_REDIRECT
        }
        Ok(Verdict::Ignore) | Err(_) => TC_ACT_SHOT,
    }
}

/// As [`end_tc`], for XDP, whose only verdicts are to pass and to drop.
#[inline(always)]
fn end_xdp(program: Program, length: u32, outcome: Outcome) -> u32 {
    counters::count(program, length, number(outcome));
    match outcome {
        Ok(_) => xdp_action::XDP_PASS,
        Err(_) => xdp_action::XDP_DROP,
    }
}

/// The number under which an outcome is counted and recorded.
#[inline(always)]
fn number(outcome: Outcome) -> u32 {
    match outcome {
        Ok(verdict) => verdict as u32,
        Err(reason) => reason as u32,
    }
}

/// This CPU's decision record of a program, blank. `None` cannot be: the record
/// is an element of an array.
///
/// It is written in place: in local variables its fields would be spilled and restored
/// on every branch.
#[inline(always)]
fn record(program: Program) -> Option<&'static mut Decision> {
    let record = DECISIONS.get_ptr_mut(program as u32)?;
    direct::blank(record);
    // SAFETY: a slot of this CPU in a preallocated array, which no other program
    // uses; BPF programs do not migrate while they run.
    Some(unsafe { &mut *record })
}
