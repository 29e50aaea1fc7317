//! What of the cluster's pod CIDRs no node has.

use veer_bpf_common::{identity::Identity, node::NodeId};

use super::*;

fn unassigned(d: &Desired) -> Vec<PrefixKey> {
    let mut found: Vec<PrefixKey> = d
        .ipcache
        .iter()
        .filter(|(_, row)| {
            (row.identity, row.node_id) == (Identity::UNMANAGED.get(), NodeId::NONE.get())
        })
        .map(|(prefix, _)| *prefix)
        .collect();
    found.sort_unstable();
    found
}

fn with_cidrs(world: &mut World, cidrs: &[&str]) -> Desired {
    let entries: Vec<_> = cidrs
        .iter()
        .map(|cidr| serde_json::json!({"cidr": cidr, "nodeMaskSize": 24}))
        .collect();
    let spec = serde_json::from_value(serde_json::json!({"podCIDRs": entries}));
    let cluster = Box::new(("c".to_owned(), spec.unwrap()));
    world.index.handle(Event::Cluster(cluster));
    world.desired(None)
}

#[test]
fn what_no_node_has_of_the_pod_cidrs_is_nobodys() {
    let mut world = World::new();
    assert!(unassigned(&world.desired(None)).is_empty());
    let d = with_cidrs(&mut world, &["10.1.0.0/16", "10.9.0.0/16"]);
    let expected = ["10.1.0.0", "10.9.0.0"].map(|a| net(16, a));
    assert_eq!(unassigned(&d), expected);
    let of = |prefix| d.ipcache.get(&prefix).map(|row| row.identity);
    assert_eq!(of(net(24, "10.1.1.0")), Some(Identity::INIT.get()));
}

#[test]
fn a_pod_cidr_that_is_one_nodes_block_is_that_nodes() {
    let d = with_cidrs(&mut World::new(), &["10.1.1.0/24"]);
    assert!(unassigned(&d).is_empty());
}

#[test]
fn a_pod_cidr_in_which_nodes_live_is_not_only_pods() {
    let mut world = World::new();
    for cidr in ["192.0.0.0/16", "192.0.2.2/31"] {
        assert!(unassigned(&with_cidrs(&mut world, &[cidr])).is_empty());
    }
    let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
    b.addresses.push(ip("2001:db8:2::2"));
    world.index.handle(Event::Node(Change::Apply(b)));
    world.facts.addresses.push(ip("2001:db8:1::1"));
    for (cidr, nobodys) in [
        ("2001:db8:1::/64", false),
        ("2001:db8:2::/64", false),
        ("2001:db8:3::/64", true),
    ] {
        let d = with_cidrs(&mut world, &[cidr]);
        assert_eq!(!unassigned(&d).is_empty(), nobodys, "{cidr}");
    }
}
