//! The address families of a cluster, and what each brings: addresses on the
//! underlay, of pods, of services, of the world.
//!
//! A node's address is planned once, as IPv4; its IPv6 address is the same one
//! below [`UNDERLAY_V6`]. So both families have one plan, and a node that moves
//! moves in both.

use std::{
    env, fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    control::{API_SERVICE, DNS_SERVICE, POD_CIDR, SERVICE_CIDR},
    error::{Error, Result},
    underlay::OUTSIDE,
};

/// A /96 for the IPv6 addresses of all underlays; the last 32 bits are the
/// IPv4 address of the plan.
const UNDERLAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd76, 0x6565, 0x7200, 0, 0, 0, 0, 0);

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The addresses of pods, for veer to divide.
    pub fn pod_cidr(self) -> &'static str {
        match self {
            Self::V4 => POD_CIDR,
            Self::V6 => "fd00:10:244::/56",
        }
    }

    /// The addresses of services.
    pub fn service_cidr(self) -> &'static str {
        match self {
            Self::V4 => SERVICE_CIDR,
            Self::V6 => "fd00:10:96::/112",
        }
    }

    /// The first address of [`Family::service_cidr`], which is the API
    /// server's where this family is the primary one.
    pub fn api_service(self) -> IpAddr {
        match self {
            Self::V4 => API_SERVICE.into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 1).into(),
        }
    }

    /// The DNS service's address where this family is the primary one.
    pub fn dns_service(self) -> IpAddr {
        match self {
            Self::V4 => DNS_SERVICE.into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 10).into(),
        }
    }

    /// The address of the world that is on no underlay link: the internet.
    pub fn outside(self) -> IpAddr {
        match self {
            Self::V4 => OUTSIDE.into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1).into(),
        }
    }

    /// The length in bits of a node's share of [`Family::pod_cidr`].
    pub fn node_mask(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// The address of the machine itself.
    pub fn localhost(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// The address that stands for all of a machine's own.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The planned address in this family, of a machine whose one of IPv4 is this.
    pub fn planned(self, address: Ipv4Addr) -> IpAddr {
        match self {
            Self::V4 => address.into(),
            Self::V6 => {
                Ipv6Addr::from_bits(UNDERLAY_V6.to_bits() | u128::from(address.to_bits())).into()
            }
        }
    }

    /// The planned network, or address on its link, in this family:
    /// `address/length`, where `prefix` is the length of the IPv4 one in bits.
    pub(crate) fn planned_net(self, address: Ipv4Addr, prefix: u8) -> String {
        let more = if self == Self::V4 { 0 } else { 96 };
        format!("{}/{}", self.planned(address), prefix + more)
    }

    /// The length in bits of a whole address.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The setting that makes a machine a router of this family.
    pub(crate) fn forwarding(self) -> &'static str {
        match self {
            Self::V4 => "net.ipv4.ip_forward=1",
            Self::V6 => "net.ipv6.conf.all.forwarding=1",
        }
    }

    /// The control protocol, as nftables calls it.
    pub(crate) fn icmp(self) -> &'static str {
        match self {
            Self::V4 => "icmp",
            Self::V6 => "icmpv6",
        }
    }

    /// The IP header, as nftables calls it.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// The control protocol, as tcpdump calls it.
    pub fn icmp_filter(self) -> &'static str {
        match self {
            Self::V4 => "icmp",
            Self::V6 => "icmp6",
        }
    }

    /// Has `ip` look at this family alone.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// What `ip address add` is told besides. An IPv6 address counts at once:
    /// no other machine can have it.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::V4 => &[],
            Self::V6 => &["nodad"],
        }
    }

    /// By the name that `--primary` takes.
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "v4" => Some(Self::V4),
            "v6" => Some(Self::V6),
            _ => None,
        }
    }
}

/// The families that a cluster's nodes and services have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Families {
    /// IPv4 alone.
    #[default]
    V4,
    /// IPv6 alone, also on the underlay.
    V6,
    /// Both, IPv4 the primary one.
    V4V6,
    /// Both, IPv6 the primary one.
    V6V4,
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.all().iter().map(Family::to_string).collect();
        f.write_str(&names.join(" and "))
    }
}

