//! `veer-operator decommission`: `helm uninstall` runs it before it removes the rest.
//!
//! It acts only if removal is proven; see `proof`. Every agent is asked, through its
//! NodeNetwork, to remove all of veer from its node. Input: the NodeNetworks and
//! Nodes. The operator is stopped first, since it would give the nodes their taint
//! and NodeNetworks back. The objects that only it and the agents write are deleted
//! afterwards, so that a later installation finds none; the ClusterNetwork is the
//! user's and stays.
//!
//! Invariant: it ends within its time and names the nodes that did not answer.

mod proof;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tracing::{info, warn};
use veer_crds::v1alpha1::{NodeReport, PodCIDR, SecurityIdentity, TAINT_AGENT_NOT_READY};

use proof::ReleaseState;

use crate::error::{Error as ApiError, api, code, found};
use crate::slim::{SlimEndpoint, SlimNetwork, SlimNetworkStatus};

/// Name of the operator's Deployment and Lease, and of its pods' label.
const OPERATOR: &str = "veer-operator";
/// How often the progress is read from the API server.
const PERIOD: Duration = Duration::from_secs(1);

/// Arguments of `decommission`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How long nodes may take, in seconds.
    #[arg(long, default_value_t = 240)]
    timeout_seconds: u64,
    #[command(flatten)]
    release: proof::Release,
}

/// Why veer is still on some node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Nobody asked for the removal of veer.
    #[error(
        "nothing was changed, for nothing says that veer is to be removed: {}. If it is, and Helm \
         does not remove it or keeps its releases elsewhere, say so first: kubectl annotate \
         clusternetwork default {}=true. Otherwise delete this Job",
        reason(release, seen),
        proof::UNINSTALL
    )]
    Unproven {
        /// The Helm release, as namespace/name.
        release: String,
        /// What is known of it.
        seen: ReleaseState,
    },
    /// The operator's pods are still there.
    #[error(
        "{} of veer-operator did not end in time: kubectl -n {namespace} get pods -l \
         app.kubernetes.io/name=veer-operator -o wide", pods.join(", ")
    )]
    OperatorStays {
        /// Where it runs.
        namespace: String,
        /// Its pods.
        pods: Vec<String>,
    },
    /// Agents that did not do what they were asked.
    #[error(
        "{} did not answer within {seconds} s: look at their agents (kubectl -n {namespace} get \
         pods -l app.kubernetes.io/name=veer-agent -o wide), delete Nodes that are gone for good, \
         and run helm uninstall again; with --no-hooks it leaves those nodes as they are",
        nodes.join(", ")
    )]
    NoAnswer {
        /// Where agents run.
        namespace: String,
        /// How long was waited.
        seconds: u64,
        /// Their nodes.
        nodes: Vec<String>,
    },
}

/// Has veer removed from every node. `namespace` is the release's.
pub(crate) async fn run(
    client: Client,
    namespace: &str,
    arguments: &Arguments,
) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout_seconds);
    // Checked once: the last step may remove the proof.
    patiently(deadline, async || {
        prove(&client, namespace, &arguments.release).await
    })
    .await?;
    // Every step finds out what is left to do.
    patiently(deadline, async || {
        remove(&client, namespace, arguments.timeout_seconds, deadline).await
    })
    .await
}

/// Repeats what fails for a reason that passes: no answer, an API server that is
/// starting or has too much to do, another writer.
async fn patiently(
    deadline: Instant,
    step: impl AsyncFn() -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        match step().await {
            Err(Error::Api(error)) if passes(&error) && Instant::now() < deadline => {
                warn!("{}; trying again", error.chain());
                tokio::time::sleep(PERIOD).await;
            }
            ended => return ended,
        }
    }
}

fn passes(error: &ApiError) -> bool {
    match error {
        ApiError::Conflict { .. } | ApiError::Outdated { .. } => true,
        ApiError::Api { source, .. } => {
            code(source).is_none_or(|code| code == 408 || code == 429 || code >= 500)
        }
        ApiError::Json { .. } | ApiError::NumbersExhausted => false,
    }
}

