//! The socket that veer-cni and the `veer` command talk to.

mod drops;
pub(crate) mod monitor;
mod query;
pub(crate) mod server;
