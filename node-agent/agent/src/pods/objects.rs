//! PodEndpoints of this node, against its wired pods.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use veer_agent_core::repair::{Kind, RoundLog};

use super::Pods;
use crate::report::publish::{Entry, Todo, place};

/// What was told of this node's PodEndpoints.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// Objects with names of this node's pods that other nodes have, and the nodes,
    /// of which it was told.
    taken_told: BTreeSet<String>,
}

impl Objects {
    /// Compares this node's PodEndpoint objects with its wired pods.
    pub(crate) fn converge(&mut self, pods: &Pods, done: &mut RoundLog) {
        let index = pods.index.read();
        if !index.complete.endpoints_listed {
            return;
        }
        let endpoints = &index.endpoints;
        let node = endpoints.node();
        let publisher = &pods.publisher;
        let mut put_back = |todo, (namespace, name): &(String, String), how| {
            if todo == Todo::PutBack {
                let what = format!("PodEndpoint {namespace}/{name} was {how}");
                done.repaired(Kind::PodEndpoint, what);
            }
            todo != Todo::Nothing
        };
        let mut wanted: HashSet<place::Key> = HashSet::new();
        let mut taken: BTreeSet<String> = BTreeSet::new();
        let mut nameless: Vec<IpAddr> = Vec::new();
        {
            let store = pods.local.store();
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
        if !taken.is_subset(&self.taken_told) {
            done.warn("PodEndpointTaken", place::words(node, taken.iter()));
        }
        self.taken_told = taken;
    }
}
