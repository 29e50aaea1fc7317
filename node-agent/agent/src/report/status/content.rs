//! What is reported: what both statuses say, without times.

use std::collections::BTreeMap;

use veer_crds::{
    condition::Judgement,
    v1alpha1::{FOREIGN_CONFLIST, NodeNetworkStatus, NodeReportStatus},
};

use veer_agent_core::{
    checkpoint::Checkpoint,
    facts::Facts,
    index::{Index, OwnNode},
    mtu::Mtu,
    switch::Switch,
};
use veer_agent_kernel::attachments::Attachments;

/// Addresses that a NodeReport holds.
const ADDRESSES: usize = 64;

/// The report without times.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct StatusReport {
    /// NodeNetwork.status.
    pub(super) network: NodeNetworkStatus,
    /// NodeReport.status without its conditions.
    pub(super) node: NodeReportStatus,
    /// What those are made of.
    pub(super) judgements: Vec<Judgement>,
    /// Not reported: the own NodeNetwork as the API server has it.
    pub(super) seen: Option<OwnNode>,
}

/// What a report follows from.
pub(crate) struct ReportInputs<'a> {
    /// What the API server said.
    pub(crate) index: &'a Index,
    /// Why ADD cannot be served; empty: it can.
    pub(crate) not_ready: String,
    /// That the runtime takes another network's configuration; empty: it does not.
    pub(crate) foreign: String,
    /// How often what was put back, by kind.
    pub(crate) repairs: BTreeMap<String, u64>,
    /// Pods wired.
    pub(crate) endpoints: usize,
    /// The node's boot id as the operator compares it.
    pub(crate) boot_id: &'a str,
    /// What is on disk.
    pub(crate) held: &'a Checkpoint,
    /// The node.
    pub(crate) facts: &'a Facts,
    /// Its programs.
    pub(crate) attachments: &'a Attachments,
    /// The epoch.
    pub(crate) switch: &'a Switch,
    /// MTU of pods' routes; `None`: they have none yet.
    pub(crate) mtu: Option<Mtu>,
    /// Why the node is not as it should be, as a condition's reason and in words;
    /// empty: it is.
    pub(crate) degraded: (&'static str, &'a str),
    /// Everything of veer is gone from the node.
    pub(crate) decommissioned: bool,
}

impl StatusReport {
    pub(crate) fn new(inputs: ReportInputs<'_>) -> Self {
        let ReportInputs {
            index,
            not_ready,
            foreign,
            repairs,
            endpoints,
            boot_id,
            held,
            facts,
            attachments,
            switch,
            mtu,
            degraded,
            decommissioned,
        } = inputs;
        let retiring = index.retiring_serial;
        let network = NodeNetworkStatus {
            held_pod_cidrs: if decommissioned {
                Vec::new()
            } else {
                held.pod_cidrs.clone()
            },
            applied: switch.applied.clone(),
            kept_form: switch.kept.clone(),
            path_mtu: signed(facts.path_mtu()),
            decommissioned,
        };
        let node = NodeReportStatus {
            addresses: facts.addresses.iter().copied().take(ADDRESSES).collect(),
            probes: switch.probes.clone(),
            identity_serial: if retiring == 0 {
                String::new()
            } else {
                retiring.to_string()
            },
            repairs: repairs
                .into_iter()
                .map(|(kind, times)| (kind, i64::try_from(times).unwrap_or(i64::MAX)))
                .collect(),
            uplinks: attachments.uplinks(facts),
            mtu: signed(mtu),
            host_routing: "BPF".into(),
            endpoints: i32::try_from(endpoints).unwrap_or(i32::MAX),
            boot_id: boot_id.to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            conditions: Vec::new(),
        };
        Self {
            network,
            node,
            judgements: vec![
                ready(not_ready, foreign, decommissioned),
                degraded_of(degraded),
                uniform(odd(index, facts.path_mtu())),
            ],
            seen: index.nodes.own_seen().cloned(),
        }
    }

    /// The part that a client waits for: the operator, or a user who checks a node.
    pub(super) fn urgent(&self) -> Urgent {
        let told = self.judgements.iter();
        Urgent {
            conditions: told.map(|j| (j.type_, j.status, j.reason)).collect(),
            rest: NodeReportStatus {
                addresses: self.node.addresses.clone(),
                probes: self.node.probes.clone(),
                boot_id: self.node.boot_id.clone(),
                ..NodeReportStatus::default()
            },
        }
    }
}

