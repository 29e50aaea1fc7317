//! What the user denies, beside pods and nodes.

use veer_bpf_common::{identity::Identity, node::NodeId};

use super::*;

#[test]
fn denied_prefixes_are_rows_and_pods_and_nodes_are_never_denied() {
    let mut world = World::new();
    assert_eq!(world.desired(None).config.flags, 0);
    let spec = serde_json::from_value(serde_json::json!({
        "podCIDRs": [{"cidr": "10.1.0.0/16", "nodeMaskSize": 24}],
        "deniedPrefixes": [
            "203.0.113.0/24", "10.0.0.0/8", "192.0.2.0/24", "192.0.2.2/32",
            "10.1.1.0/24", "10.1.0.0/16", "10.1.7.0/24", "2001:db8::/32",
        ],
    }));
    let cluster = Box::new(("c".to_owned(), spec.unwrap()));
    world.index.handle(Event::Cluster(cluster.clone()));
    let d = world.desired(None);
    assert_eq!(d.config.flags, Config::DENIES);
    let mut denied: Vec<PrefixKey> = d
        .ipcache
        .iter()
        .filter(|(_, row)| {
            (row.identity, row.node_id) == (Identity::WORLD.get(), NodeId::DENIED.get())
        })
        .map(|(prefix, _)| *prefix)
        .collect();
    let mut expected = [
        (24, "203.0.113.0"),
        (8, "10.0.0.0"),
        (24, "192.0.2.0"),
        (32, "2001:db8::"),
    ]
    .map(|(length, a)| net(length, a))
    .to_vec();
    denied.sort_unstable();
    expected.sort_unstable();
    assert_eq!(denied, expected);
    let own = |prefix| d.ipcache.get(&prefix).map(|row| row.identity);
    assert_eq!(
        own(host_prefix(ip("192.0.2.2"))),
        Some(Identity::REMOTE_NODE.get())
    );
    assert_eq!(own(net(24, "10.1.1.0")), Some(Identity::INIT.get()));

    let (uid, mut spec) = *cluster;
    spec.denied_prefixes.clear();
    world.index.handle(Event::Cluster(Box::new((uid, spec))));
    assert_eq!(world.desired(None).config.flags, 0);
}
