//! Flows that are translated: many at once, by somebody else's rule, with a packet that
//! connection tracking does not know, and of a protocol without sockets.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use serde_json::json;
use veer_e2e_cluster::{Captured, OUTSIDE, await_condition, decode::Transport};
use veer_e2e_tests::{
    client::{self, Conversation},
    forge,
    lab::{Lab, Mode},
    pods::Pod,
    scene::{DEMO, Scene},
    workloads::{HTTP, STARTED},
};

use super::{Foreign, Made, NODE, OTHER, stays};
use crate::{
    fault::{Fault, Held},
    survive::quick_or_full,
};

pub(super) fn faults() -> Vec<Fault> {
    let mut all = vec![
        Fault::new(
            "translated::many_flows_at_once_to_one_place_in_the_world",
            "datagrams from hundreds of ports of each of four pods of a node, all at once",
            Mode::Tunnel,
            port_pressure,
        ),
        Fault::new(
            "translated::kubelets_probes_by_a_meshs_rule",
            "what the node's own processes send to pods translated to a link-local address",
            Mode::Tunnel,
            probes,
        ),
    ];
    for (mode, name) in [(Mode::Tunnel, "tunnel"), (Mode::Native, "native")] {
        all.push(
            Fault::new(
                format!("translated::segment_outside_the_window_in_{name}"),
                "a segment far outside conntrack's window from a service's pod to its client",
                mode,
                outside_the_window,
            )
            .by_kube_proxy(),
        );
        all.push(Fault::new(
            format!("translated::sctp_by_a_service_and_beside_it_in_{name}"),
            "SCTP associations from one pod to another by a service and by its address",
            mode,
            sctp,
        ));
    }
    all
}

/// How often the kernel found no room for a new flow of a node.
fn insert_failed(lab: &Lab) -> Result<u64> {
    let text = lab.node(NODE)?.exec(&["conntrack", "-S"])?.stdout;
    let counts = text
        .split_whitespace()
        .filter_map(|w| w.strip_prefix("insert_failed="));
    counts
        .map(|n| n.parse::<u64>().context("conntrack -S"))
        .sum()
}

