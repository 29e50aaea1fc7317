//! `REMOTES`: the other nodes, and how to reach them.

use super::{Config, MapKind, Table};
use crate::device::IfIndex;

/// Other nodes, by their [`crate::node::NodeId`].
#[derive(Debug)]
pub enum Remotes {}

impl Table for Remotes {
    type Key = u32;
    type Value = Remote;
    const NAME: &'static str = "REMOTES";
    const KIND: MapKind = MapKind::Array;
    const CAPACITY: usize = 8192;
}

/// [`Remote::form`]: no form was decided yet; nothing may be sent.
pub const FORM_NONE: u8 = 0;
/// [`Remote::form`]: VXLAN with the sender's identity as VNI.
pub const FORM_TUNNEL: u8 = 1;
/// [`Remote::form`]: the bare packet by `bpf_redirect_neigh`.
pub const FORM_NATIVE: u8 = 2;

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
    /// Outer destination of the tunnel, as in [`crate::address::IpKey`].
    pub tunnel_address: [u8; 16],
    /// Next hop of the native form, as in [`crate::address::IpKey`].
    pub next_hop: [u8; 16],
    /// Uplink of the native form.
    pub ifindex: u32,
    /// Bits: [`Remote::ACCEPT_NATIVE`].
    pub flags: u32,
    /// Number of the routing epoch that wrote this entry, its low 32 bits.
    pub epoch: u32,
    /// `FORM_*`.
    pub form: u8,
    /// `FORM_*` before the last switch.
    pub previous_form: u8,
    /// Family of `tunnel_address`, as [`crate::address::FAMILY_V4`]; 0: unused entry.
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
    /// [`Remote::flags`]: bare packets with a source of this node are accepted on
    /// the uplinks.
    pub const ACCEPT_NATIVE: u32 = 1;

    /// Whether bare packets with a source of this node are accepted on the uplinks.
    #[inline(always)]
    pub const fn accepts_native(&self) -> bool {
        self.flags & Self::ACCEPT_NATIVE != 0
    }

    /// Uplink of the native form.
    #[inline(always)]
    pub const fn uplink(&self) -> IfIndex {
        IfIndex::stored(self.ifindex)
    }

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

plain!(Remote, 64);
