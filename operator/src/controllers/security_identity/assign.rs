//! Makes the identities that are missing: one task that follows pods,
//! namespaces, identities and the label filter, and works through the sets that
//! have no number which agents may assign.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube_runtime::events::EventType;
use kube_runtime::watcher::{self, Event};
use kube_runtime::{WatchStreamExt, watcher as watch};
use serde_json::json;
use tokio::time::sleep;
use veer_crds::v1alpha1::{IdentityState, SecurityIdentity};

use super::MANAGER;
use super::build::{candidates, identity};
use super::index::Set;
use super::owners::Suspect;
use super::state::Numbers;
use crate::cache::Change;
use crate::context::Context;
use crate::error::{Error, api, code, found};
use crate::slim::{SlimNamespace, SlimPod, strip, strip_pod};

/// How many identities are made at once.
const AT_ONCE: usize = 8;

/// A set, and the identity made or found for it.
type Done = (Set, Result<SecurityIdentity, Error>);

/// Runs until the term ends. `notify` is called with each set that came into
/// use or fell out of it.
pub(crate) async fn run(context: Arc<Context>, notify: impl Fn(&Set)) {
    let pods: Api<SlimPod> = Api::all(context.client.clone());
    let namespaces: Api<SlimNamespace> = Api::all(context.client.clone());
    let pods = watch(pods, watcher::Config::default())
        .modify(strip_pod)
        .default_backoff();
    let namespaces = watch(namespaces, watcher::Config::default())
        .modify(strip)
        .default_backoff();
    let (mut pods, mut namespaces) = (std::pin::pin!(pods), std::pin::pin!(namespaces));
    let mut identities = std::pin::pin!(context.identities.changes());
    let mut networks = std::pin::pin!(context.networks.changes());
    context.identities.ready().await;
    context.networks.ready().await;

    let mut pod_list = Relist::default();
    let mut namespaces_listed = false;
    let mut assigner = Assigner::empty(&context);
    loop {
        tokio::select! {
            Some(event) = pods.next() => match event {
                Ok(event) => pod_list.pod(&context, event),
                Err(error) => tracing::warn!("watch of pods failed, trying again: {error}"),
            },
            Some(event) = namespaces.next() => match event {
                Ok(event) => namespaces_listed |= namespace(&context, event),
                Err(error) => tracing::warn!("watch of namespaces failed, trying again: {error}"),
            },
            Some(change) = identities.next() => assigner.identity(change),
            Some(_) = networks.next() => {
                // A ClusterNetwork that vanished or cannot be read changes nothing.
                if let Some(network) = context.network() {
                    context.usage.lock().set_filter(&network.spec.identity_labels);
                }
            }
            Some((set, result)) = assigner.work.next() => assigner.done(set, result),
            else => return,
        }
        let (dirty, suspects) = {
            let mut usage = context.usage.lock();
            if pod_list.complete && namespaces_listed {
                usage.set_complete();
            }
            (usage.take_dirty(), usage.take_suspects())
        };
        for (suspect, (values, pods)) in suspects {
            tell(&context, &suspect, values, pods);
        }
        for set in &dirty {
            notify(set);
        }
        assigner.queue.extend(dirty);
        assigner.start();
    }
}

/// Tells the user which label makes an identity of every pod, beside the work.
fn tell(context: &Arc<Context>, suspect: &Suspect, values: usize, pods: usize) {
    let Some(network) = context.network() else {
        return;
    };
    let Suspect {
        key,
        namespace,
        owner,
    } = suspect;
    let note = format!(
        "label {key} has {values} values on {pods} pods of {owner} in namespace {namespace}, and \
         each makes an identity: if no policy needs it, add {key} to spec.identityLabels.exclude"
    );
    let context = Arc::clone(context);
    tokio::spawn(async move {
        context
            .event(&network, EventType::Warning, "LabelPerPod", note)
            .await;
    });
}

/// What is being done.
struct Assigner {
    context: Arc<Context>,
    queue: VecDeque<Set>,
    working: HashSet<Set>,
    failures: HashMap<Set, u32>,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
}

impl Assigner {
    fn empty(context: &Arc<Context>) -> Self {
        Self {
            context: Arc::clone(context),
            queue: VecDeque::new(),
            working: HashSet::new(),
            failures: HashMap::new(),
            work: FuturesUnordered::new(),
        }
    }

    fn identity(&mut self, change: Change<SecurityIdentity>) {
        let usage = &self.context.usage;
        match change {
            Change::Set(identity) => usage.numbers().apply(&identity),
            Change::Gone(identity) => self.queue.extend(usage.numbers().delete(&identity)),
            Change::All => {
                let mut numbers = Numbers::default();
                for identity in self.context.identities.all() {
                    numbers.apply(&identity);
                }
                *usage.numbers() = numbers;
                self.queue.extend(usage.lock().sets());
            }
        }
        self.context.metrics.identities(usage.numbers().len());
    }

