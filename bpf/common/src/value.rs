//! Values of the maps.

/// Node id in [`IpcacheEntry::node_id`] for what is not on any node.
pub const NODE_ID_NONE: u32 = 0;
/// Node id in [`IpcacheEntry::node_id`], with identity `world`: what is not on any
/// node and may send nothing to this one. Nodes and pods have longer prefixes,
/// or the same with their own ids.
pub const NODE_ID_DENIED: u32 = u32::MAX;
/// Node id of the node itself.
pub const NODE_ID_LOCAL: u32 = 1;
/// The first id of another node; ids are this agent's own, not cluster-wide,
/// and index [`crate::maps::REMOTES`].
pub const NODE_ID_FIRST_REMOTE: u32 = 2;

/// [`Config::flags`]: there are denied prefixes, so XDP has to look sources up.
pub const CONFIG_DENIES: u32 = 1;

/// What every program needs to know of its node. One entry, index 0. Fields are
/// independent of each other, so a reader may see one new and one old.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Interface index of the VXLAN device.
    pub vxlan_ifindex: u32,
    /// Largest inner IP packet, in bytes, for a path through the tunnel.
    pub tunnel_mtu: u32,
    /// Largest IP packet, in bytes, for a natively routed path.
    pub native_mtu: u32,
    /// `CONFIG_*`.
    pub flags: u32,
    /// The gateway address pods have as next hop, network byte order; zeros: none.
    pub gateway_v4: [u8; 4],
    /// As [`Config::gateway_v4`] for IPv6.
    pub gateway_v6: [u8; 16],
    /// UDP port of the tunnel, network byte order.
    pub tunnel_port: [u8; 2],
    /// Prefix length of the pod CIDR that [`Config::gateway_v4`] is in; 0: not known.
    pub block_bits_v4: u8,
    /// Zero.
    pub pad: [u8; CONFIG_PAD],
}

/// Bytes of [`Config::pad`]; more in the layout that exists for tests.
pub const CONFIG_PAD: usize = if cfg!(feature = "next-layout") { 9 } else { 1 };

/// A local pod by one of its addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// Interface index of the host side of its veth (in the host's namespace).
    pub ifindex: u32,
    /// Its security identity.
    pub identity: u32,
    /// Its number on this node, for people and counters.
    pub endpoint_id: u16,
    /// Zero.
    pub flags: u16,
    /// MAC of its eth0.
    pub mac: [u8; 6],
    /// MAC of the host side of its veth.
    pub node_mac: [u8; 6],
}

/// What may come in from a pod's veth, by the interface index of its host side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The pod's security identity.
    pub identity: u32,
    /// As in [`Endpoint`].
    pub endpoint_id: u16,
    /// Zero.
    pub flags: u16,
    /// The only source MAC it may use.
    pub mac: [u8; 6],
    /// MAC of the host side.
    pub node_mac: [u8; 6],
    /// The only IPv4 source it may use; zeros: none.
    pub v4: [u8; 4],
    /// The only global IPv6 source it may use; zeros: none.
    pub v6: [u8; 16],
}

/// Who a prefix is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpcacheEntry {
    /// Security identity.
    pub identity: u32,
    /// Where it is: [`NODE_ID_LOCAL`], a remote's id, [`NODE_ID_NONE`] or
    /// [`NODE_ID_DENIED`].
    pub node_id: u32,
}

/// [`Remote::form`]: never been probed or told; nothing may be sent.
pub const FORM_NONE: u8 = 0;
/// [`Remote::form`]: VXLAN with the sender's identity as VNI.
pub const FORM_TUNNEL: u8 = 1;
/// [`Remote::form`]: the bare packet by `bpf_redirect_neigh`.
pub const FORM_NATIVE: u8 = 2;

/// [`Remote::flags`]: bare packets with a source of this node are accepted on
/// the uplinks.
pub const REMOTE_ACCEPT_NATIVE: u32 = 1;

/// Another node, by its id.
///
/// Switching a pair is one write of this entry. The next hop is filled long
/// before `form` says native, so a reader that sees a half-written entry sees a
/// usable one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Nanoseconds of `CLOCK_MONOTONIC` (what `bpf_ktime_get_ns` counts) after
    /// which `previous_form` holds again; 0: never.
    pub revert_at: u64,
    /// Outer destination of the tunnel, as in [`crate::key::IpKey`].
    pub tunnel_address: [u8; 16],
    /// Next hop of the native form, as in [`crate::key::IpKey`].
    pub next_hop: [u8; 16],
    /// Uplink of the native form.
    pub ifindex: u32,
    /// `REMOTE_*`.
    pub flags: u32,
    /// Number of the routing epoch that wrote this entry, its low 32 bits.
    pub epoch: u32,
    /// `FORM_*`.
    pub form: u8,
    /// `FORM_*` before the last switch.
    pub previous_form: u8,
    /// Family of `tunnel_address`, as [`crate::key::FAMILY_V4`]; 0: unused entry.
    pub tunnel_family: u8,
    /// Family of `next_hop`; 0: no native path known.
    pub next_hop_family: u8,
    /// Largest IP packet, in bytes, that the underlay takes between the two nodes:
    /// the smaller of both ends. 0: not known, and [`Config`] alone counts.
    pub path_mtu: u32,
    /// Zero.
    pub pad: u32,
}

