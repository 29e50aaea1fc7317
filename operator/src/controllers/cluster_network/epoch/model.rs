//! Property test of the plan: agents act in any order, nodes come, go and are made
//! again, the user changes the spec, pairs break, operators die between their writes,
//! and a second leader's caches lag behind, each by its own time.

use proptest::prelude::*;

use super::view::{EpochProgress, same};
use super::world::{AWAY, Network, World};
use super::*;

const NODES: usize = 4;

/// A leader's caches: what it read, and the versions of the nodes' objects.
#[derive(Clone)]
struct Caches {
    network: Network,
    nodes: Vec<Member>,
    versions: Vec<u64>,
    now: i64,
}

fn key(epoch: &Epoch) -> (i64, Phase, i32) {
    (epoch.number, epoch.phase, epoch.attempt)
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The user.
    Mode(RoutingMode),
    Pause,
    Keep,
    Canary(bool),
    MaxConcurrent(i32),
    /// The cluster.
    Ready(usize),
    Obey(usize),
    Break(usize, usize),
    Mend,
    Renew(usize),
    Time(i64),
    /// A leader writes the status, if that is to be changed, and tells so many
    /// nodes before it dies.
    Look(usize),
    /// Another leader's cache of the ClusterNetwork catches up.
    ReadNetwork,
    /// That of the nodes does.
    ReadNodes,
    /// It acts by what it has.
    Wake(usize),
}

fn step() -> impl Strategy<Value = Event> {
    let node = 0..NODES;
    prop_oneof![
        2 => prop_oneof![
            Just(RoutingMode::Tunnel), Just(RoutingMode::Native), Just(RoutingMode::Hybrid)
        ].prop_map(Event::Mode),
        1 => Just(Event::Pause),
        1 => Just(Event::Keep),
        1 => any::<bool>().prop_map(Event::Canary),
        1 => (0..3).prop_map(Event::MaxConcurrent),
        3 => node.clone().prop_map(Event::Ready),
        20 => node.clone().prop_map(Event::Obey),
        1 => (node.clone(), node.clone()).prop_map(|(a, b)| Event::Break(a, b)),
        1 => Just(Event::Mend),
        1 => node.prop_map(Event::Renew),
        3 => (0..400i64).prop_map(Event::Time),
        12 => Just(Event::Look(NODES)),
        4 => (0..NODES).prop_map(Event::Look),
        2 => Just(Event::ReadNetwork),
        2 => Just(Event::ReadNodes),
        2 => (0..=NODES).prop_map(Event::Wake),
    ]
}

struct Model {
    world: World,
    versions: Vec<u64>,
    other: Caches,
}

impl Model {
    fn caches(&self) -> Caches {
        Caches {
            network: self.world.network.clone(),
            nodes: self.world.nodes.clone(),
            versions: self.versions.clone(),
            now: self.world.now,
        }
    }

