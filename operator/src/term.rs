//! One term of a leader: the caches, and the controllers that work on them.
//! Everything a term knows is dropped with it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use kube::{Client, ResourceExt};
use kube_runtime::reflector::ObjectRef;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;
use veer_crds::v1alpha1::{CLUSTER_NETWORK, ClusterNetworkSpec, PodCIDR, SecurityIdentity};

use crate::args::Settings;
use crate::context::Context;
use crate::controllers::security_identity::index::Set;
use crate::controllers::security_identity::{assign, retire};
use crate::controllers::{
    cluster_network, node, node_network, node_report, pod_cidr, run as run_controller,
};
use crate::crd;
use crate::metrics::Metrics;
use crate::slim::SlimReport;

/// How long changes are collected before a ClusterNetwork is looked at: every
/// node's report concerns it.
const SETTLE: Duration = Duration::from_millis(150);

/// The inputs of every term.
pub(crate) struct Setup {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) identity: String,
    pub(crate) initial: Option<ClusterNetworkSpec>,
}

/// Runs a term until it is dropped; returns only if a part of it ended.
pub(crate) async fn run(setup: &Setup) {
    let mut wait = Duration::from_secs(1);
    while let Err(error) = crd::settle(&setup.client).await {
        tracing::warn!("{}", error.chain());
        sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
    let (context, watches) = Context::new(
        &setup.client,
        setup.settings,
        Arc::clone(&setup.metrics),
        &setup.identity,
    );
    // Dropping the set ends all tasks in it.
    let mut tasks = JoinSet::new();
    // Subscribed before the watches begin, so that no change is missed.
    for task in controllers(&context) {
        tasks.spawn(task);
    }
    for watch in watches {
        tasks.spawn(watch);
    }
    context.ready().await;
    tracing::info!("caches are filled");
    if let Some(spec) = setup.initial.clone() {
        cluster_network::initial::ensure(Arc::clone(&context), spec).await;
    }
    tasks.join_next().await;
}

fn controllers(context: &Arc<Context>) -> Vec<BoxFuture<'static, ()>> {
    let c = context.as_ref();
    let (set_changed, changed_sets) = mpsc::unbounded_channel();
    let cluster_network_queue = gather(stream::select_all([
        c.networks.changes().map(drop).boxed(),
        c.nodes.changes().map(drop).boxed(),
        c.node_networks.changes().map(drop).boxed(),
        c.reports.changes().map(drop).boxed(),
        c.claims.changes().map(drop).boxed(),
    ]))
    .map(|()| ObjectRef::new(CLUSTER_NETWORK));
    let node_queue = stream::select_all([
        c.nodes.queue().boxed(),
        c.node_networks
            .queue_for(&c.nodes, ResourceExt::name_any)
            .boxed(),
        c.reports.queue_for(&c.nodes, ResourceExt::name_any).boxed(),
        c.claims
            .queue_for(&c.nodes, |claim| claim.spec.node_name.clone())
            .boxed(),
        c.nodes.queue_on(c.networks.spec_changes()).boxed(),
    ]);
    let node_network_queue = stream::select_all([
        c.node_networks.queue().boxed(),
        c.nodes
            .queue_for(&c.node_networks, |node| node.name().to_owned())
            .boxed(),
        c.claims
            .queue_for(&c.node_networks, |claim| claim.spec.node_name.clone())
            .boxed(),
    ]);
    let pod_cidr_queue =
        stream::select_all([c.claims.queue().boxed(), claims_of_nodes(context).boxed()]);
    let identity_queue = stream::select_all([
        c.identities.queue().boxed(),
        numbers_of_sets(context, changed_sets),
    ]);
    let notify = move |set: &Set| {
        // The receiver lives as long as the term.
        let _ = set_changed.send(Arc::clone(set));
    };
    let short = Duration::from_millis(20);
    let cx = || Arc::clone(context);
    vec![
        run_controller(
            "cluster-network",
            cx(),
            c.networks.store(),
            cluster_network_queue,
            Duration::ZERO,
            cluster_network::reconcile,
        )
        .boxed(),
        run_controller(
            "node",
            cx(),
            c.nodes.store(),
            node_queue,
            short,
            node::reconcile,
        )
        .boxed(),
        run_controller(
            "node-network",
            cx(),
            c.node_networks.store(),
            node_network_queue,
            SETTLE,
            node_network::reconcile,
        )
        .boxed(),
        run_controller(
            "node-report",
            cx(),
            c.reports.store(),
            reports_to_judge(c),
            SETTLE,
            node_report::reconcile,
        )
        .boxed(),
        run_controller(
            "pod-cidr",
            cx(),
            c.claims.store(),
            pod_cidr_queue,
            SETTLE,
            pod_cidr::reconcile,
        )
        .boxed(),
        run_controller(
            "security-identity",
            cx(),
            c.identities.store(),
            identity_queue,
            SETTLE,
            retire::reconcile,
        )
        .boxed(),
        assign::run(cx(), notify).boxed(),
    ]
}

/// The NodeReports that may be unused, whenever a Node or NodeNetwork changes.
fn reports_to_judge(c: &Context) -> impl Stream<Item = ObjectRef<SlimReport>> + Send + use<> {
    stream::select_all([
        c.reports.queue().boxed(),
        c.nodes
            .queue_for(&c.reports, |node| node.name().to_owned())
            .boxed(),
        c.node_networks
            .queue_for(&c.reports, ResourceExt::name_any)
            .boxed(),
    ])
}

/// One item for all that come within [`SETTLE`] of the first. Unlike a debounce it
/// does not wait for a pause, which a large cluster may never have.
fn gather(changes: impl Stream<Item = ()> + Send + 'static) -> BoxStream<'static, ()> {
    stream::unfold(changes.boxed(), |mut changes| async move {
        changes.next().await?;
        sleep(SETTLE).await;
        while let Some(Some(())) = changes.next().now_or_never() {}
        Some(((), changes))
    })
    .boxed()
}

/// The claims of a node, whenever the Node or its NodeNetwork changes or goes.
fn claims_of_nodes(context: &Arc<Context>) -> impl Stream<Item = ObjectRef<PodCIDR>> + use<> {
    let networks = &context.node_networks;
    let nodes = context
        .nodes
        .queue_for(networks, |node| node.name().to_owned());
    let names = stream::select(nodes, networks.queue_for(networks, ResourceExt::name_any));
    let names = names.map(|network| network.name);
    let context = Arc::clone(context);
    names.flat_map(move |name| {
        let claims = context
            .claims
            .all()
            .into_iter()
            .filter(|c| c.spec.node_name == name);
        stream::iter(
            claims
                .map(|c| ObjectRef::from_obj(c.as_ref()))
                .collect::<Vec<_>>(),
        )
    })
}

/// The identities of a set, whenever that comes into use or falls out of it.
fn numbers_of_sets(
    context: &Arc<Context>,
    sets: mpsc::UnboundedReceiver<Set>,
) -> BoxStream<'static, ObjectRef<SecurityIdentity>> {
    let context = Arc::clone(context);
    stream::unfold(
        sets,
        |mut sets| async move { Some((sets.recv().await?, sets)) },
    )
    .flat_map(move |set| {
        let numbers = context.usage.numbers().of(&set);
        stream::iter(numbers.into_iter().map(|n| ObjectRef::new(&n.to_string())))
    })
    .boxed()
}
