//! Flows that last, that half end, and packets that are too large.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use veer_e2e_cluster::{attempt, await_condition};
use veer_e2e_tests::{
    client::{self, ping_during},
    lab::{Lab, Mode},
    pods::{self, Pod},
    scene::{FIXED, Scene},
    workloads::STARTED,
};

use super::{Foreign, Made, NODE, OTHER, await_works};
use crate::{
    fault::{Fault, Held},
    survive::quick_or_full,
};

pub(super) fn faults() -> Vec<Fault> {
    let mut all = vec![
        Fault::new(
            "flows::half_closed_through_a_service_and_silent",
            "the client ends its sending side; the server answers after two and a half minutes",
            Mode::Tunnel,
            half_closed,
        ),
        Fault::new(
            "flows::mtu_lowered_and_raised_with_pods_made_between",
            "spec.mtu 1300, a new pod, spec.mtu as it was",
            Mode::Tunnel,
            mtu_raised,
        ),
    ];
    for (mode, name) in [(Mode::Tunnel, "tunnel"), (Mode::Native, "native")] {
        all.push(Fault::new(
            format!("flows::one_nodes_uplink_is_smaller_in_{name}"),
            "one node's uplink with MTU 1400, the others' with 1500",
            mode,
            smaller_uplink,
        ));
    }
    all.push(Fault::new(
        "flows::narrow_link_behind_a_router_in_native",
        "a router's link to one node with MTU 1400, the nodes' own with 1500",
        Mode::Tunnel,
        narrow_link,
    ));
    all
}

fn half_closed(scene: &Scene) -> Result<Held> {
    const PORT: u16 = 9_000;
    const NAME: &str = "e2e-late";
    // Half-closed flows used to live for 60 s.
    let silence = Duration::from_secs(quick_or_full(70, 150));
    let lab = &scene.lab;
    let kubectl = lab.kubectl();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": FIXED},
        "spec": {"selector": {"at": OTHER}, "ports": [{"port": PORT}]},
    });
    kubectl.apply(&service.to_string())?;
    let outcome = (|| {
        let made = kubectl.json(&["-n", FIXED, "get", "service", NAME])?;
        let address = made["spec"]["clusterIP"].as_str().unwrap_or_default();
        let to = SocketAddr::from((address.parse::<Ipv4Addr>()?, PORT));
        let listener = scene
            .fixed_on(OTHER)?
            .site
            .within(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?))?;
        let from = &scene.demo_on(NODE)?.site;
        await_condition("the service leads to its pod", STARTED, || {
            let time = attempt();
            let open = from.within(|| Ok(TcpStream::connect_timeout(&to, time)?));
            let open = open.map_err(|e| format!("{e:#}"))?;
            let (mut other, _) = listener.accept().map_err(|e| e.to_string())?;
            drop(open);
            let mut rest = Vec::new();
            other.read_to_end(&mut rest).map_err(|e| e.to_string())?;
            Ok(Some(()))
        })?;
        thread::scope(|scope| {
            let server = scope.spawn(|| -> Result<()> {
                let (mut stream, _) = listener.accept()?;
                let mut asked = String::new();
                stream.read_to_string(&mut asked)?;
                ensure!(asked == "go", "asked {asked:?}");
                let start = Instant::now();
                await_condition("the silence is over", silence * 2, || {
                    Ok((start.elapsed() >= silence).then_some(()))
                })?;
                Ok(stream.write_all(b"late")?)
            });
            let time = attempt();
            let answer = from.within(|| {
                let mut stream = TcpStream::connect_timeout(&to, time)?;
                stream.write_all(b"go")?;
                stream.shutdown(Shutdown::Write)?;
                stream.set_read_timeout(Some(silence * 3))?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).context("the answer")?;
                Ok(answer)
            });
            server
                .join()
                .map_err(|_| anyhow!("the server panicked"))??;
            ensure!(answer? == "late", "another answer");
            Ok(())
        })
    })();
    kubectl.delete(&service.to_string())?;
    outcome?;
    let figure = format!("after {} s of silence", silence.as_secs());
    Ok(Held::new("the answer arrived", figure))
}

