//! Keys of the maps.

/// Tag of an IPv4 address in [`IpKey::family`].
pub const FAMILY_V4: u8 = 4;
/// Tag of an IPv6 address in [`IpKey::family`].
pub const FAMILY_V6: u8 = 6;

/// Bits of an [`IpKey`] in front of its address; a longest-prefix-match key of
/// an n-bit prefix has length `IP_KEY_TAG_BITS + n`.
pub const IP_KEY_TAG_BITS: u32 = 32;

/// An address of either family. The tag comes first, so that the same type
/// serves as the data of a longest-prefix-match key.
#[repr(C)]
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
        Self {
            family: FAMILY_V4,
            pad: [0; 3],
            addr: [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
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
        let a = &self.addr;
        match self.family {
            FAMILY_V4 => Some(core::net::IpAddr::from([a[0], a[1], a[2], a[3]])),
            FAMILY_V6 => Some(core::net::IpAddr::from(*a)),
            _ => None,
        }
    }
}

/// One direction of a flow, exactly as its packets show it. ICMP echo has its
/// identifier in both ports; other protocols without ports have zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// As in [`IpKey`].
    pub source: [u8; 16],
    /// As in [`IpKey`].
    pub destination: [u8; 16],
    /// Network byte order.
    pub source_port: [u8; 2],
    /// Network byte order.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// The tuple that a reply to this one shows.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            family: self.family,
            pad: [0; 2],
        }
    }
}

/// All fragments of one datagram share it (RFC 791, section 3.2; RFC 8200,
/// section 4.5, without the protocol there).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// As in [`IpKey`].
    pub source: [u8; 16],
    /// As in [`IpKey`].
    pub destination: [u8; 16],
    /// Network byte order; the 16 bits of IPv4 are the last two bytes.
    pub identification: [u8; 4],
    /// IP protocol number.
    pub protocol: u8,
    /// [`FAMILY_V4`] or [`FAMILY_V6`].
    pub family: u8,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = {
    assert!(size_of::<IpKey>() == 20);
    assert!(core::mem::offset_of!(IpKey, addr) == 4);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FragmentKey>() == 40);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, no padding (asserted above).
    unsafe impl aya::Pod for super::IpKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FragmentKey {}
}

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

    #[test]
    fn reversed_twice_is_the_same_flow() {
        let key = FlowKey {
            source: [1; 16],
            destination: [2; 16],
            source_port: [3; 2],
            destination_port: [4; 2],
            protocol: 6,
            family: FAMILY_V4,
            pad: [0; 2],
        };
        assert_ne!(key.reversed(), key);
        assert_eq!(key.reversed().reversed(), key);
    }
}
