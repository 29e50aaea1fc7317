//! The socket that veer-cni and the `veer` command talk to.

mod drops;
mod query;
pub(crate) mod server;
