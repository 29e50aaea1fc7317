//! Ports of Services, as people read them.

use std::net::{IpAddr, SocketAddr};

use veer_agent_api::{
    BackendRow, FrontendName, MAX_FRONTENDS, ServiceRow,
    packet::protocol,
    service::{backend_state, translator},
};
use veer_bpf_common::tables::Frontend;

use crate::report::sources::Sources;
use veer_agent_core::index::{ChosenEndpoint, EndpointState, ServicePort};
use veer_agent_kernel::datapath::Error;

/// All ports of Services, by the Services' names. Who translates is read from the map, since
/// the programs do what that says, whatever is wanted by now.
pub(crate) fn services(sources: &Sources) -> Result<Vec<ServiceRow>, Error> {
    let present = sources.maps.services()?;
    let index = sources.index.read();
    let complete = index.complete.services && index.complete.slices;
    // Where none can be chosen, the programs leave the packet to the stack, in which it is
    // kube-proxy's, or refused by veer.
    let cluster = index.cluster.as_ref();
    let full = cluster.is_some_and(|(_, c)| c.services.is_full());
    let by_programs = |frontend: &Frontend| {
        present
            .get(frontend)
            .is_some_and(|s| full || s.backends != 0)
    };
    let mut found = Vec::new();
    for key in index.services.keys() {
        for port in index.services.ports_of(key, index.own(), full) {
            found.extend(rows(&port, complete, by_programs));
        }
    }
    Ok(found)
}

/// The Services that have these frontends, as this agent knows them.
pub(crate) fn frontends(
    sources: &Sources,
    frontends: &[veer_agent_api::Frontend],
) -> Vec<FrontendName> {
    let index = sources.index.read();
    let name = |frontend: &veer_agent_api::Frontend| {
        let (service, port) = index.services.by_frontend(frontend.at, frontend.protocol)?;
        let service = match port {
            "" => service.to_owned(),
            port => format!("{service}:{port}"),
        };
        Some(FrontendName {
            frontend: *frontend,
            service,
        })
    };
    frontends
        .iter()
        .take(MAX_FRONTENDS)
        .filter_map(name)
        .collect()
}

/// A port's frontends by who translates them. `complete`: all Services and their endpoints
/// are known.
fn rows(
    port: &ServicePort,
    complete: bool,
    by_programs: impl Fn(&Frontend) -> bool,
) -> Vec<ServiceRow> {
    let key = |(address, number): &(IpAddr, u16)| Frontend::new(*address, *number, port.protocol);
    // A NodePort is shown once, as `0.0.0.0` or `[::]`: at all addresses.
    let is_shown = |end: &(IpAddr, u16)| {
        let frontend = key(end);
        !frontend.is_node_port() || frontend.address == Frontend::OWN_NODE
    };
    let (programs, stack): (Vec<_>, Vec<_>) = port
        .frontends
        .iter()
        .copied()
        .filter(is_shown)
        .partition(|end| by_programs(&key(end)));
    let by = |mode: &str, frontends: Vec<(IpAddr, u16)>| {
        (!frontends.is_empty()).then(|| row(port, complete, mode, frontends))
    };
    let programs = by(translator::VEER, programs);
    let stack = by(translator::KUBE_PROXY, stack);
    programs.into_iter().chain(stack).collect()
}

fn row(
    port: &ServicePort,
    complete: bool,
    mode: &str,
    frontends: Vec<(IpAddr, u16)>,
) -> ServiceRow {
    let service = port.service.as_str();
    let (namespace, name) = service.split_once('/').unwrap_or(("", service));
    ServiceRow {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port: port.name.clone(),
        protocol: protocol(port.protocol),
        family: port.family.name().to_owned(),
        external: port.external,
        frontends: frontends.into_iter().map(SocketAddr::from).collect(),
        mode: mode.to_owned(),
        affinity: port.affinity,
        unserved: if complete {
            unserved(&port.endpoints)
        } else {
            String::new()
        },
        backends: port.endpoints.iter().map(backend).collect(),
    }
}

