//! Names of objects that follow from their content.

use ipnet::IpNet;
use std::net::IpAddr;

/// The name of a block's claim: the base address, IPv4 with dashes for dots,
/// IPv6 as 32 hex digits.
pub fn pod_cidr_name(cidr: &IpNet) -> String {
    match cidr.network() {
        IpAddr::V4(a) => a.to_string().replace('.', "-"),
        IpAddr::V6(a) => format!("{:032x}", u128::from(a)),
    }
}

/// The name of a pod's endpoint: the pod's name, cut to fit, and eight hex
/// digits of its UID, because a pod's name alone comes back.
pub fn pod_endpoint_name(pod_name: &str, pod_uid: &str) -> String {
    const MAX: usize = 253 - 9;
    let digits: String = pod_uid
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(8)
        .collect();
    let cut = pod_name
        .get(..MAX)
        .unwrap_or(pod_name)
        .trim_end_matches(['-', '.']);
    format!("{cut}-{}", digits.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_both_families_have_valid_names() {
        let v4: IpNet = "10.244.3.0/24".parse().unwrap();
        let v6: IpNet = "fd00:10:244:3::/64".parse().unwrap();
        assert_eq!(pod_cidr_name(&v4), "10-244-3-0");
        assert_eq!(pod_cidr_name(&v6), "fd000010024400030000000000000000");
    }

    #[test]
    fn a_name_of_full_length_is_cut_to_what_kubernetes_allows() {
        let name = pod_endpoint_name(&"a".repeat(253), "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0");
        assert_eq!(name.len(), 253);
        assert!(name.ends_with("-0f1e2d3c"));
    }
}
