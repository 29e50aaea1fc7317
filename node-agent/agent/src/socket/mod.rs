//! The socket that veer-cni and the `veer` command talk to.

mod drops;
mod flows;
pub(crate) mod monitor;
mod query;
pub(crate) mod server;
mod services;
mod traffic;
