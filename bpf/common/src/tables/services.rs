//! `SERVICES`, `BACKENDS`, `MEMBERS` and `AFFINITY`: where packets to Services go. `ASKED`:
//! what functions of one program tell each other about such a packet.
//!
//! One port of a Service in one family has a number. All its frontends (address,
//! protocol, port) lead to that number and to a *version* of its backends, which is
//! written before and never changed: one write of the frontend moves new flows from one
//! version to the next.

use core::net::{IpAddr, SocketAddr};

use super::{MapKind, Table, Tuple};
use crate::address::{IpKey, V6};

/// Frontends: what clients send to.
#[derive(Debug)]
pub enum Services {}

impl Table for Services {
    type Key = Frontend;
    type Value = Service;
    const NAME: &'static str = "SERVICES";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 131_072;
}

/// Backends by their slot in a version.
#[derive(Debug)]
pub enum Backends {}

impl Table for Backends {
    type Key = BackendKey;
    type Value = Backend;
    const NAME: &'static str = "BACKENDS";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 524_288;
}

/// Which backends a Service has now, with [`Members::CHOSEN`] or [`Members::SERVING`]: flows
/// of datagrams leave a backend with the next packet once it is none.
#[derive(Debug)]
pub enum Members {}

impl Members {
    /// New flows may go there.
    pub const CHOSEN: u32 = 1;
    /// It serves, ready or on its way out, but new flows from this node do not go there.
    /// Flows of datagrams that it has stay with it.
    pub const SERVING: u32 = 2;
}

impl Table for Members {
    type Key = Member;
    type Value = u32;
    const NAME: &'static str = "MEMBERS";
    const KIND: MapKind = MapKind::Hash;
    const CAPACITY: usize = 524_288;
}

/// Which backend a client had last, of Services with session affinity. The kernel may
/// forget the oldest: a client then gets another backend, and no connection ends.
#[derive(Debug)]
pub enum Affinities {}

impl Table for Affinities {
    type Key = AffinityKey;
    type Value = Affinity;
    const NAME: &'static str = "AFFINITY";
    const KIND: MapKind = MapKind::LruHash;
    const CAPACITY: usize = 65_536;
}

/// An address, protocol and port that clients send to.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// As in [`crate::address::IpKey`].
    pub address: [u8; 16],
    /// Network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// As in [`crate::address::IpKey`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 4],
}

impl Frontend {
    /// This address, port and IP protocol number.
    pub fn new(address: IpAddr, port: u16, protocol: u8) -> Self {
        let key = IpKey::from(address);
        Self {
            address: *key.addr(),
            port: port.to_be_bytes(),
            protocol,
            family: key.family(),
            pad: [0; 4],
        }
    }

    /// The address of frontends that are a `NodePort` of this node, at all its addresses: the
    /// unspecified one. With the bytes of IPv4 alone it is that of IPv4.
    pub const OWN_NODE: [u8; 16] = [0; 16];
    /// The same at the addresses of other nodes, where that leads to the same: `0.0.0.1`,
    /// `0:1::`, which nobody has.
    pub const OTHER_NODES: [u8; 16] = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    /// Whether it is a `NodePort`'s.
    pub fn is_node_port(&self) -> bool {
        [Self::OWN_NODE, Self::OTHER_NODES].contains(&self.address)
    }

    /// The same port at the addresses of nodes.
    #[inline(always)]
    #[must_use]
    pub const fn at_node(self, of_other: bool) -> Self {
        // In words: a constant of 16 bytes would be a map of the programs'.
        let first = u64::from_ne_bytes([0, 0, 0, of_other as u8, 0, 0, 0, 0]);
        Self {
            address: V6([first, 0]).octets(),
            ..self
        }
    }

    /// What packets of a flow are sent to.
    #[inline(always)]
    pub const fn of(tuple: &Tuple) -> Self {
        Self {
            address: tuple.destination,
            port: tuple.destination_port,
            protocol: tuple.protocol,
            family: tuple.family,
            pad: [0; 4],
        }
    }
}

