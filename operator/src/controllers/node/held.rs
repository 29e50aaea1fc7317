//! Which of the blocks that an agent reports as held count: pure.
//!
//! The report is needed if the store has lost what it gave out (a restored backup,
//! deleted CRDs). It counts for no more than such a store would have given: one share
//! of each family.

use std::collections::BTreeSet;

use ipnet::IpNet;
use veer_crds::v1alpha1::{NodeNetwork, PodCidrEntry};

use super::validate::Family;

/// The blocks that an agent reports, judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Blocks that count as the node's, in the order of the report.
    pub(crate) counts: Vec<IpNet>,
    /// The others, each once.
    pub(crate) refused: BTreeSet<IpNet>,
}

/// Whether a block is one of the shares of an entry, whether that drains or not.
pub(crate) fn is_share(entry: &PodCidrEntry, block: &IpNet) -> bool {
    entry.cidr.contains(block)
        && i32::from(block.prefix_len()) == entry.node_mask_size
        && block.trunc() == *block
}

/// The first of these blocks, and how many more there are.
pub(crate) fn listed(blocks: &BTreeSet<IpNet>) -> String {
    const NAMED: usize = 4;
    let named: Vec<String> = blocks.iter().take(NAMED).map(IpNet::to_string).collect();
    let rest = blocks.len() - named.len();
    let more = if rest == 0 {
        String::new()
    } else {
        format!(" and {rest} more")
    };
    named.join(", ") + &more
}

/// Judges the report of a node's agent. `claimed`: whether a block is the node's by a
/// claim. The operator itself decided on what is claimed or in the NodeNetwork.
pub(crate) fn judge(
    network: Option<&NodeNetwork>,
    entries: &[PodCidrEntry],
    claimed: impl Fn(&IpNet) -> bool,
) -> Held {
    let Some(network) = network else {
        return Held::default();
    };
    let said = network.status.iter().flat_map(|s| &s.held_pod_cidrs);
    let told = &network.spec.pod_cidrs;
    let known = |block: &IpNet| told.contains(block) || claimed(block);
    let mut settled: BTreeSet<Family> = said.clone().filter(|b| known(b)).map(Family::of).collect();
    let mut held = Held::default();
    for block in said {
        if held.counts.contains(block) {
            continue;
        }
        let fits = entries.iter().any(|entry| is_share(entry, block));
        if known(block) || (fits && settled.insert(Family::of(block))) {
            held.counts.push(*block);
        } else {
            held.refused.insert(*block);
        }
    }
    held
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use veer_crds::v1alpha1::ClusterNetworkSpec;

    use super::*;

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn held(told: &[&str], said: &[&str], claims: &[&str]) -> (Vec<IpNet>, Vec<IpNet>) {
        let network: NodeNetwork = serde_json::from_value(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "NodeNetwork", "metadata": { "name": "a" },
            "spec": { "podCIDRs": told }, "status": { "heldPodCIDRs": said },
        }))
        .unwrap();
        let spec: ClusterNetworkSpec = serde_json::from_value(json!({ "podCIDRs": [
            { "cidr": "10.244.0.0/16", "nodeMaskSize": 24 },
            { "cidr": "10.8.0.0/16", "nodeMaskSize": 25, "state": "Draining" },
            { "cidr": "fd00:10:244::/48", "nodeMaskSize": 64 },
        ]}))
        .unwrap();
        let claims = nets(claims);
        let held = judge(Some(&network), &spec.pod_cidrs, |b| claims.contains(b));
        (held.counts, held.refused.into_iter().collect())
    }

    #[test]
    fn a_forgotten_share_counts_whether_its_entry_drains_or_not() {
        for share in ["10.244.7.0/24", "10.8.7.128/25", "fd00:10:244:7::/64"] {
            assert_eq!(held(&[], &[share], &[]), (nets(&[share]), vec![]));
        }
        let both = ["10.244.7.0/24", "fd00:10:244:7::/64"];
        assert_eq!(held(&[], &both, &[]), (nets(&both), vec![]));
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for block in [
            "10.96.0.0/12",
            "192.168.1.0/24",
            "10.244.0.0/17",
            "10.244.7.0/25",
            "10.244.7.9/32",
            "10.244.7.9/24",
            "10.8.7.0/24",
            "0.0.0.0/0",
            "fd00:10:244::/48",
        ] {
            assert_eq!(
                held(&[], &[block], &[]),
                (vec![], nets(&[block])),
                "{block}"
            );
        }
    }

    #[test]
    fn a_second_share_of_a_family_is_refused() {
        let said = [
            "10.244.1.0/24",
            "10.244.2.0/24",
            "10.8.0.0/25",
            "10.244.1.0/24",
        ];
        let refused = nets(&["10.8.0.0/25", "10.244.2.0/24"]);
        assert_eq!(held(&[], &said, &[]), (nets(&said[..1]), refused));
        // Whatever comes first, the operator's own word settles the family.
        let (told, claims) = (["10.244.2.0/24"], ["10.8.0.0/25"]);
        let refused = nets(&["10.244.1.0/24"]);
        let counts = nets(&["10.244.2.0/24", "10.8.0.0/25"]);
        assert_eq!(held(&told, &said, &claims), (counts, refused));
    }

    #[test]
    fn what_the_operator_gave_stays_whatever_became_of_the_entries() {
        let gone = ["172.16.1.0/24"];
        assert_eq!(held(&gone, &gone, &[]), (nets(&gone), vec![]));
        assert_eq!(held(&[], &gone, &gone), (nets(&gone), vec![]));
    }
}
