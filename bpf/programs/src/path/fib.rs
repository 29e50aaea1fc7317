//! The node's own routes.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use veer_bpf_common::device::IfIndex;

use crate::ctx::skb::Skb;

/// `AF_INET`.
const AF_INET: u8 = 2;
/// `BPF_FIB_LKUP_RET_SUCCESS`.
const SUCCESS: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route; the neighbour's MAC is not known yet.
const NO_NEIGHBOUR: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: there is a route, with a smaller MTU.
const TOO_BIG: i64 = 8;

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`) for IPv4.
#[repr(C)]
struct Question {
    family: u8,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    length: u16,
    /// In: the device that the packet came from. Out: the one that it goes to.
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    /// In: the destination. Out: the next hop. Network byte order, in the first word.
    destination: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}

const _: () = assert!(size_of::<Question>() == 64);

/// Device and next hop of the node's route to an address, as for a packet that is
/// forwarded from `ifindex`; `None`: there is no route.
#[inline(always)]
pub(crate) fn next_hop(skb: &Skb, ifindex: IfIndex, to: [u8; 4]) -> Option<(IfIndex, [u8; 4])> {
    let found = route(skb.raw(), ifindex.get(), u32::from_ne_bytes(to));
    let device = IfIndex::new((found >> 32) as u32)?;
    Some((device, (found as u32).to_ne_bytes()))
}

/// The same in one register, which is what a function can return: the device above,
/// the next hop below; 0: there is no route. A function of its own, since the question
/// would take a large part of its caller's stack.
#[inline(never)]
fn route(context: *mut __sk_buff, ifindex: u32, to: u32) -> u64 {
    let mut question = Question {
        family: AF_INET,
        protocol: 0,
        source_port: [0; 2],
        destination_port: [0; 2],
        length: 0,
        ifindex,
        tos: 0,
        source: [0; 4],
        destination: [to, 0, 0, 0],
        vlan: 0,
        macs: [0; 3],
    };
    // SAFETY: a valid context and an initialised structure of the size given.
    let result = unsafe {
        bpf_fib_lookup(
            context.cast(),
            (&raw mut question).cast(),
            size_of::<Question>() as i32,
            0,
        )
    };
    if matches!(result, SUCCESS | NO_NEIGHBOUR | TOO_BIG) {
        u64::from(question.ifindex) << 32 | u64::from(question.destination[0])
    } else {
        0
    }
}
