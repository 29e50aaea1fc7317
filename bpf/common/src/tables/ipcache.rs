//! `IPCACHE`: who an address is.

use super::{MapKind, Table};
use crate::{address::PrefixKey, identity::Identity, node::NodeId};

/// Pods of the cluster, and one row per pod CIDR and node address; the longest prefix
/// wins.
#[derive(Debug)]
pub enum Ipcache {}

impl Table for Ipcache {
    type Key = PrefixKey;
    type Value = IpcacheEntry;
    const NAME: &'static str = "IPCACHE";
    const KIND: MapKind = MapKind::LpmTrie;
    const CAPACITY: usize = 262_144;
}

/// Who a prefix is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// Security identity.
    pub identity: u32,
    /// Where it is: a [`NodeId`].
    pub node_id: u32,
}

impl IpcacheEntry {
    /// The row of what has this identity and is there.
    #[inline(always)]
    pub const fn new(identity: Identity, node: NodeId) -> Self {
        Self {
            identity: identity.get(),
            node_id: node.get(),
        }
    }

    /// Security identity.
    #[inline(always)]
    pub const fn identity(self) -> Identity {
        Identity::stored(self.identity)
    }

    /// Where it is.
    #[inline(always)]
    pub const fn node(self) -> NodeId {
        NodeId::stored(self.node_id)
    }

    /// Whether packets from there are dropped at the uplink.
    #[inline(always)]
    pub const fn is_denied(self) -> bool {
        self.node_id == NodeId::DENIED.get()
    }

    /// Whether it is an address for pods that no node holds: no packet can come from
    /// there.
    #[inline(always)]
    pub const fn is_unassigned(self) -> bool {
        self.node_id == NodeId::NONE.get() && self.identity == Identity::UNMANAGED.get()
    }
}

/// Who an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Neither a pod nor a node.
    World,
    /// An address of this node's host stack, its health address included.
    Host,
    /// In this node's pod CIDR; whether a pod has it, the endpoints say.
    LocalPod(Identity),
    /// A pod on another node: identity and node id.
    RemotePod(Identity, NodeId),
    /// An address of another node's host stack, its health address included:
    /// its id.
    RemoteNode(NodeId),
}

impl Who {
    /// Whom a row of the ipcache means.
    #[inline(always)]
    pub const fn of(row: IpcacheEntry) -> Self {
        match (row.identity(), row.node()) {
            (Identity::WORLD, _) | (_, NodeId::NONE | NodeId::DENIED) => Self::World,
            (Identity::HOST, _) | (Identity::HEALTH, NodeId::LOCAL) => Self::Host,
            (identity, NodeId::LOCAL) => Self::LocalPod(identity),
            (Identity::REMOTE_NODE | Identity::HEALTH, node) => Self::RemoteNode(node),
            (identity, node) => Self::RemotePod(identity, node),
        }
    }

    /// Its security identity.
    #[inline(always)]
    pub const fn identity(self) -> Identity {
        match self {
            Self::World => Identity::WORLD,
            Self::Host => Identity::HOST,
            Self::LocalPod(identity) | Self::RemotePod(identity, _) => identity,
            Self::RemoteNode(_) => Identity::REMOTE_NODE,
        }
    }

    /// The other node it is on.
    #[inline(always)]
    pub const fn remote_node(self) -> Option<NodeId> {
        match self {
            Self::RemotePod(_, node) | Self::RemoteNode(node) => Some(node),
            Self::World | Self::Host | Self::LocalPod(_) => None,
        }
    }

    /// Whether packets from here to a pod or node, or from there to here, take
    /// a redirect: pods and other nodes do.
    #[inline(always)]
    pub const fn takes_redirects(self) -> bool {
        match self {
            Self::World | Self::Host => false,
            Self::LocalPod(_) | Self::RemotePod(..) | Self::RemoteNode(_) => true,
        }
    }
}

plain!(IpcacheEntry, 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_means_who_its_identity_and_node_say() {
        let pod = Identity::new(1000).unwrap();
        let other = NodeId::remote(7).unwrap();
        for (identity, node, who) in [
            (Identity::WORLD, NodeId::NONE, Who::World),
            (Identity::WORLD, NodeId::DENIED, Who::World),
            (Identity::UNMANAGED, NodeId::NONE, Who::World),
            (Identity::HOST, NodeId::LOCAL, Who::Host),
            (Identity::HEALTH, NodeId::LOCAL, Who::Host),
            (Identity::HEALTH, other, Who::RemoteNode(other)),
            (Identity::REMOTE_NODE, other, Who::RemoteNode(other)),
            (Identity::INIT, NodeId::LOCAL, Who::LocalPod(Identity::INIT)),
            (pod, NodeId::LOCAL, Who::LocalPod(pod)),
            (pod, other, Who::RemotePod(pod, other)),
        ] {
            assert_eq!(Who::of(IpcacheEntry::new(identity, node)), who);
        }
    }
}