/// See [`StatusReport::urgent`].
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Urgent {
    conditions: Vec<(&'static str, bool, &'static str)>,
    rest: NodeReportStatus,
}

/// Bytes of an MTU as the API has them; 0: not known.
fn signed(mtu: Option<Mtu>) -> i32 {
    mtu.map_or(0, i32::from)
}

/// `foreign`: the runtime calls another network's plugin; empty: it does not.
pub(super) fn ready(not_ready: String, foreign: String, decommissioned: bool) -> Judgement {
    let (status, reason, message) = if decommissioned {
        (false, "Decommissioned", not_ready)
    } else if !not_ready.is_empty() {
        (false, "NotServing", not_ready)
    } else if !foreign.is_empty() {
        (false, FOREIGN_CONFLIST, foreign)
    } else {
        (true, "Serving", "pods can be wired".to_owned())
    };
    Judgement {
        type_: "Ready",
        status,
        reason,
        message,
    }
}

pub(super) fn degraded_of((reason, why): (&'static str, &str)) -> Judgement {
    let well = why.is_empty();
    Judgement {
        type_: "Degraded",
        status: !well,
        reason: if well { "AsDesired" } else { reason },
        message: if well {
            "devices, programs, maps and routes are as they should be".to_owned()
        } else {
            why.to_owned()
        },
    }
}

pub(super) fn uniform(odd: Option<String>) -> Judgement {
    Judgement {
        type_: "UniformMTU",
        status: odd.is_none(),
        reason: if odd.is_none() {
            "AsOthers"
        } else {
            "SmallerThanOthers"
        },
        message: odd.unwrap_or_else(|| {
            "the uplinks of this node carry packets as large as those of most others".to_owned()
        }),
    }
}

/// Why this node is the odd one whose uplinks carry less than most others';
/// `None`: it is not.
fn odd(index: &Index, own: Option<Mtu>) -> Option<String> {
    let own = own?;
    let others = index.nodes.iter().filter(|n| n.name != index.own());
    let known: Vec<Mtu> = others
        .filter(|n| !n.gone)
        .filter_map(|n| n.path_mtu)
        .collect();
    let larger = known.iter().filter(|mtu| **mtu > own).count();
    (larger * 2 > known.len()).then(|| {
        format!(
            "the uplinks of this node carry packets of {} bytes, those of {larger} of {} other \
             nodes larger ones: packets to and from this node are at most as large as it carries, \
             and larger ones are refused with the right size. Give the uplink the MTU of the \
             others, or set spec.mtu of the ClusterNetwork",
            own.get(),
            known.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use veer_agent_core::index::{Change, Event, NodeRecord};

    #[test]
    fn the_node_with_the_smaller_mtu_than_most_is_the_odd_one() {
        let mut index = Index::new("a");
        let others = [("b", 1500), ("c", 1500), ("d", 1400)].map(|(name, path_mtu)| NodeRecord {
            name: name.into(),
            path_mtu: Mtu::new(path_mtu),
            ..NodeRecord::default()
        });
        index.handle(Event::Node(Change::Snapshot(others.to_vec())));
        assert_eq!(odd(&index, Mtu::new(1500)), None, "one of the others is");
        let message = odd(&index, Mtu::new(1400)).unwrap();
        assert!(message.contains("1400 bytes, those of 2 of 3"), "{message}");
        assert_eq!(odd(&index, None), None, "not known");
    }

    #[test]
    fn a_node_that_is_not_as_it_should_be_says_for_which_reason() {
        let blocked = degraded_of(("ForwardBlocked", "chain FORWARD of table ip filter"));
        assert!(blocked.status && blocked.message.contains("FORWARD"));
        assert_eq!(blocked.reason, "ForwardBlocked");
        assert_eq!(degraded_of(("", "")).reason, "AsDesired");
    }

    #[test]
    fn a_node_whose_runtime_calls_another_network_is_not_ready_for_that_reason() {
        let said = ready(String::new(), "04-old.conflist".into(), false);
        assert_eq!((said.status, said.reason), (false, FOREIGN_CONFLIST));
        assert!(said.message.contains("04-old.conflist"));
        assert!(ready(String::new(), String::new(), false).status);
    }
}
