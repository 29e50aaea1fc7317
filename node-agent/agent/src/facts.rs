//! What the node is, as netlink reports it.

use std::{collections::HashMap, net::IpAddr};

use veer_crds::v1alpha1::ClusterNetworkSpec;

/// An uplink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// Device name.
    pub(crate) name: String,
    /// Interface index.
    pub(crate) index: u32,
    /// MTU in bytes.
    pub(crate) mtu: u32,
    /// Kind of device; empty for hardware.
    pub(crate) kind: String,
    /// Its packets have Ethernet headers; else no program can run on it.
    pub(crate) ethernet: bool,
}

/// How the kernel reaches another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Device.
    pub(crate) index: u32,
    /// Next hop: a router, or the node itself on the same link.
    pub(crate) next_hop: IpAddr,
    /// The next hop is the node itself.
    pub(crate) same_link: bool,
}

/// What the node is, as netlink reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Address that stands for the node.
    pub(crate) primary: Option<IpAddr>,
    /// All global addresses, the primary first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Uplinks.
    pub(crate) uplinks: Vec<Uplink>,
    /// Interface index of the VXLAN device; 0: it is not there yet.
    pub(crate) vxlan_index: u32,
    /// Paths to other nodes by their primary address, where bare packets with
    /// pods' addresses can go.
    pub(crate) paths: HashMap<IpAddr, Path>,
    /// Why they cannot go to the others, by the same address.
    pub(crate) unfit: HashMap<IpAddr, String>,
    /// Addresses of this node that are another's or pods', and on which device.
    pub(crate) misplaced: Vec<(IpAddr, String)>,
    /// Another number: what paths follow from has changed.
    pub(crate) basis: u64,
}

impl Facts {
    /// Largest packet that all uplinks carry, in bytes; 0: not known.
    pub(crate) fn path_mtu(&self) -> u32 {
        self.uplinks.iter().map(|u| u.mtu).min().unwrap_or(0)
    }

    /// MTU of the underlay in bytes: what the user says, or the smallest of the
    /// uplinks'.
    pub(crate) fn underlay_mtu(&self, cluster: Option<&ClusterNetworkSpec>) -> u32 {
        let wanted = cluster
            .and_then(|c| u32::try_from(c.mtu).ok())
            .filter(|m| *m > 0);
        let found = self.uplinks.iter().map(|u| u.mtu).min();
        wanted.or(found).unwrap_or(1500)
    }
}
