//! Scenarios of the desired state.

mod denied;
mod families;
mod peers_of;
mod scale;
mod unassigned;

use std::collections::HashMap;

use veer_bpf_common::tables::{FORM_NATIVE, FORM_TUNNEL, Remote};
use veer_crds::v1alpha1::{Epoch, Phase, RoutingMode};

use super::*;
use crate::{
    facts::{Path, Uplink},
    index::{Change, Event, NodeRecord, PodEndpointRow},
    peers::{Ids, Left, peers},
    switch::{self, Answer, Ask, Peer, step},
};

fn ip(s: &str) -> IpAddr {
    s.parse().unwrap()
}

fn net(length: u8, address: &str) -> PrefixKey {
    prefix(&IpNet::new(ip(address), length).unwrap())
}

fn node(name: &str, cidr: &str, address: &str) -> NodeRecord {
    NodeRecord {
        name: name.into(),
        pod_cidrs: vec![cidr.parse().unwrap()],
        addresses: vec![ip(address)],
        ..NodeRecord::default()
    }
}

fn epoch(number: i64, mode: RoutingMode, phase: Phase) -> Epoch {
    Epoch {
        cluster_network_uid: "c".into(),
        number,
        mode,
        phase,
        attempt: 0,
    }
}

/// The node's uplink.
const UPLINK: IfIndex = IfIndex::from_kernel(7);
/// Its tunnel device.
const TUNNEL: IfIndex = IfIndex::from_kernel(9);

fn facts() -> Facts {
    let hop = |a| Path {
        index: UPLINK,
        next_hop: ip(a),
        same_link: true,
    };
    Facts {
        primary: Some(ip("192.0.2.1")),
        addresses: vec![ip("192.0.2.1"), ip("198.51.100.1")],
        uplinks: vec![Uplink {
            name: "eth0".into(),
            index: UPLINK,
            mtu: Some(Mtu::ETHERNET),
            kind: String::new(),
            ethernet: true,
        }],
        vxlan_index: Some(TUNNEL),
        paths: HashMap::from([(ip("192.0.2.2"), hop("192.0.2.2"))]),
        ..Facts::default()
    }
}

/// Nanoseconds to confirm a switched pair in.
const CONFIRM: u64 = 30_000_000_000;

struct World {
    index: Index,
    store: Store,
    facts: Facts,
    ids: Ids,
    present: HashMap<u32, Remote>,
    pairs: Pairs,
    now: u64,
}

impl World {
    fn new() -> Self {
        let mut store = Store::new([], Vec::new());
        store.set_blocks(&["10.1.0.0/24".parse().unwrap()]);
        let mut index = Index::new("a");
        index.handle(Event::Node(Change::Snapshot(vec![
            node("a", "10.1.0.0/24", "192.0.2.1"),
            node("b", "10.1.1.0/24", "192.0.2.2"),
        ])));
        Self {
            index,
            store,
            facts: facts(),
            ids: Ids::default(),
            present: HashMap::new(),
            pairs: Pairs::default(),
            now: 1,
        }
    }

    /// The other node says that it has a pod there.
    fn pod_of_b(&mut self, address: &str) {
        let row = PodEndpointRow {
            key: "x/1".into(),
            node: "b".into(),
            addresses: vec![ip(address)],
            identity: 777,
            serial: 1,
            own: None,
        };
        self.index.handle(Event::Endpoint(Change::Apply(row)));
    }

    fn peer_applied(&mut self, applied: Epoch) {
        let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
        b.applied = Some(applied);
        self.index.handle(Event::Node(Change::Apply(b)));
    }

    /// The peer answers, or does not, in the form that the mode leads to; with
    /// `confirms` in the one that it has switched to.
    fn answers(&mut self, own: &Epoch, form: u8, confirms: bool, outcome: Result<(), String>) {
        self.answers_at(&["10.1.1.1"], own, form, confirms, outcome);
    }

