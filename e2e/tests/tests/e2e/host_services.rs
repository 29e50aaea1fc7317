//! `spec.services: Full`: what a node's own sockets send to Services goes to the backends
//! directly, and no program on the node notices, nor does any pod. Who translates is judged
//! by netfilter's counters, by captures, and without kube-proxy.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use veer_e2e_cluster::{Family, Packet, Transport, await_condition};
use veer_e2e_tests::{
    client::{self, Conversation},
    datagrams::{Kind, Socket},
    evidence::{Place, Plan, Trace, at},
    kube_proxy::Absent,
    load::Path,
    pods::{self, Pod},
    site::Site,
    translator::{self, Translator, Translators},
    workloads::{self, Applied, HTTP, STARTED, UDP},
};

use crate::{
    scene::{DEMO, FIXED, Scene, Test},
    service_translation::survives,
};

/// Tests in tunnel mode.
pub(crate) const IN_TUNNEL: [(&str, Test); 6] = [
    (
        "a_nodes_connections_to_a_service_are_to_the_backend",
        Test::Each(to_the_backend),
    ),
    (
        "another_network_namespace_of_the_node_is_left_alone",
        Test::Each(left_alone),
    ),
    (
        "a_service_without_endpoints_refuses_nodes_and_pods_at_once",
        Test::Each(refused),
    ),
    (
        "datagrams_of_a_node_leave_a_backend_that_is_gone",
        Test::Once(leaving),
    ),
    (
        "connections_of_nodes_survive_a_change_of_the_translator",
        Test::Once(changes),
    ),
    (
        "without_kube_proxy_cluster_addresses_work",
        Test::Once(without_proxy),
    ),
];

/// Tests in native mode: what depends on the way to other nodes.
pub(crate) const IN_NATIVE: [(&str, Test); 1] = [IN_TUNNEL[0]];

/// The node whose sockets are looked at, and another one.
const NODE: &str = "worker1";
const OTHER: &str = "worker2";

/// The cluster address of a pod's own Service, by a port called `http` or `udp`.
fn frontend(scene: &Scene, backend: &Pod, port: &str) -> Result<SocketAddr> {
    workloads::frontend(&scene.lab, scene.family, (FIXED, &backend.name), port)
}

/// An address as sockets of its family take it, and one of IPv4 as those of IPv6 do.
fn forms(to: SocketAddr) -> Vec<SocketAddr> {
    match to.ip() {
        IpAddr::V4(address) => vec![to, (address.to_ipv6_mapped(), to.port()).into()],
        IpAddr::V6(_) => vec![to],
    }
}

/// Asks the one pod behind `to` by TCP. The socket must say that it leads to `to`.
fn by_tcp(from: &Site, to: SocketAddr, backend: &Pod) -> Result<()> {
    let mut open = Conversation::open(from, to)?;
    let (name, peer) = (open.ask("/hostname")?, open.peer()?);
    ensure!(name == backend.name, "{to}: {name} answered");
    ensure!(peer == to, "a connection to {to} says it is to {peer}");
    Ok(())
}

/// The same by sockets for datagrams of either kind; answers must be from `to`, too.
fn by_udp(from: &Site, to: SocketAddr, backend: &Pod) -> Result<()> {
    for kind in Kind::ALL {
        let socket = Socket::open(from, to, kind)?;
        let name = socket.ask()?;
        ensure!(name == backend.name, "udp {to}: {name} answered {kind:?}");
        if kind == Kind::Connected {
            let peer = socket.peer()?;
            ensure!(peer == to, "a socket connected to {to} says {peer}");
        }
    }
    Ok(())
}

/// Asks `backend` by its Service from a node, by sockets of all kinds, under watch of the
/// node's hooks of netfilter.
fn watched(scene: &Scene, backend: &Pod) -> Result<Trace> {
    let site = scene.lab.node_site(NODE)?;
    let (http, udp) = (
        frontend(scene, backend, "http")?,
        frontend(scene, backend, "udp")?,
    );
    let plan = Plan::new().hooks(NODE, scene.address(NODE)?, http.ip());
    let watch = plan.start(&scene.lab)?;
    let by_tcp = |to| by_tcp(&site, to, backend);
    let by_udp = |to| by_udp(&site, to, backend);
    let mut asked = forms(http).into_iter().try_for_each(by_tcp);
    asked = asked.and_then(|()| forms(udp).into_iter().try_for_each(by_udp));
    let trace = watch.stop()?;
    asked?;
    Ok(trace)
}

