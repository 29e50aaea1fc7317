//! The maps: their names, kinds and sizes, as both the object and the agent's
//! check of existing pins have them.

use crate::{
    key::{FlowKey, FlowSlot, FragmentKey, IpKey, PrefixKey},
    outcome::{OUTCOMES_PER_PROGRAM, Program, REASONS_PER_PROGRAM, SAMPLES_PER_REASON},
    value::{
        Config, Counter, Decision, DropSample, Endpoint, FlowNote, FragmentPorts, Interface,
        IpcacheEntry, Remote,
    },
};

/// Name of the map of [`Config`].
pub const CONFIG: &str = "CONFIG";
/// Name of the map of [`Endpoint`] by address.
pub const ENDPOINTS: &str = "ENDPOINTS";
/// Name of the map of [`Interface`] by interface index.
pub const INTERFACES: &str = "INTERFACES";
/// Name of the longest-prefix map of [`IpcacheEntry`].
pub const IPCACHE: &str = "IPCACHE";
/// Name of the map of node ids by node address.
pub const NODES: &str = "NODES";
/// Name of the array of [`Remote`] by node id.
pub const REMOTES: &str = "REMOTES";
/// Name of the map of [`FlowNote`] by tuple.
pub const FLOWS: &str = "FLOWS";
/// Name of the map of noted tuples by local pod and place.
pub const FLOW_SLOTS: &str = "FLOW_SLOTS";
/// Name of the map of [`FragmentPorts`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// Name of the per-CPU array of [`Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Name of the per-CPU array of [`Decision`] by [`Program`].
pub const DECISIONS: &str = "DECISIONS";
/// Name of the per-CPU array of [`DropSample`] by [`crate::outcome::sample_index`].
pub const SAMPLES: &str = "SAMPLES";

/// Name of the array whose one element is the time, as `bpf_ktime_get_ns` counts, of
/// the agent's last round; 0: it has had none.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Nanoseconds after which an agent without a round is taken for dead.
pub const HEARTBEAT_LASTS: u64 = 30_000_000_000;

/// Local pods on one node, per address.
pub const ENDPOINTS_MAX: usize = 4096;
/// Veths of local pods.
pub const INTERFACES_MAX: usize = 4096;
/// Rows of the ipcache: pods of the cluster and one per pod CIDR and node address.
pub const IPCACHE_MAX: usize = 131_072;
/// Addresses of nodes.
pub const NODES_MAX: usize = 16_384;
/// Nodes.
pub const REMOTES_MAX: usize = 8192;
/// Noted flows.
pub const FLOWS_MAX: usize = 65_536;
/// Places for notes, of all pods.
pub const FLOW_SLOTS_MAX: usize = FLOWS_MAX;
/// Notes of one local pod, a power of two.
pub const NOTES_PER_ENDPOINT: usize = 4096;
/// Shares, by their address, of those elsewhere who open translated flows to pods
/// here; a power of two.
pub const FOREIGN_SHARES: u16 = 32;
/// Notes of one such share, a power of two.
pub const NOTES_PER_FOREIGN_SHARE: usize = 1024;
/// The first share in the place of a pod's number in [`FlowSlot`]; pods have less.
pub const FIRST_FOREIGN_SHARE: u16 = u16::MAX - (FOREIGN_SHARES - 1);
const _: () = assert!(FOREIGN_SHARES as usize * NOTES_PER_FOREIGN_SHARE <= FLOWS_MAX / 2);
const _: () = assert!(ENDPOINTS_MAX < FIRST_FOREIGN_SHARE as usize);
/// Datagrams in fragments under way.
pub const FRAGMENTS_MAX: usize = 8192;
/// Counters.
pub const COUNTERS_MAX: usize = Program::ALL.len() * OUTCOMES_PER_PROGRAM as usize;
/// Decision records.
pub const DECISIONS_MAX: usize = Program::ALL.len();
/// Samples of drops.
pub const SAMPLES_MAX: usize =
    Program::ALL.len() * (REASONS_PER_PROGRAM * SAMPLES_PER_REASON) as usize;

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`): memory by use, not by capacity.
pub const NO_PREALLOC: u32 = 1;

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

#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes and capacities are small constants"
)]
const fn spec<K, V>(name: &'static str, kind: MapKind, max_entries: usize, flags: u32) -> MapSpec {
    MapSpec {
        name,
        kind,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries: max_entries as u32,
        flags,
    }
}

/// All maps.
pub const ALL: [MapSpec; 13] = [
    spec::<u32, Config>(CONFIG, MapKind::Array, 1, 0),
    spec::<IpKey, Endpoint>(ENDPOINTS, MapKind::Hash, ENDPOINTS_MAX, NO_PREALLOC),
    spec::<u32, Interface>(INTERFACES, MapKind::Hash, INTERFACES_MAX, NO_PREALLOC),
    spec::<PrefixKey, IpcacheEntry>(IPCACHE, MapKind::LpmTrie, IPCACHE_MAX, NO_PREALLOC),
    spec::<IpKey, u32>(NODES, MapKind::Hash, NODES_MAX, NO_PREALLOC),
    spec::<u32, Remote>(REMOTES, MapKind::Array, REMOTES_MAX, 0),
    spec::<FlowKey, FlowNote>(FLOWS, MapKind::LruHash, FLOWS_MAX, 0),
    spec::<FlowSlot, FlowKey>(FLOW_SLOTS, MapKind::LruHash, FLOW_SLOTS_MAX, 0),
    spec::<FragmentKey, FragmentPorts>(FRAGMENTS, MapKind::LruHash, FRAGMENTS_MAX, 0),
    spec::<u32, Counter>(COUNTERS, MapKind::PerCpuArray, COUNTERS_MAX, 0),
    spec::<u32, Decision>(DECISIONS, MapKind::PerCpuArray, DECISIONS_MAX, 0),
    spec::<u32, DropSample>(SAMPLES, MapKind::PerCpuArray, SAMPLES_MAX, 0),
    spec::<u32, u64>(HEARTBEAT, MapKind::Array, 1, 0),
];
