//! Blocks that are assigned, against those in use.

use ipnet::IpNet;
use veer_agent_core::family::Family;
use veer_crds::v1alpha1::ClusterNetworkSpec;

/// Those of the assigned blocks that new pods get addresses of: not of a family that the
/// cluster gives up, unless the node has no other.
pub(super) fn for_new_pods(
    assigned: Vec<IpNet>,
    cluster: Option<&ClusterNetworkSpec>,
) -> Vec<IpNet> {
    let stays = |block: &&IpNet| cluster.is_none_or(|c| !c.gives_up(block.addr().is_ipv4()));
    let staying: Vec<IpNet> = assigned.iter().filter(stays).copied().collect();
    if staying.is_empty() {
        assigned
    } else {
        staying
    }
}

/// Why new pods have to wait for those that hold addresses of a former block; empty: they
/// need not. They do not wait for a block of a family that is not assigned any more.
pub(super) fn waits_for_pods(assigned: &[IpNet], in_use: &[IpNet]) -> String {
    let held = in_use.iter().find_map(|held| {
        let same_family = |block: &&IpNet| Family::of_net(block) == Family::of_net(held);
        let block = assigned.iter().find(same_family)?;
        (block != held).then_some((block, held))
    });
    held.map_or_else(String::new, |(block, held)| {
        format!(
            "the node is assigned {block} but its pods hold {held}: drain the node to take the \
             new block over"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that a node may have.
    const BLOCKS: (&str, &str) = ("10.1.0.0/24", "fd00:1::/64");

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_family_that_the_cluster_gives_up_is_not_for_new_pods() {
        let (v4, v6) = BLOCKS;
        for (states, assigned, expected) in [
            (["Active", "Active"], vec![v4, v6], vec![v4, v6]),
            (["Active", "Draining"], vec![v4, v6], vec![v4]),
            (["Draining", "Active"], vec![v4, v6], vec![v6]),
            // Rather than none.
            (["Draining", "Active"], vec![v4], vec![v4]),
            (["Draining", "Draining"], vec![v4, v6], vec![v4, v6]),
        ] {
            let [of_v4, of_v6] = states;
            let spec = serde_json::json!({ "podCIDRs": [
                { "cidr": "10.0.0.0/8", "nodeMaskSize": 24, "state": of_v4 },
                { "cidr": "fd00::/16", "nodeMaskSize": 64, "state": of_v6 },
            ]});
            let spec = serde_json::from_value(spec).unwrap();
            let found = for_new_pods(nets(&assigned), Some(&spec));
            assert_eq!(found, nets(&expected), "{states:?}");
            assert_eq!(for_new_pods(nets(&assigned), None), nets(&assigned));
        }
    }

    #[test]
    fn new_pods_wait_for_the_former_block_of_a_family_and_not_for_a_family_that_went() {
        let (v4, v6) = BLOCKS;
        for (assigned, in_use, held) in [
            (vec![v4], vec![v4], None),
            (vec![v4, v6], vec![v4, v6], None),
            (vec![v4], vec![v4, v6], None),
            (vec![v6], vec![v6, v4], None),
            (vec!["10.2.0.0/24"], vec![v4], Some(v4)),
            (vec![v4, "fd00:2::/64"], vec![v4, v6], Some(v6)),
            (vec![v4, "10.2.0.0/24"], vec![v4], None),
        ] {
            let text = waits_for_pods(&nets(&assigned), &nets(&in_use));
            assert_eq!(text.is_empty(), held.is_none(), "{text}");
            assert!(held.is_none_or(|held| text.contains(held)), "{text}");
        }
    }
}