/// Removes veer, from the beginning or from where an earlier try stopped.
async fn remove(
    client: &Client,
    namespace: &str,
    seconds: u64,
    deadline: Instant,
) -> Result<(), Error> {
    stop_operator(client, namespace, deadline).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let networks: Api<SlimNetwork> = Api::all(client.clone());
    let mut told = BTreeSet::new();
    loop {
        let existing = names(
            nodes
                .list(&ListParams::default())
                .await
                .map_err(api("list nodes"))?,
        );
        let all = networks
            .list(&ListParams::default())
            .await
            .map_err(api("list nodenetworks"))?
            .items;
        for network in all.iter().filter(|network| !network.spec.decommission) {
            ask(&networks, &network.name_any()).await?;
        }
        let waiting = waiting(&all, &existing);
        for network in &all {
            let name = network.name_any();
            let there = existing.contains(&name);
            let gone = !there || answer(network) == Answer::Given;
            if gone && told.insert(name.clone()) {
                info!(
                    node = name,
                    "veer is gone from this node, or the node itself is"
                );
            }
        }
        if waiting.is_empty() {
            let silent = silent(&all, &existing);
            if !silent.is_empty() {
                warn!(
                    nodes = silent.join(", "),
                    "no agent ever ran on these nodes, or they take no part any more: not waited \
                     for"
                );
            }
            break;
        }
        if Instant::now() >= deadline {
            return Err(Error::NoAnswer {
                namespace: namespace.to_owned(),
                seconds,
                nodes: waiting,
            });
        }
        tokio::time::sleep(PERIOD).await;
    }
    remove_taints(&nodes, deadline).await?;
    delete_written(client, namespace).await?;
    proof::fulfilled(client).await?;
    info!("veer is gone from every node; ClusterNetwork and CRDs stay until you delete them");
    Ok(())
}

/// Refuses unless somebody asked for the removal.
async fn prove(client: &Client, namespace: &str, release: &proof::Release) -> Result<(), Error> {
    if proof::annotated(client).await? {
        info!("asked by annotation of the ClusterNetwork to remove veer");
        return Ok(());
    }
    let namespace = release.release_namespace.as_deref().unwrap_or(namespace);
    match proof::release(client, &release.release, namespace).await? {
        ReleaseState::Uninstalling => {
            info!(
                release = release.release,
                namespace, "Helm is uninstalling this release"
            );
            Ok(())
        }
        seen @ (ReleaseState::Status(_) | ReleaseState::Nothing) => Err(Error::Unproven {
            release: format!("{namespace}/{}", release.release),
            seen,
        }),
    }
}

/// Why a release is no proof.
fn reason(release: &str, seen: &ReleaseState) -> String {
    match seen {
        ReleaseState::Nothing => format!("Helm has no release {release}"),
        ReleaseState::Status(status) => {
            format!("Helm release {release} is {status}, not uninstalling")
        }
        ReleaseState::Uninstalling => format!("Helm release {release} is uninstalling"),
    }
}

/// Nodes that still have to answer.
fn waiting(networks: &[SlimNetwork], existing: &BTreeSet<String>) -> Vec<String> {
    of(networks, existing, Answer::Owed)
}

/// Nodes without an agent that could answer, as far as is known.
fn silent(networks: &[SlimNetwork], existing: &BTreeSet<String>) -> Vec<String> {
    of(networks, existing, Answer::NobodyThere)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Owed,
    Given,
    /// No agent ever reported for the node, or the node no longer takes part and its
    /// agent's pod is gone.
    NobodyThere,
}

fn answer(network: &SlimNetwork) -> Answer {
    let confirmed = |status: &SlimNetworkStatus| status.decommissioned;
    match &network.status {
        Some(status) if confirmed(status) && network.spec.decommission => Answer::Given,
        Some(_) if !network.spec.node_uid.is_empty() => Answer::Owed,
        _ => Answer::NobodyThere,
    }
}

/// Nodes that exist, and from which this answer is had.
fn of(networks: &[SlimNetwork], existing: &BTreeSet<String>, which: Answer) -> Vec<String> {
    let mut nodes: Vec<_> = networks
        .iter()
        .filter(|network| answer(network) == which)
        .map(ResourceExt::name_any)
        .filter(|name| existing.contains(name))
        .collect();
    nodes.sort();
    nodes
}

fn names<K: ResourceExt>(objects: impl IntoIterator<Item = K>) -> BTreeSet<String> {
    objects
        .into_iter()
        .map(|object| object.name_any())
        .collect()
}

/// Asks one agent; if its NodeNetwork has gone, that is no error.
async fn ask(networks: &Api<SlimNetwork>, name: &str) -> Result<(), Error> {
    let patch = Patch::Merge(json!({ "spec": { "decommission": true } }));
    let asked = networks.patch(name, &PatchParams::default(), &patch).await;
    found(asked).map_err(api(format!("ask node {name} to decommission")))?;
    Ok(())
}

