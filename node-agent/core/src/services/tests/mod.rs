mod unserved;

use std::net::SocketAddr;

use proptest::{collection::vec, prelude::*};
use veer_bpf_common::tables::Members;

use super::*;
use crate::index::{ChosenEndpoint, EndpointState};

const VIP: &str = "10.96.0.10";
const OTHER: &str = "10.96.0.11";

/// A TCP port in IPv4 with these frontends, to which backends with these last numbers of
/// their addresses belong.
fn port(service: &str, frontends: &[&str], backends: &[u8]) -> ServicePort {
    let endpoint = |last: &u8| ChosenEndpoint {
        address: SocketAddr::from(([10, 0, 0, *last], 8080)),
        state: EndpointState::Ready,
        chosen: true,
        node: None,
    };
    ServicePort {
        service: service.into(),
        name: "http".into(),
        protocol: 6,
        family: Family::V4,
        external: false,
        frontends: frontends.iter().map(|a| (a.parse().unwrap(), 80)).collect(),
        endpoints: backends.iter().map(endpoint).collect(),
        affinity: 0,
        local: false,
    }
}

/// The port with another endpoint, which new flows do not go to.
fn beside(mut port: ServicePort, last: u8, state: EndpointState) -> ServicePort {
    port.endpoints.push(ChosenEndpoint {
        address: SocketAddr::from(([10, 0, 0, last], 8080)),
        state,
        chosen: false,
        node: None,
    });
    port
}

fn external(port: ServicePort) -> ServicePort {
    ServicePort {
        external: true,
        ..port
    }
}

fn key(address: &str) -> Frontend {
    Frontend::new(address.parse().unwrap(), 80, 6)
}

/// The maps, which outlive a plan.
#[derive(Default)]
struct Maps(ServiceRows);

impl Maps {
    /// Whatever of a step is done: what a frontend leads to is there.
    fn hold_what_frontends_lead_to(&self) {
        let Self(rows) = self;
        for service in rows.services.values() {
            for slot in 0..service.backends {
                let key = slot_key(service.id, service.version, slot);
                let backend = rows.backends.get(&key).expect("a slot");
                assert!(rows.members.contains_key(&member(service.id, backend)));
            }
        }
    }

    fn apply(&mut self, step: &Step) {
        for (key, backend) in &step.backends {
            self.0.backends.insert(*key, *backend);
            self.hold_what_frontends_lead_to();
        }
        for (member, value) in &step.members {
            self.0.members.insert(*member, *value);
        }
        for (frontend, service) in &step.services {
            self.0.services.insert(*frontend, *service);
            self.hold_what_frontends_lead_to();
        }
        for frontend in &step.gone_services {
            self.0.services.remove(frontend);
        }
        for member in &step.gone_members {
            self.0.members.remove(member);
            self.hold_what_frontends_lead_to();
        }
        for key in &step.gone_backends {
            self.0.backends.remove(key);
            self.hold_what_frontends_lead_to();
        }
    }

    fn restarted(&self) -> Plan {
        Plan::from_present(&self.0.services, &self.0.backends)
    }

    /// Numbers by frontend.
    fn ids(&self) -> HashMap<Frontend, u32> {
        let rows = self.0.services.iter();
        rows.map(|(frontend, service)| (*frontend, service.id))
            .collect()
    }
}

