//! What a round can fail with.

use std::{io, net::IpAddr};

use crate::datapath;

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
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
    /// BPF.
    #[error("BPF")]
    Datapath(#[from] datapath::Error),
    /// State folder.
    #[error("cannot write below the state folder")]
    State(#[source] io::Error),
    /// Programs of another version run, and know more than this one does.
    #[error(
        "programs of a version with other maps stay until the API server has said what these \
         are to hold"
    )]
    OtherLayout,
    /// The address that stood for the node is gone, just now.
    #[error("the node's address {0} is gone; looking again before it is taken for lost")]
    AddressGone(IpAddr),
    /// The node has another address.
    #[error("the node's address {old} is gone, it is {new} now")]
    Moved {
        /// What stood for the node.
        old: IpAddr,
        /// What does now.
        new: IpAddr,
    },
}

/// Names what was tried with netlink when it fails.
pub(crate) fn netlink(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Netlink { what, source }
}