    /// The same at these health addresses.
    fn answers_at(
        &mut self,
        health: &[&str],
        own: &Epoch,
        form: u8,
        confirms: bool,
        outcome: Result<(), String>,
    ) {
        self.pairs.enter(Some(own));
        let asks = health.iter().map(|to| Ask {
            node: "b".into(),
            to: ip(to),
            form: Form::of(form).unwrap(),
            full: Mtu::new(1450).unwrap(),
            confirms,
        });
        let peer = Peer {
            name: "b".into(),
            health: health.iter().map(|to| ip(to)).collect(),
            target: Form::of(form),
            no_path: None,
            blind: None,
            entry: Remote::default(),
            mtu: Mtu::ETHERNET,
            accepts: true,
            applied: None,
        };
        let answers = asks.zip(std::iter::repeat(outcome));
        let answers = answers.map(|(ask, outcome)| Answer { ask, outcome });
        let answers = answers.collect();
        let step = RoutingStep::default();
        let inputs = switch::PairInputs {
            peers: &[peer],
            step: &step,
            now: self.now,
        };
        self.pairs.take(self.pairs.round, answers, inputs);
    }

    fn desired(&mut self, own: Option<&Epoch>) -> Desired {
        let peers = peers(&self.index, &self.facts, &mut self.ids);
        self.pairs.enter(own);
        let step = step(
            own,
            Mtu::ETHERNET,
            50,
            None,
            self.pairs.any_kept(|_| true),
            CONFIRM,
        );
        let d = desired(DesiredInputs {
            index: &self.index,
            store: &self.store,
            facts: &self.facts,
            peers: &peers,
            step: &step,
            present: &self.present,
            pairs: &self.pairs,
            now: self.now,
            rows: true,
        });
        self.present.clone_from(&d.remotes);
        d
    }
}

#[test]
fn blocks_are_init_on_their_node_and_addresses_are_host_or_remote_node() {
    let mut world = World::new();
    let d = world.desired(None);
    let get = |length, a: &str| d.ipcache.get(&net(length, a)).copied();
    let entry = |identity, node_id| Some(IpcacheEntry { identity, node_id });
    assert_eq!(get(24, "10.1.0.0"), entry(Identity::INIT.get(), 1));
    assert_eq!(get(24, "10.1.1.0"), entry(Identity::INIT.get(), 2));
    assert_eq!(get(32, "192.0.2.1"), entry(Identity::HOST.get(), 1));
    assert_eq!(get(32, "198.51.100.1"), entry(Identity::HOST.get(), 1));
    assert_eq!(get(32, "192.0.2.2"), entry(Identity::REMOTE_NODE.get(), 2));
    assert_eq!(d.nodes.get(&IpKey::from(ip("192.0.2.2"))), Some(&2));
    assert_eq!(d.config.gateway_v4, [10, 1, 0, 1]);
    assert_eq!(d.config.block_bits_v4, 24);
    assert_eq!((d.config.tunnel_mtu, d.config.native_mtu), (1450, 1500));
}

#[test]
fn a_remote_pod_has_its_own_row_on_its_node() {
    let mut world = World::new();
    world.pod_of_b("10.1.1.9");
    let d = world.desired(None);
    assert_eq!(
        d.ipcache.get(&host_prefix(ip("10.1.1.9"))),
        Some(&IpcacheEntry {
            identity: 777,
            node_id: 2
        })
    );
}

#[test]
fn a_node_cannot_claim_a_pods_or_our_address_and_shared_ones_are_nobodys() {
    let mut world = World::new();
    let mut c = node("c", "10.1.2.0/24", "192.0.2.3");
    c.addresses
        .extend(["10.1.1.9", "192.0.2.1", "172.17.0.1", "192.0.2.2"].map(ip));
    let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
    b.addresses.push(ip("172.17.0.1"));
    for n in [b, c] {
        world.index.handle(Event::Node(Change::Apply(n)));
    }
    let d = world.desired(None);
    for address in ["10.1.1.9", "172.17.0.1"] {
        assert_eq!(d.nodes.get(&IpKey::from(ip(address))), None, "{address}");
    }
    assert_eq!(d.nodes.get(&IpKey::from(ip("192.0.2.1"))), Some(&1));
    assert_eq!(d.nodes.get(&IpKey::from(ip("192.0.2.2"))), Some(&2));
}

