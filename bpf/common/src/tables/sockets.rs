//! `HOST_SOCKETS`, `SOCKETS` and `STREAMS`: how the node's own sockets reach Services.
//!
//! A socket of the node connects to the backend itself, so nothing of its packets has to
//! be translated. What the process is told of its peer is: `SOCKETS` and `STREAMS` say what
//! it asked for.

use super::{Backend, Frontend, MapKind, Table};

/// Whose sockets the hooks translate, and whether: words that are independent of each other.
#[derive(Debug)]
pub enum HostSockets {}

impl HostSockets {
    /// Index of the cookie of the node's network namespace, as `bpf_get_netns_cookie` tells
    /// it (5.7); 0: not known, and no socket is the node's.
    pub const COOKIE: u32 = 0;
    /// Index of what [`HostSockets::nonce`] makes of the address and port whose connect
    /// tells the cookie, after which the program writes 0; 0: none does.
    pub const NONCE: u32 = 1;
    /// Index of whether new flows are translated: 1. Where they are not any more, those
    /// that were go on.
    pub const TRANSLATES: u32 = 2;

    /// Address and port of a connect, both in network byte order in memory.
    #[inline(always)]
    pub const fn nonce(address: [u8; 4], port: [u8; 2]) -> u64 {
        (u32::from_be_bytes(address) as u64) << 16 | u16::from_be_bytes(port) as u64
    }
}

impl Table for HostSockets {
    type Key = u32;
    type Value = u64;
    const NAME: &'static str = "HOST_SOCKETS";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = 3;
}

/// Of translated datagram sockets: what they asked for by whom they got, and the other way
/// round. The kernel may forget those not used for longest: a process is then told its
/// peer's own address, datagrams of a socket without a peer may get another backend, and
/// one with a peer is not ended when that is gone.
#[derive(Debug)]
pub enum Sockets {}

impl Table for Sockets {
    type Key = SocketKey;
    type Value = Backend;
    const NAME: &'static str = "SOCKETS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 16_384;
}

/// The same of TCP's sockets, of which a node opens many more. One that is forgotten names
/// the backend as its peer.
#[derive(Debug)]
pub enum Streams {}

impl Table for Streams {
    type Key = SocketKey;
    type Value = Backend;
    const NAME: &'static str = "STREAMS";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 16_384;
}

/// An end that a socket sends to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The socket, as `bpf_get_socket_cookie` tells it.
    pub cookie: u64,
    /// As in [`crate::address::IpKey`].
    pub address: [u8; 16],
    /// Network byte order.
    pub port: [u8; 2],
    /// As in [`crate::address::IpKey`].
    pub family: u8,
    /// [`SocketKey::ASKED`] or [`SocketKey::GIVEN`].
    pub side: u8,
    /// Zero.
    pub pad: [u8; 4],
}

impl SocketKey {
    /// The end is a frontend, and the value the backend that its datagrams go to.
    pub const ASKED: u8 = 0;
    /// The end is a backend, and the value the frontend that the process asked for.
    pub const GIVEN: u8 = 1;

    /// A socket that asked for this frontend.
    #[inline(always)]
    pub const fn asked(cookie: u64, frontend: &Frontend) -> Self {
        Self {
            cookie,
            address: frontend.address,
            port: frontend.port,
            family: frontend.family,
            side: Self::ASKED,
            pad: [0; 4],
        }
    }

    /// A socket that was given this backend.
    #[inline(always)]
    pub const fn given(cookie: u64, backend: &Backend) -> Self {
        Self {
            cookie,
            address: backend.address,
            port: backend.port,
            family: backend.family,
            side: Self::GIVEN,
            pad: [0; 4],
        }
    }
}

plain!(SocketKey, 32);