#[test]
fn a_changed_set_of_backends_is_a_next_version_and_the_former_goes_last() {
    let mut plan = Plan::default();
    let first = plan.update("x/a", &[port("x/a", &[VIP], &[2, 1, 1])]);
    let [one, two, three] =
        [1, 2, 3].map(|last| Backend::at(SocketAddr::from(([10, 0, 0, last], 8080))));
    let row = |version, backends| Service {
        id: 1,
        version,
        backends,
        affinity: 0,
    };
    let expected = Step {
        backends: vec![(slot_key(1, 1, 0), one), (slot_key(1, 1, 1), two)],
        members: [one, two]
            .map(|b| (member(1, &b), Members::CHOSEN))
            .to_vec(),
        services: vec![(key(VIP), row(1, 2))],
        ..Step::default()
    };
    assert_eq!(first, expected, "sorted, and once each");
    let second = plan.update("x/a", &[port("x/a", &[VIP], &[2, 3])]);
    let expected = Step {
        backends: vec![(slot_key(1, 2, 0), two), (slot_key(1, 2, 1), three)],
        members: vec![(member(1, &three), Members::CHOSEN)],
        services: vec![(key(VIP), row(2, 2))],
        gone_members: vec![member(1, &one)],
        gone_backends: vec![slot_key(1, 1, 0), slot_key(1, 1, 1)],
        ..Step::default()
    };
    assert_eq!(second, expected);
}

#[test]
fn an_endpoint_that_leaves_beside_ready_ones_serves_and_has_no_slot() {
    let mut plan = Plan::default();
    plan.update("x/a", &[port("x/a", &[VIP], &[1, 2])]);
    let leaving = |state| beside(port("x/a", &[VIP], &[2]), 1, state);
    let step = plan.update("x/a", &[leaving(EndpointState::Terminating)]);
    let [one, two] = [1, 2].map(|last| Backend::at(SocketAddr::from(([10, 0, 0, last], 8080))));
    assert_eq!(step.backends, [(slot_key(1, 2, 0), two)]);
    assert_eq!(step.members, [(member(1, &one), Members::SERVING)]);
    assert!(step.gone_members.is_empty());
    let step = plan.update("x/a", &[leaving(EndpointState::NotReady)]);
    let expected = Step {
        gone_members: vec![member(1, &one)],
        ..Step::default()
    };
    assert_eq!(step, expected, "gone, and no new version");
}

#[test]
fn former_choices_serve_when_hints_change() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    let hinted = |chosen, other| {
        let port = port("x/a", &[VIP], &[chosen]);
        [beside(port, other, EndpointState::Ready)]
    };
    maps.apply(&plan.update("x/a", &hinted(1, 2)));
    let step = plan.update("x/a", &hinted(2, 1));
    let [one, two] = [1, 2].map(|last| Backend::at(SocketAddr::from(([10, 0, 0, last], 8080))));
    let expected = [
        (member(1, &one), Members::SERVING),
        (member(1, &two), Members::CHOSEN),
    ];
    assert_eq!(step.members, expected);
    assert!(step.gone_members.is_empty());
    maps.apply(&step);
    assert_eq!(maps.0, plan.rows());
    assert_eq!(maps.0.members, HashMap::from(expected));
    // A restart knows the chosen ones, and writes the others again.
    let mut again = maps.restarted();
    let step = again.update("x/a", &hinted(2, 1));
    let expected = Step {
        members: expected[..1].to_vec(),
        ..Step::default()
    };
    assert_eq!(step, expected);
    assert_eq!(again.drop_left(), Step::default());
}

#[test]
fn the_same_set_in_another_order_writes_nothing() {
    let mut plan = Plan::default();
    plan.update("x/a", &[port("x/a", &[VIP], &[1, 2])]);
    let again = plan.update("x/a", &[port("x/a", &[VIP], &[2, 1])]);
    assert_eq!(again, Step::default());
}

#[test]
fn a_port_without_backends_keeps_its_row_and_leads_to_none() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP], &[1])]));
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP], &[])]));
    assert_eq!(maps.0.services[&key(VIP)].backends, 0);
    assert!(maps.0.members.is_empty() && maps.0.backends.is_empty());
    maps.apply(&plan.update("x/a", &[]));
    assert_eq!(maps.0, ServiceRows::default());
}

