//! The maps, each as its [`Table`] says; a kernel test compares the built object
//! with that.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    macros::btf_map,
};
use veer_bpf_common::{
    address::IpKey,
    tables::{
        Affinities, Asked, Backends, Configuration, Counters, Decisions, Endpoints, Events, Flows,
        FlowsBefore, Fragments, Heartbeat, HostSockets, Interfaces, Ipcache, Listening, Members,
        Nodes, Places, Remotes, Samples, Services, Sockets, Streams, Table, Traffic,
    },
};

/// Defines the map of a table as aya's type for its kind, with the first parameters of
/// that type.
macro_rules! map {
    ($name:ident: $table:ident as $kind:ident<$($parameter:ty),+>) => {
        #[btf_map]
        pub(crate) static $name: $kind<
            $($parameter,)+
            { $table::CAPACITY },
            { $table::KIND.flags() as usize },
        > = $kind::new();
    };
}

/// The key of a table.
type K<T> = <T as Table>::Key;
/// The value of a table.
type V<T> = <T as Table>::Value;

map!(CONFIG: Configuration as Array<V<Configuration>>);
map!(ENDPOINTS: Endpoints as HashMap<K<Endpoints>, V<Endpoints>>);
map!(INTERFACES: Interfaces as HashMap<K<Interfaces>, V<Interfaces>>);
map!(IPCACHE: Ipcache as LpmTrie<IpKey, V<Ipcache>>);
map!(NODES: Nodes as HashMap<K<Nodes>, V<Nodes>>);
map!(REMOTES: Remotes as Array<V<Remotes>>);
map!(FLOW_TABLE: Flows as HashMap<K<Flows>, V<Flows>>);
map!(FLOW_PLACES: Places as Array<V<Places>>);
map!(SERVICES: Services as HashMap<K<Services>, V<Services>>);
map!(BACKENDS: Backends as HashMap<K<Backends>, V<Backends>>);
map!(MEMBERS: Members as HashMap<K<Members>, V<Members>>);
map!(AFFINITY: Affinities as LruHashMap<K<Affinities>, V<Affinities>>);
map!(HOST_SOCKETS: HostSockets as Array<V<HostSockets>>);
map!(SOCKETS: Sockets as LruHashMap<K<Sockets>, V<Sockets>>);
map!(STREAMS: Streams as LruHashMap<K<Streams>, V<Streams>>);
map!(ASKED: Asked as PerCpuArray<V<Asked>>);
map!(FLOWS: FlowsBefore as LruHashMap<K<FlowsBefore>, V<FlowsBefore>>);
map!(FRAGMENTS: Fragments as LruHashMap<K<Fragments>, V<Fragments>>);
map!(COUNTERS: Counters as PerCpuArray<V<Counters>>);
map!(TRAFFIC: Traffic as PerCpuArray<V<Traffic>>);
map!(DECISIONS: Decisions as PerCpuArray<V<Decisions>>);
map!(SAMPLES: Samples as PerCpuArray<V<Samples>>);
map!(HEARTBEAT: Heartbeat as Array<V<Heartbeat>>);
map!(LISTEN: Listening as Array<V<Listening>>);
map!(EVENTS: Events as RingBuf<()>);

// A trie's key is packed there, and has the same fields in the same places.
const _: () = assert!(size_of::<K<Ipcache>>() == size_of::<Key<IpKey>>());
