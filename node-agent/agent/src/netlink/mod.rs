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

/// Name of the one VXLAN device.
pub(crate) const VXLAN: &str = "veer_vxlan";

/// Whether a device name is that of the host side of a pod's veth.
pub(crate) fn is_host_veth(name: &str) -> bool {
    name.strip_prefix("veer")
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}