fn to_the_backend(scene: &Scene) -> Result<()> {
    let translators = Translators::hold(&scene.lab)?;
    for by in [Translator::Pods, Translator::Full] {
        translators.set(by)?;
        for node in [NODE, OTHER] {
            let backend = scene.fixed_on(node)?;
            let what = format!("{NODE} → {} by {}", backend.name, by.name());
            let trace = watched(scene, backend).with_context(|| what.clone())?;
            let in_stack = trace.hook_passes() > 0;
            // Seen with kube-proxy, so that a judge that sees nothing is noticed.
            ensure!(
                in_stack == (by == Translator::Pods),
                "{what}: netfilter saw packets to the Service:\n{}",
                trace.hooks_seen()
            );
        }
    }
    translators.restored()
}

/// Where these packets go.
fn destinations(packets: &[Packet]) -> BTreeSet<SocketAddr> {
    let to = |packet: &Packet| {
        let port = match packet.transport? {
            Transport::Udp { destination, .. } | Transport::Tcp { destination, .. } => destination,
            Transport::Icmp { .. } => return None,
        };
        Some(SocketAddr::from((packet.ip?.destination, port)))
    };
    packets.iter().filter_map(to).collect()
}

fn left_alone(scene: &Scene) -> Result<()> {
    let translators = Translators::hold(&scene.lab)?;
    translators.set(Translator::Full)?;
    let (from, backend) = (scene.demo_on(NODE)?, scene.fixed_on(OTHER)?);
    let (http, udp) = (
        frontend(scene, backend, "http")?,
        frontend(scene, backend, "udp")?,
    );
    let direct = SocketAddr::from((backend.address, HTTP));
    let filter = format!(
        "src host {} and (dst host {} or dst host {})",
        from.address,
        http.ip(),
        backend.address
    );
    let wire = from.wire()?;
    let veth = Place::Node(NODE, &wire.host_name);
    // As the pod's packets leave it, before any program on its device.
    let plan = Plan::new().device(at::SOURCE_VETH, veth, &filter);
    let watch = plan.start(&scene.lab)?;
    let asked = by_tcp(&from.site, http, backend)
        .and_then(|()| by_udp(&from.site, udp, backend))
        // What a hook would make of it, so that a capture without it is noticed.
        .and_then(|()| by_tcp(&from.site, direct, backend));
    let trace = watch.stop()?;
    asked?;
    let seen = destinations(trace.of(at::SOURCE_VETH));
    ensure!(
        seen == BTreeSet::from([http, udp, direct]),
        "{} sent to {http}, {udp} and {direct}, and its device saw packets to {seen:?}",
        from.name
    );
    translators.restored()
}

/// Of no pod.
const NOBODY: &str = "e2e-host-nobody";

/// A Service without endpoints, of TCP and UDP.
fn nobody() -> String {
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": HTTP, "protocol": "TCP"},
        {"name": "udp", "port": 81, "targetPort": UDP, "protocol": "UDP"},
    ]);
    workloads::of_app((DEMO, NOBODY), NOBODY, &ports, ("sessionAffinity", "None")).to_string()
}

/// [`nobody`] refuses a pod and the node itself.
fn nobody_answers(scene: &Scene, family: Family) -> Result<()> {
    let of = |port| workloads::frontend(&scene.lab, family, (DEMO, NOBODY), port);
    let (http, udp) = (of("http")?, of("udp")?);
    let pod = scene.demo_on(NODE)?.site.clone();
    for from in [pod, scene.lab.node_site(NODE)?] {
        // Rules are written after the maps, which have been waited for.
        await_condition("it is refused", STARTED, || {
            let refused =
                client::refused_at_once(&from, http).and_then(|()| refused_udp(&from, udp));
            refused.map(Some).map_err(|e| format!("{e:#}"))
        })?;
    }
    Ok(())
}

