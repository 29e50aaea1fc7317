//! Scenarios of [`super::Pairs`].

use super::*;

const SECOND: u64 = 1_000_000_000;

fn epoch(number: i64, attempt: i32, phase: Phase) -> Epoch {
    Epoch {
        cluster_network_uid: "c".into(),
        number,
        mode: RoutingMode::Native,
        phase,
        attempt,
    }
}

/// A node with two peers, which the pairs are tried on.
struct World {
    pairs: Pairs,
    peers: Vec<Peer>,
    step: RoutingStep,
    now: u64,
}

impl World {
    fn new(phase: Phase) -> Self {
        let peer = |name: &str| Peer {
            name: name.into(),
            health: vec!["10.1.1.1".parse().unwrap()],
            target: Some(Form::Native),
            no_path: None,
            blind: None,
            entry: Remote {
                form: Form::Tunnel.byte(),
                ..Remote::default()
            },
            mtu: Mtu::ETHERNET,
            accepts: true,
            applied: None,
        };
        let mut world = Self {
            pairs: Pairs::default(),
            peers: vec![peer("b"), peer("c")],
            step: RoutingStep {
                tunnel_mtu: Mtu::new(1450).unwrap(),
                native_mtu: Mtu::ETHERNET,
                ..RoutingStep::default()
            },
            now: 100 * SECOND,
        };
        world.enter(epoch(2, 0, phase));
        world
    }

    fn enter(&mut self, epoch: Epoch) {
        self.pairs.enter(Some(&epoch));
        self.step.epoch = Some(epoch);
    }

    fn asks(&mut self) -> Vec<Ask> {
        self.pairs.asks(PairInputs {
            peers: &self.peers,
            step: &self.step,
            now: self.now,
        })
    }

    /// Those are silent, by their names or by addresses.
    fn answer(&mut self, asks: Vec<Ask>, silent: &[&str]) {
        let answers = asks.into_iter().map(|ask| {
            let is = |what: &&str| *what == ask.node || *what == ask.to.to_string();
            let outcome = if silent.iter().any(is) {
                Err("silent".to_owned())
            } else {
                Ok(())
            };
            Answer { ask, outcome }
        });
        let answers = answers.collect();
        let inputs = PairInputs {
            peers: &self.peers,
            step: &self.step,
            now: self.now,
        };
        self.pairs.take(self.pairs.round, answers, inputs);
    }

    fn settle(&mut self) -> bool {
        self.pairs.settle(PairInputs {
            peers: &self.peers,
            step: &self.step,
            now: self.now,
        })
    }

    fn expire(&mut self) -> Vec<String> {
        self.pairs.expire(PairInputs {
            peers: &self.peers,
            step: &self.step,
            now: self.now,
        })
    }

    fn report(&self) -> Option<ProbeReport> {
        self.pairs.report(PairInputs {
            peers: &self.peers,
            step: &self.step,
            now: self.now,
        })
    }

    /// The pair has been switched and waits to be confirmed.
    fn switched(&mut self, peer: usize) {
        self.peers[peer].entry = Remote {
            form: Form::Native.byte(),
            previous_form: Form::Tunnel.byte(),
            revert_at: self.now + 30 * SECOND,
            epoch: 2,
            ..Remote::default()
        };
    }
}

#[test]
fn preflight_is_done_when_every_peer_was_probed_whatever_came_of_it() {
    let mut world = World::new(Phase::Preflight);
    assert!(!world.settle());
    assert_eq!(world.report(), None);
    let asks = world.asks();
    let asked: Vec<(&str, Form, u32)> = asks
        .iter()
        .map(|a| (a.node.as_str(), a.form, a.full.get()))
        .collect();
    assert_eq!(
        asked,
        [("b", Form::Native, 1500), ("c", Form::Native, 1500)]
    );
    world.answer(asks, &["c"]);
    assert!(world.settle());
    let report = world.report().unwrap();
    assert_eq!((report.number, report.attempt, report.passed), (2, 0, 1));
    assert_eq!(report.failed[0].node, "c");
    assert!(world.asks().is_empty());
    assert!(world.pairs.any_kept(|_| true));
    // c was taken out of the cluster.
    assert!(!world.pairs.any_kept(|name| name != "c"));
}