#[test]
fn affinity_and_frontends_change_without_a_new_version() {
    let mut plan = Plan::default();
    plan.update("x/a", &[port("x/a", &[VIP], &[1])]);
    let changed = ServicePort {
        affinity: 60,
        ..port("x/a", &[VIP, OTHER], &[1])
    };
    let step = plan.update("x/a", &[changed]);
    assert!(step.backends.is_empty() && step.gone_backends.is_empty());
    let versions: Vec<_> = step
        .services
        .iter()
        .map(|(_, service)| (service.id, service.version, service.affinity))
        .collect();
    assert_eq!(versions, [(1, 1, 60), (1, 1, 60)]);
}

#[test]
fn a_cluster_ip_goes_before_an_external_address_and_then_the_lower_name() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    // In the order in which they come.
    maps.apply(&plan.update("x/b", &[external(port("x/b", &[VIP], &[2]))]));
    let thief = maps.0.services[&key(VIP)].id;
    maps.apply(&plan.update("x/c", &[port("x/c", &[VIP], &[3])]));
    let owner = maps.0.services[&key(VIP)].id;
    assert_ne!(owner, thief);
    maps.apply(&plan.update("x/a", &[external(port("x/a", &[VIP], &[1]))]));
    assert_eq!(maps.0.services[&key(VIP)].id, owner);
    // The winner goes: the lower name of the others has it.
    let step = plan.update("x/c", &[]);
    assert_eq!(step.services.len(), 1, "in the same step");
    assert!(step.gone_services.is_empty());
    maps.apply(&step);
    let next = maps.0.services[&key(VIP)].id;
    assert!(next != owner && next != thief);
    maps.apply(&plan.update("x/a", &[]));
    assert_eq!(maps.0.services[&key(VIP)].id, thief);
    maps.apply(&plan.update("x/b", &[]));
    assert_eq!(maps.0, ServiceRows::default());
}

#[test]
fn a_restart_writes_nothing_where_nothing_changed() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    let services = [
        ("x/a", port("x/a", &[VIP, OTHER], &[1, 2])),
        ("x/b", external(port("x/b", &["192.0.2.80"], &[2]))),
        ("x/c", port("x/c", &["10.96.0.12"], &[])),
    ];
    for (name, port) in &services {
        maps.apply(&plan.update(name, std::slice::from_ref(port)));
    }
    maps.apply(&plan.update("x/b", &[external(port("x/b", &["192.0.2.80"], &[2, 3]))]));
    maps.apply(&plan.update("x/b", std::slice::from_ref(&services[1].1)));
    let mut again = maps.restarted();
    assert_eq!(again.rows(), maps.0, "before anything is known");
    let refused = Unserved::from([(key("10.96.0.12"), Refusal::Refuse)]);
    assert_eq!(again.unserved(), &refused, "before anything is known");
    let dropped = maps.restarted().drop_left();
    assert!(dropped.unserved, "with all that is gone");
    for (name, port) in services.iter().rev() {
        let step = again.update(name, std::slice::from_ref(port));
        assert_eq!(step, Step::default(), "{name}");
    }
    assert_eq!(again.drop_left(), Step::default());
    assert_eq!(again.rows(), maps.0);
    assert_eq!(again.keys(), ["x/a", "x/b", "x/c"]);
}

#[test]
fn a_restart_leads_no_cluster_ip_to_who_claims_it_as_an_external_address() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    let owner = [port("x/b", &[VIP], &[2])];
    let thief = [external(port("x/a", &[VIP], &[1]))];
    maps.apply(&plan.update("x/b", &owner));
    maps.apply(&plan.update("x/a", &thief));
    let before = maps.0.services.clone();
    let mut again = maps.restarted();
    let step = again.update_all([("x/a", &thief[..]), ("x/b", &owner[..])]);
    assert!(step.services.is_empty() && step.gone_services.is_empty());
    maps.apply(&step);
    maps.apply(&again.drop_left());
    assert_eq!(maps.0.services, before);
    assert_eq!(maps.0, again.rows());
    // In one step from nothing, too.
    let step = Plan::default().update_all([("x/a", &thief[..]), ("x/b", &owner[..])]);
    assert_eq!(step.services.len(), 1);
    let id = step.services[0].1.id;
    let leads_to: Vec<_> = step
        .backends
        .iter()
        .filter(|(k, _)| k.service == id)
        .collect();
    let expected = Backend::at(SocketAddr::from(([10, 0, 0, 2], 8080)));
    assert_eq!(leads_to.len(), 1);
    assert_eq!(leads_to[0].1, expected);
}

