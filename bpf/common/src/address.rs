//! Addresses of both families, as packets have them and as keys hold them.

use crate::tables::{Config, Interface, Remote};

/// Tag of an IPv4 address in [`IpKey::family`].
pub const FAMILY_V4: u8 = 4;
/// Tag of an IPv6 address in [`IpKey::family`].
pub const FAMILY_V6: u8 = 6;

/// Bits of an [`IpKey`] in front of its address; a longest-prefix-match key of
/// an n-bit prefix has length `IP_KEY_TAG_BITS + n`.
pub const IP_KEY_TAG_BITS: u32 = 32;

/// An address of one family, as packets have it.
pub trait Address: Copy + PartialEq + 'static {
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    const FAMILY: u8;
    /// Bits of an address.
    const BITS: u32;
    /// The unspecified address.
    const NONE: Self;
    /// The same as map values hold it, network byte order.
    type Octets: 'static;

    /// The address in memory words of 64 bits, network byte order; what its family does
    /// not have is zero.
    fn words(self) -> [u64; 2];
    /// The address of these words, see [`Self::words`].
    fn from_words(words: [u64; 2]) -> Self;
    /// Whether the first `bits` bits are those of `other`; with 0 bits they always are.
    fn shares_prefix(self, other: Self, bits: u8) -> bool;

    /// The gateway of local pods and the bits of its block.
    fn of_gateway(config: &Config) -> (&Self::Octets, u8);
    /// The only source that a pod may use.
    fn of_interface(interface: &Interface) -> &Self::Octets;
    /// The address of another node on its native path.
    fn of_remote(remote: &Remote) -> &Self::Octets;
}

impl Address for [u8; 4] {
    const FAMILY: u8 = FAMILY_V4;
    const BITS: u32 = 32;
    const NONE: Self = [0; 4];
    type Octets = Self;

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        [joined([u32::from_ne_bytes(self), 0]), 0]
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        halves(words[0])[0].to_ne_bytes()
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, bits: u8) -> bool {
        let differ = u32::from_be_bytes(self) ^ u32::from_be_bytes(other);
        u64::from(differ).wrapping_shr(Self::BITS.wrapping_sub(bits.into())) == 0
    }

    #[inline(always)]
    fn of_gateway(config: &Config) -> (&Self, u8) {
        (&config.gateway_v4, config.block_bits_v4)
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> &Self {
        &interface.v4
    }

    #[inline(always)]
    fn of_remote(remote: &Remote) -> &Self {
        &remote.address_v4
    }
}

/// An IPv6 address in memory words, network byte order. Sixteen single bytes would
/// each take a register or a place on the stack of a BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6(pub [u64; 2]);

/// A memory word of two smaller ones.
#[inline(always)]
pub const fn joined(halves: [u32; 2]) -> u64 {
    // SAFETY: as many bytes, and any of them make integers.
    unsafe { core::mem::transmute::<[u32; 2], u64>(halves) }
}

/// The two smaller words of a memory word.
#[inline(always)]
pub const fn halves(word: u64) -> [u32; 2] {
    // SAFETY: as many bytes, and any of them make integers.
    unsafe { core::mem::transmute::<u64, [u32; 2]>(word) }
}

impl V6 {
    /// The address as map values hold it.
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        // SAFETY: as many bytes, and any of them make integers.
        Self(unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(octets) })
    }

    /// See [`Self::from_octets`].
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        // SAFETY: as many bytes, and any of them are bytes.
        unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(self.0) }
    }

    /// The address in memory words of 32 bits.
    #[inline(always)]
    pub const fn quarters(self) -> [u32; 4] {
        let ([a, b], [c, d]) = (halves(self.0[0]), halves(self.0[1]));
        [a, b, c, d]
    }

    /// See [`Self::quarters`].
    #[inline(always)]
    pub const fn from_quarters(q: [u32; 4]) -> Self {
        Self([joined([q[0], q[1]]), joined([q[2], q[3]])])
    }
}

impl Address for V6 {
    const FAMILY: u8 = FAMILY_V6;
    const BITS: u32 = 128;
    const NONE: Self = Self([0; 2]);
    type Octets = [u8; 16];

    #[inline(always)]
    fn words(self) -> [u64; 2] {
        self.0
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    #[inline(always)]
    fn shares_prefix(self, other: Self, bits: u8) -> bool {
        let bits = u32::from(bits);
        let high = u64::from_be(self.0[0] ^ other.0[0]);
        let low = u64::from_be(self.0[1] ^ other.0[1]);
        if bits == 0 {
            true
        } else if bits <= 64 {
            high.wrapping_shr(64 - bits) == 0
        } else {
            high == 0 && low.wrapping_shr(128_u32.wrapping_sub(bits)) == 0
        }
    }

    #[inline(always)]
    fn of_gateway(config: &Config) -> (&[u8; 16], u8) {
        (&config.gateway_v6, config.block_bits_v6)
    }

    #[inline(always)]
    fn of_interface(interface: &Interface) -> &[u8; 16] {
        &interface.v6
    }

    #[inline(always)]
    fn of_remote(remote: &Remote) -> &[u8; 16] {
        &remote.address_v6
    }
}

/// An address of either family. The tag comes first, so that the same type
/// serves as the data of a longest-prefix-match key.
///
/// Aligned, as the other keys, so that BPF writes words: it has no unaligned
/// stores, and a key of single bytes costs more to build than to look up.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpKey {
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    family: u8,
    pad: [u8; 3],
    /// Network byte order; an IPv4 address fills the first four, the rest is zero.
    addr: [u8; 16],
}

