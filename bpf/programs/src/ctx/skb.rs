//! A packet as tc programs see it, with the decision taken on it so far.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_DONT_FRAGMENT, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, TC_ACT_REDIRECT,
        bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type,
        bpf_skb_get_tunnel_key, bpf_skb_pull_data, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
    },
};
use core::mem::{MaybeUninit, offset_of};
use veer_bpf_common::{
    address::{Address as _, FAMILY_V4, FAMILY_V6, IpKey, V6},
    device::IfIndex,
    identity::Vni,
    mark,
    outcome::{DropReason, Program},
    tables::{Config, Decision, Interface, Tuple},
};
use veer_bpf_net::{
    arp,
    bytes::{Bytes, HEAD},
    ethernet::{self, Ethernet},
    ip::{Ip, Start, v6::Chain},
};

use super::{apart, direct};

/// `PACKET_HOST` (`include/uapi/linux/if_packet.h`): the stack takes the packet.
const PACKET_HOST: u32 = 0;
/// `AF_INET`.
const AF_INET: u32 = 2;
/// `AF_INET6`.
const AF_INET6: u32 = 10;
/// TTL of the tunnel's outer packets.
const OUTER_TTL: u8 = 64;
/// The part of `struct bpf_tunnel_key` that every kernel since 4.5 knows; the
/// local address came later (kernel commit 26101f5ab6bd, v6.0) and kernels
/// before it refuse a longer structure.
const TUNNEL_KEY_SIZE: u32 = offset_of!(bpf_tunnel_key, __bindgen_anon_3) as u32;

/// Whether routers on the way may fragment the tunnel's outer packet.
#[derive(Clone, Copy)]
pub(crate) enum Outer {
    /// Yes: a packet that does not fit arrives in fragments.
    MayFragment,
    /// No: a packet that does not fit is lost.
    DontFragment,
}

/// A packet in a tc program.
pub(crate) struct Skb {
    raw: *mut __sk_buff,
    /// Which program this is.
    pub(crate) program: Program,
    /// This CPU's record of the program's decision, filled in on the way.
    pub(crate) decision: &'static mut Decision,
}

/// Reads a field of `__sk_buff`.
macro_rules! field {
    ($self:ident . $name:ident) => {{
        // Volatile: fields are read as wide as the kernel has them, each time.
        // SAFETY: the kernel hands a valid context to the program.
        unsafe { (&raw const (*$self.raw).$name).read_volatile() }
    }};
}

impl Skb {
    /// The packet that the kernel handed to `program`.
    #[inline(always)]
    pub(crate) fn new(
        raw: *mut __sk_buff,
        program: Program,
        decision: &'static mut Decision,
    ) -> Self {
        Self {
            raw,
            program,
            decision,
        }
    }

    /// `skb->protocol`: the type of the frame, or of what is behind a tag that the
    /// kernel has removed.
    #[inline(always)]
    pub(crate) fn protocol(raw: *mut __sk_buff) -> u16 {
        // SAFETY: the kernel hands a valid context to the program.
        u16::from_be(unsafe { (&raw const (*raw).protocol).read_volatile() } as u16)
    }

    /// The kernel's context, for helpers.
    #[inline(always)]
    pub(crate) fn raw(&self) -> *mut __sk_buff {
        self.raw
    }

    /// `skb->mark`, only veer's bits of it.
    #[inline(always)]
    pub(crate) fn mark_of(raw: *mut __sk_buff) -> u32 {
        // SAFETY: the kernel hands a valid context to the program.
        mark::get(unsafe { (&raw const (*raw).mark).read_volatile() })
    }