#[test]
fn what_went_while_no_agent_ran_goes_when_all_services_are_known() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    for (name, vip) in [("x/a", VIP), ("x/b", OTHER)] {
        maps.apply(&plan.update(name, &[port(name, &[vip], &[1])]));
    }
    let before = maps.ids();
    let mut again = maps.restarted();
    maps.apply(&again.update("x/b", &[port("x/b", &[OTHER], &[2])]));
    assert_eq!(maps.ids(), before, "x/a may be there still");
    let new = port("x/c", &["10.96.0.12"], &[3]);
    maps.apply(&again.update("x/c", &[new]));
    let number = maps.ids()[&key("10.96.0.12")];
    assert!(before.values().all(|used| *used != number));
    maps.apply(&again.drop_left());
    assert_eq!(maps.0, again.rows());
    assert!(!maps.0.services.contains_key(&key(VIP)));
    assert_eq!(maps.0.members.len(), 2);
}

#[test]
fn a_version_stays_while_a_frontend_that_nobody_claims_leads_there() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP, OTHER], &[1])]));
    let mut again = maps.restarted();
    // The Service was made again with another address: the check of the maps is in `apply`.
    maps.apply(&again.update("x/a", &[port("x/a", &[VIP], &[2])]));
    assert_eq!(maps.0.services.len(), 2);
    maps.apply(&again.update("x/b", &[port("x/b", &[OTHER], &[3])]));
    maps.apply(&again.drop_left());
    assert_eq!(maps.0, again.rows());
    let ids = maps.ids();
    assert_ne!(
        ids[&key(VIP)],
        ids[&key(OTHER)],
        "no number means two Services"
    );
}

#[test]
fn an_agent_that_was_cut_off_in_the_middle_of_a_step_is_taken_over() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP, OTHER], &[1])]));
    let mut step = plan.update("x/a", &[port("x/a", &[VIP, OTHER], &[2])]);
    // One of two frontends leads to the new version, and nothing was removed.
    step.services.pop();
    step.gone_members.clear();
    step.gone_backends.clear();
    maps.apply(&step);
    for last in [1, 2, 3] {
        let mut maps = Maps(maps.0.clone());
        let mut again = maps.restarted();
        maps.apply(&again.update("x/a", &[port("x/a", &[VIP, OTHER], &[last])]));
        maps.apply(&again.drop_left());
        assert_eq!(maps.0, again.rows());
        assert_eq!((maps.0.members.len(), maps.0.backends.len()), (1, 1));
    }
}

#[test]
fn a_row_whose_slots_are_lost_gets_a_new_version() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP], &[1, 2])]));
    maps.0.backends.remove(&slot_key(1, 1, 0));
    let mut again = maps.restarted();
    // The maps are not whole before.
    let step = again.update("x/a", &[port("x/a", &[VIP], &[1, 2])]);
    assert_eq!(step.services[0].1.version, 2);
    assert_eq!(step.backends.len(), 2);
    let gone = again.drop_left();
    assert_eq!(gone.gone_backends, [slot_key(1, 1, 1)]);
    assert!(gone.gone_members.is_empty(), "a backend still");
}

#[test]
fn all_rows_go_when_nothing_is_to_be_translated_and_come_back_under_other_numbers() {
    let (mut plan, mut maps) = (Plan::default(), Maps::default());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP], &[1])]));
    let before = maps.ids();
    maps.apply(&plan.clear());
    assert_eq!(maps.0, ServiceRows::default());
    assert_eq!(plan.rows(), maps.0);
    assert!(plan.keys().is_empty());
    maps.apply(&plan.update("x/a", &[port("x/a", &[VIP], &[1])]));
    assert_ne!(maps.ids(), before);
    // Of what an earlier agent left as well.
    let mut again = maps.restarted();
    maps.apply(&again.clear());
    assert_eq!(maps.0, ServiceRows::default());
}