impl Remote {
    /// Whether the last switch was not confirmed in time, so that `previous_form`
    /// holds again. `now` gives nanoseconds as `revert_at` counts them; it is not
    /// called where nothing can revert.
    #[inline(always)]
    pub fn has_reverted(&self, now: impl FnOnce() -> u64) -> bool {
        self.revert_at != 0 && now() > self.revert_at
    }

    /// The `FORM_*` that holds now; `now` as in [`Self::has_reverted`].
    #[inline(always)]
    pub fn form_now(&self, now: impl FnOnce() -> u64) -> u8 {
        if self.has_reverted(now) {
            self.previous_form
        } else {
            self.form
        }
    }

    /// Largest inner IP packet, in bytes, for the tunnel to this node.
    #[inline(always)]
    pub fn tunnel_mtu(&self, config: &Config) -> u32 {
        match self.path_mtu {
            0 => config.tunnel_mtu,
            path => config
                .tunnel_mtu
                .min(path.saturating_sub(crate::VXLAN_OVERHEAD_V4)),
        }
    }

    /// Largest IP packet, in bytes, for the native form to this node.
    #[inline(always)]
    pub fn native_mtu(&self, config: &Config) -> u32 {
        match self.path_mtu {
            0 => config.native_mtu,
            path => config.native_mtu.min(path),
        }
    }
}

/// A flow that the host's stack translated; its replies go up the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowNote {
    /// Nanoseconds as `bpf_ktime_get_ns` counts, after which the note is void.
    pub expires_at: u64,
    /// `FLOW_*` states seen.
    pub state: u32,
    /// Seconds of the same clock at which the flow began, its low 32 bits; 0: not
    /// known.
    pub began: u32,
}

/// [`FlowNote::state`]: a reply was seen.
pub const FLOW_REPLIED: u32 = 1;
/// [`FlowNote::state`]: RST was seen, or the FINs of both ends.
pub const FLOW_CLOSING: u32 = 2;
/// [`FlowNote::state`]: the FIN of the end that opened the flow was seen.
pub const FLOW_FIN_THERE: u32 = 4;
/// [`FlowNote::state`]: the FIN of the other end was seen.
pub const FLOW_FIN_BACK: u32 = 8;

/// Ports of the first fragment of a datagram, network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    /// As in [`crate::key::FlowKey`].
    pub source_port: [u8; 2],
    /// As in [`crate::key::FlowKey`].
    pub destination_port: [u8; 2],
}

/// Packets and bytes of one program with one outcome, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// How many packets.
    pub packets: u64,
    /// Their `skb->len` (or XDP frame length) together.
    pub bytes: u64,
}

/// What the last packet of one program on one CPU was decided to be. A redirect
/// verdict does not tell its target; this does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// [`crate::outcome::Verdict`] or [`crate::outcome::DropReason`] as a number.
    pub outcome: u32,
    /// Redirect target; 0: none.
    pub ifindex: u32,
    /// VNI written; 0: none.
    pub vni: u32,
    /// Id of the remote node; 0: none.
    pub node_id: u32,
    /// Identity of the sender as derived here.
    pub source_identity: u32,
    /// Identity of the destination as derived here.
    pub destination_identity: u32,
}

/// Bytes of a dropped packet that are kept at most.
pub const SAMPLE_BYTES: usize = 64;

/// A packet that was dropped. Programs write these as they go, so a reader may see
/// parts of two.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropSample {
    /// Nanoseconds as `bpf_ktime_get_ns` counts; 0: no packet yet.
    pub at: u64,
    /// What the program had found out.
    pub decision: Decision,
    /// Interface index of the program's device.
    pub ifindex: u32,
    /// `skb->len` or XDP frame length.
    pub length: u32,
    /// How many bytes of `head` are the packet's.
    pub captured: u32,
    /// Zero.
    pub pad: u32,
    /// How the frame begins, Ethernet header first.
    pub head: [u8; SAMPLE_BYTES],
}

const _: () = {
    assert!(size_of::<Config>() == 39 + CONFIG_PAD);
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<Interface>() == 40);
    assert!(size_of::<IpcacheEntry>() == 8);
    assert!(size_of::<Remote>() == 64);
    assert!(size_of::<FlowNote>() == 16);
    assert!(size_of::<FragmentPorts>() == 4);
    assert!(size_of::<Counter>() == 16);
    assert!(size_of::<Decision>() == 24);
    assert!(size_of::<DropSample>() == 48 + SAMPLE_BYTES);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, no hidden padding (the
    // sizes asserted above are the sums of the fields).
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::IpcacheEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Remote {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowNote {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentPorts {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Decision {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DropSample {}
}
