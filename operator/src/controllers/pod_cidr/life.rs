//! The life cycle of a claim: pure.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use veer_crds::v1alpha1::{NodeNetwork, PodCIDR, PodCIDRStatus};

/// State of a claim whose Node is there.
pub(super) const BOUND: &str = "Bound";
/// State of a claim whose Node is gone.
pub(crate) const ORPHANED: &str = "Orphaned";
/// State of a claim whose Node is there and takes no part any more.
const LEAVING: &str = "Leaving";

/// What a claim is judged by.
pub(crate) struct ClaimFacts<'a> {
    pub(crate) claim: &'a PodCIDR,
    /// UID of the Node of that name, if there is one and it takes part.
    pub(crate) node_uid: Option<&'a str>,
    /// The Node is there and takes no part any more.
    pub(crate) leaving: bool,
    /// That node's NodeNetwork.
    pub(crate) network: Option<&'a NodeNetwork>,
    /// How many pods its agent reports.
    pub(crate) endpoints: i32,
    /// The cluster gives up the claim's family.
    pub(crate) given_up: bool,
    /// The node's other claims.
    pub(crate) siblings: &'a [Arc<PodCIDR>],
    pub(crate) now: Timestamp,
    pub(crate) quarantine: Duration,
}

/// The decision about it.
#[derive(Debug, PartialEq)]
pub(crate) enum Life {
    /// It stays, with this status, and is looked at again after a time.
    Is(PodCIDRStatus, Option<Duration>),
    /// The node has another of this family and never had this one, or is to have none of
    /// this family.
    Surplus,
    /// The Node is gone or takes no part any more, and its agent confirmed that or
    /// the time is up.
    Over,
}

/// Decides.
pub(crate) fn decide(view: &ClaimFacts<'_>) -> Life {
    let old = view.claim.status.clone().unwrap_or_default();
    if let Some(uid) = view.node_uid {
        if surplus(view) {
            return Life::Surplus;
        }
        let later = (uid != view.claim.spec.node_uid).then(|| uid.to_owned());
        let status = PodCIDRStatus {
            state: BOUND.to_owned(),
            held_by_uid: later,
            orphaned_since: None,
            conditions: old.conditions,
        };
        return Life::Is(status, None);
    }
    let confirmed = view
        .network
        .and_then(|n| n.status.as_ref())
        .is_some_and(|s| s.decommissioned && view.endpoints == 0)
        // Not a confirmation of an earlier time.
        && (!view.leaving || view.network.is_some_and(|n| n.spec.decommission));
    if confirmed {
        return Life::Over;
    }
    let since = old
        .orphaned_since
        .as_ref()
        .and_then(|text| text.parse().ok());
    let since: Timestamp = since.unwrap_or(view.now);
    let passed = view.now.duration_since(since).max(SignedDuration::ZERO);
    let left = view.quarantine.saturating_sub(passed.unsigned_abs());
    if left.is_zero() {
        return Life::Over;
    }
    let status = PodCIDRStatus {
        state: if view.leaving { LEAVING } else { ORPHANED }.to_owned(),
        held_by_uid: old.held_by_uid,
        orphaned_since: Some(since.to_string()),
        conditions: old.conditions,
    };
    Life::Is(status, Some(left))
}

/// The status of a claim whose Node takes no part any more and still has pods: no
/// time passes.
pub(super) fn used(claim: &PodCIDR) -> PodCIDRStatus {
    PodCIDRStatus {
        state: LEAVING.to_owned(),
        orphaned_since: None,
        ..claim.status.clone().unwrap_or_default()
    }
}

