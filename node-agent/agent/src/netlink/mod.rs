//! Devices, routes, neighbours and sysctls of the node and of its pods.
//!
//! Blocking calls on short-lived sockets; touches only what is veer's own.

pub(crate) mod address;
pub(crate) mod conntrack;
pub(crate) mod filter;
#[cfg(test)]
pub(crate) mod lab;
pub(crate) mod link;
pub(crate) mod neighbour;
pub(crate) mod netns;
pub(crate) mod notify;
pub(crate) mod pod;
pub(crate) mod route;
pub(crate) mod sysctl;
pub(crate) mod wire;

pub(crate) use veer_agent_core::link::{VXLAN, host_veth_digits, is_host_veth};