impl IpKey {
    /// The key of an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(a: [u8; 4]) -> Self {
        Self::tagged(FAMILY_V4, V6([joined([u32::from_ne_bytes(a), 0]), 0]))
    }

    /// The key of an address.
    #[inline(always)]
    pub fn of<A: Address>(a: A) -> Self {
        Self::tagged(A::FAMILY, V6(a.words()))
    }

    #[inline(always)]
    const fn tagged(family: u8, words: V6) -> Self {
        let a = words.quarters();
        let tag = u32::from_ne_bytes([family, 0, 0, 0]);
        // SAFETY: as many bytes, all of them integers; in words because bytes
        // would be stored one by one, see above.
        unsafe { core::mem::transmute::<[u32; 5], Self>([tag, a[0], a[1], a[2], a[3]]) }
    }

    /// The key of an IPv6 address in network byte order.
    #[inline(always)]
    pub const fn v6(addr: [u8; 16]) -> Self {
        Self::tagged(FAMILY_V6, V6::from_octets(addr))
    }

    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    #[inline(always)]
    pub const fn family(&self) -> u8 {
        self.family
    }

    /// The address bytes, see [`IpKey::v4`].
    #[inline(always)]
    pub const fn addr(&self) -> &[u8; 16] {
        &self.addr
    }
}

/// A key of a longest-prefix map as the kernel sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey {
    /// [`IP_KEY_TAG_BITS`] and the bits of the prefix.
    pub bits: u32,
    /// The prefix's address.
    pub ip: IpKey,
}

impl From<core::net::IpAddr> for IpKey {
    fn from(a: core::net::IpAddr) -> Self {
        match a {
            core::net::IpAddr::V4(a) => Self::v4(a.octets()),
            core::net::IpAddr::V6(a) => Self::v6(a.octets()),
        }
    }
}

impl IpKey {
    /// The address for people; `None` where the tag is neither family (a map
    /// written by something else).
    pub fn to_ip(&self) -> Option<core::net::IpAddr> {
        to_ip(self.family, self.addr)
    }
}

/// The address of a family that keys and values hold in sixteen bytes, see
/// [`IpKey`]; `None` where the tag is neither family.
pub fn to_ip(family: u8, bytes: [u8; 16]) -> Option<core::net::IpAddr> {
    let [a, b, c, d, ..] = bytes;
    match family {
        FAMILY_V4 => Some(core::net::IpAddr::from([a, b, c, d])),
        FAMILY_V6 => Some(core::net::IpAddr::from(bytes)),
        _ => None,
    }
}

plain!(IpKey, 20);
plain!(PrefixKey, 24);
const _: () = assert!(core::mem::offset_of!(IpKey, addr) == 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_shared_up_to_the_bit_in_which_addresses_differ() {
        let one = |bit: u8| {
            let mut octets = [0; 16];
            octets[usize::from(bit / 8)] = 0x80 >> (bit % 8);
            octets
        };
        for bit in 0..128 {
            let (a, b) = (V6::from_octets(one(bit)), V6::NONE);
            for bits in 0..=128 {
                assert_eq!(a.shares_prefix(b, bits), bits <= bit, "{bit} {bits}");
            }
            if let [a, b, c, d, ..] = one(bit)
                && bit < 32
            {
                for bits in 0..=32 {
                    let shares = [a, b, c, d].shares_prefix([0; 4], bits);
                    assert_eq!(shares, bits <= bit, "{bit} {bits}");
                }
            }
        }
    }

    #[test]
    fn keys_of_addresses_are_those_of_their_octets() {
        let octets: [u8; 16] = core::array::from_fn(|at| u8::try_from(at).unwrap());
        let (v4, v6) = ([1, 2, 3, 4], V6::from_octets(octets));
        assert_eq!(IpKey::of(v4), IpKey::v4(v4));
        assert_eq!(*IpKey::of(v6).addr(), octets);
        assert_eq!(IpKey::of(v6).family(), FAMILY_V6);
        assert_eq!(V6::from_words(v6.words()), v6);
        assert_eq!(V6::from_quarters(v6.quarters()), v6);
        assert_eq!(<[u8; 4]>::from_words(v4.words()), v4);
    }

    #[test]
    fn ip_key_round_trips_both_families() {
        for text in ["10.1.2.3", "fd00::1"] {
            let ip: core::net::IpAddr = text.parse().unwrap();
            assert_eq!(IpKey::from(ip).to_ip(), Some(ip));
        }
    }
}
