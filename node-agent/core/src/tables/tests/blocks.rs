//! Addresses of pods in tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::family::Family;

/// Families of the cluster's pods, the primary one first.
pub(super) const CLUSTERS: [&[Family]; 4] = [
    &[Family::V4],
    &[Family::V6],
    &[Family::V4, Family::V6],
    &[Family::V6, Family::V4],
];

/// The address of a pod of the node with this number, this one's is 0; or, with 0 for the
/// pod, the base of the node's block.
pub(super) fn pod_ip(family: Family, node: u8, pod: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 1, node, pod).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 1, node.into(), 0, 0, 0, 0, pod.into()).into(),
    }
}

/// A node's blocks.
pub(super) fn blocks(families: &[Family], node: u8) -> Vec<IpNet> {
    let of = |family: &Family| {
        let length = family.pick([24, 64]);
        IpNet::new(pod_ip(*family, node, 0), length).unwrap()
    };
    families.iter().map(of).collect()
}