#[test]
fn a_peer_without_a_path_fails_without_being_asked() {
    let mut world = World::new(Phase::Preflight);
    world.peers[1].target = None;
    assert_eq!(world.asks().len(), 1);
    assert!(world.pairs.trouble("c").unwrap().contains("no path"));
}

#[test]
fn a_raised_attempt_asks_again_where_it_failed_and_nowhere_else() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &["c"]);
    world.settle();
    world.enter(epoch(2, 1, Phase::Preflight));
    assert_eq!(world.report(), None);
    let asks = world.asks();
    assert_eq!((asks.len(), asks[0].node.as_str()), (1, "c"));
    world.answer(asks, &[]);
    assert!(world.settle());
    assert_eq!(world.report().unwrap().attempt, 1);
    world.enter(epoch(3, 0, Phase::Preflight));
    assert_eq!(world.asks().len(), 2);
}

#[test]
fn answers_to_an_earlier_attempt_say_nothing() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    let round = world.pairs.round;
    world.enter(epoch(3, 0, Phase::Preflight));
    let late = asks.into_iter().map(|ask| Answer {
        ask,
        outcome: Ok(()),
    });
    let inputs = PairInputs {
        peers: &world.peers,
        step: &world.step,
        now: world.now,
    };
    world.pairs.take(round, late.collect(), inputs);
    assert!(!world.settle());
}

#[test]
fn a_switched_pair_is_asked_until_it_answers_and_then_confirmed() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &[]);
    world.enter(epoch(2, 0, Phase::Switch));
    assert!(!world.settle(), "both have still to be switched");
    world.switched(0);
    world.switched(1);
    assert!(!world.settle(), "both have still to be confirmed");
    for silent in [&["b"][..], &[]] {
        let asks = world.asks();
        assert!(asks.iter().all(|a| a.confirms));
        world.answer(asks, silent);
    }
    assert_eq!(world.pairs.view("b").confirmed, Some(Form::Native));
    for peer in &mut world.peers {
        peer.entry.revert_at = 0;
    }
    assert!(world.settle());
    assert!(world.expire().is_empty());
    assert_eq!(world.report().unwrap().passed, 2);
}

#[test]
fn a_pair_not_confirmed_in_time_fell_back_and_stays_so_until_the_next_attempt() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &[]);
    world.enter(epoch(2, 0, Phase::Switch));
    world.switched(0);
    world.switched(1);
    world.peers[1].entry.revert_at = 0;
    world.now += 31 * SECOND;
    assert_eq!(world.expire(), ["b"]);
    world.peers[0].entry = Remote {
        form: Form::Tunnel.byte(),
        ..Remote::default()
    };
    assert!(world.settle());
    let report = world.report().unwrap();
    assert_eq!(report.fell_back[0].node, "b");
    assert!(world.asks().is_empty());
    world.enter(epoch(2, 1, Phase::Switch));
    assert!(!world.settle());
    let asks = world.asks();
    assert_eq!((asks.len(), asks[0].node.as_str()), (1, "b"));
}

#[test]
fn a_change_of_an_earlier_epoch_that_runs_out_is_not_this_ones_failure() {
    let mut world = World::new(Phase::Switch);
    world.switched(0);
    world.enter(epoch(3, 0, Phase::Preflight));
    world.now += 31 * SECOND;
    assert!(world.expire().is_empty());
    assert_eq!(world.pairs.trouble("b"), None);
}

#[test]
fn a_peer_that_is_not_prepared_holds_nothing_up_and_follows_later() {
    let mut world = World::new(Phase::Switch);
    let asks = world.asks();
    world.answer(asks, &["c"]);
    world.peers[0].accepts = false;
    assert!(world.settle());
    world.peers[0].accepts = true;
    assert!(!world.settle());
    // The one that failed is asked again at once when it says something new.
    assert!(world.asks().is_empty());
    world.peers[1].applied = Some(epoch(2, 0, Phase::Prepare));
    assert_eq!(world.asks()[0].node, "c");
}

