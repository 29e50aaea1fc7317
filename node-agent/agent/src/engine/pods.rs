//! Local pods: their identities, and their PodEndpoints.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use veer_agent_api::Attachment;
use veer_api_client::chain;
use veer_bpf_common::identity::Identity;

use super::{Engine, Error};
use crate::{
    report::publish::{Entry, Todo, place},
    runtime::conflist,
};
use veer_agent_core::{index::Resolution, repair::Kind};

/// Findings about this node's pods, kept so that each is reported once.
#[derive(Debug, Default)]
pub(super) struct Noticed {
    /// Pods that were not veer's at the last look.
    strangers: BTreeSet<String>,
    /// Those that were told.
    strangers_told: BTreeSet<String>,
    /// UIDs of pods already reported because no plugin limits their bandwidth.
    bandwidth_told: HashSet<String>,
    /// Objects with names of this node's pods that other nodes have, and the nodes,
    /// of which it was told.
    taken_told: BTreeSet<String>,
}

impl Engine {
    /// Says of rebuilt records whose they are, by their pods' status.
    fn name_the_nameless(&self) {
        let named: Vec<(Attachment, String, String, String)> = {
            let index = self.shared.index();
            let store = self.shared.store();
            store
                .iter()
                .filter(|e| e.is_nameless())
                .filter_map(|e| {
                    let pod = e.addresses().find_map(|a| index.pod_at(a.address))?;
                    let uid = pod.config_hash.as_ref().unwrap_or(&pod.uid);
                    let names = (pod.namespace.clone(), pod.name.clone(), uid.clone());
                    Some((e.attachment.clone(), names.0, names.1, names.2))
                })
                .collect()
        };
        for (attachment, namespace, name, uid) in named {
            self.shared
                .store()
                .name(&attachment, &namespace, &name, &uid);
            if let Err(error) = self.shared.persist(&attachment) {
                tracing::error!(%error, "cannot write a rebuilt record");
            }
            tracing::info!(
                pod = format!("{namespace}/{name}"),
                "a rebuilt record has its pod"
            );
        }
    }

