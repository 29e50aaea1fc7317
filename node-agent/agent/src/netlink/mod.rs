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

/// How the name of the host side of a pod's veth begins. No other device's does, so
/// that what selects by it (kube-proxy's `InterfaceNamePrefix`) finds pods alone.
pub(crate) const HOST_VETH: &str = "veerp";

/// What tells one host side of a pod's veth from another: ten hexadecimal digits at
/// the end of its name. `None`: the name is none of those.
pub(crate) fn host_veth_digits(name: &str) -> Option<&str> {
    // Pods that an earlier release wired keep the name that they had.
    let rest = name.strip_prefix(HOST_VETH);
    rest.or_else(|| name.strip_prefix("veer"))
        .filter(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Whether a device name is that of the host side of a pod's veth.
pub(crate) fn is_host_veth(name: &str) -> bool {
    host_veth_digits(name).is_some()
}
