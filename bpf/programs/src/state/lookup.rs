//! Reading the maps that the agent writes.

use aya_ebpf::btf_maps::lpm_trie::Key;
use veer_bpf_common::{
    address::{Address, IP_KEY_TAG_BITS, IpKey, PrefixKey},
    device::IfIndex,
    identity::Identity,
    node::NodeId,
    tables::{Config, Endpoint, Heartbeat, Interface, IpcacheEntry, Nodes, Remote, Who},
};

use super::maps::{CONFIG, ENDPOINTS, HEARTBEAT, INTERFACES, IPCACHE, NODES, REMOTES};
use crate::ctx::{clock::now, direct};

/// Whether the agent's last round was so long ago that what it wrote of the node's
/// surroundings may be outdated.
#[inline(always)]
pub(crate) fn agent_is_silent() -> bool {
    Heartbeat::is_silent(HEARTBEAT.get(0).copied().unwrap_or(0), now)
}

/// The node's configuration. An array's element always exists.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Who an address is.
#[inline(always)]
pub(crate) fn who<A: Address>(address: A) -> Who {
    row(address).map_or(Who::World, |row| Who::of(*row))
}

/// The local pod that an address of this node's block belongs to: one lookup where
/// [`who`] and [`endpoint`] take two, one of them for the longest prefix.
#[inline(always)]
pub(crate) fn in_own_block<A: Address>(address: A) -> Option<&'static Endpoint> {
    if in_block(config()?, address) {
        endpoint(address)
    } else {
        None
    }
}

/// Whether an address is in the pod CIDR of the gateway; where that is not known,
/// every address may be.
#[inline(always)]
fn in_block<A: Address>(config: &Config, address: A) -> bool {
    let (gateway, bits) = A::of_gateway(config);
    address.shares_prefix(direct::address(gateway), bits)
}

/// Who the destination of a packet from another node is, and the local pod that has
/// the address. Endpoints come first: nearly always it is one of them, which saves the
/// longest-prefix lookup.
#[inline(always)]
pub(crate) fn arrived<A: Address>(address: A) -> (Who, Option<&'static Endpoint>) {
    match endpoint(address) {
        Some(pod) => (Who::LocalPod(pod.identity()), Some(pod)),
        None => (who(address), None),
    }
}

/// Whether a row is of a health address. Nobody but nodes' stacks use those.
#[inline(always)]
pub(crate) fn is_health(row: Option<&IpcacheEntry>) -> bool {
    row.is_some_and(|row| row.identity() == Identity::HEALTH)
}

/// The longest prefix of the ipcache with an address.
#[inline(always)]
pub(crate) fn row<A: Address>(address: A) -> Option<&'static IpcacheEntry> {
    let key = PrefixKey {
        bits: IP_KEY_TAG_BITS + A::BITS,
        ip: IpKey::of(address),
    };
    // SAFETY: the same fields in the same places; packed, it may lie anywhere.
    let key = unsafe { &*(&raw const key).cast::<Key<IpKey>>() };
    IPCACHE.get(key)
}

/// Whether an address is the one that local pods have as next hop, which is the
/// node's health address.
#[inline(always)]
pub(crate) fn is_gateway<A: Address>(address: A) -> bool {
    config().is_some_and(|config| gateway::<A>(config) == address)
}

/// The address that local pods have as next hop.
#[inline(always)]
pub(crate) fn gateway<A: Address>(config: &Config) -> A {
    direct::address(A::of_gateway(config).0)
}

/// Whether bare packets from the node `id` and its pods are accepted now.
#[inline(always)]
pub(crate) fn accepts_native(id: NodeId) -> bool {
    remote(id).is_some_and(Remote::accepts_native)
}

/// The local pod with an address.
#[inline(always)]
pub(crate) fn endpoint<A: Address>(address: A) -> Option<&'static Endpoint> {
    // SAFETY: the kernel frees elements of this map only after a grace period,
    // which a running program holds up; the agent never changes one in a way
    // that would make it invalid.
    unsafe { ENDPOINTS.get(IpKey::of(address)) }
}

/// What may come from the pod behind this device.
#[inline(always)]
pub(crate) fn interface(ifindex: IfIndex) -> Option<&'static Interface> {
    // SAFETY: as in `endpoint`.
    unsafe { INTERFACES.get(ifindex.get()) }
}

/// The id of the other node that has an address.
#[inline(always)]
pub(crate) fn node(address: IpKey) -> Option<NodeId> {
    // SAFETY: as in `endpoint`.
    Nodes::other(*unsafe { NODES.get(address) }?)
}

/// Another node by its id.
#[inline(always)]
pub(crate) fn remote(id: NodeId) -> Option<&'static Remote> {
    REMOTES.get(id.get())
}