/// Scales the operator down and waits for its pods to be gone. Without the
/// Deployment there is nothing to stop.
async fn stop_operator(client: &Client, namespace: &str, deadline: Instant) -> Result<(), Error> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    found(
        deployments
            .patch_scale(OPERATOR, &PatchParams::default(), &none)
            .await,
    )
    .map_err(api("scale deployment veer-operator to 0"))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let its = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    loop {
        let left = names(
            pods.list(&its)
                .await
                .map_err(api("list pods of veer-operator"))?,
        );
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let pods = left.into_iter().collect();
            return Err(Error::OperatorStays {
                namespace: namespace.to_owned(),
                pods,
            });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Removes veer's taint from nodes that have it: the operator, which would do it, is
/// stopped.
async fn remove_taints(nodes: &Api<Node>, deadline: Instant) -> Result<(), Error> {
    loop {
        let mut conflict = None;
        for node in nodes
            .list(&ListParams::default())
            .await
            .map_err(api("list nodes"))?
        {
            match remove_taint(nodes, &node).await {
                Err(error @ ApiError::Conflict { .. }) => conflict = Some(error),
                done => done?,
            }
        }
        match conflict {
            None => return Ok(()),
            Some(error) if Instant::now() >= deadline => return Err(error.into()),
            Some(_) => tokio::time::sleep(PERIOD).await,
        }
    }
}

async fn remove_taint(nodes: &Api<Node>, node: &Node) -> Result<(), ApiError> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let others: Vec<_> = taints
        .iter()
        .filter(|taint| taint.key != TAINT_AGENT_NOT_READY)
        .collect();
    if others.len() == taints.len() {
        return Ok(());
    }
    let name = node.name_any();
    // With the version, because a merge patch replaces the whole list.
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": node.resource_version() },
        "spec": { "taints": others },
    }));
    found(nodes.patch(&name, &PatchParams::default(), &patch).await).map_err(api(format!(
        "remove taint {TAINT_AGENT_NOT_READY} from node {name}"
    )))?;
    Ok(())
}

/// Deletes what the operator and the agents wrote.
async fn delete_written(client: &Client, namespace: &str) -> Result<(), Error> {
    let (how, all) = (DeleteParams::default(), ListParams::default());
    let endpoints: Api<SlimEndpoint> = Api::all(client.clone());
    for endpoint in endpoints
        .list(&all)
        .await
        .map_err(api("list podendpoints"))?
    {
        let namespace = endpoint.namespace().unwrap_or_default();
        let there: Api<SlimEndpoint> = Api::namespaced(client.clone(), &namespace);
        let name = endpoint.name_any();
        found(there.delete(&name, &how).await)
            .map_err(api(format!("delete podendpoint {namespace}/{name}")))?;
    }
    Api::<SecurityIdentity>::all(client.clone())
        .delete_collection(&how, &all)
        .await
        .map_err(api("delete securityidentities"))?;
    Api::<PodCIDR>::all(client.clone())
        .delete_collection(&how, &all)
        .await
        .map_err(api("delete podcidrs"))?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    found(leases.delete(OPERATOR, &how).await).map_err(api("delete lease veer-operator"))?;
    Api::<SlimNetwork>::all(client.clone())
        .delete_collection(&how, &all)
        .await
        .map_err(api("delete nodenetworks"))?;
    Api::<PartialObjectMeta<NodeReport>>::all(client.clone())
        .delete_collection(&how, &all)
        .await
        .map_err(api("delete nodereports"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, asked: bool, confirmed: bool) -> SlimNetwork {
        serde_json::from_value(json!({
            "metadata": { "name": name }, "spec": { "nodeUid": "u", "decommission": asked },
            "status": { "decommissioned": confirmed },
        }))
        .unwrap()
    }

    #[test]
    fn what_passes_is_tried_again_and_a_refusal_is_not() {
        let answer = |code: u16| {
            let status = kube::core::Status {
                code,
                ..kube::core::Status::default()
            };
            api("list nodes")(kube::Error::Api(status.boxed()))
        };
        assert!(
            [408, 409, 429, 500, 503]
                .into_iter()
                .all(|c| passes(&answer(c)))
        );
        assert!(![401, 403, 404, 422].into_iter().any(|c| passes(&answer(c))));
    }

    #[test]
    fn only_nodes_that_exist_and_have_not_confirmed_are_waited_for() {
        let existing = ["a", "b", "c"].map(str::to_owned).into();
        let networks = [
            network("c", true, false),
            network("a", true, true),
            network("b", false, true),
            network("gone", true, false),
        ];
        // b confirmed something that it was not asked this time.
        assert_eq!(waiting(&networks, &existing), ["b", "c"]);
        assert!(silent(&networks, &existing).is_empty());
    }

    #[test]
    fn a_node_without_an_agent_is_named_and_not_waited_for() {
        let existing = ["bare", "left", "runs"].map(str::to_owned).into();
        let mut bare = network("bare", true, false);
        bare.status = None;
        let mut left = network("left", true, false);
        left.spec.node_uid.clear();
        let networks = [bare, left, network("runs", true, false)];
        assert_eq!(waiting(&networks, &existing), ["runs"]);
        assert_eq!(silent(&networks, &existing), ["bare", "left"]);
    }
}
