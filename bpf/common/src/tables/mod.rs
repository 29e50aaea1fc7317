//! The maps, one file each: name, kind, capacity, key, value, and the rules of
//! what they hold.
//!
//! A map is a type that implements [`Table`]. The programs define their maps
//! from it, user space opens and checks pins by it, and [`ALL`] lists them.

mod config;
mod counters;
mod decisions;
mod endpoints;
mod events;
mod flows;
mod flows_before;
mod fragments;
mod heartbeat;
mod interfaces;
mod ipcache;
mod listen;
mod nodes;
mod places;
mod remotes;
mod samples;
mod services;
mod sockets;
mod traffic;

pub use config::{CONFIG_PAD, Config, Configuration};
pub use counters::{Counter, Counters};
pub use decisions::{Decision, Decisions};
pub use endpoints::{Endpoint, Endpoints};
pub use events::{EVENT_BYTES, Event, Events, Record};
pub use flows::{End, FlowEntry, FlowKey, Flows, Tuple};
pub use flows_before::{FlowBefore, FlowsBefore};
pub use fragments::{FragmentKey, FragmentPorts, Fragments};
pub use heartbeat::Heartbeat;
pub use interfaces::{Interface, Interfaces};
pub use ipcache::{Ipcache, IpcacheEntry, Who};
pub use listen::{Listen, Listening};
pub use nodes::Nodes;
pub use places::{Place, Places, Share, bpf_spin_lock};
pub use remotes::{FORM_NATIVE, FORM_NONE, FORM_TUNNEL, Form, Remote, Remotes};
pub use samples::Samples;
pub use services::{
    Affinities, Affinity, AffinityKey, Asked, Backend, BackendKey, Backends, Frontend, Member,
    Members, Question, Service, Services,
};
pub use sockets::{HostSockets, SocketKey, Sockets, Streams};
pub use traffic::{Talk, Talked, Traffic};

/// A key of two addresses and eight bytes more, in memory words.
#[repr(C)]
struct PairWords {
    /// Source and destination.
    addresses: [u64; 4],
    middle: u32,
    end: u32,
}

/// `enum bpf_map_type` values used here (`include/uapi/linux/bpf.h`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`.
    Array = 2,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    PerCpuArray = 6,
    /// `BPF_MAP_TYPE_LRU_HASH`.
    LruHash = 9,
    /// `BPF_MAP_TYPE_LPM_TRIE`.
    LpmTrie = 11,
    /// `BPF_MAP_TYPE_RINGBUF`, since 5.8.
    RingBuf = 27,
}

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`): memory by use, not by capacity.
const NO_PREALLOC: u32 = 1;

impl MapKind {
    /// `map_flags` of all maps of this kind. The kernel takes a trie only with
    /// `BPF_F_NO_PREALLOC`, and an LRU map only without.
    pub const fn flags(self) -> u32 {
        match self {
            Self::Hash | Self::LpmTrie => NO_PREALLOC,
            Self::Array | Self::PerCpuArray | Self::LruHash | Self::RingBuf => 0,
        }
    }
}

/// What a key or value is: integers and byte arrays, copied as bytes.
#[cfg(feature = "user")]
pub trait Plain: aya::Pod {}
#[cfg(feature = "user")]
impl<T: aya::Pod> Plain for T {}

/// What a key or value is: integers and byte arrays, copied as bytes.
#[cfg(not(feature = "user"))]
pub trait Plain: Copy + 'static {}
#[cfg(not(feature = "user"))]
impl<T: Copy + 'static> Plain for T {}

/// A map.
pub trait Table {
    /// What it is looked up by; arrays by their index.
    type Key: Plain;
    /// What it holds; per-CPU arrays hold one for each CPU.
    type Value: Plain;
    /// Its name in the object and under the pin path.
    const NAME: &'static str;
    /// Its type.
    const KIND: MapKind;
    /// How many entries it holds.
    const CAPACITY: usize;
    /// All of that as the kernel describes a map.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "sizes and capacities are small constants"
    )]
    const SPEC: MapSpec = MapSpec {
        name: Self::NAME,
        kind: Self::KIND,
        key_size: size_of::<Self::Key>() as u32,
        value_size: size_of::<Self::Value>() as u32,
        max_entries: Self::CAPACITY as u32,
        flags: Self::KIND.flags(),
    };
}

/// What a map must look like. A pin that differs is not ours to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Its name in the object and under the pin path.
    pub name: &'static str,
    /// Its type.
    pub kind: MapKind,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Capacity.
    pub max_entries: u32,
    /// `map_flags`.
    pub flags: u32,
}

/// All maps but [`FlowsBefore`], which only an upgrade has.
pub const ALL: [MapSpec; 24] = [
    Configuration::SPEC,
    Endpoints::SPEC,
    Interfaces::SPEC,
    Ipcache::SPEC,
    Nodes::SPEC,
    Remotes::SPEC,
    Flows::SPEC,
    Places::SPEC,
    Fragments::SPEC,
    Counters::SPEC,
    Decisions::SPEC,
    Samples::SPEC,
    Heartbeat::SPEC,
    Listening::SPEC,
    Events::SPEC,
    Services::SPEC,
    Backends::SPEC,
    Members::SPEC,
    Affinities::SPEC,
    Asked::SPEC,
    HostSockets::SPEC,
    Sockets::SPEC,
    Streams::SPEC,
    Traffic::SPEC,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs of another version find these by name, and compare the rest.
    #[test]
    fn every_map_has_a_name_of_its_own_that_the_kernel_takes_whole() {
        /// `BPF_OBJ_NAME_LEN` without the terminating zero.
        const LONGEST: usize = 15;
        for (i, map) in ALL.iter().enumerate() {
            assert!(map.name.len() <= LONGEST, "{}", map.name);
            assert!(ALL[..i].iter().all(|other| other.name != map.name));
        }
    }
}