    /// The same of this packet.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        Self::mark_of(self.raw)
    }

    /// Replaces veer's bits of the mark.
    #[inline(always)]
    pub(crate) fn set_mark(&self, ours: u32) {
        let mark = mark::set(field!(self.mark), ours);
        // Volatile: the kernel takes a write of all four bytes only, and the
        // compiler would write the half that changes.
        // SAFETY: a valid context; the mark is writable in tc programs.
        unsafe { (&raw mut (*self.raw).mark).write_volatile(mark) }
    }

    /// Index of the device the program is attached to.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> IfIndex {
        IfIndex::from_kernel(field!(self.ifindex))
    }

    /// Whether the frame had a VLAN tag, which the kernel has removed.
    #[inline(always)]
    pub(crate) fn has_vlan(&self) -> bool {
        field!(self.vlan_present) != 0
    }

    /// The id in the VLAN tag that the kernel has removed; 0: there was no tag, or
    /// one that only has a priority, and the stack takes the frame as its own.
    #[inline(always)]
    pub(crate) fn vlan_id(&self) -> u16 {
        if self.has_vlan() {
            field!(self.vlan_tci) as u16 & ethernet::VLAN_ID
        } else {
            0
        }
    }

    /// Payload bytes of the segments it will be cut into; 0: of none.
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        field!(self.gso_size)
    }

    /// Makes the first `bytes` reachable for [`Bytes::head`] where the packet has
    /// them. Costs nothing where they are linear already, as they usually are.
    #[inline(always)]
    pub(crate) fn pull(&self, bytes: usize) {
        let wanted = core::cmp::min(self.length(), bytes as u32);
        let linear = field!(self.data_end).wrapping_sub(field!(self.data));
        if linear < wanted {
            // SAFETY: a valid context. On failure reads beyond find nothing.
            unsafe { bpf_skb_pull_data(self.raw, wanted) };
        }
    }

    /// The Ethernet header. Behind it the headers of the family are reachable.
    #[inline(always)]
    pub(crate) fn ethernet<I: Ip>(&self) -> Result<Ethernet, DropReason> {
        self.pull(I::HEAD);
        Ethernet::parse(self)
    }

    /// The IP header behind the Ethernet header, which was read before.
    #[inline(always)]
    pub(crate) fn ip<I: Ip>(&self) -> Result<I, DropReason> {
        I::parse(self, ethernet::HEADER_LENGTH)
    }

    /// Marks the packet as one for this host, whatever its MAC. Otherwise `ip_rcv`
    /// drops it silently.
    #[inline(always)]
    pub(crate) fn set_for_host(&self) {
        if field!(self.pkt_type) != PACKET_HOST {
            // SAFETY: a valid context.
            unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        }
    }

    /// Writes bytes at an offset of the frame.
    #[inline(always)]
    fn write(&self, offset: usize, bytes: &impl AsRef<[u8]>) -> Result<(), DropReason> {
        let bytes = bytes.as_ref();
        let (start, length) = (bytes.as_ptr().cast(), bytes.len() as u32);
        // SAFETY: a valid context, and as many readable bytes. The helper makes the
        // bytes writable and no more of the packet than those.
        match unsafe { bpf_skb_store_bytes(self.raw, offset as u32, start, length, 0) } {
            0 => Ok(()),
            _ => Err(DropReason::HelperFailed),
        }
    }

    /// Takes the packet one hop on, with new MACs, in one piece.
    #[inline(always)]
    pub(crate) fn hop<I: Ip>(
        &self,
        ip: &I,
        destination: [u8; 6],
        source: [u8; 6],
    ) -> Result<(), DropReason> {
        self.write(0, &ip.hop(destination, source))
    }

    /// The same, with the MACs as they are.
    #[inline(always)]
    pub(crate) fn hop_within<I: Ip>(&self, ip: &I) -> Result<(), DropReason> {
        let (offset, bytes) = ip.onward();
        self.write(ethernet::HEADER_LENGTH + offset, &Start(bytes))
    }

    /// Writes an ARP answer over the request.
    #[inline(always)]
    pub(crate) fn write_arp(&self, frame: &[u8; arp::FRAME_LENGTH]) -> Result<(), DropReason> {
        self.write(0, &Start(*frame))
    }

    /// Writes the answer to a neighbour solicitation over it, whatever options that had.
    #[inline(always)]
    pub(crate) fn write_advertisement(
        &self,
        interface: &Interface,
        config: &Config,
    ) -> Result<(), DropReason> {
        match apart::advertise(self.raw, interface, config) {
            0 => Ok(()),
            _ => Err(DropReason::HelperFailed),
        }
    }

    /// To the egress of a device of this namespace.
    #[inline(always)]
    pub(crate) fn redirect(&mut self, ifindex: IfIndex) -> Result<(), DropReason> {
        self.decision.ifindex = ifindex.get();
        // SAFETY: no pointers.
        redirected(unsafe { bpf_redirect(ifindex.get(), 0) })
    }

    /// To the ingress of a veth's peer in another namespace.
    #[inline(always)]
    pub(crate) fn redirect_peer(&mut self, ifindex: IfIndex) -> Result<(), DropReason> {
        self.decision.ifindex = ifindex.get();
        // SAFETY: no pointers.
        redirected(unsafe { bpf_redirect_peer(ifindex.get(), 0) })
    }

    /// To a neighbour by its address; the kernel fills in the MACs.
    #[inline(always)]
    pub(crate) fn redirect_neighbour(&mut self, to: &NextHop) -> Result<(), DropReason> {
        self.decision.ifindex = to.ifindex.get();
        let mut hop = MaybeUninit::uninit();
        let hop: &mut bpf_redir_neigh = zeroed(&mut hop);
        if to.family == FAMILY_V6 {
            hop.nh_family = AF_INET6;
            hop.__bindgen_anon_1.ipv6_nh = to.address.quarters();
        } else {
            hop.nh_family = AF_INET;
            hop.__bindgen_anon_1.ipv4_nh = to.address.quarters()[0];
        }
        // SAFETY: an initialised structure of the size given.
        redirected(unsafe {
            bpf_redirect_neigh(
                to.ifindex.get(),
                hop,
                size_of::<bpf_redir_neigh>() as i32,
                0,
            )
        })
    }

    /// Sets the tunnel device's destination and VNI for the packet.
    ///
    /// The outer checksum is left out: the inner ones cover the payload, and
    /// the tunnel's outer packets stay cheap to segment and to merge.
    #[inline(always)]
    pub(crate) fn set_tunnel(
        &mut self,
        vni: Vni,
        to: V6,
        family: u8,
        outer: Outer,
    ) -> Result<(), DropReason> {
        self.decision.vni = vni.get();
        self.tunnel_key(vni, to, family, outer)
    }

    /// Removes the route by which the stack sent the packet to this device.
    ///
    /// Where the MAC of the neighbour it is redirected to has to be resolved,
    /// the kernel sends it later to the neighbour of *that* route
    /// (`neigh_update` in `net/core/neighbour.c`), which is on the tunnel device: the
    /// packet would be lost. A tunnel key replaces the route and names no neighbour.
    #[inline(always)]
    pub(crate) fn forget_route(&self) -> Result<(), DropReason> {
        self.tunnel_key(Vni::ZERO, V6::NONE, FAMILY_V4, Outer::MayFragment)
    }

    #[inline(always)]
    fn tunnel_key(&self, vni: Vni, to: V6, family: u8, outer: Outer) -> Result<(), DropReason> {
        let mut key = MaybeUninit::uninit();
        let key: &mut bpf_tunnel_key = zeroed(&mut key);
        key.tunnel_id = vni.get();
        key.tunnel_ttl = OUTER_TTL;
        let mut flags = match outer {
            Outer::MayFragment => BPF_F_ZERO_CSUM_TX,
            Outer::DontFragment => BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT,
        };
        if family == FAMILY_V6 {
            key.__bindgen_anon_1.remote_ipv6 = to.quarters();
            flags |= BPF_F_TUNINFO_IPV6;
        } else {
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(to.quarters()[0]);
        }
        // SAFETY: a valid context and TUNNEL_KEY_SIZE initialised bytes.
        let result =
            unsafe { bpf_skb_set_tunnel_key(self.raw, key, TUNNEL_KEY_SIZE, u64::from(flags)) };
        match result {
            0 => Ok(()),
            _ => Err(DropReason::HelperFailed),
        }
    }

    /// VNI and outer source of a packet from the tunnel device; `None` for one
    /// that did not come through the tunnel.
    #[inline(always)]
    pub(crate) fn tunnel(&self) -> Option<(Vni, IpKey)> {
        let mut key = MaybeUninit::uninit();
        let key: &mut bpf_tunnel_key = zeroed(&mut key);
        // The kernel tells the address only to who asks for its family.
        let outer = if self.read_tunnel_key(key, 0) {
            // SAFETY: both variants of the union are integers.
            let address = unsafe { key.__bindgen_anon_1.remote_ipv4 };
            IpKey::v4(address.to_be_bytes())
        } else if self.read_tunnel_key(key, BPF_F_TUNINFO_IPV6) {
            // SAFETY: as above.
            IpKey::of(V6::from_quarters(unsafe {
                key.__bindgen_anon_1.remote_ipv6
            }))
        } else {
            return None;
        };
        Some((Vni::new(key.tunnel_id)?, outer))
    }

    #[inline(always)]
    fn read_tunnel_key(&self, key: &mut bpf_tunnel_key, flags: u32) -> bool {
        // SAFETY: a valid context and TUNNEL_KEY_SIZE writable bytes.
        let result =
            unsafe { bpf_skb_get_tunnel_key(self.raw, key, TUNNEL_KEY_SIZE, u64::from(flags)) };
        result == 0
    }
}

