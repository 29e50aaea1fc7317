//! Address families.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

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
    pub fn one(is_ipv4: bool) -> Self {
        Self {
            v4: is_ipv4,
            v6: !is_ipv4,
        }
    }

    /// Whether it is one of these.
    pub fn has(self, is_ipv4: bool) -> bool {
        if is_ipv4 { self.v4 } else { self.v6 }
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

    /// Each of these, as whether it is IPv4.
    pub fn iter(self) -> impl Iterator<Item = bool> + use<> {
        [true, false].into_iter().filter(move |f| self.has(*f))
    }

    /// Whether it is neither.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// By whether each is IPv4.
impl FromIterator<bool> for Families {
    fn from_iter<I: IntoIterator<Item = bool>>(all: I) -> Self {
        all.into_iter()
            .fold(Self::default(), |before, is_ipv4| Self {
                v4: before.v4 || is_ipv4,
                v6: before.v6 || !is_ipv4,
            })
    }
}

/// The families of networks.
pub fn of_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> Families {
    nets.into_iter().map(|net| net.addr().is_ipv4()).collect()
}

/// The families of addresses.
pub fn of_addresses<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>) -> Families {
    addresses.into_iter().map(IpAddr::is_ipv4).collect()
}

/// A family's name.
pub fn name(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

/// The first address of a family.
pub fn first<'a>(addresses: impl IntoIterator<Item = &'a IpAddr>, is_ipv4: bool) -> Option<IpAddr> {
    let mut all = addresses.into_iter().copied();
    all.find(|address| address.is_ipv4() == is_ipv4)
}
