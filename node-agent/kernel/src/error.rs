//! What reading and writing the kernel can fail with.

use std::io;

use crate::datapath;

/// Why a part of the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Netlink.
    #[error("netlink: {what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Another network's device holds the tunnel's port.
    #[error(
        "UDP port {port} of the tunnel is held by {devices}, a VXLAN device of another network: \
         remove it (ip link delete {devices}) or set spec.routing.tunnel.port to another port"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// The devices.
        devices: String,
    },
    /// The node has a block of IPv6 addresses and its kernel no IPv6.
    #[error(
        "the node's kernel has no IPv6, so its pods get no network in that family: boot it without \
         ipv6.disable=1, or remove the IPv6 entry from spec.podCIDRs of the ClusterNetwork"
    )]
    NoIpv6,
    /// BPF.
    #[error("BPF")]
    Datapath(#[from] datapath::Error),
}

/// Names what was tried with netlink when it fails.
pub fn netlink(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Netlink { what, source }
}
