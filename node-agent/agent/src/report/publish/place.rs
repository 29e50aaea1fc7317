//! The name of a pod's PodEndpoint.
//!
//! Usually the one that follows from the pod. Any agent can have made an object of
//! that name, though: the admission policy knows which node an object says it is of,
//! not where the pod runs, and then it keeps the pod's own agent from the object. So
//! there is a second name, which only this node's agent may give.
//!
//! A pod keeps the name that its object has: somebody who takes the usual name and
//! lets go of it by turns moves nothing.

use std::fmt::Write as _;

use veer_crds::names::{pod_endpoint_name, pod_endpoint_name_of_node};

use veer_agent_core::{endpoint::LocalEndpoint, index::Endpoints};

/// An object: namespace and name.
pub(crate) type Key = (String, String);

/// The key as the index has it.
pub(crate) fn path((namespace, name): &Key) -> String {
    format!("{namespace}/{name}")
}

fn usual(endpoint: &LocalEndpoint) -> Key {
    let uid = endpoint.object_uid.as_ref().unwrap_or(&endpoint.pod_uid);
    (
        endpoint.namespace.clone(),
        pod_endpoint_name(&endpoint.pod_name, uid),
    )
}

fn of_node(endpoint: &LocalEndpoint, node: &str) -> Option<Key> {
    let uid = endpoint.object_uid.as_ref().unwrap_or(&endpoint.pod_uid);
    let name = pod_endpoint_name_of_node(&endpoint.pod_name, uid, node)?;
    Some((endpoint.namespace.clone(), name))
}

/// The key of the pod's object, existing or wanted.
pub(crate) fn key(endpoints: &Endpoints, endpoint: &LocalEndpoint) -> Key {
    let usual = usual(endpoint);
    if endpoints.is_own(&path(&usual)) {
        return usual;
    }
    let taken = endpoints.taken_by(&path(&usual)).is_some();
    of_node(endpoint, endpoints.node())
        .filter(|key| taken || endpoints.is_own(&path(key)))
        .unwrap_or(usual)
}

/// The objects that bear a name of this pod and say that they are another node's:
/// their keys and that node.
pub(crate) fn taken<'a>(
    endpoints: &'a Endpoints,
    endpoint: &LocalEndpoint,
) -> Vec<(String, &'a str)> {
    let holder = |key: &Key| {
        let path = path(key);
        endpoints.taken_by(&path).map(|node| (path, node))
    };
    let Some(first) = holder(&usual(endpoint)) else {
        return Vec::new();
    };
    let second = of_node(endpoint, endpoints.node());
    std::iter::once(first)
        .chain(second.as_ref().and_then(holder))
        .collect()
}

/// Names of objects that an Event names.
const NAMED: usize = 5;

/// Message about objects with names of this node's pods that other nodes have: each
/// with its node.
pub(crate) fn words<'a>(node: &str, taken: impl ExactSizeIterator<Item = &'a String>) -> String {
    let mut text = format!(
        "the agents of other nodes, or who else has their tokens, made PodEndpoints with the names \
         of this node's pods; those pods have others, with names that end in .{node}.node. See \
         who has these tokens, and delete"
    );
    let more = taken.len().saturating_sub(NAMED);
    for (i, one) in taken.take(NAMED).enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{} {one}", if i == 0 { "" } else { "," });
    }
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}
