//! Services, their endpoints and the own node's zone.

use std::{net::IpAddr, sync::mpsc::Sender, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt, core::DeserializeGuard};

use super::{
    intake::{Doubts, Intake},
    map, named_key,
    slim::{SlimEndpoint, SlimEndpointSlice, SlimHint, SlimNode, SlimPort, SlimService},
    source::{Reached, Source},
    spawn,
};
use crate::{report::events::Events, state::input::Input};
use veer_agent_core::{
    family::Family,
    index::{Change, EndpointRecord, Event, PortRecord, ServiceRecord, SliceRecord},
};

/// How long a Service or a slice that a doubtful list lacks is kept: as long as a pod.
const CONFIRM: Duration = super::CONFIRM_PODS;

/// Seconds for which a client keeps its endpoint, where the Service does not say.
const AFFINITY: u32 = 10_800;

/// Label of a slice: its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Labels of what kube-proxy does not look at: another program translates it, or nobody.
const NOT_TRANSLATED: [&str; 2] = [
    "service.kubernetes.io/service-proxy-name",
    "service.kubernetes.io/headless",
];
/// Label of a Node: its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Starts the watches. They end when the receiver is gone. `earlier`: how many Services an
/// earlier agent knew of, each of which has a slice at least.
pub(super) fn start(
    client: &Client,
    node: &str,
    (to, events): (&Sender<Input>, &Events),
    reached: &Reached,
    earlier: usize,
) {
    spawn(
        Source::new(
            Api::<DeserializeGuard<SlimService>>::all(client.clone()),
            None,
            reached,
        ),
        (to.clone(), events.clone()),
        doubting(earlier),
        |change| vec![Event::Service(map(change, service_record, namespaced))],
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<SlimEndpointSlice>>::all(client.clone()),
            None,
            reached,
        ),
        (to.clone(), events.clone()),
        doubting(earlier),
        |change| vec![Event::Slice(map(change, slice_record, namespaced))],
    );
    spawn(
        Source::new(
            Api::<DeserializeGuard<SlimNode>>::all(client.clone()),
            Some(format!("metadata.name={node}")),
            reached,
        ),
        (to.clone(), events.clone()),
        Intake::trusting(),
        zone_events,
    );
}

/// One of objects that nobody writes for this node.
fn doubting<K: Resource<DynamicType = ()> + Clone + 'static>(earlier: usize) -> Intake<K> {
    Intake::doubting(Doubts {
        naming: Box::new(|object: &K| (namespaced(object), false)),
        was_to_go: None,
        earlier,
        confirm: CONFIRM,
    })
}

fn namespaced<K: Resource>(object: &K) -> String {
    in_namespace(object, &named_key(object))
}

/// The key of what is called so in the object's namespace.
fn in_namespace<K: Resource>(object: &K, name: &str) -> String {
    format!("{}/{name}", object.namespace().unwrap_or_default())
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let value = metadata.labels.as_ref()?.get(key)?;
    Some(value.as_str())
}

fn is_left_out(metadata: &ObjectMeta) -> bool {
    let mut keys = NOT_TRANSLATED.iter();
    keys.any(|key| label(metadata, key).is_some())
}

fn addresses(texts: &[String]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// `None`: a protocol that no Service has.
fn protocol(name: &str) -> Option<u8> {
    match name {
        "TCP" | "" => Some(6),
        "UDP" => Some(17),
        "SCTP" => Some(132),
        _ => None,
    }
}

fn ports(all: Vec<SlimPort>) -> Vec<PortRecord> {
    let record = |port: SlimPort| {
        Some(PortRecord {
            protocol: protocol(&port.protocol)?,
            port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
            node_port: u16::try_from(port.node_port).unwrap_or_default(),
            name: port.name,
        })
    };
    all.into_iter().filter_map(record).collect()
}

/// `None`: it has no addresses of its own, or another program translates it.
fn service_record(service: SlimService) -> Option<ServiceRecord> {
    let cluster_ips = addresses(&service.spec.cluster_ips);
    if cluster_ips.is_empty()
        || service.spec.kind == "ExternalName"
        || is_left_out(&service.metadata)
    {
        return None;
    }
    let spec = &service.spec;
    let affinity = spec.session_affinity_config.client_ip.timeout_seconds;
    let affinity = affinity.and_then(|seconds| u32::try_from(seconds).ok());
    let open = spec.load_balancer_source_ranges.is_empty();
    let ingress = service.status.load_balancer.ingress.iter();
    let ingress = ingress.filter(|one| open && matches!(one.ip_mode.as_str(), "" | "VIP"));
    Some(ServiceRecord {
        key: namespaced(&service),
        cluster_ips,
        external_ips: addresses(&spec.external_ips),
        load_balancer_ips: ingress.filter_map(|one| one.ip.parse().ok()).collect(),
        affinity: if spec.session_affinity == "ClientIP" {
            affinity.unwrap_or(AFFINITY)
        } else {
            0
        },
        internal_local: spec.internal_traffic_policy == "Local",
        external_local: spec.external_traffic_policy == "Local",
        ports: ports(service.spec.ports),
    })
}

/// `None`: it is of no Service that is translated, or its endpoints have no addresses.
fn slice_record(slice: SlimEndpointSlice) -> Option<SliceRecord> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    if is_left_out(&slice.metadata) {
        return None;
    }
    let service = label(&slice.metadata, SERVICE_NAME).filter(|name| !name.is_empty())?;
    Some(SliceRecord {
        key: namespaced(&slice),
        service: in_namespace(&slice, service),
        family,
        ports: ports(slice.ports),
        endpoints: slice
            .endpoints
            .into_iter()
            .filter_map(endpoint_record)
            .collect(),
    })
}

