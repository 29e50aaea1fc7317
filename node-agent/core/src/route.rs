//! Routes as veer makes and reads them.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

use crate::mtu::Mtu;

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop, if not on the link itself.
    pub gateway: Option<IpAddr>,
    /// Device; `None` where packets are refused.
    pub index: Option<IfIndex>,
    /// Source address for what starts here.
    pub source: Option<IpAddr>,
    /// MTU; `None`: the device's.
    pub mtu: Option<Mtu>,
    /// Of routes to one destination the one with the smallest counts.
    pub metric: u32,
    /// The next hop is on the link although no route says so.
    pub onlink: bool,
    /// Refuse with "host unreachable".
    pub unreachable: bool,
}

impl Route {
    /// A route to what is on the link itself.
    pub fn link(destination: IpNet, index: IfIndex) -> Self {
        Self {
            index: Some(index),
            unreachable: false,
            ..Self::unreachable(destination)
        }
    }

    /// A route that refuses packets with "host unreachable".
    pub fn unreachable(destination: IpNet) -> Self {
        Self {
            destination,
            gateway: None,
            index: None,
            source: None,
            mtu: None,
            metric: 0,
            onlink: false,
            unreachable: true,
        }
    }
}

/// The host's route to a pod.
pub fn host_route(index: IfIndex, address: IpAddr, source: Option<IpAddr>) -> Route {
    Route {
        source,
        ..Route::link(IpNet::from(address), index)
    }
}
