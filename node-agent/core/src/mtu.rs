//! Sizes of packets.

/// An MTU: bytes of the largest IP packet, its IP header included and what is in front of
/// that (Ethernet, the tunnel) not. At least 68 ([`Self::new`]) and at most 65,535, which
/// is what an IP header can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtu(u16);

impl Mtu {
    /// What every link carries (RFC 791): the kernel takes no smaller one of an Ethernet
    /// device. IPv6 needs more, see [`Self::IPV6`].
    const LEAST: u16 = 68;
    /// The smallest of a link with IPv6 (RFC 8200, section 5).
    pub const IPV6: Self = Self(1280);
    /// That of Ethernet.
    pub const ETHERNET: Self = Self(1500);

    /// That of so many bytes; `None`: no IP packet needs to fit (also where 0 stands for
    /// "not known"). More than an IP packet can have counts as the most that it can.
    pub fn new(bytes: u32) -> Option<Self> {
        let bytes = u16::try_from(bytes).unwrap_or(u16::MAX);
        (bytes >= Self::LEAST).then_some(Self(bytes))
    }

    /// Bytes.
    pub fn get(self) -> u32 {
        self.0.into()
    }

    /// What is left of it behind headers of so many bytes; never less than an MTU can be.
    #[must_use]
    pub fn less(self, bytes: u32) -> Self {
        Self::new(self.get().saturating_sub(bytes)).unwrap_or(Self(Self::LEAST))
    }
}

/// Bytes, as the API has them.
impl From<Mtu> for i32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

/// Bytes, as the length of a packet.
impl From<Mtu> for usize {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

/// That of Ethernet, until more is known.
impl Default for Mtu {
    fn default() -> Self {
        Self::ETHERNET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_link_has_is_no_mtu_and_no_packet_is_larger_than_its_header_can_say() {
        for (bytes, mtu) in [
            (0, None),
            (67, None),
            (68, Some(68)),
            (1500, Some(1500)),
            (65_535, Some(65_535)),
            // That of `lo`.
            (65_536, Some(65_535)),
            (u32::MAX, Some(65_535)),
        ] {
            assert_eq!(Mtu::new(bytes).map(Mtu::get), mtu);
        }
    }

    #[test]
    fn headers_leave_an_mtu_whatever_they_take() {
        assert_eq!(Mtu::ETHERNET.less(50).get(), 1450);
        assert_eq!(Mtu::new(100).unwrap().less(50).get(), 68);
        assert_eq!(Mtu::new(68).unwrap().less(70).get(), 68);
    }
}
