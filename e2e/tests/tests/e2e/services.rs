//! Services with kube-proxy, hostPorts, the host and the world (issue's list;
//! DESIGN, "Services, host and world"): who can reach what, from everywhere.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use veer_e2e_cluster::{Family, attempt, await_condition};
use veer_e2e_tests::{
    client::{self, Conversation},
    pods::Pod,
    site::Site,
    workloads::{HOST_HTTP, HOST_UDP, HTTP, UDP},
};

use crate::scene::{Scene, Test};

/// Who reaches what.
pub(crate) const REACH: [(&str, Test); 5] = [
    ("cluster_ip_from_pods_and_nodes", Test::Each(cluster_ip)),
    (
        "node_port_of_every_node_from_pods_nodes_and_world",
        Test::Each(node_port),
    ),
    ("host_port_from_pods_nodes_and_world", Test::Each(host_port)),
    (
        "dns_and_the_api_servers_cluster_ip_from_pods",
        Test::Once(dns_and_api),
    ),
    ("world_reaches_pod_address", Test::Each(world_to_pod)),
];

/// All of it.
pub(crate) const TESTS: [(&str, Test); 10] = [
    REACH[0],
    REACH[1],
    REACH[2],
    REACH[3],
    REACH[4],
    (
        "pod_to_world_is_masqueraded_unless_excluded",
        Test::Each(masquerade),
    ),
    (
        "big_datagrams_come_back_in_fragments_through_a_service",
        Test::Each(fragments),
    ),
    (
        "port_unreachable_comes_back_through_a_service",
        Test::Each(icmp_error),
    ),
    (
        "direct_and_translated_connection_to_one_backend_coexist",
        Test::Each(direct_and_translated),
    ),
    (
        "long_connection_through_a_node_port_outlives_conntracks_first_timeouts",
        Test::Each(long_connection),
    ),
];

/// A pod with its service.
struct Backend<'a> {
    pod: &'a Pod,
    cluster_ip: IpAddr,
    node_port: u16,
    node_port_udp: u16,
}

fn backends(scene: &Scene) -> Result<Vec<Backend<'_>>> {
    scene
        .fixed
        .iter()
        .map(|pod| {
            let of = |port| scene.service(&pod.name, port);
            let http = of("http")?;
            Ok(Backend {
                pod,
                cluster_ip: http.address,
                node_port: http.node_port,
                node_port_udp: of("udp")?.node_port,
            })
        })
        .collect()
}

/// Everyone inside: a pod and the host of each node.
fn inside(scene: &Scene) -> Result<Vec<Site>> {
    let mut sites: Vec<Site> = scene.fixed.iter().map(|p| p.site.clone()).collect();
    for name in scene.lab.cluster.node_names() {
        sites.push(scene.lab.node_site(&name)?);
    }
    Ok(sites)
}

/// What did not work, of many attempts.
#[derive(Default)]
struct Failures {
    tried: usize,
    texts: Vec<String>,
}

impl Failures {
    /// Enough to know that it is broken; each costs seconds.
    const ENOUGH: usize = 6;

    fn note(&mut self, what: &str, outcome: Result<()>) -> Result<()> {
        self.tried += 1;
        if let Err(error) = outcome {
            self.texts.push(format!("{what}: {error:#}"));
        }
        if self.texts.len() >= Self::ENOUGH {
            self.verdict()
        } else {
            Ok(())
        }
    }

    fn verdict(&self) -> Result<()> {
        ensure!(
            self.texts.is_empty(),
            "{} of the first {} attempts failed:\n{}",
            self.texts.len(),
            self.tried,
            self.texts.join("\n")
        );
        Ok(())
    }
}

/// TCP and UDP to one backend by one address; the right pod must answer.
fn both(
    failures: &mut Failures,
    from: &Site,
    address: IpAddr,
    ports: (u16, u16),
    backend: &Pod,
) -> Result<()> {
    let right = |name: String| {
        ensure!(
            name.trim() == backend.name,
            "{name} answered for {}",
            backend.name
        );
        Ok(())
    };
    let tcp = SocketAddr::from((address, ports.0));
    failures.note(
        "tcp",
        client::http_get(from, tcp, "/hostname").and_then(right),
    )?;
    let udp = SocketAddr::from((address, ports.1));
    failures.note(
        "udp",
        client::udp_ask(from, udp, "hostname").and_then(right),
    )
}

fn cluster_ip(scene: &Scene) -> Result<()> {
    let mut failures = Failures::default();
    for backend in backends(scene)? {
        for from in inside(scene)? {
            both(
                &mut failures,
                &from,
                backend.cluster_ip,
                (80, 81),
                backend.pod,
            )?;
        }
    }
    failures.verdict()
}