fn port_pressure(scene: &Scene) -> Result<Held> {
    const PODS: u8 = 4;
    const THREADS: u16 = 4;
    let each: u16 = quick_or_full(100, 600);
    let lab = &scene.lab;
    let made: Vec<Made<'_>> = (0..PODS)
        .map(|n| Made::on(lab, NODE, &format!("pressing-{n}")))
        .collect::<Result<_>>()?;
    let server = lab.world()?.within(|| {
        let server = UdpSocket::bind((OUTSIDE, 0))?;
        // All of them may come before the first is read.
        setsockopt(&server, RcvBufForce, &(64 << 20))?;
        server.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(server)
    })?;
    let to = server.local_addr()?;
    let before = insert_failed(lab)?;
    // Kept open to the end: no port comes back.
    let sockets: Vec<UdpSocket> = thread::scope(|scope| {
        let threads: Vec<_> = made
            .iter()
            .zip(0..)
            .flat_map(|(made, pod)| (0..THREADS).map(move |n| (made, [pod, n])))
            .map(|(made, sender)| {
                scope.spawn(move || {
                    made.pod.site.within(|| {
                        (0..each / THREADS)
                            .map(|n| {
                                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                                let [pod, thread] = sender;
                                socket.send_to(format!("{pod} {thread} {n}").as_bytes(), to)?;
                                Ok(socket)
                            })
                            .collect::<Result<Vec<_>>>()
                    })
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a sender panicked"))??);
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    let mut heard = BTreeSet::new();
    let mut ports = BTreeSet::new();
    await_condition("every datagram arrives", STARTED, || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            heard.insert(buffer[..length].to_vec());
            ports.insert(from);
            if heard.len() == sockets.len() {
                return Ok(Some(()));
            }
        }
        Err(format!("{} of {}", heard.len(), sockets.len()))
    })?;
    let failed = insert_failed(lab)? - before;
    ensure!(
        ports.len() == sockets.len(),
        "{} flows came from {} ports",
        sockets.len(),
        ports.len()
    );
    ensure!(failed == 0, "{failed} flows found no room");
    let node = scene.address(NODE)?;
    ensure!(
        ports.iter().all(|p| p.ip() == node),
        "not translated: {ports:?}"
    );
    made.into_iter().try_for_each(Made::deleted)?;
    Ok(Held::new(
        "the first packet of every flow arrived, each from a port of its own",
        format!("{} flows, insert_failed 0", sockets.len()),
    ))
}

/// How often a pod's container was started again, and whether the pod is Ready.
fn health(lab: &Lab, pod: &Pod) -> Result<(u64, bool)> {
    let words = ["-n", &pod.namespace, "get", "pod", &pod.name];
    let status = lab.kubectl().json(&words)?["status"]["containerStatuses"][0].clone();
    let restarts = status["restartCount"].as_u64().context("no container")?;
    Ok((restarts, status["ready"] == true))
}

fn probes(scene: &Scene) -> Result<Held> {
    const MESH: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
    let lab = &scene.lab;
    let put = format!(
        "nft add table ip e2e_mesh\n\
         nft add chain ip e2e_mesh out '{{ type nat hook postrouting priority 90; }}'\n\
         nft add rule ip e2e_mesh out oifname 'veer*' meta skuid 0 snat to {MESH}\n\
         ip address add {MESH}/32 dev lo\n"
    );
    let undo = format!(
        "nft delete table ip e2e_mesh 2>/dev/null; ip address del {MESH}/32 dev lo 2>/dev/null; true"
    );
    let foreign = Foreign::put(lab, NODE, &put, &undo)?;
    // Ready is what the kubelet's probe makes it.
    let made = Made::on(lab, NODE, "probed")?;
    let node = lab.node_site(NODE)?;
    let to = (IpAddr::V4(made.pod.v4()?), HTTP).into();
    let source = client::http_get(&node, to, "/clientip")?;
    ensure!(
        source.starts_with(&MESH.to_string()),
        "the pod saw {source}: nothing was translated"
    );
    // Probes come every second, and three that fail count.
    stays("the pod stays Ready", Duration::from_secs(10), || {
        let now = health(lab, &made.pod)?;
        ensure!(now == (0, true), "restarts and readiness: {now:?}");
        Ok(())
    })?;
    made.deleted()?;
    foreign.undone()?;
    Ok(Held::new(
        "the pod became Ready and stayed so, 0 restarts",
        "",
    ))
}

/// A frame with a packet of a pod's own, as its stack would send it.
fn send(pod: &Pod, packet: &[u8]) -> Result<()> {
    let wire = pod.wire()?;
    let frame = forge::frame(wire.pod_mac, wire.host_mac, false, packet);
    forge::burst(&pod.site, "eth0", &frame, 1)
}

fn outside_the_window(scene: &Scene) -> Result<Held> {
    /// Half of all sequence numbers away from any window.
    const AWAY: u32 = 1 << 31;
    const TIMES: usize = 10;
    let lab = &scene.lab;
    let (client, server) = (scene.demo_on(NODE)?, scene.fixed_on(OTHER)?);
    let service = scene.service(&server.name, "http")?;
    let to = SocketAddr::from((service.address, service.port));
    let at_server = lab.cluster.capture_in_pod(&server.inner, "eth0", "tcp")?;
    let mut open = Conversation::open(&client.site, to)?;
    ensure!(open.ask("/hostname")?.trim() == server.name, "another pod");
    let from_client = |c: &Captured| match c.packet.transport {
        Some(Transport::Tcp {
            source,
            acknowledgement,
            ..
        }) if c.packet.source() == Some(client.address) && acknowledgement > 0 => {
            Some((source, acknowledgement))
        }
        _ => None,
    };
    let seen = at_server.await_packets("the client's segments", STARTED, |all| {
        all.iter().any(|c| from_client(c).is_some())
    })?;
    let (port, sequence) = seen
        .iter()
        .rev()
        .find_map(from_client)
        .context("no segment")?;
    let away = sequence.wrapping_add(AWAY);
    let packet = forge::acknowledgement(
        SocketAddr::new(server.address, HTTP),
        SocketAddr::new(client.address, port),
        away,
    )?;
    for _ in 0..TIMES {
        send(server, &packet)?;
        ensure!(open.ask("/hostname")?.trim() == server.name, "another pod");
    }
    drop(open);
    let packets = at_server.finish()?;
    let forged = packets.iter().filter(
        |c| matches!(c.packet.transport, Some(Transport::Tcp { sequence: s, .. }) if s == away),
    );
    ensure!(forged.count() == TIMES, "not all forged segments were sent");
    let resets = packets
        .iter()
        .filter(|c| c.packet.source() == Some(client.address))
        .filter(
            |c| matches!(c.packet.transport, Some(Transport::Tcp { flags, .. }) if flags & 4 != 0),
        );
    let resets: Vec<String> = resets.map(|c| c.packet.to_string()).collect();
    ensure!(resets.is_empty(), "the client reset: {resets:?}");
    Ok(Held::new(
        "the connection went on, nobody reset it",
        format!("{TIMES} segments"),
    ))
}

/// An SCTP INIT of the client to `to` and the server's answer, to the client, from
/// `port` of its own; returns whom the answer came from.
fn associate(
    scene: &Scene,
    [client, server]: [&Pod; 2],
    (own, to): (u16, SocketAddr),
    port: u16,
) -> Result<IpAddr> {
    let lab = &scene.lab;
    let filter = |side: &str, port: u16| format!("sctp {side} port {port}");
    let asked = lab
        .cluster
        .capture_in_pod(&server.inner, "eth0", &filter("dst", port))?;
    let answered = lab
        .cluster
        .capture_in_pod(&client.inner, "eth0", &filter("dst", own))?;
    let ask = forge::sctp_init(SocketAddr::new(client.address, own), to, false, (7, 0))?;
    // A service rule may still be on its way.
    await_condition("the server is asked", STARTED, || {
        send(client, &ask).map_err(|e| format!("{e:#}"))?;
        let start = asked.packets().map_err(|e| e.to_string())?;
        Ok((!start.is_empty()).then_some(()))
    })?;
    let answer = forge::sctp_init(
        SocketAddr::new(server.address, port),
        SocketAddr::new(client.address, own),
        true,
        (9, 7),
    )?;
    send(server, &answer)?;
    let packets =
        answered.await_packets("the client is answered", STARTED, |all| !all.is_empty())?;
    asked.finish()?;
    answered.finish()?;
    packets[0].packet.source().context("answered by no address")
}

fn sctp(scene: &Scene) -> Result<Held> {
    const NAME: &str = "e2e-sctp";
    let lab = &scene.lab;
    let kubectl = lab.kubectl();
    let client = scene.demo_on(NODE)?;
    let made = Made::on(lab, OTHER, NAME)?;
    let pods = [client, &made.pod];
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": DEMO},
        "spec": {"selector": {"app": NAME}, "ports": [{"protocol": "SCTP", "port": 5000}]},
    });
    kubectl.apply(&service.to_string())?;
    let outcome = (|| {
        let service = kubectl.json(&["-n", DEMO, "get", "service", NAME])?;
        let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        let address: IpAddr = address.parse().context("a service without address")?;
        let own = made.pod.address;
        for (port, to, number) in [
            (40_001, address, 5_000),
            (40_002, own, 6_000),
            (40_001, own, 6_000),
            (40_003, address, 5_000),
        ] {
            let from = associate(scene, pods, (port, SocketAddr::new(to, number)), number)?;
            ensure!(from == to, "asked {to}, answered by {from}");
        }
        Ok(())
    })();
    kubectl.delete(&service.to_string())?;
    outcome?;
    made.deleted()?;
    Ok(Held::new(
        "each answer from the address that was asked",
        "4 associations",
    ))
}
