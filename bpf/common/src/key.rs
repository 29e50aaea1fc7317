//! Keys of the maps.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// One direction of a flow, exactly as its packets show it. ICMP echo has its
/// identifier in both ports; other protocols without ports have zeros.
#[repr(C, align(4))]
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
    /// An IPv4 flow; all in network byte order.
    #[inline(always)]
    pub const fn v4(
        source: [u8; 4],
        destination: [u8; 4],
        source_port: [u8; 2],
        destination_port: [u8; 2],
        protocol: u8,
    ) -> Self {
        let (s, d) = (source_port, destination_port);
        Self::from_words([
            u32::from_ne_bytes(source),
            0,
            0,
            0,
            u32::from_ne_bytes(destination),
            0,
            0,
            0,
            u32::from_ne_bytes([s[0], s[1], d[0], d[1]]),
            u32::from_ne_bytes([protocol, FAMILY_V4, 0, 0]),
        ])
    }

    /// The source of an IPv4 flow, network byte order.
    #[inline(always)]
    pub const fn source_v4(&self) -> [u8; 4] {
        self.words()[0].to_ne_bytes()
    }

    /// The destination of an IPv4 flow, network byte order.
    #[inline(always)]
    pub const fn destination_v4(&self) -> [u8; 4] {
        self.words()[4].to_ne_bytes()
    }

    /// The tuple that a reply to this one shows.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        let w = self.words();
        let ports = w[8].rotate_left(16);
        Self::from_words([w[4], w[5], w[6], w[7], w[0], w[1], w[2], w[3], ports, w[9]])
    }

    /// A number in which every bit of the tuple has a part.
    #[inline(always)]
    pub const fn mixed(&self) -> u32 {
        // FNV's offset and prime, a word at a time, and a last stir, since its
        // low bits know nothing of the words' high ones.
        let words = self.words();
        let mut mixed = 0x811c_9dc5u32;
        let mut at = 0;
        while at < words.len() {
            mixed = (mixed ^ words[at]).wrapping_mul(0x0100_0193);
            at += 1;
        }
        mixed ^= mixed >> 15;
        mixed = mixed.wrapping_mul(0x2c1b_3c6d);
        mixed ^ (mixed >> 13)
    }

    #[inline(always)]
    const fn words(&self) -> [u32; 10] {
        // SAFETY: as many bytes, and any of them make integers.
        unsafe { core::mem::transmute::<Self, [u32; 10]>(*self) }
    }

    #[inline(always)]
    const fn from_words(words: [u32; 10]) -> Self {
        // SAFETY: as many bytes, and all fields are integers. In words for the
        // same reason as in IpKey.
        unsafe { core::mem::transmute::<[u32; 10], Self>(words) }
    }
}

/// A place for one note among those of a local pod.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowSlot {
    /// [`crate::value::Endpoint::endpoint_id`]; 0: of no local pod.
    pub endpoint_id: u16,
    /// Below [`crate::maps::NOTES_PER_ENDPOINT`].
    pub slot: u16,
}

/// All fragments of one datagram share it (RFC 791, section 3.2; RFC 8200,
/// section 4.5, without the protocol there).
#[repr(C, align(4))]
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
    assert!(size_of::<PrefixKey>() == 24);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FlowSlot>() == 4);
    assert!(size_of::<FragmentKey>() == 40);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: repr(C), integers and byte arrays only, no padding (asserted above).
    unsafe impl aya::Pod for super::IpKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowSlot {}
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
    fn words_are_the_fields() {
        let key = FlowKey::v4([10, 0, 0, 1], [10, 0, 0, 2], [1, 2], [3, 4], 6);
        let expected = FlowKey {
            source: *IpKey::v4([10, 0, 0, 1]).addr(),
            destination: *IpKey::v4([10, 0, 0, 2]).addr(),
            source_port: [1, 2],
            destination_port: [3, 4],
            protocol: 6,
            family: FAMILY_V4,
            pad: [0; 2],
        };
        assert_eq!(key, expected);
        assert_eq!(expected.source[..5], [10, 0, 0, 1, 0]);
        let back = key.reversed();
        assert_eq!(
            (back.source, back.source_port, back.destination_port),
            (expected.destination, [3, 4], [1, 2])
        );
        assert_eq!((back.protocol, back.family), (6, FAMILY_V4));
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