/// A neighbour and the device that it is on.
#[derive(Clone, Copy)]
pub(crate) struct NextHop {
    pub(crate) ifindex: IfIndex,
    /// As in [`IpKey`].
    pub(crate) family: u8,
    /// An IPv4 address in the first words, as in [`IpKey`].
    pub(crate) address: V6,
}

/// Fills a structure of the kernel's interface, all of them integers, with zeros. In
/// place: returned by value it would be filled once more.
#[inline(always)]
fn zeroed<T>(value: &mut MaybeUninit<T>) -> &mut T {
    direct::blank(value.as_mut_ptr());
    // SAFETY: zero is a value of every integer.
    unsafe { value.assume_init_mut() }
}

/// Whether a redirect helper took the packet.
#[inline(always)]
fn redirected(code: i64) -> Result<(), DropReason> {
    if code == i64::from(TC_ACT_REDIRECT) {
        Ok(())
    } else {
        Err(DropReason::HelperFailed)
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn length(&self) -> u32 {
        field!(self.len)
    }

    /// Direct packet access; the caller has called [`Skb::pull`].
    #[inline(always)]
    fn head<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = field!(self.data) as usize + offset;
        if start + N > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: within the packet's linear data, checked above.
        Some(unsafe { direct::read(start) })
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let start = field!(self.data) as usize + offset;
        if start + 8 * N > field!(self.data_end) as usize {
            return None;
        }
        // SAFETY: as in `head`.
        Some(unsafe { direct::words(start) })
    }

    #[inline(always)]
    fn anywhere<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        apart::load(self.raw, offset as u32)
    }

    #[inline(always)]
    fn words_anywhere<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        apart::load_words(self.raw, offset as u32)
    }

    #[inline(always)]
    fn extension_headers(&self, offset: u32, next: u8, available: u32) -> Chain {
        // SAFETY: a valid context.
        let bits = unsafe { apart::extension_headers(self.raw, offset, next.into(), available) };
        Chain::from_bits(bits)
    }

    #[inline(always)]
    fn carried<I: Ip>(&self, offset: u32, available: u32) -> Option<Tuple> {
        apart::carried::<I>(self.raw, offset, available)
    }
}

const _: () = assert!(HEAD >= ethernet::HEADER_LENGTH + arp::LENGTH);
