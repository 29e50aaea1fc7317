//! The node's own sockets, at the hooks of a cgroup (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
//!
//! A connect to a Service, or a datagram to one, goes to the backend itself, before there
//! is a packet. Sockets of other network namespaces, those of pods among them, are left
//! alone: they are translated at their device.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use core::ffi::c_void;
use veer_bpf_common::{
    address::{self, FAMILY_V4, FAMILY_V6},
    tables::{Backend, Frontend, HostSockets},
};
use veer_bpf_net::ip::{TCP, UDP};

use crate::state::sockets;

/// The call goes on.
const ALLOW: i32 = 1;
/// The call fails with `EPERM`.
const DENY: i32 = 0;

/// `connect` of an IPv4 socket. The agent's own to a place that it alone knows tells whose
/// sockets are the node's.
#[cgroup_sock_addr(connect4)]
fn host_connect4(ctx: SockAddrContext) -> i32 {
    let socket = Socket::<V4>::new(&ctx);
    let (address, _) = V4::read(socket.ctx);
    let nonce = HostSockets::nonce(first(address), socket.port());
    if sockets::learns(nonce, socket.namespace()) {
        return DENY;
    }
    socket.ask(sockets::connects)
}

/// `connect` of an IPv6 socket, to an IPv4-mapped address too.
#[cgroup_sock_addr(connect6)]
fn host_connect6(ctx: SockAddrContext) -> i32 {
    Socket::<V6>::new(&ctx).ask(sockets::connects)
}

/// A datagram of an IPv4 socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
fn host_sendmsg4(ctx: SockAddrContext) -> i32 {
    Socket::<V4>::new(&ctx).ask(sockets::sends)
}

/// The same of an IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
fn host_sendmsg6(ctx: SockAddrContext) -> i32 {
    Socket::<V6>::new(&ctx).ask(sockets::sends)
}

/// From where a datagram came that an IPv4 socket receives.
#[cgroup_sock_addr(recvmsg4)]
fn host_recvmsg4(ctx: SockAddrContext) -> i32 {
    Socket::<V4>::new(&ctx).tell()
}

/// The same of an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
fn host_recvmsg6(ctx: SockAddrContext) -> i32 {
    Socket::<V6>::new(&ctx).tell()
}

/// Whom an IPv4 socket is connected to.
#[cgroup_sock_addr(getpeername4)]
fn host_getpeername4(ctx: SockAddrContext) -> i32 {
    Socket::<V4>::new(&ctx).tell()
}

/// The same of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
fn host_getpeername6(ctx: SockAddrContext) -> i32 {
    Socket::<V6>::new(&ctx).tell()
}

/// The first four bytes, all that IPv4 has.
#[inline(always)]
fn first(address: [u8; 16]) -> [u8; 4] {
    [address[0], address[1], address[2], address[3]]
}

/// An IPv4 address in a memory word, and its family.
#[inline(always)]
fn of_v4(word: u32) -> ([u8; 16], u8) {
    let address = address::V6::from_quarters([word, 0, 0, 0]);
    (address.octets(), FAMILY_V4)
}

/// The address in a hook's context.
trait Ends {
    /// It, and its family.
    fn read(ctx: *mut bpf_sock_addr) -> ([u8; 16], u8);
    /// Puts another of the same family there.
    fn write(ctx: *mut bpf_sock_addr, address: [u8; 16], family: u8);
}

/// Of the hooks of IPv4 sockets.
enum V4 {}

impl Ends for V4 {
    #[inline(always)]
    fn read(ctx: *mut bpf_sock_addr) -> ([u8; 16], u8) {
        // SAFETY: the kernel's context, read in words (`sock_addr_is_valid_access`).
        let word = unsafe { (&raw const (*ctx).user_ip4).read_volatile() };
        of_v4(word)
    }

    #[inline(always)]
    fn write(ctx: *mut bpf_sock_addr, address: [u8; 16], _: u8) {
        let word = u32::from_ne_bytes(first(address));
        // SAFETY: as above.
        unsafe { (&raw mut (*ctx).user_ip4).write_volatile(word) };
    }
}

/// Of the hooks of IPv6 sockets. An IPv4-mapped address is one of IPv4 (RFC 4291, 2.5.5.2).
enum V6 {}

impl V6 {
    /// The third word of an IPv4-mapped address.
    const MAPPED: u32 = 0xffff_u32.to_be();