/// One port of a Service, as a frontend leads to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its number.
    pub id: u32,
    /// The version of its backends that counts.
    pub version: u32,
    /// How many backends that has, in slots from 0; 0: the packet goes to the host's stack.
    pub backends: u32,
    /// Seconds for which a client keeps its backend after its last flow began; 0: each flow
    /// is on its own.
    pub affinity: u32,
}

/// A slot of a version.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BackendKey {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::version`].
    pub version: u32,
    /// Below [`Service::backends`].
    pub slot: u32,
}

/// Where a flow to a Service may go.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    /// As in [`crate::address::IpKey`].
    pub address: [u8; 16],
    /// Network byte order.
    pub port: [u8; 2],
    /// As in [`crate::address::IpKey`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 5],
}

impl Backend {
    /// The one at this address and port.
    pub fn at(socket: SocketAddr) -> Self {
        let key = IpKey::from(socket.ip());
        Self {
            address: *key.addr(),
            port: socket.port().to_be_bytes(),
            family: key.family(),
            pad: [0; 5],
        }
    }
}

/// A backend of a Service.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// [`Backend::address`].
    pub address: [u8; 16],
    /// [`Backend::port`].
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// [`Service::id`].
    pub service: u32,
}

impl Member {
    /// This backend of this Service.
    #[inline(always)]
    pub const fn new(service: u32, address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            pad: [0; 2],
            service,
        }
    }
}

/// A client of a Service. The number of a Service is of one family alone.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// As in [`crate::address::IpKey`].
    pub client: [u8; 16],
    /// [`Service::id`].
    pub service: u32,
}

/// The backend that a client had last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// The backend.
    pub backend: Backend,
    /// When its last flow began, in nanoseconds of `bpf_ktime_get_ns`.
    pub since: u64,
}

/// What one function of a program asks another about a packet to a Service, and what it
/// answers: one for each CPU, at index 0. The kernel allows 512 bytes of stack for a
/// function and its callers, which is too little for both in one.
#[derive(Debug)]
pub enum Asked {}

impl Table for Asked {
    type Key = u32;
    type Value = Question;
    const NAME: &'static str = "ASKED";
    const KIND: MapKind = MapKind::PerCpuArray;
    const CAPACITY: usize = 1;
}

/// What a packet of a translated flow is to become, and what the rewrite needs off the
/// stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The packet's flow; once it is translated, what it showed before.
    pub tuple: Tuple,
    /// What it is to become.
    pub to: Tuple,
    /// Of an ICMP error: its own source and destination, in memory words.
    pub outside: [u64; 4],
    /// The same of the packet that is to change.
    pub old: [u64; 4],
    /// What is to be there instead.
    pub new: [u64; 4],
    /// TCP's flags.
    pub tcp_flags: u8,
    /// [`crate::outcome::FlowState`] of the flow.
    pub flow: u8,
    /// The share of the pod that sends it, [`super::Share`].
    pub share: u16,
    /// Index of the place of the entry whose key it becomes, [`super::Places`].
    pub place: u32,
    /// [`super::End::as_opener`] of the end of that key that sends it.
    pub way: u16,
    /// Whether a live entry lost its place to the flow.
    pub replaced: u8,
    /// Whose address the packet is sent to: a Service's alone (0), this node's
    /// ([`Question::OWN_NODE`]) or another one's ([`Question::OTHER_NODE`]).
    pub whose: u8,
    /// Zero.
    pub pad: [u8; 4],
}

impl Question {
    /// See [`Question::whose`].
    pub const OWN_NODE: u8 = 1;
    /// See [`Question::whose`].
    pub const OTHER_NODE: u8 = 2;

    /// The frontend that the packet is for, if it is for one.
    #[inline(always)]
    pub const fn frontend(&self) -> Frontend {
        let frontend = Frontend::of(&self.tuple);
        match self.whose {
            0 => frontend,
            whose => frontend.at_node(whose == Self::OTHER_NODE),
        }
    }
}

plain!(Question, 192);
plain!(Frontend, 24);
plain!(Service, 16);
plain!(BackendKey, 12);
plain!(Backend, 24);
plain!(Member, 24);
plain!(AffinityKey, 20);
plain!(Affinity, 32);
