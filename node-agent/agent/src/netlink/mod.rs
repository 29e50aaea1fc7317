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

/// How the name of the host side of a pod's veth begins. The tunnel's device does not, so
/// that what selects by it (kube-proxy's `InterfaceNamePrefix`) finds pods alone.
pub(crate) const HOST_VETH: &str = "veer0";

/// Whether a device name is that of the host side of a pod's veth: nine hexadecimal
/// digits behind [`HOST_VETH`], or ten behind `veer` as earlier releases had it, which
/// so know the names of this one.
pub(crate) fn is_host_veth(name: &str) -> bool {
    name.strip_prefix("veer")
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What tells one host side from another: the last nine digits, whichever release made
/// it. `None`: the name is none of those.
pub(crate) fn host_veth_digits(name: &str) -> Option<&str> {
    name.get(5..).filter(|_| is_host_veth(name))
}
