//! What a pod or the world must not be able to do. No attempt may reach anybody, and
//! the counter of the reason must rise.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Family, Mac, Machine, await_condition, decode::VXLAN_PORT};
use veer_e2e_tests::{
    client,
    evidence::{Place, Plan},
    forge::{self, TEXT, own_source},
    maps::{self, reason},
    pods::Pod,
    site::Site,
    workloads::UDP,
};

use crate::scene::{Scene, Test};

/// Tests in tunnel mode.
pub(crate) const TUNNEL: [(&str, Test); 9] = [
    (
        "pod_with_another_address_reaches_nobody",
        Test::Each(spoofed_address),
    ),
    (
        "pod_with_another_mac_reaches_nobody",
        Test::Each(spoofed_mac),
    ),
    (
        "tunnel_packet_from_the_world_reaches_nobody",
        Test::Each(tunnel_from_world),
    ),
    (
        "tunnel_packet_from_a_node_with_another_nodes_pod_reaches_nobody",
        Test::Each(tunnel_of_other_node),
    ),
    (
        "tunnel_packet_with_a_reserved_vni_reaches_nobody",
        Test::Each(reserved_vni),
    ),
    (
        "tunnel_packet_from_a_pod_reaches_nobody",
        Test::Each(tunnel_from_pod),
    ),
    (
        "bare_packet_that_claims_a_remote_pod_reaches_nobody",
        Test::Each(bare_remote_pod),
    ),
    (
        "bare_packet_that_claims_an_own_pod_reaches_nobody",
        Test::Each(bare_own_pod),
    ),
    (
        "world_address_that_is_denied_reaches_nobody_until_it_is_allowed",
        Test::Each(denied_source),
    ),
];

/// Tests in native mode.
pub(crate) const NATIVE: [(&str, Test); 6] = [
    TUNNEL[0], TUNNEL[1], TUNNEL[2], TUNNEL[5], TUNNEL[7], TUNNEL[8],
];

/// Datagrams sent per attempt.
pub(crate) const SENT: u64 = 5;

/// Sends datagrams, and checks that the counter rose and the victim's eth0 saw nothing.
fn refused(
    scene: &Scene,
    victim: &Pod,
    place: (&Machine, &str, u32),
    attempt: impl FnOnce() -> Result<()>,
) -> Result<()> {
    refused_as(
        scene,
        victim,
        &format!("udp dst port {UDP}"),
        place,
        attempt,
    )
}

/// The same of what tcpdump's filter finds.
pub(crate) fn refused_as(
    scene: &Scene,
    victim: &Pod,
    filter: &str,
    (node, program, why): (&Machine, &str, u32),
    attempt: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = maps::counter(node, program, why)?;
    let watch = Plan::new()
        .device("victim", Place::Pod(victim), filter)
        .start(&scene.lab)?;
    let attempted = attempt();
    let rose = attempted.and_then(|()| {
        let what = format!("{program} of {} counts reason {why}", node.name());
        await_condition(&what, Duration::from_secs(5), || {
            let now = maps::counter(node, program, why).map_err(|e| format!("{e:#}"))?;
            let rose = now - before;
            if rose >= SENT {
                Ok(Some(()))
            } else {
                Err(format!("it rose by {rose}"))
            }
        })
        .context("the attempt was not refused for its reason")
    });
    let trace = watch.stop()?;
    rose.with_context(|| trace.sight())?;
    ensure!(
        trace.of("victim").is_empty(),
        "it was delivered: {}",
        trace.sight()
    );
    Ok(())
}

/// Sends datagrams from a socket bound to `source` at a site.
fn send(from: &Site, source: IpAddr, to: SocketAddr, load: &[u8]) -> Result<()> {
    from.within(|| {
        let socket = UdpSocket::bind((source, 0)).with_context(|| format!("bind {source}"))?;
        for _ in 0..SENT {
            socket.send_to(load, to)?;
        }
        Ok(())
    })
}

/// An address that a site has while `work` runs.
fn with_address<T>(
    site: &Site,
    address: IpAddr,
    device: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let family = Family::of(address);
    let text = format!("{address}/{}", family.bits());
    let add = ["ip", "address", "add", &text, "dev", device];
    site.exec(&[&add, family.flags()].concat())?;
    let done = work();
    site.exec(&["ip", "address", "del", &text, "dev", device])?;
    done
}