#[test]
fn what_is_kept_on_disk_is_what_a_new_agent_goes_on_with() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &["c"]);
    world.settle();
    let text = serde_json::to_string(&world.pairs).unwrap();
    let mut again: Pairs = serde_json::from_str(&text).unwrap();
    assert!(again == world.pairs);
    assert!(!again.enter(world.step.epoch.as_ref()));
    world.pairs = again;
    assert_eq!(world.report().unwrap().failed.len(), 1);
}

#[test]
fn a_node_that_is_gone_is_forgotten() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &["b", "c"]);
    world.pairs.retain(|name| name == "b");
    assert_eq!(world.pairs.trouble("c"), None);
}

#[test]
fn a_peer_whose_answer_would_be_this_nodes_own_is_not_asked() {
    let mut world = World::new(Phase::Preflight);
    world.peers[0].blind = Some("cni0 has it too".into());
    world.peers[1].target = None;
    world.peers[1].no_path = Some("wg0 has no program".into());
    assert!(world.asks().is_empty());
    let troubles = world.pairs.troubles();
    let all: Vec<&String> = troubles.values().collect();
    assert_eq!(all, ["cni0 has it too", "wg0 has no program"]);
}

const V6: &str = "fd00:1::1";

/// All peers have pods of both families.
fn dual(phase: Phase) -> World {
    let mut world = World::new(phase);
    for peer in &mut world.peers {
        peer.health.push(V6.parse().unwrap());
    }
    world
}

#[test]
fn a_pair_passes_in_all_its_families_and_a_failure_says_which_failed() {
    let v4 = "10.1.1.1";
    for (silent, expected) in [
        (&[][..], None),
        (&[V6], Some("IPv6: silent")),
        (&[v4], Some("IPv4: silent")),
        (&[v4, V6], Some("IPv4: silent; IPv6: silent")),
    ] {
        let mut world = dual(Phase::Preflight);
        let asks = world.asks();
        assert_eq!(asks.len(), 4, "two families of two peers");
        world.answer(asks, silent);
        assert!(world.settle());
        assert_eq!(world.pairs.trouble("b"), expected);
        let passed = world.pairs.view("b").passed;
        let both: Families = Family::ALL.into_iter().collect();
        assert_eq!(passed.cover(both), expected.is_none());
        let text = serde_json::to_string(&world.pairs).unwrap();
        let again: Pairs = serde_json::from_str(&text).unwrap();
        assert_eq!(again.view("b").passed, passed);
        assert!(again == world.pairs);
    }
}

#[test]
fn a_switched_pair_is_confirmed_when_it_answers_in_all_families() {
    let mut world = dual(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &[]);
    world.enter(epoch(2, 0, Phase::Switch));
    world.switched(0);
    world.switched(1);
    let asks = world.asks();
    world.answer(asks, &[V6]);
    assert_eq!(world.pairs.view("b").confirmed, None);
    let asks = world.asks();
    world.answer(asks, &[]);
    assert_eq!(world.pairs.view("b").confirmed, Some(Form::Native));
}

#[test]
fn what_is_known_of_pairs_of_ipv4_is_on_disk_as_the_former_release_has_it() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &["c"]);
    let text = serde_json::to_string(&world.pairs).unwrap();
    assert_eq!(
        text,
        r#"{"key":{"uid":"c","number":2,"attempt":0,"mode":"Native"},"found":{"b":"Passed","c":{"Failed":"silent"}},"complete":false}"#
    );
}

#[test]
fn a_pair_that_passed_is_probed_again_when_a_family_comes() {
    let mut world = World::new(Phase::Preflight);
    let asks = world.asks();
    world.answer(asks, &[]);
    world.enter(epoch(2, 0, Phase::Ready));
    world.peers[1].entry.form = Form::Native.byte();
    assert!(world.asks().is_empty());
    world.peers[0].health.push(V6.parse().unwrap());
    assert!(!world.settle());
    let asks = world.asks();
    assert!(asks.iter().all(|ask| ask.node == "b"));
    assert_eq!(asks.len(), 2);
    world.answer(asks, &[V6]);
    assert!(world.settle(), "what failed holds nothing up");
    assert_eq!(world.pairs.trouble("b"), Some("IPv6: silent"));
    world.now += AGAIN;
    let asks = world.asks();
    world.answer(asks, &[]);
    assert_eq!(world.pairs.trouble("b"), None);
    assert!(world.asks().is_empty());
}
