//! Which of a node's addresses count for other nodes: pure.
//!
//! An agent's report alone is not enough: with its token one could make all nodes
//! send traffic of a Service or a load balancer to oneself. So an address counts if
//! the Node's own status has it or the user listed it. If two nodes could have one
//! address, the node that is ready has it.

use std::net::IpAddr;
use std::sync::Arc;

use veer_crds::v1alpha1::ClusterNetworkSpec;

use crate::slim::SlimNode;

/// How many addresses of a node count, as many as the schema takes.
const MOST: usize = 64;

/// The reported addresses that count, in the reported order: the primary of each
/// family first.
pub(super) fn believed(
    node: &SlimNode,
    reported: &[IpAddr],
    spec: &ClusterNetworkSpec,
    nodes: &[Arc<SlimNode>],
) -> Vec<IpAddr> {
    let extra = spec
        .extra_node_addresses
        .iter()
        .filter(|extra| extra.node == node.name())
        .flat_map(|extra| extra.addresses.iter().copied());
    let confirmed: Vec<IpAddr> = node.addresses().chain(extra).collect();
    let mut all: Vec<IpAddr> = Vec::new();
    for address in reported {
        if confirmed.contains(address) && !all.contains(address) {
            all.push(*address);
        }
    }
    let mut all = uncontested(&all, Some(node), nodes);
    all.truncate(MOST);
    all
}

/// The addresses to which no other Node has a better claim. `node`: `None` once it is
/// gone, which is the weakest claim of all.
pub(crate) fn uncontested(
    addresses: &[IpAddr],
    node: Option<&SlimNode>,
    nodes: &[Arc<SlimNode>],
) -> Vec<IpAddr> {
    let lost = |address: &IpAddr| {
        nodes
            .iter()
            .filter(|other| node.is_none_or(|node| other.name() != node.name()))
            .any(|other| {
                other.addresses().any(|its| its == *address)
                    && node.is_none_or(|node| strength(other) > strength(node))
            })
    };
    addresses.iter().copied().filter(|a| !lost(a)).collect()
}

/// The ready node has the better claim; of two, the younger one: the machine was
/// installed again under another name.
fn strength(node: &SlimNode) -> impl Ord + use<'_> {
    let made = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (node.is_ready(), made, node.name())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: bool, made: &str, addresses: &[&str]) -> Arc<SlimNode> {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|a| json!({ "type": "InternalIP", "address": a }))
            .collect();
        let ready = if ready { "True" } else { "False" };
        let node = json!({
            "metadata": { "name": name, "creationTimestamp": made },
            "status": { "addresses": addresses, "conditions": [{ "type": "Ready", "status": ready }] },
        });
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|a| a.parse().unwrap()).collect()
    }

    fn spec(extra: &serde_json::Value) -> ClusterNetworkSpec {
        serde_json::from_value(json!({
            "podCIDRs": [{ "cidr": "10.244.0.0/16", "nodeMaskSize": 24 }],
            "extraNodeAddresses": extra,
        }))
        .unwrap()
    }

    const DAY: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn only_addresses_of_the_node_object_or_of_the_users_list_are_believed() {
        let a = node("a", true, DAY, &["192.0.2.1", "a"]);
        // The DNS service's address, a virtual one, and one that the user listed.
        let reported = ips(&["10.96.0.10", "192.0.2.1", "192.0.2.200", "192.0.2.77"]);
        let none = spec(&json!([]));
        let nodes = [Arc::clone(&a)];
        assert_eq!(believed(&a, &reported, &none, &nodes), ips(&["192.0.2.1"]));
        let listed = spec(&json!([
            { "node": "a", "addresses": ["192.0.2.77"] },
            { "node": "b", "addresses": ["192.0.2.200"] },
        ]));
        let seen = believed(&a, &reported, &listed, &nodes);
        assert_eq!(seen, ips(&["192.0.2.1", "192.0.2.77"]));
        // Listed, and not on the node.
        let seen = believed(&a, &ips(&["192.0.2.1"]), &listed, &nodes);
        assert_eq!(seen, ips(&["192.0.2.1"]));
    }

    #[test]
    fn of_two_nodes_with_one_address_the_living_one_has_it() {
        let (old, new) = (
            node("worker2", false, DAY, &["192.0.2.2"]),
            node("blade", true, "2026-01-02T00:00:00Z", &["192.0.2.2"]),
        );
        let nodes = [Arc::clone(&old), Arc::clone(&new)];
        let (reported, spec) = (ips(&["192.0.2.2"]), spec(&json!([])));
        assert!(believed(&old, &reported, &spec, &nodes).is_empty());
        assert_eq!(believed(&new, &reported, &spec, &nodes), reported);
        // Whose Node is gone has none that another has.
        let gone = ips(&["192.0.2.2", "192.0.2.3"]);
        assert_eq!(uncontested(&gone, None, &nodes), ips(&["192.0.2.3"]));
    }
}