#[test]
fn health_addresses_are_the_nodes_and_nobody_elses() {
    let mut world = World::new();
    world.pod_of_b("10.1.1.1");
    let d = world.desired(None);
    let row = |a: &str| d.ipcache.get(&host_prefix(ip(a))).copied();
    let health = |node_id| {
        Some(IpcacheEntry {
            identity: Identity::HEALTH.get(),
            node_id,
        })
    };
    assert_eq!(row("10.1.0.1"), health(1));
    assert_eq!(row("10.1.1.1"), health(2));
    assert_eq!(d.nodes.get(&IpKey::from(ip("10.1.1.1"))), None);
}

#[test]
fn the_route_to_another_nodes_block_never_leaves_the_vxlan_device() {
    let mut world = World::new();
    let native = epoch(2, RoutingMode::Native, Phase::Ready);
    world.peer_applied(native.clone());
    world.answers(&native, FORM_NATIVE, false, Ok(()));
    for (own, mtu) in [(None, 1450), (Some(&native), 1500)] {
        let d = world.desired(own);
        let route = d
            .routes
            .iter()
            .find(|r| r.destination.to_string() == "10.1.1.0/24")
            .unwrap();
        assert_eq!(route.index, Some(TUNNEL));
        assert_eq!(route.gateway, Some(ip("192.0.2.2")));
        assert!(route.onlink);
        assert_eq!(route.mtu, Mtu::new(mtu));
    }
    let d = world.desired(None);
    let own = d.routes.iter().find(|r| r.unreachable).unwrap();
    assert_eq!(own.destination.to_string(), "10.1.0.0/24");
}

const T: u8 = FORM_TUNNEL;
const N: u8 = FORM_NATIVE;
const YES: u32 = Remote::ACCEPT_NATIVE;

#[test]
fn a_change_to_native_probes_accepts_sends_confirms_and_raises_the_mtu_last() {
    let mut world = World::new();
    let tunnel = epoch(1, RoutingMode::Tunnel, Phase::Ready);
    world.peer_applied(tunnel.clone());
    let mut seen = vec![world.desired(Some(&tunnel))];
    for phase in [
        Phase::Preflight,
        Phase::Prepare,
        Phase::Switch,
        Phase::Finalize,
        Phase::Ready,
    ] {
        let e = epoch(2, RoutingMode::Native, phase);
        world.peer_applied(epoch(2, RoutingMode::Native, Phase::Prepare));
        if phase == Phase::Preflight {
            world.answers(&e, N, false, Ok(()));
        }
        if phase == Phase::Finalize {
            world.answers(&e, N, true, Ok(()));
        }
        world.now += 1;
        seen.push(world.desired(Some(&e)));
    }
    let remotes: Vec<Remote> = seen.iter().map(|d| d.remotes[&2]).collect();
    let entries: Vec<(u8, u64, u32)> = remotes
        .iter()
        .map(|r| (r.form, r.revert_at, r.flags))
        .collect();
    let switched_at = 4;
    let expected = [
        (T, 0, 0),
        (T, 0, 0),
        (T, 0, YES),
        (N, switched_at + CONFIRM, YES),
        (N, 0, YES),
        (N, 0, YES),
    ];
    assert_eq!(entries, expected);
    let mtus: Vec<u32> = seen.iter().map(|d| d.mtu.get()).collect();
    assert_eq!(mtus, [1450, 1450, 1450, 1450, 1500, 1500]);
    // The next hop is there long before the form.
    assert!(remotes.iter().all(|r| r.ifindex == UPLINK.get()));
}

/// A cluster in Native, with its pair confirmed.
fn in_native() -> (World, Epoch) {
    let mut world = World::new();
    let native = epoch(2, RoutingMode::Native, Phase::Ready);
    world.peer_applied(native.clone());
    world.answers(&native, N, false, Ok(()));
    world.desired(Some(&native));
    world.answers(&native, N, true, Ok(()));
    world.desired(Some(&native));
    (world, native)
}

