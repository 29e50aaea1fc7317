//! Addresses of pods in tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Families of the cluster's pods, as whether each is IPv4, the primary one first.
pub(super) const CLUSTERS: [&[bool]; 4] = [&[true], &[false], &[true, false], &[false, true]];

/// The address of a pod of the node with this number, this one's is 0; or, with 0 for the
/// pod, the base of the node's block.
pub(super) fn pod_ip(is_ipv4: bool, node: u8, pod: u8) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::new(10, 1, node, pod).into()
    } else {
        Ipv6Addr::new(0xfd00, 1, node.into(), 0, 0, 0, 0, pod.into()).into()
    }
}

/// A node's blocks.
pub(super) fn blocks(families: &[bool], node: u8) -> Vec<IpNet> {
    let of = |is_ipv4: &bool| {
        let length = if *is_ipv4 { 24 } else { 64 };
        IpNet::new(pod_ip(*is_ipv4, node, 0), length).unwrap()
    };
    families.iter().map(of).collect()
}
