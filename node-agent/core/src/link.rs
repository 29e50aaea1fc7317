//! Links of the node, and the names of veer's own.

use veer_bpf_common::device::IfIndex;

use crate::mtu::Mtu;

/// Name of the one VXLAN device.
pub const VXLAN: &str = "veer_vxlan";

/// How the name of the host side of a pod's veth begins. The tunnel's device does not, so
/// that what selects by it (kube-proxy's `InterfaceNamePrefix`) finds pods alone.
pub const HOST_VETH: &str = "veer0";

/// Whether a device name is that of the host side of a pod's veth: nine hexadecimal
/// digits behind [`HOST_VETH`], or ten behind `veer` as earlier releases had it, which
/// so know the names of this one.
pub fn is_host_veth(name: &str) -> bool {
    name.strip_prefix("veer")
        .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What tells one host side from another: the last nine digits, whichever release made
/// it. `None`: the name is none of those.
pub fn host_veth_digits(name: &str) -> Option<&str> {
    name.get(5..).filter(|_| is_host_veth(name))
}

/// A MAC address in transmission order.
pub type Mac = [u8; 6];

/// A link as the kernel reports it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the kernel's of its own"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: IfIndex,
    /// Interface index of a veth's other end, in the namespace where that is; `None` where
    /// it has none, or is gone.
    pub peer: Option<IfIndex>,
    /// Name.
    pub name: String,
    /// MTU; `None`: IP packets do not fit.
    pub mtu: Option<Mtu>,
    /// Hardware address; zeros where it is not an Ethernet one.
    pub mac: Mac,
    /// Kind (`veth`, `vxlan`, …); empty for hardware.
    pub kind: String,
    /// Its packets have Ethernet headers.
    pub ethernet: bool,
    /// Interface index of the bridge or bond that it is a port of.
    pub master: Option<IfIndex>,
    /// Administratively up.
    pub up: bool,
    /// `IFF_NOARP`.
    pub noarp: bool,
    /// UDP port of a VXLAN device; 0 for others.
    pub vxlan_port: u16,
    /// `external` of a VXLAN device.
    pub vxlan_external: bool,
    /// `udp6zerocsumrx` of a VXLAN device.
    pub vxlan_zero_csum6: bool,
    /// Id of the XDP program that runs on it; 0: none, or more than one.
    pub xdp: u32,
}

impl Link {
    /// A link of which nothing but its index is known.
    pub fn new(index: IfIndex) -> Self {
        Self {
            index,
            peer: None,
            name: String::new(),
            mtu: None,
            mac: Mac::default(),
            kind: String::new(),
            ethernet: false,
            master: None,
            up: false,
            noarp: false,
            vxlan_port: 0,
            vxlan_external: false,
            vxlan_zero_csum6: false,
            xdp: 0,
        }
    }
}
