//! What the controllers of a leader's term share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::core::DeserializeGuard;
use kube::{Client, Resource};
use kube_runtime::events::EventType;
use veer_api_client::events::Publisher;
use veer_crds::v1alpha1::{
    CLUSTER_NETWORK, ClusterNetwork, NodeNetwork, PodCIDR, SecurityIdentity,
};

use crate::args::Settings;
use crate::cache::Cached;
use crate::controllers::node::ledger::Ledger;
use crate::controllers::security_identity::index::Usage;
use crate::metrics::Metrics;
use crate::selection::{Part, Selection};
use crate::slim::{SlimNode, SlimReport};

/// How many different events are remembered; then the memory is cleared.
const EVENTS_REMEMBERED: usize = 1000;

/// How long a node is new. The agent of one that served pods before reports within
/// seconds of its registration.
const NEW: Duration = Duration::from_mins(2);

/// A ClusterNetwork, or why it cannot be read.
pub(crate) type GuardedNetwork = DeserializeGuard<ClusterNetwork>;

/// What all controllers of a term share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    events: Publisher,
    pub(crate) networks: Cached<GuardedNetwork>,
    pub(crate) nodes: Cached<SlimNode>,
    pub(crate) node_networks: Cached<NodeNetwork>,
    pub(crate) reports: Cached<SlimReport>,
    pub(crate) claims: Cached<PodCIDR>,
    pub(crate) identities: Cached<SecurityIdentity>,
    /// Held while blocks are allocated or judged drained.
    pub(crate) ledger: tokio::sync::Mutex<Ledger>,
    /// Which label sets pods use.
    pub(crate) usage: Usage,
    /// After how many lists, and with which selection, no agent was waited for.
    heard: Mutex<Option<(u64, Selection)>>,
    /// Events already published in this term.
    published: Mutex<BTreeSet<(String, &'static str, String)>>,
}

impl Context {
    /// A new term's context, and the watches that must be polled with it.
    pub(crate) fn new(
        client: &Client,
        settings: Settings,
        metrics: Arc<Metrics>,
        identity: &str,
    ) -> (Arc<Self>, Vec<BoxFuture<'static, ()>>) {
        let (networks, follow_networks) = Cached::new(client);
        let (nodes, follow_nodes) = Cached::new(client);
        let (node_networks, follow_node_networks) = Cached::new(client);
        let (reports, follow_reports) = Cached::quiet(client, SlimReport::says_the_same);
        let (claims, follow_claims) = Cached::new(client);
        let (identities, follow_identities) = Cached::new(client);
        let context = Self {
            client: client.clone(),
            settings,
            metrics,
            events: Publisher::new(client.clone(), "veer-operator", identity),
            networks,
            nodes,
            node_networks,
            reports,
            claims,
            identities,
            ledger: tokio::sync::Mutex::new(Ledger::default()),
            usage: Usage::default(),
            heard: Mutex::default(),
            published: Mutex::default(),
        };
        let watches: Vec<BoxFuture<'static, ()>> = vec![
            Box::pin(follow_networks),
            Box::pin(follow_nodes),
            Box::pin(follow_node_networks),
            Box::pin(follow_reports),
            Box::pin(follow_claims),
            Box::pin(follow_identities),
        ];
        (Arc::new(context), watches)
    }

    /// Returns once every cache has its first list.
    pub(crate) async fn ready(&self) {
        self.networks.ready().await;
        self.nodes.ready().await;
        self.node_networks.ready().await;
        self.reports.ready().await;
        self.claims.ready().await;
        self.identities.ready().await;
    }

    /// The cluster's network, if there is one that can be read.
    pub(crate) fn network(&self) -> Option<ClusterNetwork> {
        self.networks.get(CLUSTER_NETWORK)?.0.as_ref().ok().cloned()
    }

    /// Which nodes take part.
    pub(crate) fn selection(&self) -> Selection {
        Selection::of(self.network().as_ref().map(|network| &network.spec))
    }

    /// The Node of this name, unless it takes no part.
    pub(crate) fn member(&self, name: &str) -> Option<Arc<SlimNode>> {
        let known = self.node_networks.get(name).is_some();
        let node = self.nodes.get(name)?;
        (self.selection().part(&node, known) != Part::Leaves).then_some(node)
    }

    /// Which object of a node cannot be read, and why.
    pub(crate) fn unreadable(&self, node: &str) -> Option<(&'static str, String)> {
        let network = self.node_networks.unreadable(node);
        let network = network.map(|why| ("NodeNetwork", why));
        network.or_else(|| Some(("NodeReport", self.reports.unreadable(node)?)))
    }

    /// Whether nodes, or blocks of nodes, may be missing in what is known.
    pub(crate) fn is_outdated(&self) -> bool {
        self.nodes.is_outdated() || self.node_networks.is_outdated() || self.claims.is_outdated()
    }

    /// Names of Ready nodes whose agent has not reported which blocks it holds, and that
    /// others have to wait for. This protects against what this leader cannot have seen,
    /// such as blocks held on disk that a restored etcd does not know.
    ///
    /// After each list, and each change of the selection, all are waited for. Once all
    /// were heard, a node that comes later is waited for until it is [`NEW`] no more: it
    /// may be one that a restored etcd forgot and that registers again, or one whose agent
    /// never comes.
    pub(crate) fn unheard(&self) -> Vec<String> {
        let lists = self.nodes.lists() + self.node_networks.lists() + self.claims.lists();
        let now = (lists, self.selection());
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let all_were_heard = heard.as_ref() == Some(&now);
        let mut names: Vec<String> = self
            .nodes
            .all()
            .iter()
            .filter(|node| node.is_ready() && (!all_were_heard || node.age() < NEW))
            .filter(|node| {
                let network = self.node_networks.get(node.name());
                // An unreadable NodeNetwork delays no other node.
                now.1.part(node, network.is_some()) == Part::Takes
                    && self.node_networks.unreadable(node.name()).is_none()
                    && network.is_none_or(|network| network.status.is_none())
            })
            .map(|node| node.name().to_owned())
            .collect();
        names.sort();
        if names.is_empty() {
            *heard = Some(now);
        }
        names
    }

    /// Publishes an event, once a term for the same object, reason and note. A
    /// failure is only logged: nothing depends on events.
    pub(crate) async fn event<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        type_: EventType,
        reason: &'static str,
        note: String,
    ) {
        let key = (
            on.meta().name.clone().unwrap_or_default(),
            reason,
            note.clone(),
        );
        {
            let mut published = self
                .published
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if published.len() >= EVENTS_REMEMBERED {
                published.clear();
            }
            if !published.insert(key.clone()) {
                return;
            }
        }
        if let Err(error) = self.publish(on, type_, reason, note).await {
            tracing::warn!(reason, "cannot publish an event: {error}");
            self.published
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
        }
    }

    /// Publishes an event, also if the same was published before.
    ///
    /// # Errors
    /// When the API server refuses it or does not answer.
    pub(crate) async fn publish<K: Resource<DynamicType = ()>>(
        &self,
        on: &K,
        type_: EventType,
        reason: &'static str,
        note: String,
    ) -> kube::Result<()> {
        self.events
            .publish(&on.object_ref(&()), type_, reason, note)
            .await
    }
}
