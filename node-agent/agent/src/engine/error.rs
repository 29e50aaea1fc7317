//! Errors of a round.

use std::{io, net::IpAddr};

use veer_agent_core::tables;
use veer_agent_kernel::{datapath, error};

/// Why a round failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A part of the kernel is not as it should be.
    #[error(transparent)]
    Kernel(#[from] error::Error),
    /// State folder.
    #[error("cannot write below the state folder")]
    State(#[source] io::Error),
    /// Programs of another version run, and their maps hold more than this agent knows.
    #[error(
        "programs of a version with other maps stay until the API server has sent the content \
         of this version's maps"
    )]
    OtherLayout,
    /// The address that stood for the node is gone, just now.
    #[error("the node's address {0} is gone; looking again before it is taken for lost")]
    AddressGone(IpAddr),
    /// The node has another address.
    #[error("the node's address {old} is gone, it is {new} now")]
    Moved {
        /// The node's previous address.
        old: IpAddr,
        /// The node's current address.
        new: IpAddr,
    },
}

impl From<tables::Error> for Error {
    fn from(error: tables::Error) -> Self {
        datapath::Error::from(error).into()
    }
}

impl From<datapath::Error> for Error {
    fn from(error: datapath::Error) -> Self {
        Self::Kernel(error.into())
    }
}