/// Two leaders at once may have given one node two blocks of a family. The one that
/// its agent reports is kept; the other is released once it is certain that neither
/// the agent nor the NodeNetwork has it. So is one of a family that is given up.
fn surplus(view: &ClaimFacts<'_>) -> bool {
    let block = &view.claim.spec.cidr;
    let alike = |other: &IpNet| other.addr().is_ipv4() == block.addr().is_ipv4();
    let Some(network) = view.network else {
        return false;
    };
    let Some(status) = &network.status else {
        return false;
    };
    let held = &status.held_pod_cidrs;
    let told = &network.spec.pod_cidrs;
    let replaced = || {
        let mut siblings = view.siblings.iter().map(|sibling| &sibling.spec.cidr);
        siblings.any(|other| alike(other) && held.contains(other) && told.contains(other))
    };
    let given_up = view.given_up && !held.is_empty();
    !held.contains(block) && !told.contains(block) && (given_up || replaced())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn claim(cidr: &str, orphaned: Option<&str>) -> PodCIDR {
        serde_json::from_value(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "PodCIDR", "metadata": { "name": "c" },
            "spec": { "cidr": cidr, "nodeName": "a", "nodeUID": "u1" },
            "status": { "state": "Bound", "orphanedSince": orphaned },
        }))
        .unwrap()
    }

    fn network(held: &[&str], told: &[&str], decommissioned: bool) -> NodeNetwork {
        serde_json::from_value(json!({
            "apiVersion": "veer.dev/v1alpha1", "kind": "NodeNetwork", "metadata": { "name": "a" },
            "spec": { "podCIDRs": told },
            "status": { "heldPodCIDRs": held, "decommissioned": decommissioned },
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn view<'a>(claim: &'a PodCIDR, uid: Option<&'a str>, now: &str) -> ClaimFacts<'a> {
        ClaimFacts {
            claim,
            node_uid: uid,
            leaving: false,
            network: None,
            endpoints: 0,
            given_up: false,
            siblings: &[],
            now: at(now),
            quarantine: HOUR,
        }
    }

    #[test]
    fn a_returned_node_keeps_its_block_under_its_new_uid() {
        let claim = claim("10.0.0.0/24", Some("2026-01-01T00:00:00Z"));
        let Life::Is(status, _) = decide(&view(&claim, Some("u2"), "2026-01-01T05:00:00Z")) else {
            panic!("the claim went although its node is back");
        };
        assert_eq!(status.state, "Bound");
        assert_eq!(status.held_by_uid.as_deref(), Some("u2"));
        assert_eq!(status.orphaned_since, None);
    }

    #[test]
    fn a_deleted_nodes_block_is_kept_for_the_quarantine() {
        let fresh = claim("10.0.0.0/24", None);
        let Life::Is(status, again) = decide(&view(&fresh, None, "2026-01-01T00:00:00Z")) else {
            panic!("the claim went at once");
        };
        assert_eq!((status.state.as_str(), again), ("Orphaned", Some(HOUR)));
        let since = status.orphaned_since.unwrap();
        let orphan = claim("10.0.0.0/24", Some(&since));
        let early = decide(&view(&orphan, None, "2026-01-01T00:59:59Z"));
        assert!(matches!(early, Life::Is(_, Some(left)) if left == Duration::from_secs(1)));
        assert_eq!(
            decide(&view(&orphan, None, "2026-01-01T01:00:00Z")),
            Life::Over
        );
    }

    #[test]
    fn a_block_goes_at_once_when_the_agent_confirms_that_it_is_empty() {
        let orphan = claim("10.0.0.0/24", None);
        let gone = network(&[], &["10.0.0.0/24"], true);
        let view = ClaimFacts {
            network: Some(&gone),
            ..view(&orphan, None, "2026-01-01T00:00:00Z")
        };
        assert_eq!(decide(&view), Life::Over);
        // With its Node there it stays, decommissioned or not.
        assert!(matches!(
            decide(&ClaimFacts {
                node_uid: Some("u1"),
                ..view
            }),
            Life::Is(..)
        ));
    }

    #[test]
    fn a_node_that_leaves_gives_its_block_back_when_its_agent_confirms_or_time_is_up() {
        let leaving = claim("10.0.0.0/24", None);
        let mut asked = network(&[], &["10.0.0.0/24"], true);
        asked.spec.decommission = true;
        let serving = network(&["10.0.0.0/24"], &["10.0.0.0/24"], false);
        let before = network(&[], &["10.0.0.0/24"], true);
        let of = |claim: &PodCIDR, network: Option<&NodeNetwork>, now: &str| {
            decide(&ClaimFacts {
                leaving: true,
                network,
                ..view(claim, None, now)
            })
        };
        let now = "2026-01-01T00:00:00Z";
        assert_eq!(of(&leaving, Some(&asked), now), Life::Over);
        // The agent may still serve, or its state is unknown; an old confirmation
        // does not count.
        for network in [Some(&serving), Some(&before), None] {
            let Life::Is(status, again) = of(&leaving, network, now) else {
                panic!("the claim went at once");
            };
            assert_eq!((status.state.as_str(), again), ("Leaving", Some(HOUR)));
            let left = claim("10.0.0.0/24", status.orphaned_since.as_deref());
            assert_eq!(of(&left, network, "2026-01-01T01:00:00Z"), Life::Over);
        }
    }

    #[test]
    fn a_claim_of_a_family_that_is_given_up_goes_when_neither_agent_nor_network_has_it() {
        let v6 = claim("fd00:1::/64", None);
        let (both, v4) = (["10.0.0.0/24", "fd00:1::/64"], ["10.0.0.0/24"]);
        for (given_up, held, told, goes) in [
            (true, &v4[..], &v4[..], true),
            (true, &both, &v4, false),
            (true, &v4, &both, false),
            (true, &[], &v4, false),
            (false, &v4, &v4, false),
        ] {
            let network = network(held, told, false);
            let of = ClaimFacts {
                network: Some(&network),
                given_up,
                ..view(&v6, Some("u1"), "2026-01-01T00:00:00Z")
            };
            let found = decide(&of);
            assert_eq!(found == Life::Surplus, goes, "{given_up} {held:?} {told:?}");
        }
    }

    #[test]
    fn of_two_claims_the_one_that_the_agent_holds_stays() {
        let (a, b) = (claim("10.0.0.0/24", None), claim("10.0.1.0/24", None));
        let (only_a, only_b) = ([Arc::new(a.clone())], [Arc::new(b.clone())]);
        let holds_b = network(&["10.0.1.0/24"], &["10.0.1.0/24"], false);
        let now = "2026-01-01T00:00:00Z";
        let of_a = ClaimFacts {
            network: Some(&holds_b),
            siblings: &only_b,
            ..view(&a, Some("u1"), now)
        };
        assert_eq!(decide(&of_a), Life::Surplus);
        let of_b = ClaimFacts {
            network: Some(&holds_b),
            siblings: &only_a,
            ..view(&b, Some("u1"), now)
        };
        assert!(matches!(decide(&of_b), Life::Is(..)));
        let silent = network(&[], &["10.0.1.0/24"], false);
        let of_a = ClaimFacts {
            network: Some(&silent),
            siblings: &only_b,
            ..view(&a, Some("u1"), now)
        };
        assert!(matches!(decide(&of_a), Life::Is(..)));
    }
}