    /// Names pods of this node that have an address and are not wired by veer:
    /// another network's, left over from before veer. Checked every minute. Only
    /// pods found twice are reported, because a pod comes and goes in steps.
    pub(super) fn strangers(&mut self) {
        let found: BTreeSet<String> = {
            let index = self.shared.index();
            if !index.complete.pods {
                return;
            }
            let store = self.shared.store();
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
            .intersection(&self.noticed.strangers)
            .map(String::as_str)
            .collect();
        if !twice.is_empty() && found != self.noticed.strangers_told {
            let note = format!(
                "veer did not wire {} and has no record of them; their addresses are not given to \
                 others: delete these pods, so that they are made again with veer",
                twice.join(", ")
            );
            tracing::warn!("{note}");
            self.shared.events.warn("ForeignPods", note);
            self.noticed.strangers_told.clone_from(&found);
        }
        self.noticed.strangers = found;
    }

    /// Warns once of each pod whose bandwidth no plugin limits.
    fn bandwidth(&mut self) {
        let asking: Vec<_> = {
            let index = self.shared.index();
            let store = self.shared.store();
            index
                .wired_pods()
                .filter(|pod| pod.bandwidth && store.iter().any(|e| pod.goes_by(&e.pod_uid)))
                .map(|pod| (pod.namespace.clone(), pod.name.clone(), pod.uid.clone()))
                .collect()
        };
        self.noticed
            .bandwidth_told
            .retain(|uid| asking.iter().any(|(.., asks)| asks == uid));
        if asking.is_empty() || conflist::chains(&self.shared.options.cni_conf_dir, "bandwidth") {
            return;
        }
        for (namespace, name, uid) in asking {
            if self.noticed.bandwidth_told.insert(uid.clone()) {
                self.shared.events.warn_pod(
                    (namespace, name, uid),
                    "BandwidthNotLimited",
                    "the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth have no \
                     effect: the CNI plugin bandwidth is not in the chain; the chart's cni.plugins \
                     can add it",
                );
            }
        }
    }

    /// Gives local pods the identities that their labels have now.
    pub(super) fn identities(&mut self) {
        self.name_the_nameless();
        self.bandwidth();
        let changes: Vec<(Attachment, Identity, String)> = {
            let index = self.shared.index();
            let store = self.shared.store();
            store
                .iter()
                .filter_map(
                    |e| match index.resolve(&e.namespace, &e.pod_name, &e.pod_uid) {
                        Resolution::Known(number, uid)
                            if number != e.identity || e.object_uid.as_ref() != Some(&uid) =>
                        {
                            Some((e.attachment.clone(), number, uid))
                        }
                        Resolution::NoNumber(uid) if e.object_uid.as_ref() != Some(&uid) => {
                            Some((e.attachment.clone(), e.identity, uid))
                        }
                        Resolution::Known(..) | Resolution::NoNumber(_) | Resolution::NoPod => None,
                    },
                )
                .collect()
        };
        for (attachment, number, uid) in changes {
            if let Err(error) = self.set_identity(&attachment, number, uid) {
                tracing::error!(error = %chain(&error), "cannot change a pod's identity");
            }
        }
    }

    pub(super) fn set_identity(
        &self,
        attachment: &Attachment,
        number: Identity,
        uid: String,
    ) -> Result<(), Error> {
        let mut datapath = self.shared.datapath();
        let changed = self
            .shared
            .store()
            .set_identity(attachment, number, Some(uid));
        let Some(endpoint) = changed else {
            return Ok(());
        };
        self.shared.converge_pod(&mut datapath, &endpoint, None)?;
        drop(datapath);
        self.shared.persist(attachment).map_err(Error::State)?;
        tracing::info!(pod = endpoint.pod(), identity = number.get(), "identity");
        self.shared
            .publisher
            .publish(&self.shared.index().endpoints, &endpoint);
        Ok(())
    }

    /// Compares this node's PodEndpoint objects with its wired pods.
    pub(super) fn sync_objects(&mut self) {
        let index = self.shared.index();
        if !index.complete.endpoints_listed {
            return;
        }
        let endpoints = &index.endpoints;
        let node = endpoints.node();
        let publisher = &self.shared.publisher;
        let put_back = |todo, (namespace, name): &(String, String), how| {
            if todo == Todo::PutBack {
                let what = format!("PodEndpoint {namespace}/{name} was {how}");
                self.shared.repairs.enter(Kind::PodEndpoint, what);
            }
            todo != Todo::Nothing
        };
        let mut wanted: HashSet<place::Key> = HashSet::new();
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut nameless: Vec<IpAddr> = Vec::new();
        {
            let store = self.shared.store();
            // Their pods are known soon; until then the objects stay.
            let unnamed = store.iter().filter(|e| e.is_nameless());
            nameless.extend(unnamed.flat_map(|e| e.addresses().map(|a| a.address)));
            for endpoint in store.iter().filter(|e| !e.is_nameless()) {
                let key = place::key(endpoints, endpoint);
                let seen = endpoints.get(&place::path(&key));
                let todo = publisher.todo(&key, Some(&Entry::of(node, endpoint)), seen);
                let how = if seen.is_some() { "changed" } else { "removed" };
                if put_back(todo, &key, how) {
                    publisher.publish(endpoints, endpoint);
                }
                wanted.insert(key);
                let of_others = place::taken(endpoints, endpoint);
                taken.extend(of_others.iter().map(|(at, by)| format!("{at} (node {by})")));
            }
        }
        for row in endpoints.own() {
            let Some((namespace, name)) = row.key.split_once('/') else {
                continue;
            };
            let key = (namespace.to_owned(), name.to_owned());
            if !wanted.contains(&key)
                && !row.addresses.iter().any(|a| nameless.contains(a))
                && put_back(publisher.todo(&key, None, Some(row)), &key, "made again")
            {
                publisher.withdraw(key);
            }
        }
        publisher
            .leave(|key| !wanted.contains(key) && endpoints.taken_by(&place::path(key)).is_some());
        publisher.forget(|key| wanted.contains(key));
        if !taken.is_subset(&self.noticed.taken_told) {
            let words = place::words(node, taken.iter());
            tracing::warn!("{words}");
            self.shared.events.warn("PodEndpointTaken", words);
        }
        self.noticed.taken_told = taken;
    }
}
