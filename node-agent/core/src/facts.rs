//! What the node is, as netlink reports it.

use std::{collections::HashMap, net::IpAddr};

use veer_bpf_common::device::IfIndex;
use veer_crds::v1alpha1::ClusterNetworkSpec;

use crate::{family::Family, mtu::Mtu};

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Device name.
    pub name: String,
    /// Interface index.
    pub index: IfIndex,
    /// MTU; `None`: IP packets do not fit.
    pub mtu: Option<Mtu>,
    /// Kind of device; empty for hardware.
    pub kind: String,
    /// Its packets have Ethernet headers; else no program can run on it.
    pub ethernet: bool,
}

/// How the kernel reaches another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Device.
    pub index: IfIndex,
    /// Next hop: a router, or the node itself on the same link.
    pub next_hop: IpAddr,
    /// The next hop is the node itself.
    pub same_link: bool,
}

/// What the node is, as netlink reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Address that stands for the node.
    pub primary: Option<IpAddr>,
    /// All global addresses, the primary first.
    pub addresses: Vec<IpAddr>,
    /// Uplinks.
    pub uplinks: Vec<Uplink>,
    /// Devices by which others than veer say that the world is reached by IPv6, uplinks or
    /// not.
    pub ways_v6: Vec<String>,
    /// Interface index of the VXLAN device; `None`: it is not there yet.
    pub vxlan_index: Option<IfIndex>,
    /// Paths to other nodes by each of their addresses that was asked for, where bare
    /// packets with pods' addresses can go.
    pub paths: HashMap<IpAddr, Path>,
    /// Why they cannot go to the others, by the same address.
    pub unfit: HashMap<IpAddr, String>,
    /// Addresses of this node that are another's or pods', and on which device.
    pub misplaced: Vec<(IpAddr, String)>,
    /// Another number: what paths follow from has changed.
    pub basis: u64,
}

impl Facts {
    /// The own address from which packets to a destination start: the first of its family.
    pub fn source(&self, destination: IpAddr) -> Option<IpAddr> {
        self.first(Family::of(destination))
    }

    /// The first own address of a family: the one that stands for the node, if it is one.
    pub fn first(&self, family: Family) -> Option<IpAddr> {
        family.first(self.primary.iter().chain(&self.addresses))
    }

    /// Largest packet that all uplinks carry; `None`: not known of one of them.
    pub fn path_mtu(&self) -> Option<Mtu> {
        // `None` is less than all others.
        self.uplinks.iter().map(|u| u.mtu).min().flatten()
    }

    /// MTU of the underlay: what the user says, or the smallest of the
    /// uplinks'.
    pub fn underlay_mtu(&self, cluster: Option<&ClusterNetworkSpec>) -> Mtu {
        let wanted = cluster.and_then(|c| Mtu::new(u32::try_from(c.mtu).ok()?));
        wanted.or(self.path_mtu()).unwrap_or_default()
    }
}
