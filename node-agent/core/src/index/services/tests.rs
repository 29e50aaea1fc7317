use super::*;
use crate::index::{Event, Index, Stale};

const WEB: &str = "shop/web";
const TCP: u8 = 6;

fn port(name: &str, protocol: u8, port: u16) -> PortRecord {
    PortRecord {
        name: name.into(),
        protocol,
        port,
        node_port: 0,
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn service(key: &str) -> ServiceRecord {
    ServiceRecord {
        key: key.into(),
        cluster_ips: ips(&["10.96.0.10"]),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        ports: vec![port("http", TCP, 80)],
        affinity: 0,
        internal_local: false,
        external_local: false,
    }
}

/// A ready endpoint of a node.
fn endpoint(address: &str, node: &str) -> EndpointRecord {
    EndpointRecord {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        for_zones: Vec::new(),
        for_nodes: Vec::new(),
    }
}

fn leaving(endpoint: EndpointRecord) -> EndpointRecord {
    EndpointRecord {
        ready: false,
        terminating: true,
        ..endpoint
    }
}

fn not_ready(endpoint: EndpointRecord) -> EndpointRecord {
    EndpointRecord {
        ready: false,
        serving: false,
        ..endpoint
    }
}

fn for_zone(endpoint: EndpointRecord, zone: &str) -> EndpointRecord {
    EndpointRecord {
        for_zones: vec![zone.into()],
        ..endpoint
    }
}

fn for_node(endpoint: EndpointRecord, node: &str) -> EndpointRecord {
    EndpointRecord {
        for_nodes: vec![node.into()],
        ..endpoint
    }
}

fn slice(key: &str, family: Family, endpoints: Vec<EndpointRecord>) -> SliceRecord {
    SliceRecord {
        key: key.into(),
        service: WEB.into(),
        family,
        ports: vec![port("http", TCP, 8080)],
        endpoints,
    }
}

fn with(service: ServiceRecord, slices: Vec<SliceRecord>) -> Services {
    let mut services = Services::default();
    services.handle_service(Change::Snapshot(vec![service]));
    services.handle_slice(Change::Snapshot(slices));
    services
}

fn with_endpoints(service: ServiceRecord, endpoints: Vec<EndpointRecord>) -> Services {
    with(service, vec![slice("shop/web-1", Family::V4, endpoints)])
}

/// The last numbers of the addresses that pods of node `a` may be sent to.
fn chosen_by(services: &Services) -> Vec<String> {
    let ports = services.ports_of(WEB, "a", false);
    assert_eq!(ports.len(), 1, "{ports:?}");
    let endpoints = ports[0].endpoints.iter().filter(|e| e.chosen);
    let last = |at: SocketAddr| at.ip().to_string().rsplit('.').next().unwrap().to_owned();
    endpoints.map(|e| last(e.address)).collect()
}

#[test]
fn ready_endpoints_are_chosen_and_those_that_leave_only_if_none_is_ready() {
    let [one, two, three] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|a| endpoint(a, "a"));
    for (endpoints, expected) in [
        (vec![one.clone(), two.clone()], vec!["1", "2"]),
        (vec![one.clone(), leaving(two.clone())], vec!["1"]),
        (
            vec![not_ready(one.clone()), leaving(two.clone())],
            vec!["2"],
        ),
        (vec![not_ready(one), not_ready(two)], vec![]),
        (vec![], vec![]),
    ] {
        assert_eq!(
            chosen_by(&with_endpoints(service(WEB), endpoints)),
            expected
        );
    }
    let dead = EndpointRecord {
        serving: false,
        ..leaving(three)
    };
    let services = with_endpoints(service(WEB), vec![dead]);
    assert!(chosen_by(&services).is_empty());
    let ports = services.ports_of(WEB, "a", false);
    assert_eq!(ports[0].endpoints[0].state, EndpointState::NotReady);
}

#[test]
fn a_service_that_stays_on_the_node_takes_only_endpoints_of_this_node() {
    let local = ServiceRecord {
        internal_local: true,
        ..service(WEB)
    };
    let (here, there) = (endpoint("10.0.0.1", "a"), endpoint("10.0.1.2", "b"));
    for (endpoints, expected) in [
        (vec![here.clone(), there.clone()], vec!["1"]),
        (vec![leaving(here.clone()), there.clone()], vec!["1"]),
        (vec![not_ready(here.clone()), there.clone()], vec![]),
        (vec![there.clone()], vec![]),
        // Hints do not lead away from it.
        (
            vec![for_node(here.clone(), "b"), for_node(there.clone(), "a")],
            vec!["1"],
        ),
    ] {
        assert_eq!(
            chosen_by(&with_endpoints(local.clone(), endpoints)),
            expected
        );
    }
    let external = ServiceRecord {
        external_ips: ips(&["192.0.2.80"]),
        ..local
    };
    let ports = with_endpoints(external, vec![here, there]).ports_of(WEB, "a", false);
    let chosen = |port: &ServicePort| port.endpoints.iter().filter(|e| e.chosen).count();
    let counts: Vec<_> = ports.iter().map(|p| (p.external, chosen(p))).collect();
    assert_eq!(counts, [(false, 1), (true, 2)]);
}

#[test]
fn hints_for_zones_count_if_all_ready_endpoints_have_some_and_one_is_for_this_zone() {
    let [one, two, three] = [("10.0.0.1", "a"), ("10.0.1.2", "b"), ("10.0.2.3", "c")]
        .map(|(address, node)| endpoint(address, node));
    let hinted = || vec![for_zone(one.clone(), "z1"), for_zone(two.clone(), "z2")];
    let some = || vec![for_zone(one.clone(), "z1"), two.clone()];
    let with_unready = || {
        let mut all = hinted();
        all.push(not_ready(three.clone()));
        all
    };
    for (zone, endpoints, expected) in [
        (Some("z1"), hinted(), vec!["1"]),
        (Some("z2"), hinted(), vec!["2"]),
        (Some("z3"), hinted(), vec!["1", "2"]),
        (None, hinted(), vec!["1", "2"]),
        (Some("z1"), some(), vec!["1", "2"]),
        (Some("z1"), with_unready(), vec!["1"]),
    ] {
        let mut services = with_endpoints(service(WEB), endpoints);
        services.set_zone(zone.map(str::to_owned));
        assert_eq!(chosen_by(&services), expected, "{zone:?}");
    }
}

#[test]
fn hints_for_nodes_go_before_those_for_zones() {
    let (one, two) = (endpoint("10.0.0.1", "a"), endpoint("10.0.1.2", "b"));
    let zoned = |e: &EndpointRecord| for_zone(e.clone(), "z1");
    for (endpoints, expected) in [
        // Both count.
        (
            vec![for_node(zoned(&one), "a"), for_node(zoned(&two), "b")],
            vec!["1"],
        ),
        // None is for this node: the zone decides.
        (
            vec![
                for_node(zoned(&one), "c"),
                for_node(for_zone(two.clone(), "z2"), "b"),
            ],
            vec!["1"],
        ),
        // One has none for a node.
        (
            vec![for_node(zoned(&one), "a"), zoned(&two)],
            vec!["1", "2"],
        ),
        // None counts.
        (
            vec![for_node(one.clone(), "b"), for_zone(two.clone(), "z1")],
            vec!["1", "2"],
        ),
    ] {
        let mut services = with_endpoints(service(WEB), endpoints);
        services.set_zone(Some("z1".into()));
        assert_eq!(chosen_by(&services), expected);
    }
}

#[test]
fn only_services_with_hints_for_zones_depend_on_the_zone() {
    let one = endpoint("10.0.0.1", "a");
    let mut services = with_endpoints(service(WEB), vec![one.clone()]);
    assert!(services.set_zone(Some("z1".into())).is_empty());
    let hinted = vec![for_zone(one, "z1")];
    services.handle_slice(Change::Apply(slice("shop/web-1", Family::V4, hinted)));
    let touched = services.set_zone(Some("z2".into()));
    assert_eq!(touched, HashSet::from([WEB.to_owned()]));
    assert!(services.set_zone(Some("z2".into())).is_empty(), "the same");
}

#[test]
fn ports_are_found_by_name_and_protocol_in_several_slices() {
    let dns = ServiceRecord {
        ports: vec![port("dns", 17, 53), port("dns-tcp", TCP, 53)],
        ..service(WEB)
    };
    let mut first = slice("shop/web-1", Family::V4, vec![endpoint("10.0.0.1", "a")]);
    first.ports = vec![port("dns", 17, 5353), port("dns-tcp", TCP, 5353)];
    let mut second = slice("shop/web-2", Family::V4, vec![endpoint("10.0.0.2", "a")]);
    // Of a pod that gives the port another number, and has no such TCP port.
    second.ports = vec![port("dns", 17, 5354), port("dns-tcp", 17, 5355)];
    let services = with(dns, vec![first, second]);
    let found: Vec<_> = services
        .ports_of(WEB, "a", false)
        .into_iter()
        .map(|port| {
            let at = port.endpoints.iter().map(|e| e.address.to_string());
            (port.name, port.protocol, at.collect::<Vec<_>>())
        })
        .collect();
    let owned = |all: &[&str]| -> Vec<String> { all.iter().map(ToString::to_string).collect() };
    let udp = owned(&["10.0.0.1:5353", "10.0.0.2:5354"]);
    let expected: Vec<(String, u8, Vec<String>)> = vec![
        ("dns".into(), 17, udp),
        ("dns-tcp".into(), TCP, owned(&["10.0.0.1:5353"])),
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_endpoint_in_two_slices_is_one_and_the_better_report_counts() {
    let one = endpoint("10.0.0.1", "a");
    for order in [[0, 1], [1, 0]] {
        let reports = [vec![leaving(one.clone())], vec![one.clone()]];
        let slices = ["shop/web-1", "shop/web-2"]
            .into_iter()
            .zip(order)
            .map(|(key, at)| slice(key, Family::V4, reports[at].clone()));
        let ports = with(service(WEB), slices.collect()).ports_of(WEB, "a", false);
        assert_eq!(ports[0].endpoints.len(), 1);
        assert_eq!(ports[0].endpoints[0].state, EndpointState::Ready);
    }
}

#[test]
fn families_and_external_addresses_are_ports_of_their_own() {
    let both = ServiceRecord {
        cluster_ips: ips(&["10.96.0.10", "fd00:96::10"]),
        external_ips: ips(&["192.0.2.81", "192.0.2.80"]),
        load_balancer_ips: ips(&["192.0.2.80", "127.0.0.1"]),
        affinity: 10_800,
        ..service(WEB)
    };
    let slices = vec![
        slice("shop/web-4", Family::V4, vec![endpoint("10.0.0.1", "a")]),
        slice(
            "shop/web-6",
            Family::V6,
            // Nobody's addresses, and one of the other family.
            ["fd00::1", "::1", "fe80::1", "ff02::1", "::", "10.0.0.9"]
                .map(|a| endpoint(a, "a"))
                .to_vec(),
        ),
    ];
    let ports = with(both, slices).ports_of(WEB, "a", false);
    let seen: Vec<_> = ports
        .iter()
        .map(|p| (p.family, p.external, p.frontends.len(), p.endpoints.len()))
        .collect();
    assert_eq!(
        seen,
        [
            (Family::V4, false, 1, 1),
            (Family::V4, true, 2, 1),
            (Family::V6, false, 1, 1),
        ]
    );
    assert!(ports.iter().all(|p| p.affinity == 10_800));
    let first: (IpAddr, u16) = ("192.0.2.80".parse().unwrap(), 80);
    assert_eq!(ports[1].frontends[0], first);
}

#[test]
fn node_ports_are_frontends_of_this_node_and_of_others_unless_a_policy_keeps_flows_there() {
    let at_nodes = |external_local, node_ports| {
        let service = ServiceRecord {
            cluster_ips: ips(&["10.96.0.10", "fd00:96::10"]),
            ports: vec![PortRecord {
                node_port: 30_080,
                ..port("http", TCP, 80)
            }],
            external_local,
            ..service(WEB)
        };
        let services = with(service, Vec::new());
        let ports = services.ports_of(WEB, "a", node_ports);
        let external = ports.into_iter().filter(|port| port.external);
        let frontends: Vec<_> = external.flat_map(|port| port.frontends).collect();
        let all_are = frontends.iter().all(|(address, number)| {
            Frontend::new(*address, *number, TCP).is_node_port() && *number == 30_080
        });
        assert!(all_are, "{frontends:?}");
        frontends.into_iter().map(|(address, _)| address).collect()
    };
    let none: Vec<IpAddr> = at_nodes(false, false);
    assert!(none.is_empty());
    assert_eq!(at_nodes(true, true), ips(&["0.0.0.0", "::"]));
    let all = ips(&["0.0.0.0", "0.0.0.1", "::", "0:1::"]);
    assert_eq!(at_nodes(false, true), all);
}

#[test]
fn a_service_without_slices_has_ports_without_endpoints() {
    let ports = with(service(WEB), Vec::new()).ports_of(WEB, "a", false);
    assert_eq!(ports.len(), 1);
    assert!(ports[0].endpoints.is_empty());
    assert!(Services::default().ports_of(WEB, "a", false).is_empty());
}

#[test]
fn only_what_differs_is_touched() {
    let one = endpoint("10.0.0.1", "a");
    let mut services = with_endpoints(service(WEB), vec![one.clone()]);
    let web = HashSet::from([WEB.to_owned()]);
    let same = slice("shop/web-1", Family::V4, vec![one.clone()]);
    assert!(services.handle_slice(Change::Apply(same)).is_empty());
    let same = Change::Snapshot(vec![service(WEB)]);
    assert!(services.handle_service(same).is_empty());
    let other = slice("shop/web-1", Family::V4, vec![leaving(one)]);
    assert_eq!(services.handle_slice(Change::Apply(other)), web);
    let gone = Change::Delete("shop/web-1".to_owned());
    assert_eq!(services.handle_slice(gone), web);
    let gone = Change::Delete("shop/web-1".to_owned());
    assert!(services.handle_slice(gone).is_empty());
    let added = services.handle_service(Change::Apply(service("shop/db")));
    assert_eq!(added, HashSet::from(["shop/db".to_owned()]));
    assert_eq!(services.keys().collect::<Vec<_>>(), ["shop/db", WEB]);
    let gone = services.handle_service(Change::Snapshot(vec![service("shop/db")]));
    assert_eq!(gone, web);
}

#[test]
fn a_doubted_list_keeps_what_it_does_not_say_is_gone() {
    let mut services = with_endpoints(service(WEB), vec![endpoint("10.0.0.1", "a")]);
    let doubted = Change::Doubted(vec![service("shop/db")], Vec::new());
    let touched = services.handle_service(doubted);
    assert_eq!(touched, HashSet::from(["shop/db".to_owned()]));
    let doubted = Change::Doubted(Vec::new(), Vec::new());
    assert!(services.handle_slice(doubted).is_empty());
    assert_eq!(chosen_by(&services), ["1"]);
    let gone = Change::Doubted(Vec::new(), vec!["shop/db".to_owned()]);
    services.handle_service(gone);
    assert_eq!(services.keys().collect::<Vec<_>>(), [WEB]);
}

#[test]
fn a_slice_that_changes_its_service_touches_both() {
    let mut services = with_endpoints(service(WEB), vec![endpoint("10.0.0.1", "a")]);
    let moved = SliceRecord {
        service: "shop/db".into(),
        ..slice("shop/web-1", Family::V4, vec![endpoint("10.0.0.1", "a")])
    };
    let touched = services.handle_slice(Change::Apply(moved));
    let both = ["shop/db", WEB].map(str::to_owned);
    assert_eq!(touched, HashSet::from(both));
    assert!(chosen_by(&services).is_empty());
}

#[test]
fn lists_are_complete_only_if_they_are_believed_and_events_make_their_service_stale() {
    let mut index = Index::new("a");
    let stale = index.handle(Event::Service(Change::Doubted(
        vec![service(WEB)],
        Vec::new(),
    )));
    let expected = Stale {
        services: HashSet::from([WEB.to_owned()]),
        ..Stale::default()
    };
    assert_eq!(stale, expected);
    assert!(!index.complete.services);
    index.handle(Event::Service(Change::Snapshot(vec![service(WEB)])));
    assert!(index.complete.services && !index.complete.slices);
    let hinted = vec![for_zone(endpoint("10.0.0.1", "a"), "z1")];
    let slices = vec![slice("shop/web-1", Family::V4, hinted)];
    let stale = index.handle(Event::Slice(Change::Snapshot(slices)));
    assert_eq!(stale, expected);
    assert!(index.complete.slices && !index.complete.zone);
    assert_eq!(index.handle(Event::Zone(None)), Stale::default());
    assert!(index.complete.zone, "that there is none is known too");
    assert_eq!(index.handle(Event::Zone(Some("z1".into()))), expected);
    assert_eq!(
        index.handle(Event::Zone(Some("z1".into()))),
        Stale::default()
    );
}

#[test]
fn a_frontend_is_named_by_the_service_whose_own_address_it_is() {
    let mut services = Services::default();
    let claims = ServiceRecord {
        external_ips: ips(&["10.96.0.10", "192.0.2.7"]),
        cluster_ips: ips(&["10.96.0.11"]),
        ports: vec![port("", TCP, 80), port("dns", 17, 53)],
        ..service("shop/a-claims-it")
    };
    for record in [claims, service(WEB)] {
        services.handle_service(Change::Apply(record));
    }
    for (at, protocol, expected) in [
        ("10.96.0.10:80", TCP, Some((WEB, "http"))),
        ("192.0.2.7:80", TCP, Some(("shop/a-claims-it", ""))),
        ("10.96.0.11:53", 17, Some(("shop/a-claims-it", "dns"))),
        ("10.96.0.11:53", TCP, None),
        ("10.96.0.12:80", TCP, None),
    ] {
        let at = at.parse().unwrap();
        assert_eq!(services.by_frontend(at, protocol), expected, "{at}");
    }
}