fn node_port(scene: &Scene) -> Result<()> {
    let mut failures = Failures::default();
    let mut sites = inside(scene)?;
    sites.push(scene.lab.world()?);
    for backend in backends(scene)? {
        let ports = (backend.node_port, backend.node_port_udp);
        for node in scene.lab.cluster.node_names() {
            let address = scene.address(&node)?;
            for from in &sites {
                both(&mut failures, from, address, ports, backend.pod)?;
            }
        }
    }
    failures.verdict()
}

fn host_port(scene: &Scene) -> Result<()> {
    let mut failures = Failures::default();
    let mut sites = inside(scene)?;
    sites.push(scene.lab.world()?);
    for pod in &scene.fixed {
        let address = scene.address(&pod.node)?;
        for from in &sites {
            both(&mut failures, from, address, (HOST_HTTP, HOST_UDP), pod)?;
        }
    }
    failures.verdict()
}

fn dns_and_api(scene: &Scene) -> Result<()> {
    // The only one of the two services'.
    let primary = scene.lab.primary();
    let mut failures = Failures::default();
    for pod in scene.pods() {
        for transport in ["+notcp", "+tcp"] {
            let outcome = client::dns(&pod.site, primary, &[transport]);
            failures.note(&format!("DNS {transport} from {}", pod.name), outcome)?;
        }
        let outcome = client::api_server(&pod.site, primary);
        failures.note(&format!("API server from {}", pod.name), outcome)?;
    }
    failures.verdict()
}

/// Routes of the world to the pods of a node, while `work` runs.
fn with_routes<T>(scene: &Scene, work: impl FnOnce(&Site) -> Result<T>) -> Result<T> {
    let world = scene.lab.world()?;
    let mut cidrs = Vec::new();
    for node in scene.lab.cluster.node_names() {
        let cidr = scene.lab.pod_cidr(&node, scene.family)?;
        let via = scene.address(&node)?.to_string();
        world.exec(&["ip", "route", "replace", &cidr, "via", &via])?;
        cidrs.push(cidr);
    }
    let done = work(&world);
    for cidr in cidrs {
        world.exec(&["ip", "route", "del", &cidr])?;
    }
    done
}

fn world_to_pod(scene: &Scene) -> Result<()> {
    with_routes(scene, |world| {
        let mut failures = Failures::default();
        for pod in &scene.fixed {
            both(&mut failures, world, pod.address, (HTTP, UDP), pod)?;
        }
        failures.verdict()
    })
}

/// Connects from `from` to a listener of the world and returns what source the
/// listener saw.
fn source_seen(world: &Site, family: Family, from: &Site) -> Result<IpAddr> {
    let listener = world.within(|| Ok(TcpListener::bind((family.outside(), 0))?))?;
    let to = listener.local_addr()?;
    let (tell, told) = mpsc::channel();
    let time = attempt();
    // Ends with the process at the latest: accept has no deadline of its own.
    thread::spawn(move || {
        if let Ok((mut stream, peer)) = listener.accept() {
            let _unread = stream.write_all(b"seen");
            let _gone = tell.send(peer.ip());
        }
    });
    from.within(|| {
        let mut stream = TcpStream::connect_timeout(&to, time)?;
        stream.set_read_timeout(Some(time))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text == "seen", "the world said {text:?}");
        Ok(())
    })
    .with_context(|| format!("{} → world {to}", from.name))?;
    told.recv_timeout(time)
        .map_err(|_| anyhow!("the world saw nothing"))
}