    fn done(&mut self, set: Set, result: Result<SecurityIdentity, Error>) {
        self.working.remove(&set);
        let metrics = &self.context.metrics;
        match result {
            Ok(identity) => {
                self.failures.remove(&set);
                self.context.usage.numbers().apply(&identity);
                metrics.ran("security-identity", "ok");
            }
            Err(error) => {
                tracing::warn!("{}", error.chain());
                metrics.ran("security-identity", error.category());
                *self.failures.entry(Arc::clone(&set)).or_default() += 1;
                self.queue.push_back(set);
            }
        }
    }

    /// Begins what is to be done, as much as may be done at once.
    fn start(&mut self) {
        let mut again = VecDeque::new();
        while self.working.len() < AT_ONCE
            && let Some(set) = self.queue.pop_front()
        {
            let used = self.context.usage.lock().in_use(&set) == Some(true);
            if !used || self.context.usage.numbers().is_active(&set) {
                self.failures.remove(&set);
            } else if self.working.contains(&set) {
                again.push_back(set);
            } else {
                self.begin(set);
            }
        }
        self.queue.append(&mut again);
    }

    fn begin(&mut self, set: Set) {
        self.working.insert(Arc::clone(&set));
        let failed = self.failures.get(&set).copied().unwrap_or_default();
        let revive = self.context.usage.numbers().retiring(&set);
        let context = Arc::clone(&self.context);
        self.work.push(Box::pin(async move {
            if failed > 0 {
                let wait = Duration::from_millis(250u64 << failed.min(7));
                sleep(veer_api_client::jittered(wait)).await;
            }
            let result = ensure(&context, &set, revive).await;
            (set, result)
        }));
    }
}

/// The identity of a set: that which is retiring, or a new one.
async fn ensure(
    context: &Context,
    set: &Set,
    revive: Option<u32>,
) -> Result<SecurityIdentity, Error> {
    let identities: Api<SecurityIdentity> = Api::all(context.client.clone());
    if let Some(number) = revive
        && let Some(identity) = resume(&identities, set, number).await?
    {
        return Ok(identity);
    }
    for number in candidates(set) {
        let params = PostParams {
            field_manager: Some(MANAGER.into()),
            ..PostParams::default()
        };
        match identities.create(&params, &identity(number, set)).await {
            Ok(made) => {
                tracing::info!(number, labels = ?set, "new identity");
                return Ok(made);
            }
            // Taken: by this set or by another whose hash is near.
            Err(error) if code(&error) == Some(409) => {
                if let Some(there) = resume(&identities, set, number).await? {
                    return Ok(there);
                }
            }
            Err(error) => return Err(api(format!("create identity {number}"))(error)),
        }
    }
    Err(Error::NumbersExhausted)
}

/// The identity of this number if it is this set's, made active again if it was
/// retiring: under the version read, so that it is not one being deleted.
async fn resume(
    identities: &Api<SecurityIdentity>,
    set: &Set,
    number: u32,
) -> Result<Option<SecurityIdentity>, Error> {
    let (name, what) = (number.to_string(), format!("resume identity {number}"));
    let there = found(identities.get(&name).await).map_err(api(what.clone()))?;
    let Some(there) = there.filter(|there| there.spec.labels == **set) else {
        return Ok(None);
    };
    if there.spec.state == IdentityState::Active {
        return Ok(Some(there));
    }
    let patch = json!({
        "metadata": { "resourceVersion": there.metadata.resource_version },
        "spec": { "state": IdentityState::Active },
    });
    let params = PatchParams {
        field_manager: Some(MANAGER.into()),
        ..PatchParams::default()
    };
    let patched = identities.patch(&name, &params, &Patch::Merge(patch)).await;
    Ok(Some(patched.map_err(api(what))?))
}

/// The watch of pods, whose lists name those that are gone by leaving them out.
#[derive(Debug, Default)]
struct Relist {
    listed: HashSet<(String, String)>,
    complete: bool,
}

impl Relist {
    fn pod(&mut self, context: &Context, event: Event<SlimPod>) {
        let mut usage = context.usage.lock();
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                let name = pod.metadata.name.clone().unwrap_or_default();
                self.listed.insert((namespace, name));
                usage.apply_pod(&pod);
            }
            Event::InitDone => {
                usage.keep_pods(&self.listed);
                self.listed = HashSet::new();
                self.complete = true;
            }
            Event::Apply(pod) => usage.apply_pod(&pod),
            Event::Delete(pod) => usage.delete_pod(&pod),
        }
    }
}

/// Notes a change of a namespace; whether that ended a list. One missing from a
/// new list has no pods, so nothing has to be undone for it.
fn namespace(context: &Context, event: Event<SlimNamespace>) -> bool {
    let mut usage = context.usage.lock();
    match event {
        Event::Init => {}
        Event::InitApply(namespace) | Event::Apply(namespace) => usage.apply_namespace(&namespace),
        Event::Delete(namespace) => usage.delete_namespace(&namespace),
        Event::InitDone => return true,
    }
    false
}
