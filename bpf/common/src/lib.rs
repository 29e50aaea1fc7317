//! What kernel and user space share, defined once: the maps with their keys,
//! values and rules, identities, packet marks, verdicts and drop reasons.
//!
//! Invariants: every type is `#[repr(C)]`, made of integers and byte arrays
//! only, with named zeroed padding, because kernel hash maps compare padding
//! too. Addresses, ports and MACs are in network byte order inside `[u8; N]`;
//! integers are in host byte order. A change of any layout bumps
//! [`LAYOUT_VERSION`], which is part of the pin path.
//!
//! # Numbers
//!
//! The constructors of [`Identity`], [`NodeId`], [`IfIndex`] and [`Vni`] reject illegal
//! numbers. Map values hold bare numbers. Their accessors return these types without a
//! check, because programs call them for every packet. This is sound: only the agent
//! writes those maps, and it writes legal numbers. A row that something else wrote can
//! change what the programs do, and cannot make them unsafe: any bits are a valid
//! integer, the kernel rejects a device that does not exist, and the array of remotes an
//! index beyond its end. The agent does not believe such a row either: it compares rows
//! with what it wants and writes its own.
//!
//! [`Identity`]: identity::Identity
//! [`Vni`]: identity::Vni
//! [`NodeId`]: node::NodeId
//! [`IfIndex`]: device::IfIndex

#![no_std]
#![allow(
    clippy::inline_always,
    reason = "a call across BPF functions costs registers and verifier state"
)]

/// Says that a type is plain old data of this size.
macro_rules! plain {
    ($type:ty, $size:expr) => {
        const _: () = assert!(size_of::<$type>() == $size);

        // SAFETY: repr(C), integers and byte arrays only, and no hidden padding: the
        // size asserted above is the sum of the fields.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}

pub mod address;
pub mod device;
pub mod identity;
pub mod mark;
pub mod node;
pub mod outcome;
pub mod tables;

/// Version of the layout of all maps together. Part of the pin path
/// (`/sys/fs/bpf/veer/maps-v5`), so maps of two layouts never mix.
///
/// A new layout only adds fields behind those that a value has, and zero in them means
/// "not filled". By that rule agents fill their maps from those of the layout before or
/// after. A change of another kind gives the map another name, unless nothing is taken
/// over from it: counters and samples begin anew with each layout.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "next-layout") { 6 } else { 5 };

/// UDP port of VXLAN as Linux had it first and most pod networks use it
/// (IANA's own is 4789).
pub const DEFAULT_TUNNEL_PORT: u16 = 8472;

/// Bytes that VXLAN over IPv4 adds in front of the inner IP packet: outer IPv4
/// (20), UDP (8), VXLAN (8), inner Ethernet (14).
pub const VXLAN_OVERHEAD_V4: u32 = 50;

/// The same over IPv6.
pub const VXLAN_OVERHEAD_V6: u32 = 70;

/// Names of the BPF programs, one per attach point; the agent attaches by them.
pub mod program {
    /// tc ingress of the host side of a pod's veth: what the pod sends.
    pub const POD_EGRESS: &str = "pod_egress";
    /// tc egress of the host side of a pod's veth: what the stack sends to the pod.
    pub const POD_INGRESS: &str = "pod_ingress";
    /// tc ingress of the VXLAN device.
    pub const OVERLAY_INGRESS: &str = "overlay_ingress";
    /// tc egress of the VXLAN device.
    pub const OVERLAY_EGRESS: &str = "overlay_egress";
    /// tc ingress of an uplink.
    pub const UPLINK_INGRESS: &str = "uplink_ingress";
    /// tc egress of an uplink.
    pub const UPLINK_EGRESS: &str = "uplink_egress";
    /// XDP on an uplink.
    pub const UPLINK_XDP: &str = "uplink_xdp";
    /// All that see packets, in the order of [`crate::outcome::Program`].
    pub const ALL: [&str; 7] = [
        POD_EGRESS,
        POD_INGRESS,
        OVERLAY_INGRESS,
        OVERLAY_EGRESS,
        UPLINK_INGRESS,
        UPLINK_EGRESS,
        UPLINK_XDP,
    ];

    /// Those of the node's own sockets, one per hook of the cgroup.
    pub const SOCKETS: [&str; 8] = [
        // What reports has to be there before what translates.
        "host_getpeername4",
        "host_getpeername6",
        "host_recvmsg4",
        "host_recvmsg6",
        "host_sendmsg4",
        "host_sendmsg6",
        "host_connect4",
        "host_connect6",
    ];
}
