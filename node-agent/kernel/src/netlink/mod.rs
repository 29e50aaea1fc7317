//! Devices, routes, neighbours and sysctls of the node and of its pods.
//!
//! Blocking calls on short-lived sockets; touches only what is veer's own.

pub mod address;
pub mod conntrack;
pub mod filter;
#[cfg(test)]
pub mod lab;
pub mod link;
pub mod message;
pub mod neighbour;
pub mod netns;
pub mod notify;
pub mod pod;
pub mod route;
pub mod sock_diag;
pub mod sysctl;

pub use veer_agent_core::link::{VXLAN, host_veth_digits, is_host_veth};
