//! The maps. Names, kinds and sizes are those of [`veer_bpf_common::maps`],
//! which a kernel test compares with the built object.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use veer_bpf_common::{
    key::{FlowKey, FlowSlot, FragmentKey, IpKey},
    maps as spec,
    value::{
        Config, Counter, Decision, DropSample, Endpoint, FlowNote, FragmentPorts, Interface,
        IpcacheEntry, Remote,
    },
};

const NO_PREALLOC: usize = spec::NO_PREALLOC as usize;

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub(crate) static ENDPOINTS: HashMap<IpKey, Endpoint, { spec::ENDPOINTS_MAX }, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
pub(crate) static INTERFACES: HashMap<u32, Interface, { spec::INTERFACES_MAX }, NO_PREALLOC> =
    HashMap::new();

#[btf_map]
pub(crate) static IPCACHE: LpmTrie<IpKey, IpcacheEntry, { spec::IPCACHE_MAX }, NO_PREALLOC> =
    LpmTrie::new();

#[btf_map]
pub(crate) static NODES: HashMap<IpKey, u32, { spec::NODES_MAX }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub(crate) static REMOTES: Array<Remote, { spec::REMOTES_MAX }> = Array::new();

#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowNote, { spec::FLOWS_MAX }> = LruHashMap::new();

#[btf_map]
pub(crate) static FLOW_SLOTS: LruHashMap<FlowSlot, FlowKey, { spec::FLOW_SLOTS_MAX }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { spec::FRAGMENTS_MAX }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counter, { spec::COUNTERS_MAX }> = PerCpuArray::new();

#[btf_map]
pub(crate) static DECISIONS: PerCpuArray<Decision, { spec::DECISIONS_MAX }> = PerCpuArray::new();

#[btf_map]
pub(crate) static SAMPLES: PerCpuArray<DropSample, { spec::SAMPLES_MAX }> = PerCpuArray::new();

#[btf_map]
pub(crate) static HEARTBEAT: Array<u64, 1> = Array::new();