    #[inline(always)]
    fn words(ctx: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: as of `V4`. One by one: a pointer into the context is refused.
        unsafe {
            [
                (&raw const (*ctx).user_ip6[0]).read_volatile(),
                (&raw const (*ctx).user_ip6[1]).read_volatile(),
                (&raw const (*ctx).user_ip6[2]).read_volatile(),
                (&raw const (*ctx).user_ip6[3]).read_volatile(),
            ]
        }
    }
}

impl Ends for V6 {
    #[inline(always)]
    fn read(ctx: *mut bpf_sock_addr) -> ([u8; 16], u8) {
        let words = Self::words(ctx);
        if words[0] | words[1] == 0 && words[2] == Self::MAPPED {
            of_v4(words[3])
        } else {
            (address::V6::from_quarters(words).octets(), FAMILY_V6)
        }
    }

    #[inline(always)]
    fn write(ctx: *mut bpf_sock_addr, address: [u8; 16], family: u8) {
        let words = address::V6::from_octets(address).quarters();
        let words = if family == FAMILY_V4 {
            [0, 0, Self::MAPPED, words[0]]
        } else {
            words
        };
        // SAFETY: as above.
        unsafe {
            (&raw mut (*ctx).user_ip6[0]).write_volatile(words[0]);
            (&raw mut (*ctx).user_ip6[1]).write_volatile(words[1]);
            (&raw mut (*ctx).user_ip6[2]).write_volatile(words[2]);
            (&raw mut (*ctx).user_ip6[3]).write_volatile(words[3]);
        }
    }
}

/// A socket at one of the hooks.
struct Socket<E> {
    ctx: *mut bpf_sock_addr,
    ends: core::marker::PhantomData<E>,
}

impl<E: Ends> Socket<E> {
    #[inline(always)]
    fn new(ctx: &SockAddrContext) -> Self {
        Self {
            ctx: ctx.sock_addr,
            ends: core::marker::PhantomData,
        }
    }

    /// The cookie of its network namespace.
    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the kernel's context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast::<c_void>()) }
    }

    /// Its own cookie.
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the kernel's context.
        unsafe { bpf_get_socket_cookie(self.ctx.cast::<c_void>()) }
    }

    /// The port at the other end, in network byte order.
    #[inline(always)]
    fn port(&self) -> [u8; 2] {
        // SAFETY: as of the addresses. The kernel's 16 bits come first.
        let word = unsafe { (&raw const (*self.ctx).user_port).read_volatile() };
        let bytes = (word as u16).to_ne_bytes();
        [bytes[0], bytes[1]]
    }

    /// The protocol, where it is one that is translated.
    #[inline(always)]
    fn protocol(&self) -> Option<u8> {
        // SAFETY: as of the addresses.
        let protocol = unsafe { (&raw const (*self.ctx).protocol).read_volatile() };
        (protocol == u32::from(TCP) || protocol == u32::from(UDP)).then_some(protocol as u8)
    }

    #[inline(always)]
    fn set(&self, end: &Backend) {
        E::write(self.ctx, end.address, end.family);
        let port = u32::from(u16::from_ne_bytes(end.port));
        // SAFETY: as of the addresses.
        unsafe { (&raw mut (*self.ctx).user_port).write_volatile(port) };
    }

    /// Sends it to whom it is given.
    #[inline(always)]
    fn ask(&self, gives: impl FnOnce(u64, &Frontend) -> Option<Backend>) -> i32 {
        let Some(protocol) = self.protocol() else {
            return ALLOW;
        };
        if !sockets::are_of_host(self.namespace()) {
            return ALLOW;
        }
        let (address, family) = E::read(self.ctx);
        let frontend = Frontend {
            address,
            port: self.port(),
            protocol,
            family,
            pad: [0; 4],
        };
        if let Some(backend) = gives(self.cookie(), &frontend) {
            self.set(&backend);
        }
        ALLOW
    }

    /// Tells it what it asked for. These hooks cannot refuse.
    #[inline(always)]
    fn tell(&self) -> i32 {
        let Some(protocol) = self.protocol() else {
            return ALLOW;
        };
        if !sockets::are_of_host(self.namespace()) {
            return ALLOW;
        }
        let (address, family) = E::read(self.ctx);
        let backend = Backend {
            address,
            port: self.port(),
            family,
            pad: [0; 5],
        };
        if let Some(asked) = sockets::asked(self.cookie(), &backend, protocol) {
            self.set(&asked);
        }
        ALLOW
    }
}