#[test]
fn a_change_back_keeps_the_form_until_switch_and_accepts_until_finalize() {
    let (mut world, _) = in_native();
    let mut got = Vec::new();
    for phase in [Phase::Prepare, Phase::Switch, Phase::Finalize] {
        let e = epoch(3, RoutingMode::Tunnel, phase);
        world.answers(&e, T, false, Ok(()));
        let d = world.desired(Some(&e));
        got.push((d.remotes[&2].form, d.remotes[&2].flags, d.mtu.get()));
    }
    assert_eq!(got, [(N, YES, 1450), (T, YES, 1450), (T, 0, 1450)]);
}

#[test]
fn a_pair_that_is_not_confirmed_has_its_old_form_back() {
    let mut world = World::new();
    let e = epoch(2, RoutingMode::Native, Phase::Switch);
    world.peer_applied(e.clone());
    world.answers(&e, N, false, Ok(()));
    assert_eq!(world.desired(Some(&e)).remotes[&2].form, N);
    world.now += CONFIRM;
    assert_eq!(world.desired(Some(&e)).remotes[&2].form, N);
    world.now += 1;
    world.answers(&e, N, false, Err("fell back".into()));
    let entry = world.desired(Some(&e)).remotes[&2];
    assert_eq!((entry.form, entry.revert_at), (T, 0));
}

#[test]
fn a_pair_that_fails_keeps_its_form_and_the_smaller_mtu_and_is_accepted_so() {
    // This node's probes fail: it goes on in the tunnel.
    let mut world = World::new();
    let e = epoch(2, RoutingMode::Native, Phase::Ready);
    world.peer_applied(e.clone());
    world.answers(&e, N, false, Err("no answer".into()));
    let d = world.desired(Some(&e));
    assert_eq!((d.remotes[&2].form, d.mtu.get()), (T, 1450));
    // The peer's probes fail on the way back: it goes on bare.
    let (mut world, _) = in_native();
    let e = epoch(3, RoutingMode::Tunnel, Phase::Ready);
    let mut b = node("b", "10.1.1.0/24", "192.0.2.2");
    b.keeps_form_to_us = Some(3);
    world.index.handle(Event::Node(Change::Apply(b)));
    world.answers(&e, T, false, Ok(()));
    let d = world.desired(Some(&e));
    assert_eq!((d.remotes[&2].form, d.remotes[&2].flags), (T, YES));
}

#[test]
fn a_peer_that_is_not_prepared_or_not_reachable_gets_the_tunnel() {
    let (mut world, own) = in_native();
    world.facts.paths.clear();
    assert_eq!(world.desired(Some(&own)).remotes[&2].form, T);
    let mut world = World::new();
    world.peer_applied(epoch(1, RoutingMode::Tunnel, Phase::Ready));
    world.answers(&own, N, false, Ok(()));
    let d = world.desired(Some(&own));
    assert_eq!(d.remotes[&2].form, T);
    let route = d.routes.iter().find(|r| r.onlink).unwrap();
    assert_eq!((route.mtu, d.mtu), (Mtu::new(1450), Mtu::ETHERNET));
}

#[test]
fn a_node_that_was_away_uses_the_tunnel_to_peers_that_take_nothing_else_now() {
    let (mut world, own) = in_native();
    world.peer_applied(epoch(3, RoutingMode::Tunnel, Phase::Ready));
    assert_eq!(world.desired(Some(&own)).remotes[&2].form, T);
}

#[test]
fn hybrid_sends_bare_inside_a_link_and_by_tunnel_across() {
    let mut world = World::new();
    let hybrid = epoch(2, RoutingMode::Hybrid, Phase::Ready);
    world.peer_applied(hybrid.clone());
    world.answers(&hybrid, N, false, Ok(()));
    let d = world.desired(Some(&hybrid));
    assert_eq!((d.remotes[&2].form, d.remotes[&2].flags), (N, YES));
    let mut world = World::new();
    world.peer_applied(hybrid.clone());
    for path in world.facts.paths.values_mut() {
        path.same_link = false;
    }
    world.answers(&hybrid, T, false, Ok(()));
    let d = world.desired(Some(&hybrid));
    assert_eq!((d.remotes[&2].form, d.remotes[&2].flags), (T, 0));
    assert_eq!(d.mtu.get(), 1450);
}
