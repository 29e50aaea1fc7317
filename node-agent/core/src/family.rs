//! Address families.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// That of a network.
    pub fn of_net(net: &IpNet) -> Self {
        Self::of(net.addr())
    }

    /// Whether an address is of it.
    pub fn has(self, address: IpAddr) -> bool {
        Self::of(address) == self
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        self.pick([Self::V6, Self::V4])
    }

    /// That of the two which is for it, IPv4's being the first.
    pub fn pick<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.pick(["IPv4", "IPv6"])
    }

    /// The first address that is of it.
    pub fn first<'a>(self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Option<IpAddr> {
        let mut all = addresses.into_iter().copied();
        all.find(|address| self.has(*address))
    }
}

/// Which address families: none, one or both.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct Families {
    v4: bool,
    v6: bool,
}

impl Families {
    /// IPv4 alone.
    pub const V4: Self = Self {
        v4: true,
        v6: false,
    };

    /// One alone.
    pub fn one(family: Family) -> Self {
        [family].into_iter().collect()
    }

    /// Whether it is one of these.
    pub fn has(self, family: Family) -> bool {
        family.pick([self.v4, self.v6])
    }

    /// Whether all of the others are among these.
    pub fn cover(self, others: Self) -> bool {
        self.in_both(others) == others
    }

    /// Those that are among the others too.
    #[must_use]
    pub fn in_both(self, others: Self) -> Self {
        Self {
            v4: self.v4 && others.v4,
            v6: self.v6 && others.v6,
        }
    }

    /// Each of these.
    pub fn iter(self) -> impl Iterator<Item = Family> + use<> {
        Family::ALL.into_iter().filter(move |f| self.has(*f))
    }

    /// Whether it is neither.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl FromIterator<Family> for Families {
    fn from_iter<I: IntoIterator<Item = Family>>(all: I) -> Self {
        all.into_iter()
            .fold(Self::default(), |before, family| Self {
                v4: before.v4 || family == Family::V4,
                v6: before.v6 || family == Family::V6,
            })
    }
}

/// The families of networks.
pub fn of_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Families {
    nets.into_iter().map(Family::of_net).collect()
}

/// The families of addresses.
pub fn of_addresses<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Families {
    addresses.into_iter().copied().map(Family::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_of_addresses_are_each_of_them_once_and_ipv4_goes_first() {
        let [v4, v6]: [IpAddr; 2] = ["192.0.2.1", "2001:db8::1"].map(|a| a.parse().unwrap());
        assert_eq!([v4, v6].map(Family::of), Family::ALL);
        for family in Family::ALL {
            let (own, other) = (family.pick([v4, v6]), family.pick([v6, v4]));
            assert!(family.has(own) && family.other().has(other));
            assert_eq!(family.first(&[other, own]), Some(own));
            assert_eq!(family.first(&[other]), None);
            let alone = Families::one(family);
            assert_eq!(of_addresses(&[own, own]), alone);
            assert_eq!(alone.iter().collect::<Vec<_>>(), [family]);
        }
        let both = of_addresses(&[v6, v4]);
        assert_eq!(both.iter().collect::<Vec<_>>(), Family::ALL);
    }
}
