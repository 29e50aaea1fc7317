//! Prefixes as the ipcache has them.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_bpf_common::key::IpKey;

/// A prefix of the ipcache: length in bits of the address, and the address.
pub type Prefix = (u8, IpKey);

/// The prefix of one address.
pub fn host_prefix(address: IpAddr) -> Prefix {
    let length = if address.is_ipv4() { 32 } else { 128 };
    (length, IpKey::from(address))
}

/// The prefix of a network.
pub fn prefix(net: &IpNet) -> Prefix {
    (net.prefix_len(), IpKey::from(net.network()))
}