impl Families {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::V4, Self::V4V6, Self::V6V4, Self::V6];

    /// By the names that `--family` and `--primary` take: `v4`, `v6` or `dual`,
    /// and for `dual` `v4` (as without) or `v6`.
    ///
    /// # Errors
    /// A name is another one, or a single family is not the primary one.
    pub fn named(family: &str, primary: Option<&str>) -> Result<Self> {
        let wrong = |text| Err(Error::State(text));
        let primary = match primary.map(|name| (name, Family::from_name(name))) {
            Some((name, None)) => {
                return wrong(format!("the primary family is v4 or v6, not {name:?}"));
            }
            Some((_, found)) => found,
            None => None,
        };
        match (family, primary) {
            ("v4", None | Some(Family::V4)) => Ok(Self::V4),
            ("v6", None | Some(Family::V6)) => Ok(Self::V6),
            ("dual", None | Some(Family::V4)) => Ok(Self::V4V6),
            ("dual", Some(Family::V6)) => Ok(Self::V6V4),
            ("v4" | "v6", _) => wrong(format!(
                "a cluster of family {family} has no other primary family: take dual"
            )),
            _ => wrong(format!("the family is v4, v6 or dual, not {family:?}")),
        }
    }

    /// By `VEER_E2E_FAMILY` and `VEER_E2E_PRIMARY`, as [`Families::named`];
    /// both without them, IPv4 the primary one.
    ///
    /// # Errors
    /// As there.
    pub fn from_environment() -> Result<Self> {
        let read = |name| env::var(name).ok().filter(|text| !text.is_empty());
        let family = read("VEER_E2E_FAMILY");
        Self::named(
            family.as_deref().unwrap_or("dual"),
            read("VEER_E2E_PRIMARY").as_deref(),
        )
    }

    /// All, the primary one first.
    pub fn all(self) -> &'static [Family] {
        match self {
            Self::V4 => &[Family::V4],
            Self::V6 => &[Family::V6],
            Self::V4V6 => &[Family::V4, Family::V6],
            Self::V6V4 => &[Family::V6, Family::V4],
        }
    }

    /// The one that nodes report first and services have unless they ask.
    pub fn primary(self) -> Family {
        match self {
            Self::V4 | Self::V4V6 => Family::V4,
            Self::V6 | Self::V6V4 => Family::V6,
        }
    }

    /// Whether there are two.
    pub fn is_dual(self) -> bool {
        self.all().len() > 1
    }

    /// Whether a family is one of them.
    pub fn has(self, family: Family) -> bool {
        self.all().contains(&family)
    }

    /// A planned address in all families, the primary one's first.
    pub(crate) fn planned(self, address: Ipv4Addr) -> Vec<IpAddr> {
        self.all().iter().map(|f| f.planned(address)).collect()
    }

    /// What each family says, the primary one first, as Kubernetes' flags take
    /// it.
    pub(crate) fn list(self, of: impl Fn(Family) -> String) -> String {
        let each: Vec<String> = self.all().iter().map(|f| of(*f)).collect();
        each.join(",")
    }

    /// Whether it is what clusters were before there was a choice; such a
    /// cluster's record does not mention it.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_chosen_by_name_and_nonsense_is_refused() {
        let good = [
            ("v4", None, Families::V4),
            ("v6", None, Families::V6),
            ("v6", Some("v6"), Families::V6),
            ("dual", None, Families::V4V6),
            ("dual", Some("v4"), Families::V4V6),
            ("dual", Some("v6"), Families::V6V4),
        ];
        for (family, primary, wanted) in good {
            assert_eq!(Families::named(family, primary).expect("good"), wanted);
            assert_eq!(wanted.all().first(), Some(&wanted.primary()));
            assert!(Families::ALL.contains(&wanted));
        }
        assert_eq!(Families::V6V4.to_string(), "IPv6 and IPv4");
        for (family, primary, says) in [
            ("v5", None, "v4, v6 or dual"),
            ("v4", Some("v6"), "take dual"),
            ("v6", Some("v4"), "take dual"),
            ("dual", Some("both"), "v4 or v6"),
        ] {
            let error = Families::named(family, primary).expect_err("bad");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_planned_address_is_the_end_of_the_one_in_ipv6() {
        let planned = Ipv4Addr::new(172, 30, 3, 12);
        let [v4, v6] = [Family::V4, Family::V6].map(|f| f.planned_net(planned, 24));
        assert_eq!(v4, "172.30.3.12/24");
        assert_eq!(v6, "fd76:6565:7200::ac1e:30c/120");
        let both = Families::V6V4.planned(planned);
        assert_eq!(both, [Family::V6.planned(planned), planned.into()]);
    }
}