    fn take(&mut self, step: Event) -> Result<(), TestCaseError> {
        let world = &mut self.world;
        let rollout = &mut world.network.rollout;
        let touched = match step {
            Event::Mode(mode) => {
                world.network.mode = mode;
                None
            }
            Event::Pause => {
                rollout.paused = !rollout.paused;
                None
            }
            Event::Keep => {
                rollout.failed_pairs = match rollout.failed_pairs {
                    FailedPairs::Keep => FailedPairs::Stop,
                    FailedPairs::Stop => FailedPairs::Keep,
                };
                None
            }
            Event::Canary(true) => {
                world.canaries(&[1, 2]);
                None
            }
            Event::Canary(false) => {
                rollout.canary = None;
                None
            }
            Event::MaxConcurrent(most) => {
                rollout.max_concurrent = most;
                None
            }
            Event::Ready(node) => {
                let absent = &mut world.nodes[node].absent;
                *absent = absent.is_none().then_some(AWAY);
                None
            }
            Event::Obey(node) => {
                world.obey(node);
                Some(node)
            }
            Event::Break(from, to) => {
                world.broken.insert((from, to));
                None
            }
            Event::Mend => {
                world.broken.clear();
                None
            }
            Event::Renew(node) => {
                world.nodes[node] = Member {
                    name: world.nodes[node].name.clone(),
                    canary: world.nodes[node].canary,
                    absent: Some(AWAY),
                    ..Member::default()
                };
                Some(node)
            }
            Event::Time(seconds) => {
                world.now += seconds;
                None
            }
            Event::Look(tells) => {
                let fresh = self.caches();
                return self.lead(&fresh, tells);
            }
            Event::ReadNetwork => {
                self.other.network = self.world.network.clone();
                None
            }
            Event::ReadNodes => {
                self.other.nodes.clone_from(&self.world.nodes);
                self.other.versions.clone_from(&self.versions);
                None
            }
            Event::Wake(tells) => {
                self.other.now = self.world.now;
                let old = self.other.clone();
                return self.lead(&old, tells);
            }
        };
        if let Some(node) = touched {
            self.versions[node] += 1;
        }
        // Every change of the ClusterNetwork's spec is a new version of it.
        if matches!(
            step,
            Event::Mode(_)
                | Event::Pause
                | Event::Keep
                | Event::Canary(_)
                | Event::MaxConcurrent(_)
        ) {
            self.world.network.version += 1;
        }
        Ok(())
    }

    /// A leader that sees `caches` writes the status and tells `tells` nodes.
    fn lead(&mut self, caches: &Caches, tells: usize) -> Result<(), TestCaseError> {
        let seen = &caches.network;
        let plan = seen.plan(&caches.nodes, caches.now);
        let written = seen.written(&plan);
        let changes = (
            &written.current,
            written.active,
            written.since,
            written.began,
        ) != (&seen.current, seen.active, seen.since, seen.began);
        if changes {
            if self.world.network.version != seen.version {
                return Ok(()); // Another writer was first.
            }
            judge_status(caches, &plan)?;
            let present = self.world.network.current.as_ref();
            prop_assert!(
                present.is_none_or(|p| key(p) <= key(&plan.epoch)),
                "{plan:?}"
            );
            self.world.network = self.world.network.written(&plan);
            self.world.network.version += 1;
        }
        for (i, (_, order)) in plan.orders.iter().enumerate().take(tells) {
            if caches.nodes[i].told.as_ref() == Some(order) {
                continue;
            }
            if self.versions[i] != caches.versions[i] {
                continue; // Another writer was first.
            }
            judge_order(caches, &plan, i, order)?;
            let present = self.world.nodes[i].told.as_ref();
            prop_assert!(
                present.is_none_or(|p| key(p) <= key(order)),
                "{present:?} {order:?}"
            );
            self.world.nodes[i].told = Some(order.clone());
            self.versions[i] += 1;
        }
        // Counted where all were told, by what this leader could see.
        let most = usize::try_from(seen.rollout.max_concurrent).unwrap();
        let before = EpochProgress::new(&plan.epoch, &caches.nodes);
        let mut told = caches.nodes.clone();
        for (member, (_, order)) in told.iter_mut().zip(&plan.orders) {
            member.told = Some(order.clone());
        }
        let after = EpochProgress::new(&plan.epoch, &told).switching();
        prop_assert!(
            most == 0 || after <= most.max(before.switching()),
            "{plan:?}"
        );
        Ok(())
    }
}