fn refused_udp(from: &Site, to: SocketAddr) -> Result<()> {
    let kind = client::udp_error(from, to)?;
    // The host's own `send` is told at once of what its output hook refuses.
    ensure!(
        matches!(
            kind,
            ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied
        ),
        "{} → udp {to}, which nobody serves: {kind:?}",
        from.name
    );
    Ok(())
}

fn refused(scene: &Scene) -> Result<()> {
    let _applied = Applied::new(&scene.lab, nobody())?;
    let translators = Translators::hold(&scene.lab)?;
    translators.set(Translator::Full)?;
    nobody_answers(scene, scene.family)?;
    translators.restored()
}

/// The Service, and the app of its pods.
const LEAVING: &str = "e2e-host-leaving";

/// A node's sockets to one Service of two pods, one of which goes.
struct Sockets {
    to: SocketAddr,
    /// Connected to the pod that goes.
    left: Socket,
    /// Answered by it the last time.
    free: Socket,
    /// Connected to the pod that stays.
    kept: Socket,
}

impl Sockets {
    fn open(site: &Site, to: SocketAddr, [goes, stays]: [&Pod; 2]) -> Result<Self> {
        Ok(Self {
            to,
            left: opened(site, to, Kind::Connected, goes)?,
            free: opened(site, to, Kind::Unconnected, goes)?,
            kept: opened(site, to, Kind::Connected, stays)?,
        })
    }

    /// That the pod is gone is known: the one that stays answers all of them.
    fn moved(&self, stays: &Pod) -> Result<()> {
        let to = self.to;
        let name = self.free.ask()?;
        ensure!(name == stays.name, "udp {to}, unconnected: {name} answered");
        let name = self.kept.ask().context("its backend is still there")?;
        ensure!(name == stays.name, "udp {to}, kept: {name} answered");
        self.left.connect()?;
        let name = self.left.ask()?;
        ensure!(
            name == stays.name,
            "udp {to}, connected again: {name} answered"
        );
        Ok(())
    }
}

/// A socket whose first datagram a certain pod answered: which one does is chance.
fn opened(site: &Site, to: SocketAddr, kind: Kind, wanted: &Pod) -> Result<Socket> {
    const TRIES: usize = 64;
    for _ in 0..TRIES {
        let socket = Socket::open(site, to, kind)?;
        if socket.ask()? == wanted.name {
            return Ok(socket);
        }
    }
    bail!(
        "none of {TRIES} sockets to {to} was answered by {}",
        wanted.name
    )
}

fn leaving(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let ports = json!([{"name": "udp", "port": 81, "targetPort": UDP, "protocol": "UDP"}]);
    let _applied = Applied::new(lab, workloads::pair((DEMO, LEAVING), &ports))?;
    let pods = pods::await_ready(lab, DEMO, &format!("app={LEAVING}"), 2, STARTED)?;
    let (goes, stays) = (pods::on(&pods, OTHER)?, pods::on(&pods, NODE)?);
    let translators = Translators::hold(lab)?;
    translators.set(Translator::Full)?;
    let site = lab.node_site(NODE)?;
    let mut all = Vec::new();
    for family in lab.cluster.families().all() {
        let to = workloads::frontend(lab, *family, (DEMO, LEAVING), "udp")?;
        translator::await_backends(lab, NODE, (to, translator::UDP), 2)?;
        all.push(Sockets::open(&site, to, [goes, stays])?);
    }
    let start = Instant::now();
    lab.kubectl()
        .run(&["-n", DEMO, "delete", "pod", &goes.name, "--wait=false"])?;
    pods::await_no_endpoint(lab, LEAVING, goes, STARTED)?;
    for sockets in &all {
        // Nothing is sent: what ends it is not an answer of the network.
        let kind = sockets.left.ended()?;
        ensure!(
            kind == ErrorKind::ConnectionAborted,
            "udp {}, connected to a pod that is gone, ended by {kind:?} after {:?}",
            sockets.to,
            start.elapsed()
        );
    }
    eprintln!(
        "connected sockets of a node ended within {:?} after their pod was deleted",
        start.elapsed()
    );
    for sockets in &all {
        translator::await_backends(lab, NODE, (sockets.to, translator::UDP), 1)?;
        sockets.moved(stays)?;
    }
    translators.restored()
}

