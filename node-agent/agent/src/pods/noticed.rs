//! What people are told of this node's pods, each once.

use std::collections::{BTreeSet, HashSet};

use veer_agent_core::repair::RoundLog;

use super::Pods;
use crate::{report::events::Events, runtime::conflist};

/// Findings about this node's pods, kept so that each is reported once.
#[derive(Debug, Default)]
pub(crate) struct Noticed {
    /// Pods that were not veer's at the last look.
    strangers: BTreeSet<String>,
    /// Those that were told.
    strangers_told: BTreeSet<String>,
    /// UIDs of pods already reported because no plugin limits their bandwidth.
    bandwidth_told: HashSet<String>,
}

impl Noticed {
    /// Names pods of this node that have an address and are not wired by veer:
    /// another network's, left over from before veer. Checked every minute. Only
    /// pods found twice are reported, because a pod comes and goes in steps.
    pub(crate) fn strangers(&mut self, pods: &Pods, done: &mut RoundLog) {
        let found: BTreeSet<String> = {
            let index = pods.index.read();
            if !index.complete.pods {
                return;
            }
            let store = pods.local.store();
            index
                .wired_pods()
                .filter(|pod| {
                    !pod.addresses.iter().any(|a| store.by_address(*a).is_some())
                        && !store.iter().any(|e| pod.goes_by(&e.pod_uid))
                })
                .map(|pod| {
                    let address = pod.addresses.first().map(ToString::to_string);
                    let address = address.unwrap_or_default();
                    format!("{}/{} ({address})", pod.namespace, pod.name)
                })
                .collect()
        };
        let twice: Vec<&str> = found
            .intersection(&self.strangers)
            .map(String::as_str)
            .collect();
        if !twice.is_empty() && found != self.strangers_told {
            let note = format!(
                "veer did not wire {} and has no record of them; their addresses are not given to \
                 others: delete these pods, so that they are made again with veer",
                twice.join(", ")
            );
            done.warn("ForeignPods", note);
            self.strangers_told.clone_from(&found);
        }
        self.strangers = found;
    }

    /// Warns once of each pod whose bandwidth no plugin limits.
    pub(crate) fn bandwidth(&mut self, pods: &Pods, events: &Events) {
        let asking: Vec<_> = {
            let index = pods.index.read();
            let store = pods.local.store();
            index
                .wired_pods()
                .filter(|pod| pod.bandwidth && store.iter().any(|e| pod.goes_by(&e.pod_uid)))
                .map(|pod| (pod.namespace.clone(), pod.name.clone(), pod.uid.clone()))
                .collect()
        };
        self.bandwidth_told
            .retain(|uid| asking.iter().any(|(.., asks)| asks == uid));
        if asking.is_empty() || conflist::chains(&pods.options.cni_conf_dir, "bandwidth") {
            return;
        }
        for (namespace, name, uid) in asking {
            if self.bandwidth_told.insert(uid.clone()) {
                events.warn_pod(
                    (namespace, name, uid),
                    "BandwidthNotLimited",
                    "the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth have no \
                     effect: the CNI plugin bandwidth is not in the chain; the chart's cni.plugins \
                     can add it",
                );
            }
        }
    }
}
