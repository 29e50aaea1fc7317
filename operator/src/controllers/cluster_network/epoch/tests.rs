//! Scenarios of [`super::plan`].

use super::world::{AWAY, World};
use super::*;

fn phase_of(plan: &Plan) -> (i64, Phase, i32) {
    (plan.epoch.number, plan.epoch.phase, plan.epoch.attempt)
}

#[test]
fn a_new_cluster_begins_finished_in_the_mode_asked_for() {
    let plan = World::new(3).look();
    assert_eq!(phase_of(&plan), (1, Phase::Ready, 0));
    assert_eq!(
        (plan.epoch.mode, plan.active),
        (RoutingMode::Tunnel, RoutingMode::Tunnel)
    );
    assert!(plan.orders.iter().all(|(_, order)| *order == plan.epoch));
}

#[test]
fn every_step_waits_for_the_last_ready_node() {
    for mode in [RoutingMode::Native, RoutingMode::Hybrid] {
        let mut world = World::asked_for_native(3);
        world.network.mode = mode;
        for phase in [
            Phase::Preflight,
            Phase::Prepare,
            Phase::Switch,
            Phase::Finalize,
        ] {
            let plan = world.look();
            assert_eq!(phase_of(&plan), (2, phase, 0));
            assert!(plan.orders.iter().all(|(_, order)| *order == plan.epoch));
            world.obey(0);
            world.obey(1);
            let plan = world.look();
            assert_eq!((plan.epoch.phase, plan.done), (phase, 2));
            let awaited: Vec<_> = plan.awaited.iter().map(|a| a.node.as_str()).collect();
            assert_eq!(awaited, ["n2"]);
            let moved = phase > Phase::Switch;
            assert_eq!(plan.active, if moved { mode } else { RoutingMode::Tunnel });
            world.obey(2);
        }
        let done = world.settle();
        assert_eq!(phase_of(&done), (2, Phase::Ready, 0));
        assert_eq!((done.active, done.done), (mode, 3));
    }
}

#[test]
fn turning_round_in_any_phase_makes_a_higher_number_that_begins_with_probes() {
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
    ] {
        let mut world = World::asked_for_native(2);
        world.until(phase);
        world.obey(0);
        world.network.mode = RoutingMode::Tunnel;
        let plan = world.look();
        assert_eq!(phase_of(&plan), (3, Phase::Preflight, 0), "{phase:?}");
        let done = world.settle();
        assert_eq!(
            (done.epoch.phase, done.active),
            (Phase::Ready, RoutingMode::Tunnel)
        );
    }
}

#[test]
fn a_node_that_was_away_follows_step_by_step_and_holds_up_finalize_only() {
    let mut world = World::asked_for_native(3);
    world.set_ready(2, false);
    let plan = world.settle();
    assert_eq!(
        (plan.epoch.phase, plan.active),
        (Phase::Switch, RoutingMode::Native)
    );
    let excluded = NodeReason {
        node: "n2".into(),
        reason: AWAY.into(),
    };
    assert_eq!((plan.excluded, plan.counts.excluded), (vec![excluded], 1));
    world.set_ready(2, true);
    let mut seen = Vec::new();
    for _ in 0..8 {
        world.look();
        world.all_obey();
        seen.push(world.nodes[2].told.as_ref().unwrap().phase);
    }
    seen.dedup();
    assert_eq!(
        seen,
        [
            Phase::Preflight,
            Phase::Prepare,
            Phase::Switch,
            Phase::Finalize,
            Phase::Ready
        ]
    );
}

#[test]
fn where_no_node_is_ready_no_step_is_taken() {
    let mut world = World::asked_for_native(2);
    world.look();
    world.set_ready(0, false);
    world.set_ready(1, false);
    assert_eq!(world.settle().epoch.phase, Phase::Preflight);
}

#[test]
fn a_paused_rollout_stays_where_it_is_in_every_phase() {
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
    ] {
        let mut world = World::asked_for_native(2);
        world.until(phase);
        world.network.rollout.paused = true;
        assert_eq!(phase_of(&world.settle()), (2, phase, 0));
        world.network.rollout.paused = false;
        assert_eq!(world.settle().epoch.phase, Phase::Ready);
    }
}

