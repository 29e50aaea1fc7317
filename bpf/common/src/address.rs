//! Addresses of both families as keys hold them.

/// Tag of an IPv4 address in [`IpKey::family`].
pub const FAMILY_V4: u8 = 4;
/// Tag of an IPv6 address in [`IpKey::family`].
pub const FAMILY_V6: u8 = 6;

/// Bits of an [`IpKey`] in front of its address; a longest-prefix-match key of
/// an n-bit prefix has length `IP_KEY_TAG_BITS + n`.
pub const IP_KEY_TAG_BITS: u32 = 32;

/// Family and padding of an IPv4 [`IpKey`] as one word.
const TAG_V4: u32 = u32::from_ne_bytes([FAMILY_V4, 0, 0, 0]);

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
        let words = [TAG_V4, u32::from_ne_bytes(a), 0, 0, 0];
        // SAFETY: as many bytes, all of them integers; in words because bytes
        // would be stored one by one, see above.
        unsafe { core::mem::transmute::<[u32; 5], Self>(words) }
    }

    /// The key of an IPv6 address in network byte order.
    #[inline(always)]
    pub const fn v6(addr: [u8; 16]) -> Self {
        Self {
            family: FAMILY_V6,
            pad: [0; 3],
            addr,
        }
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
    fn ip_key_round_trips_both_families() {
        for text in ["10.1.2.3", "fd00::1"] {
            let ip: core::net::IpAddr = text.parse().unwrap();
            assert_eq!(IpKey::from(ip).to_ip(), Some(ip));
        }
    }
}