fn endpoint_record(endpoint: SlimEndpoint) -> Option<EndpointRecord> {
    let names = |hints: Vec<SlimHint>| hints.into_iter().map(|hint| hint.name).collect();
    let conditions = endpoint.conditions;
    Some(EndpointRecord {
        address: endpoint.addresses.first()?.parse().ok()?,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name,
        for_zones: names(endpoint.hints.for_zones),
        for_nodes: names(endpoint.hints.for_nodes),
    })
}

fn zone_events(change: Change<SlimNode, SlimNode>) -> Vec<Event> {
    let zone = |node: SlimNode| {
        let zone = label(&node.metadata, ZONE).filter(|zone| !zone.is_empty());
        Event::Zone(zone.map(str::to_owned))
    };
    match change {
        Change::Apply(node) => vec![zone(node)],
        // Of an empty list too: Services wait for the zone.
        Change::Snapshot(all) => vec![all.into_iter().next().map_or(Event::Zone(None), zone)],
        // The last one stays.
        Change::Delete(_) | Change::Doubted(..) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(change: impl FnOnce(&mut Value)) -> Option<ServiceRecord> {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web"},
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "fd00:96::10"],
                "externalIPs": ["192.0.2.80"],
                "ports": [
                    {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web"},
                    {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053},
                    {"name": "new", "protocol": "QUIC", "port": 443},
                ],
                "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster",
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "192.0.2.90", "ipMode": "VIP"}, {"ip": "192.0.2.91"},
                {"ip": "192.0.2.92", "ipMode": "Proxy"}, {"hostname": "lb.example"},
            ]}},
        });
        change(&mut object);
        service_record(serde_json::from_value(object).unwrap())
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_has_its_addresses_and_the_ports_of_known_protocols() {
        let record = service(|_| {}).unwrap();
        assert_eq!(record.key, "shop/web");
        assert_eq!(record.cluster_ips, ips(&["10.96.0.10", "fd00:96::10"]));
        assert_eq!(record.external_ips, ips(&["192.0.2.80"]));
        assert_eq!(record.load_balancer_ips, ips(&["192.0.2.90", "192.0.2.91"]));
        let ports: Vec<_> = record
            .ports
            .iter()
            .map(|p| (p.name.as_str(), p.protocol, p.port))
            .collect();
        assert_eq!(ports, [("http", 6, 80), ("dns", 17, 53)]);
        assert_eq!((record.affinity, record.internal_local), (0, false));
    }

    #[test]
    fn services_without_addresses_or_of_another_program_have_no_record() {
        for (place, value) in [
            ("/spec/clusterIPs", json!(["None"])),
            ("/spec/clusterIPs", json!([])),
            ("/spec/clusterIPs", Value::Null),
            ("/spec/type", json!("ExternalName")),
        ] {
            let record = service(|object| *object.pointer_mut(place).unwrap() = value);
            assert_eq!(record, None, "{place}");
        }
        for label in NOT_TRANSLATED {
            let record = service(|object| object["metadata"]["labels"] = json!({label: "x"}));
            assert_eq!(record, None, "{label}");
        }
    }

    #[test]
    fn addresses_of_a_load_balancer_with_source_ranges_are_the_stacks() {
        let ranges = json!(["198.51.100.0/24"]);
        let record = service(|o| o["spec"]["loadBalancerSourceRanges"] = ranges).unwrap();
        assert!(record.load_balancer_ips.is_empty());
        assert_eq!(record.external_ips, ips(&["192.0.2.80"]));
    }

    #[test]
    fn affinity_has_a_time_and_the_internal_policy_is_read() {
        let affine = |config: Value| {
            let record = service(|o| {
                o["spec"]["sessionAffinity"] = json!("ClientIP");
                o["spec"]["sessionAffinityConfig"] = config;
            });
            record.unwrap().affinity
        };
        assert_eq!(affine(json!({"clientIP": {"timeoutSeconds": 60}})), 60);
        assert_eq!(affine(json!({"clientIP": {}})), AFFINITY);
        assert_eq!(affine(Value::Null), AFFINITY);
        let local = service(|o| o["spec"]["internalTrafficPolicy"] = json!("Local"));
        assert!(local.unwrap().internal_local);
    }

    #[test]
    fn node_ports_and_the_external_policy_are_read() {
        let record = service(|o| o["spec"]["externalTrafficPolicy"] = json!("Local"));
        let record = record.unwrap();
        let numbers: Vec<_> = record.ports.iter().map(|port| port.node_port).collect();
        assert_eq!((numbers, record.external_local), (vec![0, 30_053], true));
        assert!(!service(|_| {}).unwrap().external_local);
    }

    fn slice(change: impl FnOnce(&mut Value)) -> Option<SliceRecord> {
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-x7",
                "labels": {SERVICE_NAME: "web"}},
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": "a",
                    "conditions": {"ready": false, "serving": true, "terminating": true},
                    "hints": {"forZones": [{"name": "z1"}], "forNodes": [{"name": "a"}]}},
                {"addresses": ["10.0.1.1"]},
                {"addresses": []},
            ],
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 8080},
                {"name": "", "port": 8081},
                {"name": "any", "protocol": "TCP", "port": null},
            ],
        });
        change(&mut object);
        slice_record(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_slice_has_the_first_address_of_each_endpoint_and_unknown_counts_as_ready() {
        let record = slice(|_| {}).unwrap();
        assert_eq!(
            (&*record.key, &*record.service),
            ("shop/web-x7", "shop/web")
        );
        assert_eq!(record.family, Family::V4);
        let ports: Vec<_> = record
            .ports
            .iter()
            .map(|p| (p.name.as_str(), p.protocol, p.port))
            .collect();
        assert_eq!(ports, [("http", 6, 8080), ("", 6, 8081)]);
        let endpoint = |address: &str| EndpointRecord {
            address: address.parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            for_zones: Vec::new(),
            for_nodes: Vec::new(),
        };
        let leaving = EndpointRecord {
            ready: false,
            terminating: true,
            node: Some("a".into()),
            for_zones: vec!["z1".into()],
            for_nodes: vec!["a".into()],
            ..endpoint("10.0.0.1")
        };
        assert_eq!(record.endpoints, [leaving, endpoint("10.0.1.1")]);
    }

    #[test]
    fn lists_that_are_null_are_empty() {
        let record = slice(|o| {
            o["endpoints"] = Value::Null;
            o["ports"] = Value::Null;
        });
        let record = record.unwrap();
        assert!(record.endpoints.is_empty() && record.ports.is_empty());
    }

    #[test]
    fn slices_of_names_of_nobody_and_of_headless_services_have_no_record() {
        assert_eq!(slice(|o| o["addressType"] = json!("FQDN")), None);
        assert_eq!(slice(|o| o["metadata"]["labels"] = json!({})), None);
        let headless = json!({SERVICE_NAME: "web", NOT_TRANSLATED[1]: ""});
        assert_eq!(slice(|o| o["metadata"]["labels"] = headless), None);
    }

    #[test]
    fn the_zone_is_the_nodes_label_and_every_list_says_what_it_is() {
        let node = |labels: Value| -> SlimNode {
            let object = json!({"metadata": {"name": "a", "labels": labels}});
            serde_json::from_value(object).unwrap()
        };
        let zones = |change| {
            let zone = |event| {
                if let Event::Zone(zone) = event {
                    Some(zone)
                } else {
                    None
                }
            };
            let found: Vec<Option<String>> =
                zone_events(change).into_iter().filter_map(zone).collect();
            found
        };
        let labelled = || node(json!({ZONE: "z1"}));
        assert_eq!(zones(Change::Apply(labelled())), [Some("z1".to_owned())]);
        let listed = Change::Snapshot(vec![labelled()]);
        assert_eq!(zones(listed), [Some("z1".to_owned())]);
        assert_eq!(zones(Change::Apply(node(json!({})))), [None]);
        assert_eq!(zones(Change::Snapshot(vec![node(json!({}))])), [None]);
        assert_eq!(zones(Change::Snapshot(Vec::new())), [None]);
        assert!(zones(Change::Delete(labelled())).is_empty());
    }
}