/// The MTUs of both ends of a pod's veth and of its default route, which has none of
/// its own where it is the device's.
fn mtus(lab: &Lab, pod: &Pod) -> Result<(u32, u32)> {
    let host = pod.wire()?.host_name;
    let of = |links: Vec<pods::Link>, name: &str| {
        let link = links.into_iter().find(|l| l.name == name);
        link.map(|l| l.mtu).with_context(|| format!("no {name}"))
    };
    Ok((
        of(pods::links(&lab.node_site(&pod.node)?)?, &host)?,
        of(pods::links(&pod.site)?, "eth0")?,
    ))
}

/// Datagrams of a size reach a pod of another node, whole.
fn sends(scene: &Scene, from: &Pod, size: u32) -> Result<()> {
    let to = scene.demo_on(OTHER)?.address;
    let size = (size - client::ping_headers(to)).to_string();
    let options = ["-M", "do", "-s", &size];
    let pings = client::ping_with(&from.site, to, 3, &options)?;
    ensure!(pings.complete(), "{size} octets: {}", pings.text);
    // Where the device refuses, sendmsg says so at once.
    from.site.within(|| {
        let socket = client::udp_socket(to)?;
        socket.send_to(&[0; 1_200], (to, 9)).context("send")?;
        Ok(())
    })
}

