//! How packets reach another node bare, in each family that both nodes have pods in.

use std::net::IpAddr;

use veer_crds::v1alpha1::RoutingMode;

use crate::{
    facts::{Facts, Path},
    family::{self, Families, Family},
    index::NodeRecord,
    peers::Peers,
};

/// The way of one family's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The node's address that the path leads to.
    pub to: IpAddr,
    /// The path.
    pub path: Path,
}

/// The ways of all packets of one pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Families that both nodes have pods in.
    pub families: Families,
    legs: [Option<Leg>; 2],
    /// The first family that has no way, and what is known of the reason.
    missing: Option<(Family, Option<String>)>,
}

impl Paths {
    /// The paths to a node. `own` are the families of this node's pods, `tunnel` is the
    /// address that stands for the other node: its family counts while the nodes have no
    /// pods in common.
    pub fn to(
        node: &NodeRecord,
        tunnel: IpAddr,
        own: Families,
        facts: &Facts,
        peers: &Peers,
    ) -> Self {
        let common = own.in_both(family::of_nets(&node.pod_cidrs));
        let families = if common.is_empty() {
            Families::one(Family::of(tunnel))
        } else {
            common
        };
        let mut paths = Self {
            families,
            ..Self::default()
        };
        for family in families.iter() {
            let to = way(&node.name, family, facts, peers);
            let path = to.and_then(|to| facts.paths.get(&to).copied());
            let leg = to.zip(path).map(|(to, path)| Leg { to, path });
            *family.pick(paths.legs.each_mut()) = leg;
            if leg.is_none() {
                let why = to.and_then(|to| facts.unfit.get(&to).cloned());
                paths.missing.get_or_insert((family, why));
            }
        }
        paths
    }

    /// The way of a family's packets.
    pub fn leg(&self, family: Family) -> Option<Leg> {
        family.pick(self.legs)
    }

    /// Whether every packet goes bare in this mode.
    pub fn are_native(&self, mode: RoutingMode) -> bool {
        let mut legs = self.families.iter().map(|family| self.leg(family));
        match mode {
            RoutingMode::Tunnel => false,
            RoutingMode::Native => self.missing.is_none(),
            RoutingMode::Hybrid => legs.all(|leg| leg.is_some_and(|leg| leg.path.same_link)),
        }
    }

    /// Why there is no way for some packets.
    pub fn obstacle(&self, node: &str) -> Option<String> {
        let (family, why) = self.missing.as_ref()?;
        let why = why.clone();
        let why =
            why.unwrap_or_else(|| format!("this node has no path to {node} for bare packets"));
        Some(named(self.families, *family, &why))
    }
}

/// What failed, with its family where there are two.
pub(super) fn named(families: Families, family: Family, why: &str) -> String {
    if families.iter().count() > 1 {
        format!("{}: {why}", family.name())
    } else {
        why.to_owned()
    }
}

/// The address of a node that packets of a family are sent to: IPv4 packets may have an
/// IPv6 next hop, where the two nodes have no IPv4 between them.
fn way(node: &str, family: Family, facts: &Facts, peers: &Peers) -> Option<IpAddr> {
    let between = |family| {
        facts.first(family)?;
        peers.address_of(node, family)
    };
    between(family).or_else(|| between(Family::V6))
}