fn spoofed_address(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let node = scene.lab.node("worker1")?;
    let [free, world]: [IpAddr; 2] = match scene.family {
        Family::V4 => [
            Ipv4Addr::new(10, 244, 200, 9).into(),
            Ipv4Addr::new(198, 51, 100, 77).into(),
        ],
        Family::V6 => [
            Ipv6Addr::new(0xfd00, 0x10, 0x244, 0xc8, 0, 0, 0, 9).into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x77).into(),
        ],
    };
    // A free address, a neighbour's, another node's pod's and the world's.
    let claims = [
        free,
        scene.other_on("worker1")?.address,
        scene.fixed_on("worker2")?.address,
        world,
    ];
    for victim in [scene.fixed_on("worker1")?, scene.other_on("worker2")?] {
        // It knows its gateway's MAC then; a question for that in another's name would
        // be refused first.
        client::reaches(&pod.site, victim.address, 1)?;
        for claim in claims {
            let to = SocketAddr::from((victim.address, UDP));
            let place = (&node, "pod_egress", reason::SPOOFED_ADDRESS);
            refused(scene, victim, place, || {
                with_address(&pod.site, claim, "eth0", || {
                    send(&pod.site, claim, to, TEXT)
                })
            })
            .with_context(|| format!("as {claim} to {}", victim.name))?;
        }
    }
    shown(scene, pod, &claims)
}

/// `veer drops list` names the pod, the address it claimed, and what that means.
fn shown(scene: &Scene, pod: &Pod, claims: &[IpAddr]) -> Result<()> {
    const REASON: &str = "spoofed-address";
    let rows = scene.lab.veer_json(&pod.node, &["drops", "list"])?;
    let own = format!("{}/{}", pod.namespace, pod.name);
    let found = rows.as_array().into_iter().flatten().any(|row| {
        // With a port, but not where ARP or its like came first.
        let source = row["source"].as_str().unwrap_or_default();
        let with_port = source.parse().map(|a: SocketAddr| a.ip()).ok();
        let address = with_port.or_else(|| source.parse().ok());
        row["pod"] == own.as_str()
            && row["reason"] == REASON
            && address.is_some_and(|address| claims.contains(&address))
    });
    ensure!(found, "{own} is not among {rows:#}");
    let table = scene.lab.veer(&pod.node, &["drops", "list"])?.stdout;
    ensure!(
        table.contains(&own) && table.contains(&format!("{REASON}: ")),
        "no pod or no advice:\n{table}"
    );
    Ok(())
}

fn spoofed_mac(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let victim = scene.other_on("worker1")?;
    let node = scene.lab.node("worker1")?;
    let wire = pod.wire()?;
    let (own, host) = (wire.pod_mac.to_string(), wire.host_mac.to_string());
    let route = pod
        .site
        .exec(&["ip", scene.family.flag(), "route", "show", "default"])?
        .stdout;
    let gateway = route
        .split_whitespace()
        .nth(2)
        .unwrap_or_default()
        .to_owned();
    let place = (&node, "pod_egress", reason::SPOOFED_MAC);
    let to = SocketAddr::from((victim.address, UDP));
    let change = |mac: &str| {
        pod.site
            .exec(&["ip", "link", "set", "eth0", "address", mac])
    };
    let outcome = refused(scene, victim, place, || {
        change("02:00:00:00:00:66")?;
        // Its question for the gateway would be refused first: tell it.
        pod.site.exec(&[
            "ip", "neigh", "replace", &gateway, "lladdr", &host, "dev", "eth0",
        ])?;
        let sent = send(&pod.site, pod.address, to, TEXT);
        change(&own)?;
        sent
    });
    change(&own)?;
    outcome?;
    client::reaches(&pod.site, victim.address, 3).context("with its own MAC again")
}

/// A VXLAN header and, inside, a UDP datagram from `source` to `target`.
fn forged(vni: u32, source: IpAddr, target: IpAddr) -> Result<Vec<u8>> {
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    let packet = forge::datagram(source, target, UDP)?;
    let frame = forge::frame(mac, mac, false, &packet);
    Ok(forge::wrapped(vni, &frame))
}

fn tunnel_from_world(scene: &Scene) -> Result<()> {
    let victim = scene.demo_on("worker1")?;
    let claimed = scene.other_on("worker2")?;
    let vni = scene.identity(claimed)?;
    let world = scene.lab.world()?;
    let node = scene.lab.node("worker1")?;
    let to = SocketAddr::from((scene.tunnel_address("worker1")?, VXLAN_PORT));
    let source = own_source(&world, to.ip())?;
    let load = forged(vni, claimed.address, victim.address)?;
    // Refused on the uplink, or before it by XDP where that is on.
    let xdp = maps::counter(&node, "uplink_xdp", reason::TUNNEL_SOURCE_NOT_NODE)?;
    let place = (&node, "uplink_ingress", reason::TUNNEL_SOURCE_NOT_NODE);
    let outcome = refused(scene, victim, place, || send(&world, source, to, &load));
    let now = maps::counter(&node, "uplink_xdp", reason::TUNNEL_SOURCE_NOT_NODE)?;
    if now >= xdp + SENT { Ok(()) } else { outcome }
}

fn tunnel_of_other_node(scene: &Scene) -> Result<()> {
    let victim = scene.demo_on("worker1")?;
    // A pod of worker2's, claimed by the control plane's node.
    let claimed = scene.other_on("worker2")?;
    let vni = scene.identity(claimed)?;
    let liar = scene.lab.node_site("control")?;
    let node = scene.lab.node("worker1")?;
    let to = SocketAddr::from((scene.tunnel_address("worker1")?, VXLAN_PORT));
    let source = own_source(&liar, to.ip())?;
    let load = forged(vni, claimed.address, victim.address)?;
    let place = (&node, "overlay_ingress", reason::TUNNEL_SOURCE_NOT_ON_NODE);
    refused(scene, victim, place, || send(&liar, source, to, &load))
}

