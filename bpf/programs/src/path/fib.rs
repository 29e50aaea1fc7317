//! The node's own routes.

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_fib_lookup};
use veer_bpf_common::{
    address::{Address, FAMILY_V4, FAMILY_V6, V6},
    device::IfIndex,
};

use crate::ctx::skb::{NextHop, Skb};

/// `AF_INET`.
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;
/// `BPF_FIB_LKUP_RET_SUCCESS`.
const SUCCESS: i64 = 0;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route; the neighbour's MAC is not known yet.
const NO_NEIGHBOUR: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: there is a route, with a smaller MTU.
const TOO_BIG: i64 = 8;

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`).
#[repr(C)]
struct Question {
    /// Out: the next hop's.
    family: u8,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    length: u16,
    /// In: the device that the packet came from. Out: the one that it goes to.
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    /// In: the destination. Out: the next hop. Network byte order; IPv4 in the first
    /// word.
    destination: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}

const _: () = assert!(size_of::<Question>() == 64);

/// Next hop of the node's route to an address, as for a packet that is forwarded from
/// `ifindex`; `None`: there is no route.
#[inline(always)]
pub(crate) fn next_hop<A: Address>(skb: &Skb, ifindex: IfIndex, to: A) -> Option<NextHop> {
    let mut address = V6(to.words()).quarters();
    let found = route(skb.raw(), ifindex.get(), A::FAMILY, &mut address);
    Some(NextHop {
        ifindex: IfIndex::new((found >> 32) as u32)?,
        family: found as u8,
        address: V6::from_quarters(address),
    })
}

/// The same, with the address in place: in one register, which is what a function can
/// return, the device above and the next hop's family below; 0: there is no route. A
/// function of its own, since the question would take a large part of its caller's
/// stack.
#[inline(never)]
fn route(context: *mut __sk_buff, ifindex: u32, family: u8, address: &mut [u32; 4]) -> u64 {
    let mut question = Question {
        family: if family == FAMILY_V6 {
            AF_INET6
        } else {
            AF_INET
        },
        protocol: 0,
        source_port: [0; 2],
        destination_port: [0; 2],
        length: 0,
        ifindex,
        tos: 0,
        source: [0; 4],
        destination: *address,
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
    if !matches!(result, SUCCESS | NO_NEIGHBOUR | TOO_BIG) {
        return 0;
    }
    *address = question.destination;
    let family = if question.family == AF_INET6 {
        FAMILY_V6
    } else {
        FAMILY_V4
    };
    u64::from(question.ifindex) << 32 | u64::from(family)
}