/// The cluster's epoch only goes forward, and no further than its nodes let it.
fn judge_status(caches: &Caches, plan: &Plan) -> Result<(), TestCaseError> {
    let Some(last) = &caches.network.current else {
        return Ok(());
    };
    let now = &plan.epoch;
    prop_assert!(key(now) >= key(last), "{last:?} → {now:?}");
    if now.number > last.number || now.phase == last.phase {
        return Ok(());
    }
    prop_assert!(!caches.network.rollout.paused);
    let view = EpochProgress::new(last, &caches.nodes);
    for peer in view.ready() {
        prop_assert!(
            view.done(peer, last.phase),
            "{peer:?} has not done {last:?}"
        );
    }
    if matches!(last.phase, Phase::Preflight | Phase::Switch)
        && caches.network.rollout.failed_pairs == FailedPairs::Stop
    {
        prop_assert!(!view.ready().any(|m| view.fails(m)), "{plan:?}");
    }
    if now.phase == Phase::Finalize {
        for peer in &caches.nodes {
            let switched = |a: &Epoch| same(a, now) && a.phase >= Phase::Switch;
            prop_assert!(
                peer.ready() && peer.applied.as_ref().is_some_and(switched),
                "{peer:?}"
            );
        }
    }
    Ok(())
}

/// No node is told to send in a form that a ready node has not agreed to accept,
/// none to stop accepting one that another still sends, and none to go back.
fn judge_order(
    caches: &Caches,
    plan: &Plan,
    node: usize,
    order: &Epoch,
) -> Result<(), TestCaseError> {
    let (epoch, member) = (&plan.epoch, &caches.nodes[node]);
    let view = EpochProgress::new(epoch, &caches.nodes);
    let told = member.told.as_ref().filter(|t| same(t, epoch));
    prop_assert!(order.phase <= epoch.phase && order.attempt <= epoch.attempt);
    prop_assert!(told.is_none_or(|t| (t.phase, t.attempt) <= (order.phase, order.attempt)));
    if order::arrived(member.applied.as_ref(), epoch) {
        return Ok(());
    }
    let last = view.last_done(member);
    let follows = order.phase <= last.map_or(Phase::Preflight, next);
    prop_assert!(
        follows || told.is_some_and(|t| t.phase == order.phase),
        "{member:?} {order:?}"
    );
    let enters = order.phase == Phase::Switch && told.is_none_or(|t| t.phase < Phase::Switch);
    if !enters || view.done(member, Phase::Switch) {
        return Ok(());
    }
    prop_assert!(member.ready());
    for peer in view.ready() {
        prop_assert!(
            view.done(peer, Phase::Prepare),
            "{peer:?} is not prepared: {order:?}"
        );
    }
    if epoch.phase == Phase::Switch && caches.network.rollout.canary.is_some() && !member.canary {
        let canaries: Vec<_> = view.ready().filter(|m| m.canary).collect();
        let switched = canaries.iter().all(|m| view.done(m, Phase::Switch));
        prop_assert!(!canaries.is_empty() && switched, "{canaries:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens, every write of every leader is sound by what it could
    /// see and the API server let it write; and when things are well again, the
    /// cluster gets to where the user wants it.
    #[test]
    fn a_change_is_sound_through_any_deaths_and_ends(
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut world = World::new(NODES);
        world.settle();
        let other = Caches {
            network: world.network.clone(),
            nodes: world.nodes.clone(),
            versions: vec![0; NODES],
            now: world.now,
        };
        let mut model = Model { world, versions: vec![0; NODES], other };
        for step in steps {
            model.take(step)?;
        }
        for node in 0..NODES {
            model.world.set_ready(node, true);
        }
        model.world.broken.clear();
        model.world.network.rollout = RolloutPolicy {
            max_concurrent: model.world.network.rollout.max_concurrent,
            ..RolloutPolicy::default()
        };
        for _ in 0..40 {
            let fresh = model.caches();
            model.lead(&fresh, NODES)?;
            model.world.all_obey();
            model.world.now += 400;
        }
        let plan = model.world.look();
        let seen = (plan.epoch.phase, plan.active, plan.done, plan.failed_count);
        let wanted = (Phase::Ready, model.world.network.mode, 4, 0);
        prop_assert_eq!(seen, wanted, "{:?}\n{:?}", plan, model.world.nodes);
    }
}