fn reserved_vni(scene: &Scene) -> Result<()> {
    let victim = scene.demo_on("worker1")?;
    let claimed = scene.fixed_on("control")?;
    let liar = scene.lab.node_site("control")?;
    let node = scene.lab.node("worker1")?;
    let to = SocketAddr::from((scene.tunnel_address("worker1")?, VXLAN_PORT));
    let source = own_source(&liar, to.ip())?;
    // host, world, unmanaged: no sender writes them.
    for vni in [0, 1, 2, 3] {
        let load = forged(vni, claimed.address, victim.address)?;
        let place = (&node, "overlay_ingress", reason::RESERVED_VNI);
        refused(scene, victim, place, || send(&liar, source, to, &load))
            .with_context(|| format!("VNI {vni}"))?;
    }
    Ok(())
}

fn tunnel_from_pod(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let victim = scene.demo_on("worker2")?;
    let node = scene.lab.node("worker1")?;
    let vni = scene.identity(pod)?;
    let load = forged(vni, pod.address, victim.address)?;
    for target in scene.lab.cluster.node_names() {
        let to = SocketAddr::from((scene.address(&target)?, VXLAN_PORT));
        let place = (&node, "pod_egress", reason::TUNNEL_PORT_FROM_POD);
        refused(scene, victim, place, || {
            send(&pod.site, pod.address, to, &load)
        })
        .with_context(|| format!("to {target}"))?;
    }
    Ok(())
}

/// A datagram on the underlay that claims to come from `claim`, sent by the
/// world to the node of `victim`.
fn bare(scene: &Scene, victim: &Pod, claim: IpAddr, why: u32) -> Result<()> {
    from_world(scene, victim, why, |world, to| {
        with_address(world, claim, "lo", || send(world, claim, to, TEXT))
    })
}

/// What the world sends to a pod by its node, refused on the uplink.
fn from_world(
    scene: &Scene,
    victim: &Pod,
    why: u32,
    attempt: impl FnOnce(&Site, SocketAddr) -> Result<()>,
) -> Result<()> {
    let world = scene.lab.world()?;
    let node = scene.lab.node(&victim.node)?;
    let route = format!("{}/{}", victim.address, scene.family.bits());
    let via = scene.address(&victim.node)?.to_string();
    world.exec(&["ip", "route", "replace", &route, "via", &via])?;
    let to = SocketAddr::from((victim.address, UDP));
    let outcome = refused(scene, victim, (&node, "uplink_ingress", why), || {
        attempt(&world, to)
    });
    world.exec(&["ip", "route", "del", &route])?;
    outcome
}

fn bare_remote_pod(scene: &Scene) -> Result<()> {
    let victim = scene.demo_on("worker1")?;
    let claim = scene.other_on("worker2")?.address;
    bare(scene, victim, claim, reason::NATIVE_NOT_ACCEPTED)
}

fn bare_own_pod(scene: &Scene) -> Result<()> {
    let victim = scene.demo_on("worker1")?;
    let claim = scene.other_on("worker1")?.address;
    bare(scene, victim, claim, reason::OWN_SOURCE_FROM_OUTSIDE)
}

/// Waits until a node answers the world, or does not.
fn await_answer(world: &Site, node: IpAddr, wanted: bool) -> Result<()> {
    let what = format!("{node} answers the world: {wanted}");
    await_condition(&what, Duration::from_secs(20), || {
        let pings = client::ping(world, node, 1).map_err(|e| format!("{e:#}"))?;
        if pings.complete() == wanted {
            Ok(Some(()))
        } else {
            Err(pings.text)
        }
    })
    .context("the denied prefixes have not come into force")
}

fn denied_source(scene: &Scene) -> Result<()> {
    let world = scene.lab.world()?;
    let victim = scene.demo_on("worker1")?;
    let node = scene.address("worker1")?;
    let source = own_source(&world, node)?;
    await_answer(&world, node, true)?;
    let deny = |list: &str| {
        scene
            .lab
            .patch_network(&format!(r#"{{"spec":{{"deniedPrefixes":[{list}]}}}}"#))
    };
    deny(&format!(r#""{source}/{}""#, scene.family.bits()))?;
    let refused = await_answer(&world, node, false).and_then(|()| {
        from_world(scene, victim, reason::DENIED_PREFIX, |world, to| {
            send(world, source, to, TEXT)
        })
    });
    deny("")?;
    refused?;
    let listed = scene.lab.veer("worker1", &["metrics", "list"])?.stdout;
    ensure!(
        listed.contains("denied-prefix"),
        "veer metrics list does not name the reason: {listed}"
    );
    await_answer(&world, node, true)
}