#[test]
fn a_pause_between_canaries_and_others_leaves_the_others_alone() {
    let mut world = World::asked_for_native(3);
    world.canaries(&[1]);
    world.until(Phase::Switch);
    world.network.rollout.paused = true;
    world.settle();
    assert_eq!(world.told_to_switch(), ["n1"]);
    world.network.rollout.paused = false;
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn canaries_switch_first_and_the_others_once_all_of_them_have() {
    let mut world = World::asked_for_native(4);
    world.canaries(&[1, 3]);
    world.until(Phase::Switch);
    assert_eq!(world.told_to_switch(), ["n1", "n3"]);
    world.obey(3);
    world.look();
    assert_eq!(world.told_to_switch(), ["n1", "n3"]);
    world.obey(1);
    world.look();
    assert_eq!(world.told_to_switch().len(), 4);
}

#[test]
fn without_a_ready_canary_the_others_wait() {
    let mut world = World::asked_for_native(3);
    world.canaries(&[0]);
    world.set_ready(0, false);
    let plan = world.settle();
    assert_eq!((plan.epoch.phase, plan.lacks_canary), (Phase::Switch, true));
    assert!(world.told_to_switch().is_empty());
    world.set_ready(0, true);
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn at_most_so_many_switch_at_once() {
    let mut world = World::asked_for_native(5);
    world.network.rollout.max_concurrent = 2;
    world.until(Phase::Switch);
    assert_eq!(world.told_to_switch(), ["n0", "n1"]);
    world.look();
    assert_eq!(world.told_to_switch(), ["n0", "n1"]);
    world.obey(1);
    world.look();
    assert_eq!(world.told_to_switch(), ["n0", "n1", "n2"]);
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn failed_pairs_stop_the_change_and_are_probed_again_with_growing_waits() {
    let mut world = World::asked_for_native(3);
    world.broken.extend([(0, 1), (1, 0)]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        let plan = world.settle();
        assert_eq!(plan.epoch.phase, Phase::Preflight);
        assert_eq!((plan.failed_count, plan.pairs), (2, 6));
        assert_eq!(
            (plan.failed[0].from.as_str(), plan.failed[0].to.as_str()),
            ("n0", "n1")
        );
        let due = plan.retry_at.unwrap().as_second();
        waits.push(due - world.now);
        world.now = due;
    }
    assert_eq!(waits, [15, 30, 60, 120, 240, 300, 300, 300]);
    // Those whose pairs all work are not asked again.
    assert_eq!(world.nodes[2].told.as_ref().unwrap().attempt, 0);
    assert_eq!(world.nodes[0].told.as_ref().unwrap().attempt, 7);

    world.broken.clear();
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn failed_pairs_that_are_to_be_kept_stop_nothing() {
    let mut world = World::asked_for_native(3);
    world.broken.insert((0, 1));
    world.network.rollout.failed_pairs = FailedPairs::Keep;
    let plan = world.settle();
    assert_eq!(phase_of(&plan), (2, Phase::Ready, 0));
    assert_eq!((plan.active, plan.failed_count), (RoutingMode::Native, 1));
}

#[test]
fn a_stopped_change_goes_on_when_the_user_says_keep_or_back() {
    let mut world = World::asked_for_native(3);
    world.broken.insert((0, 1));
    world.settle();
    let mut back = world.clone();
    world.network.rollout.failed_pairs = FailedPairs::Keep;
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
    back.network.mode = RoutingMode::Tunnel;
    back.broken.clear();
    assert_eq!(phase_of(&back.settle()), (3, Phase::Ready, 0));
}

#[test]
fn more_failed_pairs_than_a_report_names_are_counted_and_stop_the_change() {
    let mut world = World::asked_for_native(24);
    world.broken.extend((1..24).map(|to| (0, to)));
    let plan = world.settle();
    assert_eq!(
        (plan.epoch.phase, plan.failed_count),
        (Phase::Preflight, 23)
    );
    let report = world.nodes[0].probes.as_ref().unwrap();
    assert_eq!((report.failed_count, report.failed.len()), (23, 16));
    // Seven without a name may be these seven.
    for node in 17..24 {
        world.set_ready(node, false);
    }
    assert_eq!(world.look().failed_count, 16);
    world.set_ready(23, true);
    assert_eq!(world.look().failed_count, 17);
}

#[test]
fn a_node_on_which_no_agent_ever_ran_holds_no_phase_up() {
    let mut world = World::asked_for_native(3);
    world.set_ready(2, false);
    assert_eq!(world.settle().epoch.phase, Phase::Switch);
    world.nodes[2] = Member {
        name: "n2".into(),
        absent: Some(AWAY),
        bare: true,
        ..Member::default()
    };
    let plan = world.settle();
    assert_eq!((plan.epoch.phase, plan.counts.excluded), (Phase::Ready, 1));
    assert_eq!(plan.excluded[0].node, "n2");
    // When one comes to run there, it follows.
    world.set_ready(2, true);
    world.nodes[2].bare = false;
    assert_eq!(world.settle().done, 3);
}

#[test]
fn pairs_of_nodes_that_are_not_ready_stop_nothing() {
    let mut world = World::asked_for_native(3);
    world.broken.extend([(0, 2), (1, 2)]);
    world.set_ready(2, false);
    let plan = world.settle();
    assert_eq!((plan.epoch.phase, plan.failed_count), (Phase::Switch, 0));
}

#[test]
fn a_node_that_fell_back_is_named_and_tried_again_until_it_holds() {
    let mut world = World::asked_for_native(3);
    world.network.rollout.max_concurrent = 1;
    world.until(Phase::Switch);
    world.broken.insert((0, 2));
    let plan = world.settle();
    // Nobody else is told to switch meanwhile.
    assert_eq!(world.told_to_switch(), ["n0"]);
    assert_eq!(
        (plan.epoch.phase, plan.active),
        (Phase::Switch, RoutingMode::Tunnel)
    );
    assert_eq!(plan.fell_back[0].node, "n0");
    assert!(
        plan.fell_back[0].reason.contains("n2"),
        "{:?}",
        plan.fell_back
    );
    assert_eq!(plan.counts.failed, 1);
    let due = plan.retry_at.unwrap().as_second();
    // What the first wait is, and the time to confirm.
    assert_eq!(due - world.now, 15 + 30);
    world.now = due - 1;
    assert_eq!(world.settle().epoch.attempt, 0);
    world.now = due;
    assert_eq!(world.settle().epoch.attempt, 1);
    assert_eq!(world.nodes[0].applied.as_ref().unwrap().attempt, 1);
    world.broken.clear();
    world.now += 3600;
    let done = world.settle();
    assert_eq!(phase_of(&done), (2, Phase::Ready, 2));
    assert!(done.fell_back.is_empty());
}

#[test]
fn a_fall_back_that_is_to_be_kept_stops_nothing() {
    let mut world = World::asked_for_native(3);
    world.network.rollout.failed_pairs = FailedPairs::Keep;
    world.until(Phase::Switch);
    world.broken.insert((0, 2));
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn a_clock_that_was_ahead_delays_no_attempt() {
    let mut world = World::asked_for_native(2);
    world.broken.insert((0, 1));
    world.settle();
    world.now -= 7200;
    assert_eq!(world.look().epoch.attempt, 1);
}

#[test]
fn another_cluster_network_over_running_nodes_begins_above_their_numbers() {
    let mut world = World::asked_for_native(2);
    world.settle();
    world.network.current = None;
    world.network.active = None;
    world.network.mode = RoutingMode::Tunnel;
    let plan = world.look();
    assert_eq!(phase_of(&plan), (3, Phase::Preflight, 0));
    assert_eq!(plan.active, RoutingMode::Native);
}

#[test]
fn a_status_restored_from_before_a_change_gives_way_to_what_nodes_have_done() {
    let mut world = World::asked_for_native(3);
    let before = world.clone();
    world.settle();
    // Of status and orders nothing is left; the nodes report what they did.
    world.network = before.network;
    world.network.mode = RoutingMode::Tunnel;
    for (node, old) in world.nodes.iter_mut().zip(&before.nodes) {
        node.told.clone_from(&old.told);
    }
    let plan = world.look();
    assert_eq!(phase_of(&plan), (3, Phase::Preflight, 0));
    assert_eq!(phase_of(&world.settle()), (3, Phase::Ready, 0));
}

#[test]
fn a_number_that_no_lost_change_explains_is_believed_by_nobody() {
    for lie in [1_000_000, i64::MAX] {
        let mut world = World::new(3);
        let before = world.settle().epoch;
        world.nodes[1].applied.as_mut().unwrap().number = lie;
        assert_eq!(world.look().epoch, before);
        world.network.mode = RoutingMode::Native;
        assert_eq!(world.look().epoch.number, before.number + 1);
    }
}

#[test]
fn a_node_that_joins_is_told_where_a_finished_cluster_is() {
    let mut world = World::new(2);
    world.settle();
    let new = Member {
        name: "new".into(),
        absent: Some(AWAY),
        ..Member::default()
    };
    world.nodes.push(new);
    let plan = world.look();
    assert_eq!(plan.orders[2].1, plan.epoch);
}

#[test]
fn a_node_that_joins_during_a_change_takes_every_step() {
    let mut world = World::asked_for_native(2);
    world.until(Phase::Switch);
    let new = Member {
        name: "new".into(),
        ..Member::default()
    };
    world.nodes.push(new);
    let plan = world.look();
    assert_eq!(plan.orders[2].1.phase, Phase::Preflight);
    // It is named as the one that the others wait for.
    let plan = world.look();
    let owing = plan.awaited.iter().find(|a| a.node == "new").unwrap();
    let owes = owing.owes.as_ref().map(|e| e.phase);
    assert_eq!((owes, owing.done), (Some(Phase::Preflight), None));
    assert_eq!(world.settle().epoch.phase, Phase::Ready);
}

#[test]
fn times_stay_while_nothing_happens() {
    let mut world = World::asked_for_native(2);
    let began = world.look();
    world.now += 100;
    let later = world.look();
    assert_eq!((began.since, began.began), (later.since, later.began));
    world.all_obey();
    let next = world.look();
    assert_eq!(next.epoch.phase, Phase::Prepare);
    assert_eq!(next.since.as_second(), world.now);
    assert_eq!(next.began, began.began);
}

#[test]
fn an_hour_without_an_operator_harms_nothing() {
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
    ] {
        let mut world = World::asked_for_native(3);
        world.until(phase);
        world.obey(1);
        world.now += 3600;
        assert_eq!(phase_of(&world.look()), (2, phase, 0));
        assert_eq!(phase_of(&world.settle()), (2, Phase::Ready, 0));
    }
    // An attempt long due is made once, and the next waits as ever.
    let mut world = World::asked_for_native(3);
    world.broken.insert((0, 1));
    world.settle();
    world.now += 3600;
    let plan = world.settle();
    assert_eq!(phase_of(&plan), (2, Phase::Preflight, 1));
    assert_eq!(plan.retry_at.unwrap().as_second() - world.now, 30);
}
