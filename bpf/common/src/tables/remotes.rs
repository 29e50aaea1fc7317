//! `REMOTES`: the other nodes, and how to reach them.

use super::{Config, MapKind, Table};
use crate::{
    VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6,
    address::{Address, FAMILY_V4, FAMILY_V6},
    device::IfIndex,
};

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

/// How packets go to another node: a `FORM_*` that is decided, for user space. The
/// programs compare the byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// [`FORM_TUNNEL`].
    Tunnel,
    /// [`FORM_NATIVE`].
    Native,
}

impl Form {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::Tunnel, Self::Native];

    /// What a row's byte says; `None`: no form was decided, or none that is known here.
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            FORM_TUNNEL => Some(Self::Tunnel),
            FORM_NATIVE => Some(Self::Native),
            _ => None,
        }
    }

    /// The byte in a row.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Tunnel => FORM_TUNNEL,
            Self::Native => FORM_NATIVE,
        }
    }
}

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
    /// Next hop of IPv4 packets in the native form, as in [`crate::address::IpKey`].
    pub next_hop: [u8; 16],
    /// Uplink of IPv4 packets in the native form.
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
    /// Family of `next_hop`; 0: no native path of IPv4 packets is known.
    pub next_hop_family: u8,
    /// Largest IP packet, in bytes, that the underlay takes between the two nodes:
    /// the smaller of both ends. 0: not known, and [`Config`] alone counts.
    pub path_mtu: u32,
    /// The node's IPv4 address on the path of `next_hop`; zeros: none.
    pub address_v4: [u8; 4],
    /// Next hop of IPv6 packets in the native form; zeros: no such path is known.
    pub next_hop_v6: [u8; 16],
    /// The node's IPv6 address on the path of `next_hop_v6`; zeros: none.
    pub address_v6: [u8; 16],
    /// Uplink of IPv6 packets in the native form.
    pub ifindex_v6: u32,
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

    /// Uplink, next hop and its family of packets of a family in the native form. The
    /// family is 0 where no path is known.
    #[inline(always)]
    pub fn native<A: Address>(&self) -> (IfIndex, &[u8; 16], u8) {
        if A::FAMILY == FAMILY_V4 {
            let uplink = IfIndex::stored(self.ifindex);
            return (uplink, &self.next_hop, self.next_hop_family);
        }
        let known = if self.ifindex_v6 == 0 { 0 } else { FAMILY_V6 };
        (IfIndex::stored(self.ifindex_v6), &self.next_hop_v6, known)
    }

    /// Bytes that the tunnel to this node adds to a packet.
    #[inline(always)]
    pub const fn overhead(&self) -> u32 {
        if self.tunnel_family == FAMILY_V6 {
            VXLAN_OVERHEAD_V6
        } else {
            VXLAN_OVERHEAD_V4
        }
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
            path => config.tunnel_mtu.min(path.saturating_sub(self.overhead())),
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

plain!(Remote, 104);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_one_byte_and_other_bytes_are_none() {
        for form in Form::ALL {
            assert_eq!(Form::of(form.byte()), Some(form));
        }
        let known: usize = (0..=u8::MAX).filter_map(Form::of).count();
        assert_eq!((Form::of(FORM_NONE), known), (None, Form::ALL.len()));
    }
}
