//! Scenarios of [`super::plan`], with nodes that acknowledge what they are told.

use proptest::prelude::*;

use super::*;

/// A cluster that the plan is tried on.
struct World {
    current: Option<Epoch>,
    active: Option<RoutingMode>,
    mode: RoutingMode,
    paused: bool,
    nodes: Vec<Member>,
}

impl World {
    fn new(count: usize) -> Self {
        let node = |i| Member {
            name: format!("n{i}"),
            ready: true,
            ..Member::default()
        };
        Self {
            current: None,
            active: None,
            mode: RoutingMode::Tunnel,
            paused: false,
            nodes: (0..count).map(node).collect(),
        }
    }

    /// The operator looks once.
    fn look(&mut self) -> Plan {
        let wish = Wish {
            uid: "uid",
            mode: self.mode,
            paused: self.paused,
            current: self.current.as_ref(),
            active: self.active,
        };
        let plan = plan(&wish, &self.nodes);
        self.current = Some(plan.epoch.clone());
        self.active = Some(plan.active);
        for (node, (_, order)) in self.nodes.iter_mut().zip(&plan.orders) {
            node.told = Some(order.clone());
        }
        plan
    }

    /// A node's agent does what it was told.
    fn obey(&mut self, node: usize) {
        self.nodes[node].applied = self.nodes[node].told.clone();
    }

    fn settle(&mut self) -> Plan {
        for _ in 0..20 {
            self.look();
            for node in 0..self.nodes.len() {
                if self.nodes[node].ready {
                    self.obey(node);
                }
            }
        }
        self.look()
    }
}

#[test]
fn a_new_cluster_begins_finished_in_the_mode_asked_for() {
    let plan = World::new(3).look();
    assert_eq!((plan.epoch.number, plan.epoch.phase), (1, Phase::Ready));
    assert_eq!(
        (plan.epoch.mode, plan.active),
        (RoutingMode::Tunnel, RoutingMode::Tunnel)
    );
    assert!(plan.orders.iter().all(|(_, order)| *order == plan.epoch));
}

#[test]
fn a_step_waits_for_the_last_ready_node() {
    let mut world = World::new(3);
    world.settle();
    world.mode = RoutingMode::Native;
    assert_eq!(world.look().epoch.phase, Phase::Prepare);
    world.obey(0);
    world.obey(1);
    let plan = world.look();
    assert_eq!(plan.epoch.phase, Phase::Prepare);
    assert_eq!(plan.awaited, ["n2"]);
    assert_eq!(plan.active, RoutingMode::Tunnel);
    world.obey(2);
    assert_eq!(world.look().epoch.phase, Phase::Switch);
    let done = world.settle();
    assert_eq!((done.epoch.phase, done.epoch.number), (Phase::Ready, 2));
    assert_eq!(done.active, RoutingMode::Native);
}

#[test]
fn turning_round_half_way_makes_a_higher_number() {
    let mut world = World::new(2);
    world.settle();
    world.mode = RoutingMode::Native;
    world.look();
    world.obey(0);
    world.mode = RoutingMode::Tunnel;
    let plan = world.look();
    assert_eq!((plan.epoch.number, plan.epoch.phase), (3, Phase::Prepare));
    assert_eq!(world.settle().active, RoutingMode::Tunnel);
}

#[test]
fn a_node_that_was_away_follows_step_by_step_and_holds_up_finalize_only() {
    let mut world = World::new(3);
    world.settle();
    world.nodes[2].ready = false;
    world.mode = RoutingMode::Native;
    let plan = world.settle();
    assert_eq!(
        (plan.epoch.phase, plan.active),
        (Phase::Switch, RoutingMode::Native)
    );
    assert_eq!(
        (plan.excluded, plan.counts.excluded),
        (vec!["n2".to_owned()], 1)
    );
    world.nodes[2].ready = true;
    let mut seen = Vec::new();
    for _ in 0..8 {
        world.look();
        for node in 0..3 {
            world.obey(node);
        }
        seen.push(world.nodes[2].applied.as_ref().unwrap().phase);
    }
    seen.dedup();
    assert_eq!(
        seen,
        [Phase::Prepare, Phase::Switch, Phase::Finalize, Phase::Ready]
    );
}

#[test]
fn a_paused_rollout_stays_where_it_is() {
    let mut world = World::new(2);
    world.settle();
    world.mode = RoutingMode::Native;
    world.look();
    world.paused = true;
    let plan = world.settle();
    assert_eq!((plan.epoch.number, plan.epoch.phase), (2, Phase::Prepare));
}

#[test]
fn another_cluster_network_over_running_nodes_begins_above_their_numbers() {
    let mut world = World::new(2);
    world.settle();
    world.mode = RoutingMode::Native;
    world.settle();
    world.current = None;
    world.active = None;
    world.mode = RoutingMode::Tunnel;
    let plan = world.look();
    assert_eq!((plan.epoch.number, plan.epoch.phase), (3, Phase::Prepare));
}

#[test]
fn a_node_that_joins_late_is_told_where_the_others_are() {
    let mut world = World::new(2);
    world.settle();
    world.nodes.push(Member {
        name: "new".into(),
        ready: false,
        ..Member::default()
    });
    let plan = world.look();
    assert_eq!(plan.orders[2].1, plan.epoch);
}

proptest! {
    /// Agents that act in any order, nodes that come and go, a user who changes
    /// his mind: no node is told to send in a form that a ready node has not
    /// agreed to accept, and none to stop accepting one that another still sends.
    #[test]
    fn no_node_sends_what_a_ready_node_does_not_accept(
        steps in proptest::collection::vec((0usize..4, 0u8..10), 1..200),
    ) {
        let mut world = World::new(4);
        world.settle();
        for (node, what) in steps {
            match what {
                0 => world.mode = RoutingMode::Tunnel,
                1 => world.mode = RoutingMode::Native,
                2 => world.nodes[node].ready = !world.nodes[node].ready,
                3..=6 => world.obey(node),
                _ => {
                    let (before, last) = (world.nodes.clone(), world.current.clone().unwrap());
                    let plan = world.look();
                    let now = &plan.epoch;
                    prop_assert!(now.number >= last.number);
                    let moved = now.number == last.number && now.phase > last.phase;
                    for peer in before.iter().filter(|_| moved) {
                        if now.phase == Phase::Switch {
                            prop_assert!(!peer.ready || acknowledged(peer, now, Phase::Prepare));
                        }
                        if now.phase == Phase::Finalize {
                            prop_assert!(peer.ready && acknowledged(peer, now, Phase::Switch));
                        }
                    }
                    for (member, (_, order)) in before.iter().zip(&plan.orders) {
                        let done = member.applied.as_ref().filter(|a| same(a, now));
                        let (first, done) = (Phase::Prepare, done.map(|a| a.phase));
                        let stayed = member.applied.as_ref().is_some_and(|a| arrived(a, now));
                        let told = member.told.as_ref().filter(|t| same(t, now)).map(|t| t.phase);
                        prop_assert!(order.phase <= now.phase);
                        prop_assert!(
                            order.phase <= done.map_or(first, next)
                                || Some(order.phase) == told
                                || stayed
                        );
                    }
                }
            }
        }
        for node in &mut world.nodes {
            node.ready = true;
        }
        let plan = world.settle();
        prop_assert_eq!((plan.epoch.phase, plan.active), (Phase::Ready, world.mode));
    }
}
