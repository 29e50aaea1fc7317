//! Prefixes as the ipcache has them.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_bpf_common::address::{IP_KEY_TAG_BITS, IpKey, PrefixKey};

/// The prefix of one address.
pub fn host_prefix(address: IpAddr) -> PrefixKey {
    prefix(&IpNet::from(address))
}

/// The prefix of a network.
pub fn prefix(net: &IpNet) -> PrefixKey {
    PrefixKey {
        bits: IP_KEY_TAG_BITS + u32::from(net.prefix_len()),
        ip: IpKey::from(net.network()),
    }
}