fn backend(endpoint: &ChosenEndpoint) -> BackendRow {
    let state = match endpoint.state {
        EndpointState::Ready => backend_state::READY,
        EndpointState::Terminating => backend_state::TERMINATING,
        EndpointState::NotReady => backend_state::NOT_READY,
    };
    BackendRow {
        address: endpoint.address,
        state: state.to_owned(),
        chosen: endpoint.chosen,
        node: endpoint.node.clone(),
    }
}

/// Why a port with these endpoints serves no new connections; empty: it does.
fn unserved(endpoints: &[ChosenEndpoint]) -> String {
    if endpoints.iter().any(|endpoint| endpoint.chosen) {
        String::new()
    } else if endpoints.is_empty() {
        "it has no endpoints of this family (kubectl get endpointslices): connections are refused"
            .to_owned()
    } else if endpoints.iter().any(|endpoint| endpoint.state.serves()) {
        "no endpoint on this node serves, and internalTrafficPolicy is Local: what is sent there \
         is dropped, so clients time out"
            .to_owned()
    } else {
        format!(
            "no endpoint is ready ({} in all): connections are refused",
            endpoints.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use veer_agent_core::family::Family;

    use super::*;

    fn endpoint(state: EndpointState, chosen: bool) -> ChosenEndpoint {
        ChosenEndpoint {
            address: "10.0.1.7:8080".parse().unwrap(),
            state,
            chosen,
            node: Some("a".to_owned()),
        }
    }

    fn port(endpoints: Vec<ChosenEndpoint>) -> ServicePort {
        let at = |address: &str| (address.parse().unwrap(), 80);
        ServicePort {
            service: "shop/cart".to_owned(),
            name: "http".to_owned(),
            protocol: 6,
            family: Family::V4,
            external: true,
            frontends: vec![at("192.0.2.7"), at("192.0.2.8")],
            endpoints,
            affinity: 10_800,
            local: false,
        }
    }

    #[test]
    fn frontends_are_told_apart_by_who_translates_them() {
        let port = port(vec![endpoint(EndpointState::Ready, true)]);
        let first = Frontend::new("192.0.2.7".parse().unwrap(), 80, 6);
        let both = rows(&port, true, |frontend| *frontend == first);
        let told: Vec<_> = both
            .iter()
            .map(|row| (row.mode.as_str(), row.frontends.clone()))
            .collect();
        let at = |text: &str| vec![text.parse::<SocketAddr>().unwrap()];
        assert_eq!(
            told,
            [
                (translator::VEER, at("192.0.2.7:80")),
                (translator::KUBE_PROXY, at("192.0.2.8:80")),
            ]
        );
        let all = rows(&port, true, |_| true);
        assert_eq!(all.len(), 1);
        let row = &all[0];
        assert_eq!((&*row.namespace, &*row.name), ("shop", "cart"));
        assert_eq!((&*row.protocol, &*row.family), ("tcp", "IPv4"));
        assert_eq!((row.unserved.as_str(), row.affinity), ("", 10_800));
        assert_eq!(row.backends.len(), 1);
        assert_eq!(row.backends[0].state, backend_state::READY);
    }

    #[test]
    fn what_serves_no_new_connections_says_why() {
        let reason = |endpoints| {
            let port = port(endpoints);
            // What is not known yet is not told.
            assert_eq!(rows(&port, false, |_| true)[0].unserved, "");
            rows(&port, true, |_| true)[0].unserved.clone()
        };
        let none = reason(vec![]);
        assert!(none.starts_with("it has no endpoints"), "{none}");
        let not_ready = reason(vec![endpoint(EndpointState::NotReady, false)]);
        assert!(not_ready.starts_with("no endpoint is ready (1 in all)"));
        let elsewhere = reason(vec![endpoint(EndpointState::Ready, false)]);
        assert!(elsewhere.contains("internalTrafficPolicy"), "{elsewhere}");
        let last = vec![
            endpoint(EndpointState::Terminating, true),
            endpoint(EndpointState::NotReady, false),
        ];
        assert_eq!(reason(last), "");
    }
}
