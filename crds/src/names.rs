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

/// Bytes of an object's name.
const NAME_MAX: usize = 253;
/// Digits of a UID in a name.
const DIGITS: usize = 8;
/// End of the names that are one node's. No other name of an endpoint ends so: those
/// end in a dash and digits.
const OF_NODE: &str = ".node";

/// The usual name of a pod's endpoint: the pod's name, cut to fit, and eight hex
/// digits of its UID, because a pod's name alone comes back.
pub fn pod_endpoint_name(pod_name: &str, pod_uid: &str) -> String {
    cut_name(pod_name, pod_uid, NAME_MAX)
}

/// The name of a pod's endpoint that the agent of no other node may give
/// (`charts/veer/templates/admission-policy.yaml`): the usual one with dashes for its
/// dots, and after the first dot the node. `None`: the node's name leaves no room.
pub fn pod_endpoint_name_of_node(pod_name: &str, pod_uid: &str, node: &str) -> Option<String> {
    let room = NAME_MAX.checked_sub(1 + node.len() + OF_NODE.len())?;
    // At least one character of the pod's name.
    (room > DIGITS + 1).then(|| {
        let pod = cut_name(&pod_name.replace('.', "-"), pod_uid, room);
        format!("{pod}.{node}{OF_NODE}")
    })
}

/// The pod that an endpoint's name was made of: cut where it was too long, and with
/// dashes for dots where the name is one node's.
pub fn pod_of_endpoint(name: &str) -> &str {
    let usual = match name.strip_suffix(OF_NODE) {
        Some(_) => name.split('.').next().unwrap_or(name),
        None => name,
    };
    let digits = |end: &str| end.len() <= DIGITS && end.chars().all(|c| c.is_ascii_hexdigit());
    match usual.rsplit_once('-') {
        Some((pod, end)) if digits(end) => pod,
        _ => usual,
    }
}

fn cut_name(pod_name: &str, pod_uid: &str, max: usize) -> String {
    let digits: String = pod_uid
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(DIGITS)
        .collect();
    let cut = pod_name
        .get(..max - DIGITS - 1)
        .unwrap_or(pod_name)
        .trim_end_matches(['-', '.']);
    format!("{cut}-{}", digits.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoints_name_leads_back_to_its_pod() {
        let uid = "1a2b3c4d-5e6f-7081-92a3-b4c5d6e7f809";
        for (pod, found) in [("cart-0", "cart-0"), ("a.b", "a-b")] {
            assert_eq!(pod_of_endpoint(&pod_endpoint_name(pod, uid)), pod);
            let name = pod_endpoint_name_of_node(pod, uid, "worker-1.example").unwrap();
            assert_eq!(pod_of_endpoint(&name), found);
        }
        assert_eq!(pod_of_endpoint("made-by-hand"), "made-by-hand");
    }

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

    #[test]
    fn of_a_nodes_own_name_only_the_part_before_the_first_dot_is_the_pods() {
        let uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
        let own = |pod: &str, node: &str| pod_endpoint_name_of_node(pod, uid, node);
        assert_eq!(
            own("etcd-x.y", "x.y").unwrap(),
            "etcd-x-y-0f1e2d3c.x.y.node"
        );
        let long = own(&"a".repeat(253), "worker-2").unwrap();
        assert_eq!(long.len(), 253);
        assert!(long.ends_with("a-0f1e2d3c.worker-2.node"));
        let longest = "n".repeat(237);
        assert_eq!(own("pod", &longest).unwrap().len(), 253);
        assert_eq!(own("pod", &"n".repeat(238)), None);
        assert_eq!(own("pod", &"n".repeat(253)), None);
        // A pod cannot be called so that its usual name is a node's.
        assert!(!pod_endpoint_name("a.worker-2.node", uid).ends_with(OF_NODE));
    }
}