fn mtu_raised(scene: &Scene) -> Result<Held> {
    let lab = &scene.lab;
    let set = |mtu: u32| lab.patch_network(&format!(r#"{{"spec": {{"mtu": {mtu}}}}}"#));
    let large = scene.pod_mtu();
    let outcome = (|| {
        set(1_300)?;
        await_condition("running pods have the smaller MTU", STARTED, || {
            let text = |e: anyhow::Error| format!("{e:#}");
            let pod = scene.demo_on(NODE).map_err(text)?;
            let flag = scene.family.flag();
            let route = pod
                .site
                .exec(&["ip", "-o", flag, "route", "show", "default"]);
            let route = route.map_err(text)?.stdout;
            let in_tunnel = format!("mtu {}", 1_300 - scene.tunnel_overhead());
            let small = route.contains("mtu 1300") || route.contains(&in_tunnel);
            if small { Ok(Some(())) } else { Err(route) }
        })?;
        let made = Made::on(lab, NODE, "made-small")?;
        Ok::<_, anyhow::Error>(made)
    })();
    set(0)?;
    let made = outcome?;
    let pods = [&made.pod, scene.demo_on(NODE)?];
    await_condition("every pod sends as large as before", STARTED, || {
        let text = |e: anyhow::Error| format!("{e:#}");
        for pod in pods {
            let (host, own) = mtus(lab, pod).map_err(text)?;
            if host < large || own < large {
                return Err(format!("{}: host end {host}, eth0 {own}", pod.name));
            }
            sends(scene, pod, large).map_err(text)?;
        }
        Ok(Some(()))
    })?;
    made.deleted()?;
    Ok(Held::new(
        "both ends of every pod's veth followed",
        format!("{large} octets"),
    ))
}

fn smaller_uplink(scene: &Scene) -> Result<Held> {
    const SMALL: u32 = 1_400;
    let lab = &scene.lab;
    let uplink = lab.cluster.state().config.mtu;
    let (source, target) = (scene.demo_on(NODE)?, scene.demo_on(OTHER)?);
    // The link's other end too: what is larger is lost there, as in a switch.
    let set = |mtu: u32| format!("ip link set eth0 mtu {mtu}");
    let foreign = Foreign::put(lab, OTHER, &set(SMALL), &set(uplink.into()))?;
    let port = format!("{OTHER}-0");
    let switch = lab.cluster.switch();
    let port_mtu = |mtu: u32| {
        let mtu = mtu.to_string();
        switch.exec(&["ip", "link", "set", &port, "mtu", &mtu])
    };
    port_mtu(SMALL)?;
    let outcome = (|| {
        let (fits, larger) = match scene.mode {
            Mode::Tunnel | Mode::Hybrid => {
                let fits = SMALL - scene.tunnel_overhead();
                (fits, fits + 1)
            }
            Mode::Native => (SMALL, SMALL + 1),
        };
        await_condition(
            "what fits passes, what does not is answered",
            STARTED,
            || {
                let text = |e: anyhow::Error| format!("{e:#}");
                sends(scene, source, fits).map_err(text)?;
                for (from, to) in [(source, target), (target, source)] {
                    for size in [larger, scene.pod_mtu()] {
                        let pings = ping_during(
                            &from.site,
                            to.address,
                            size - client::ping_headers(to.address),
                            || client::reaches(&from.site, to.address, 5),
                        );
                        let ((), pings) = pings.map_err(text)?;
                        // The first may be on its way when the summary comes.
                        let silent = pings.sent.saturating_sub(pings.answered + pings.errors);
                        if silent > 1 || pings.sent == 0 {
                            return Err(format!("{size} octets from {}: {pings:?}", from.name));
                        }
                    }
                }
                Ok(Some(()))
            },
        )?;
        await_works(scene, source)?;
        await_works(scene, target)
    })();
    port_mtu(uplink.into())?;
    foreign.undone()?;
    outcome?;
    await_condition("pods have the larger MTU again", STARTED, || {
        // What a sender has learnt of a path it keeps for ten minutes (mtu_expires).
        let forget = ["ip", scene.family.flag(), "route", "flush", "cache"];
        source.site.exec(&forget).map_err(|e| format!("{e:#}"))?;
        sends(scene, source, scene.pod_mtu())
            .map(Some)
            .map_err(|e| format!("{e:#}"))
    })?;
    Ok(Held::new("what fits passes; what does not is answered", ""))
}

/// The router tells a pod of a size, and the ICMP error belongs to a flow that
/// connection tracking never saw.
fn narrow_link(scene: &Scene) -> Result<Held> {
    const SMALL: u32 = 1_400;
    const OCTETS: usize = 5_000_000;
    let lab = &scene.lab;
    let switch = lab.cluster.switch();
    let route = |words: &[&str]| switch.exec(&[&["ip", "route"], words].concat());
    let (nodes, families) = (lab.cluster.node_names(), lab.cluster.families());
    for node in &nodes {
        for family in families.all() {
            let via = lab.address(node, *family)?.to_string();
            route(&["replace", &lab.pod_cidr(node, *family)?, "via", &via])?;
        }
    }
    let uplink = lab.cluster.state().config.mtu.to_string();
    let port = format!("{OTHER}-0");
    let port_mtu = |mtu: &str| switch.exec(&["ip", "link", "set", &port, "mtu", mtu]);
    let (from, to) = (scene.demo_on(NODE)?, scene.demo_on(OTHER)?);
    let outcome = lab.set_mode(Mode::Native).and_then(|()| {
        port_mtu(&SMALL.to_string())?;
        let listener = to
            .site
            .within(|| Ok(TcpListener::bind((scene.family.unspecified(), 0))?))?;
        let target = SocketAddr::from((to.address, listener.local_addr()?.port()));
        let mut stream = from
            .site
            .within(|| Ok(TcpStream::connect_timeout(&target, attempt())?))?;
        let (mut other, _) = listener.accept()?;
        stream.set_write_timeout(Some(STARTED))?;
        other.set_read_timeout(Some(STARTED))?;
        thread::scope(|scope| {
            let server = scope.spawn(move || {
                let mut all = Vec::new();
                other.read_to_end(&mut all).map(|_| all.len())
            });
            let sent = stream.write_all(&vec![0; OCTETS]).context("send");
            drop(stream);
            let got = server.join().map_err(|_| anyhow!("the server panicked"))?;
            sent?;
            ensure!(got? == OCTETS, "not all arrived");
            Ok(())
        })?;
        let learnt = from
            .site
            .exec(&["ip", "route", "get", &to.address.to_string()])?
            .stdout;
        ensure!(learnt.contains("mtu 1400"), "not learnt: {learnt}");
        Ok(())
    });
    port_mtu(&uplink)?;
    lab.set_mode(Mode::Tunnel)?;
    for node in &nodes {
        for family in families.all() {
            route(&["del", &lab.pod_cidr(node, *family)?])?;
        }
    }
    outcome?;
    Ok(Held::new(
        "a bulk transfer came through; the pod learnt the size",
        format!("{OCTETS} octets"),
    ))
}