/// Whether datagrams come from elsewhere after a change: what a pod sends to another node's
/// `NodePort` was masqueraded there, and nobody here knows which began before.
fn is_moved(path: Path) -> bool {
    matches!(path, Path::NodePortFromPod)
}

fn changes(scene: &Scene) -> Result<()> {
    use Translator::{Full, KubeProxy, Pods};
    let translators = Translators::hold(&scene.lab)?;
    translators.set(Pods)?;
    let from = scene.lab.node_site(NODE)?;
    let paths: Vec<Path> = Path::ALL.into_iter().filter(|p| !is_moved(*p)).collect();
    let changes = [Full, KubeProxy, Full, Pods];
    survives(scene, &from, &translators, (&changes, &paths))?;
    translators.restored()
}

fn without_proxy(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let _applied = Applied::new(lab, nobody())?;
    let translators = Translators::hold(lab)?;
    translators.set(Translator::Full)?;
    let absent = Absent::on(lab, NODE)?;
    let primary = lab.primary();
    let service = workloads::service(lab, primary, (FIXED, &scene.fixed_on(NODE)?.name), "http")?;
    let node_port = SocketAddr::from((lab.address(NODE, primary)?, service.node_port));
    let world = lab.world()?;
    // veer leaves those to kube-proxy, so that one that still translates is noticed.
    ensure!(
        client::http_get(&world, node_port, "/hostname").is_err(),
        "a NodePort answers without kube-proxy"
    );
    for from in [&scene.demo_on(NODE)?.site, &lab.node_site(NODE)?] {
        cluster_works(scene, from).context("without kube-proxy")?;
    }
    let loopback: IpAddr = match primary {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let own = SocketAddr::from((loopback, service.node_port));
    client::http_get(&lab.node_site(NODE)?, own, "/hostname").context("without kube-proxy")?;
    for family in lab.cluster.families().all() {
        nobody_answers(scene, *family).context("without kube-proxy")?;
    }
    absent.back()?;
    await_condition("kube-proxy's NodePort answers again", STARTED, || {
        let answer = client::http_get(&world, node_port, "/hostname");
        answer.map(Some).map_err(|e| format!("{e:#}"))
    })?;
    translators.restored()
}

/// A port's `NodePort`, at the addresses of its own node and of another one.
fn node_ports(
    scene: &Scene,
    from: &Site,
    family: Family,
    (backend, port): (&Pod, &str),
) -> Result<()> {
    let service = (FIXED, backend.name.as_str());
    let number = workloads::service(&scene.lab, family, service, port)?.node_port;
    for node in [NODE, OTHER] {
        let to = SocketAddr::from((scene.lab.address(node, family)?, number));
        let name = client::who_answers(from, to, port)?;
        ensure!(name == backend.name, "{to}: {name} answered {}", from.name);
    }
    Ok(())
}

/// The API server, the DNS, and Services with a backend on this node and on another one.
fn cluster_works(scene: &Scene, from: &Site) -> Result<()> {
    let primary = scene.lab.primary();
    client::api_server(from, primary)?;
    for transport in ["+notcp", "+tcp"] {
        client::dns(from, primary, &[transport]).with_context(|| transport.to_owned())?;
    }
    for family in scene.lab.cluster.families().all() {
        for node in [NODE, OTHER] {
            let backend = scene.fixed_on(node)?;
            for port in ["http", "udp"] {
                let service = (FIXED, backend.name.as_str());
                let to = workloads::frontend(&scene.lab, *family, service, port)?;
                let name = client::who_answers(from, to, port)?;
                ensure!(name == backend.name, "{to}: {name} answered {}", from.name);
                node_ports(scene, from, *family, (backend, port))?;
            }
        }
    }
    Ok(())
}