#[derive(Clone, Debug)]
enum Happening {
    /// A Service has these frontends, external or not, backends, and others that serve.
    Update(u8, Vec<u8>, bool, Vec<u8>, Vec<u8>),
    Gone(u8),
    /// Another agent takes over.
    Restart,
    /// The Services go to the stack and come back.
    Clear,
}

fn happening() -> impl Strategy<Value = Happening> {
    let backends = || vec(1..5u8, 0..4);
    let frontends = vec(0..4u8, 1..3);
    let update = (0..4u8, frontends, any::<bool>(), backends(), backends());
    prop_oneof![
        6 => update.prop_map(|(s, f, e, b, o)| Happening::Update(s, f, e, b, o)),
        2 => (0..4u8).prop_map(Happening::Gone),
        1 => Just(Happening::Restart),
        1 => Just(Happening::Clear),
    ]
}

fn service(number: u8) -> String {
    format!("x/{number}")
}

/// All Services are updated, as after the lists of a new agent.
fn update_all(plan: &mut Plan, maps: &mut Maps, known: &BTreeMap<u8, ServicePort>) {
    let all = known.values();
    let all = all.map(|port| (port.service.as_str(), std::slice::from_ref(port)));
    maps.apply(&plan.update_all(all));
    maps.apply(&plan.drop_left());
}

proptest! {
    #[test]
    fn whatever_happens_the_maps_hold_what_they_should_and_frontends_lead_somewhere(
        steps in vec(happening(), 0..40),
    ) {
        let (mut plan, mut maps) = (Plan::default(), Maps::default());
        let mut known: BTreeMap<u8, ServicePort> = BTreeMap::new();
        for step in steps {
            match step {
                Happening::Update(number, frontends, is_external, backends, others) => {
                    let name = service(number);
                    let all: Vec<String> =
                        frontends.iter().map(|f| format!("10.96.0.{f}")).collect();
                    let all: Vec<&str> = all.iter().map(String::as_str).collect();
                    let mut port = ServicePort {
                        external: is_external,
                        ..port(&name, &all, &backends)
                    };
                    for last in others {
                        port = beside(port, last, EndpointState::Terminating);
                    }
                    maps.apply(&plan.update(&name, std::slice::from_ref(&port)));
                    known.insert(number, port);
                }
                Happening::Gone(number) => {
                    maps.apply(&plan.update(&service(number), &[]));
                    known.remove(&number);
                }
                Happening::Restart => {
                    plan = maps.restarted();
                    update_all(&mut plan, &mut maps, &known);
                    // As when the maps are compared.
                    let rows = plan.rows();
                    let held = &mut maps.0.members;
                    held.retain(|member, _| rows.members.contains_key(member));
                }
                Happening::Clear => {
                    maps.apply(&plan.clear());
                    prop_assert_eq!(&maps.0, &ServiceRows::default());
                    update_all(&mut plan, &mut maps, &known);
                }
            }
            prop_assert_eq!(&maps.0, &plan.rows());
            // The same whatever came before.
            let mut fresh = (Plan::default(), Maps::default());
            update_all(&mut fresh.0, &mut fresh.1, &known);
            prop_assert_eq!(maps.0.members.len(), fresh.1.0.members.len());
            let leads: BTreeMap<Frontend, u32> =
                maps.0.services.iter().map(|(f, s)| (*f, s.backends)).collect();
            let expected: BTreeMap<Frontend, u32> =
                fresh.1.0.services.iter().map(|(f, s)| (*f, s.backends)).collect();
            prop_assert_eq!(leads, expected);
        }
    }
}
