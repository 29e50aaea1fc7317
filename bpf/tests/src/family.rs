//! The two families of addresses. Tables are written with IPv4 addresses, each of which
//! stands for one of IPv6 too, and run in both.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};
use veer_bpf_common::{
    address::{FAMILY_V4, FAMILY_V6, IpKey},
    tables::Tuple,
};
use veer_bpf_net::{
    ethernet,
    ip::{ICMP, ICMP_V6},
};

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pick("IPv4", "IPv6"))
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// What belongs to this family.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// The address that an IPv4 one stands for: itself, or `fd00::a.b.c.d`, or the
    /// counterpart of one that is special.
    pub fn of(self, address: Ipv4Addr) -> IpAddr {
        if self == Self::V4 {
            return address.into();
        }
        let [a, b, c, d] = address.octets();
        let (ab, cd) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        IpAddr::V6(if address.is_unspecified() {
            Ipv6Addr::UNSPECIFIED
        } else if address.is_loopback() {
            Ipv6Addr::LOCALHOST
        } else if address.is_broadcast() {
            // All nodes of the link.
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)
        } else if address.is_multicast() {
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, b.into(), cd)
        } else {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, ab, cd)
        })
    }

    /// An address in this family: one of its own, or that which one of IPv4 stands for.
    pub fn address(self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => self.of(address),
            IpAddr::V6(_) => {
                assert_eq!(self, Self::V6, "{address} stands for no IPv4 address");
                address
            }
        }
    }

    /// The prefix that one of IPv4 stands for.
    pub fn prefix(self, (address, bits): (Ipv4Addr, u32)) -> (IpAddr, u32) {
        (self.of(address), self.pick(bits, 96 + bits))
    }

    /// Bits of an address.
    pub fn bits(self) -> u32 {
        self.pick(32, 128)
    }

    /// As [`IpKey::family`].
    pub fn tag(self) -> u8 {
        self.pick(FAMILY_V4, FAMILY_V6)
    }

    /// `EtherType`.
    pub fn ether_type(self) -> u16 {
        self.pick(ethernet::IPV4, ethernet::IPV6)
    }

    /// Bytes of a header without options or extension headers.
    pub fn header_length(self) -> usize {
        self.pick(20, 40)
    }

    /// Protocol number of ICMP.
    pub fn icmp(self) -> u8 {
        self.pick(ICMP, ICMP_V6)
    }

    /// A protocol number: ICMP's is that of the family.
    pub fn protocol(self, number: u8) -> u8 {
        if number == ICMP { self.icmp() } else { number }
    }

    /// The tuple of a flow that opens so; the protocol as in [`Self::protocol`].
    pub fn flow(
        self,
        protocol: u8,
        source: (impl Into<IpAddr>, u16),
        destination: (impl Into<IpAddr>, u16),
    ) -> Tuple {
        let address = |a: IpAddr| *IpKey::from(self.address(a)).addr();
        Tuple {
            source: address(source.0.into()),
            destination: address(destination.0.into()),
            source_port: source.1.to_be_bytes(),
            destination_port: destination.1.to_be_bytes(),
            protocol: self.protocol(protocol),
            family: self.tag(),
            asker: if protocol == ICMP {
                Tuple::SOURCE_ASKS
            } else {
                0
            },
            pad: 0,
        }
    }
}

/// Makes of each test that takes a [`Family`] one test per family, `name::v4` and
/// `name::v6`.
#[macro_export]
macro_rules! in_both_families {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn v4() -> anyhow::Result<()> {
                super::$name($crate::family::Family::V4)
            }

            #[test]
            fn v6() -> anyhow::Result<()> {
                super::$name($crate::family::Family::V6)
            }
        })*
    };
}

/// Makes of each test that takes the family of the packets and that of the nodes' link
/// one test per combination: `name::v6_over_v4` has IPv6 packets and an IPv4 link.
#[macro_export]
macro_rules! in_and_over_both_families {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use $crate::family::Family;

            #[test]
            fn v4_over_v4() -> anyhow::Result<()> {
                super::$name(Family::V4, Family::V4)
            }

            #[test]
            fn v6_over_v4() -> anyhow::Result<()> {
                super::$name(Family::V6, Family::V4)
            }

            #[test]
            fn v4_over_v6() -> anyhow::Result<()> {
                super::$name(Family::V4, Family::V6)
            }

            #[test]
            fn v6_over_v6() -> anyhow::Result<()> {
                super::$name(Family::V6, Family::V6)
            }
        })*
    };
}