fn masquerade(scene: &Scene) -> Result<()> {
    let world = scene.lab.world()?;
    for pod in &scene.fixed {
        let seen = source_seen(&world, scene.family, &pod.site)?;
        let node = scene.address(&pod.node)?;
        ensure!(
            seen == node,
            "{} is seen as {seen}, not as its node's {node}",
            pod.name
        );
    }
    let exclude = |list: &str| {
        let patch = format!(r#"{{"spec":{{"masquerade":{{"exclude":{list}}}}}}}"#);
        scene.lab.patch_network(&patch)
    };
    let excluded = with_routes(scene, |world| {
        let outside = scene.family.outside();
        exclude(&format!(r#"["{outside}/{}"]"#, scene.family.bits()))?;
        for pod in &scene.fixed {
            let what = format!("{} is seen by its own address", pod.name);
            await_condition(&what, Duration::from_secs(15), || {
                match source_seen(world, scene.family, &pod.site) {
                    Ok(seen) if seen == pod.address => Ok(Some(())),
                    Ok(seen) => Err(format!("seen as {seen}")),
                    Err(error) => Err(format!("{error:#}")),
                }
            })?;
        }
        Ok(())
    });
    exclude("[]")?;
    excluded?;
    for pod in &scene.fixed {
        let node = scene.address(&pod.node)?;
        let what = format!("{} is masqueraded again", pod.name);
        await_condition(&what, Duration::from_secs(15), || {
            match source_seen(&world, scene.family, &pod.site) {
                Ok(seen) if seen == node => Ok(Some(())),
                Ok(seen) => Err(format!("seen as {seen}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })?;
    }
    Ok(())
}

fn fragments(scene: &Scene) -> Result<()> {
    // Longer than any MTU here, shorter than netexec's buffer of 2048.
    let text = "f".repeat(1990);
    let mut failures = Failures::default();
    let world = scene.lab.world()?;
    for backend in backends(scene)? {
        let same = |answer: String| {
            ensure!(answer.trim() == text, "{} octets came back", answer.len());
            Ok(())
        };
        let ask = format!("echo {text}");
        for from in inside(scene)? {
            let to = SocketAddr::from((backend.cluster_ip, 81));
            failures.note("big udp", client::udp_ask(&from, to, &ask).and_then(same))?;
        }
        for node in scene.lab.cluster.node_names() {
            let to = SocketAddr::from((scene.address(&node)?, backend.node_port_udp));
            failures.note("big udp", client::udp_ask(&world, to, &ask).and_then(same))?;
        }
    }
    failures.verdict()
}

fn icmp_error(scene: &Scene) -> Result<()> {
    let mut failures = Failures::default();
    for backend in backends(scene)? {
        for from in inside(scene)? {
            // A pod that is its own backend is translated twice; kube-proxy's
            // masquerade there is not what is asked here.
            if from.name == backend.pod.site.name {
                continue;
            }
            let to = SocketAddr::from((backend.cluster_ip, 82));
            let outcome = client::udp_error(&from, to).and_then(|kind| {
                ensure!(
                    kind == std::io::ErrorKind::ConnectionRefused,
                    "{} → {to}: {kind:?} instead of a refusal",
                    from.name
                );
                Ok(())
            });
            failures.note("icmp error", outcome)?;
        }
    }
    failures.verdict()
}

fn direct_and_translated(scene: &Scene) -> Result<()> {
    let backends = backends(scene)?;
    for source in &scene.demo {
        for backend in &backends {
            let direct = SocketAddr::from((backend.pod.address, HTTP));
            let service = SocketAddr::from((backend.cluster_ip, 80));
            let node = SocketAddr::from((scene.address("worker1")?, backend.node_port));
            let mut open = Vec::new();
            for to in [direct, service, node, direct, service] {
                open.push((to, Conversation::open(&source.site, to)?));
            }
            for round in 0..3 {
                for (to, conversation) in &mut open {
                    let name = conversation
                        .ask("/hostname")
                        .with_context(|| format!("{} → {to}, round {round}", source.name))?;
                    ensure!(name == backend.pod.name, "{to}: {name} answered");
                }
                let direct = SocketAddr::from((backend.pod.address, UDP));
                let service = SocketAddr::from((backend.cluster_ip, 81));
                for to in [direct, service] {
                    let name = client::udp_ask(&source.site, to, "hostname")?;
                    ensure!(name.trim() == backend.pod.name, "{to}: {name} answered");
                }
            }
        }
    }
    Ok(())
}

fn long_connection(scene: &Scene) -> Result<()> {
    let world = scene.lab.world()?;
    let backends = backends(scene)?;
    let mut open = Vec::new();
    for backend in &backends {
        let to = SocketAddr::from((scene.address("worker1")?, backend.node_port));
        for from in [&world, &scene.demo_on("worker2")?.site] {
            open.push((to, backend.pod, Conversation::open(from, to)?));
        }
    }
    // Notes of flows begin with a short life; a few seconds of use must have
    // given them a long one, and the pauses between must not end them.
    let start = std::time::Instant::now();
    let mut rounds = 0;
    await_condition(
        "six seconds of conversation",
        Duration::from_secs(30),
        || {
            rounds += 1;
            for (to, pod, conversation) in &mut open {
                let answered = conversation
                    .ask("/hostname")
                    .map_err(|e| format!("{to}: {e:#}"));
                match answered {
                    Ok(name) if name == pod.name => {}
                    // No later round can heal a broken connection.
                    Ok(other) => return Ok(Some(Err(format!("{to}: {other} answered")))),
                    Err(error) => return Ok(Some(Err(error))),
                }
            }
            Ok((start.elapsed() > Duration::from_secs(6)).then_some(Ok(())))
        },
    )?
    .map_err(|e| anyhow!("round {rounds}: {e}"))
}
