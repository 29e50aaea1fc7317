//! `veer monitor`: what becomes of one ping on each path (REFERENCE A12), drops with
//! their reasons, and the end of listening.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Family, await_condition, decode::VXLAN_PORT};
use veer_e2e_tests::{
    client,
    lab::Mode,
    maps,
    monitor::{Listening, SOON, Workstation, ping},
    pods::Pod,
    workloads,
};

use crate::scene::{FIXED, Scene, Test};

/// Tests in tunnel mode.
pub(crate) const IN_TUNNEL: [(&str, Test); 6] = [
    (
        "one_ping_is_told_where_it_goes_on_each_path",
        Test::Each(one_ping),
    ),
    (
        "request_to_a_service_is_told_with_what_it_was_and_its_answer_too",
        Test::Each(one_request),
    ),
    (
        "drop_is_told_with_its_reason_and_nothing_else_with_it",
        Test::Each(drops),
    ),
    (
        "lines_for_people_name_pods_and_identities",
        Test::Each(for_people),
    ),
    (
        "capture_is_read_by_tcpdump_and_holds_the_decisions",
        Test::Each(capture),
    ),
    (
        "programs_fall_silent_when_the_reader_is_killed",
        Test::Once(silent),
    ),
];

/// Tests in native mode.
pub(crate) const IN_NATIVE: [(&str, Test); 2] = [IN_TUNNEL[0], IN_TUNNEL[1]];

/// A decision without what differs between runs: numbers of endpoints and devices.
fn essence(line: &str) -> Result<String> {
    let row: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let kind = text("detail");
    let kind = kind.split(", id").next().unwrap_or_default();
    let delivery = text("delivery");
    let words = delivery.split(' ').scan(false, |number, word| {
        let shown = if std::mem::replace(number, word == "endpoint") {
            "N"
        } else {
            word
        };
        Some(shown.to_owned())
    });
    Ok(format!(
        "{} {}: {kind} from {} to {}, {} ({}): {}",
        text("node"),
        text("program"),
        row["source"]["identity"],
        row["destination"]["identity"],
        text("state"),
        text("lookup"),
        words.collect::<Vec<_>>().join(" ")
    ))
}

/// Pings until one is told exactly so: commands on other nodes start one by one.
fn told(listening: &Listening, from: &Pod, to: IpAddr, expected: &[String]) -> Result<()> {
    let mut id = 0;
    let what = format!("a ping from {} to {to} is told", from.name);
    await_condition(&what, SOON, || {
        id += 1;
        let text = |e: anyhow::Error| format!("{e:#}");
        ping(&from.site, to, id).map_err(text)?;
        let mark = format!(", id {id}, ");
        let lines = listening.lines(expected.len(), |line| line.contains(&mark));
        let told: Result<Vec<String>> = lines.iter().map(|line| essence(line)).collect();
        as_expected(listening, &told.map_err(text)?, expected)
    })?;
    Ok(())
}

/// Whether just that was told; if not, what was.
fn as_expected(
    listening: &Listening,
    told: &[String],
    expected: &[String],
) -> Result<Option<()>, String> {
    if told == expected {
        Ok(Some(()))
    } else {
        let said = listening.said();
        Err(format!("{told:#?}\nwanted: {expected:#?}\n{said}"))
    }
}

fn one_ping(scene: &Scene) -> Result<()> {
    let here = scene.demo_on("worker1")?;
    let (near, far) = (scene.other_on("worker1")?, scene.other_on("worker2")?);
    let (own, near_id, far_id) = (
        scene.identity(here)?,
        scene.identity(near)?,
        scene.identity(far)?,
    );
    let user = Workstation::new(&scene.lab)?;
    let address = here.address.to_string();
    let listening = user.listen(&["-o", "json", "--address", &address])?;
    let name = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
    let delivered = |node: &str, program: &str, what: &str, ids: (u32, u32), pod: &Pod| {
        let state = if what == "echo request" {
            "New"
        } else {
            "Reply"
        };
        let ((from, to), pod) = (ids, name(pod));
        format!(
            "{node} {program}: {what} from {from} to {to}, {state} (no-entry): local delivery to \
             endpoint N ({pod}) from identity {from}"
        )
    };
    let (request, reply) = ("echo request", "echo reply");
    let same_node = [
        delivered("worker1", "pod_egress", request, (own, near_id), near),
        delivered("worker1", "pod_egress", reply, (near_id, own), here),
    ];
    told(&listening, here, near.address, &same_node).context("same node")?;

    let mode = scene.path("worker1", "worker2")?;
    let native = mode == Mode::Native;
    let sent = |node: &str, what: &str, (from, to): (u32, u32), peer: &str| {
        let state = if what == request { "New" } else { "Reply" };
        let by = if native {
            format!("to network by eth0, to node {peer}")
        } else {
            format!("to overlay, VNI {from}, to node {peer}")
        };
        format!("{node} pod_egress: {what} from {from} to {to}, {state} (no-entry): {by}")
    };
    let arrival = if native {
        "uplink_ingress"
    } else {
        "overlay_ingress"
    };
    let other_node = [
        sent("worker1", request, (own, far_id), "worker2"),
        delivered("worker2", arrival, request, (own, far_id), far),
        sent("worker2", reply, (far_id, own), "worker1"),
        delivered("worker1", arrival, reply, (far_id, own), here),
    ];
    told(&listening, here, far.address, &other_node).context("other node")?;

    // Its own node: up the stack, and down again.
    let node = scene.address("worker1")?;
    let host = [
        format!(
            "worker1 pod_egress: echo request from {own} to 1, New (not-asked): to the host's stack"
        ),
        format!("worker1 pod_ingress: echo reply from 1 to {own}, Reply (no-entry): passed"),
    ];
    told(&listening, here, node, &host).context("own node")
}

/// What a decision says of a translated packet, without the client's port.
fn translation(line: &str, client: IpAddr) -> Result<String> {
    let row: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    let before = &row["before"];
    let end = |end: &Value| {
        let at: SocketAddr = end.as_str().unwrap_or_default().parse()?;
        Ok::<_, anyhow::Error>(if at.ip() == client {
            "client".to_owned()
        } else {
            at.to_string()
        })
    };
    let shows =
        |from: &Value, to: &Value| Ok::<_, anyhow::Error>(format!("{} > {}", end(from)?, end(to)?));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(format!(
        "{} {}: {}, translated {} from {} ({}) to {}",
        text(&row["node"]),
        text(&row["program"]),
        text(&row["state"]),
        text(&row["translation"]),
        shows(&before["source"], &before["destination"])?,
        text(&before["service"]),
        shows(&row["source"]["text"], &row["destination"]["text"])?,
    ))
}

/// By the address of the Service, which only packets before their translation show on the
/// way there, and only those after it on the way back.
fn one_request(scene: &Scene) -> Result<()> {
    let from = scene.demo_on("worker1")?;
    let user = Workstation::new(&scene.lab)?;
    for node in ["worker1", "worker2"] {
        let backend = scene.fixed_on(node)?;
        let service = (FIXED, backend.name.as_str());
        let frontend = workloads::service(&scene.lab, scene.family, service, "udp")?;
        let frontend = SocketAddr::from((frontend.address, frontend.port));
        let at = SocketAddr::from((backend.address, workloads::UDP));
        let address = frontend.ip().to_string();
        let listening = user.listen(&["-o", "json", "--address", &address])?;
        let native = scene.path("worker1", "worker2")? == Mode::Native;
        let back = match (node, native) {
            ("worker1", _) => "pod_egress",
            (_, false) => "overlay_ingress",
            (_, true) => "uplink_ingress",
        };
        let named = format!("({FIXED}/{}:udp)", backend.name);
        let expected = [
            format!(
                "worker1 pod_egress: New, translated by veer from client > {frontend} {named} to \
                 client > {at}"
            ),
            format!(
                "worker1 {back}: Reply, translated by veer from {at} > client {named} to \
                 {frontend} > client"
            ),
        ];
        await_condition("a request to a Service is told", SOON, || {
            let text = |e: anyhow::Error| format!("{e:#}");
            client::udp_ask(&from.site, frontend, "hostname").map_err(text)?;
            // What is left of an attempt before begins with an answer.
            let begun = Cell::new(false);
            let lines = listening.lines(2, |line| {
                begun.set(begun.get() || line.contains("\"state\":\"New\""));
                begun.get()
            });
            let told: Result<Vec<String>> = lines
                .iter()
                .map(|line| translation(line, from.address))
                .collect();
            as_expected(&listening, &told.map_err(text)?, &expected)
        })?;
    }
    Ok(())
}

fn drops(scene: &Scene) -> Result<()> {
    let pod = scene.demo_on("worker1")?;
    let user = Workstation::new(&scene.lab)?;
    let pair = format!("{}/{}", pod.namespace, pod.name);
    let listening = user.listen(&["-o", "json", "--drops", "--pod", &pair])?;
    let to = SocketAddr::from((scene.address("worker2")?, VXLAN_PORT));
    let lines = await_condition("a drop is told", SOON, || {
        let sent = pod.site.within(|| {
            let socket = client::udp_socket(to.ip())?;
            socket.send_to(b"no tunnel", to)?;
            Ok(())
        });
        sent.map_err(|e| format!("{e:#}"))?;
        // What is delivered is not asked for.
        client::ping(
            &pod.site,
            scene.address("worker1").map_err(|e| format!("{e:#}"))?,
            1,
        )
        .map_err(|e| format!("{e:#}"))?;
        let lines = listening.lines(1, |line| line.contains("\"decision\""));
        if lines.is_empty() {
            Err(listening.said())
        } else {
            Ok(Some(lines))
        }
    })?;
    let row: Value = serde_json::from_str(&lines[0])?;
    ensure!(
        row["outcome"] == "tunnel-port-from-pod"
            && row["dropped"] == true
            && row["node"] == "worker1"
            && row["program"] == "pod_egress"
            && row["source"]["pod"] == *pair
            && row["destination"]["text"] == to.to_string(),
        "{row:#}"
    );
    Ok(())
}

/// The protocol of pings. Nothing else is asked for: the kubelet's probes would be told
/// between them.
fn pings(scene: &Scene) -> &'static str {
    match scene.family {
        Family::V4 => "icmp",
        Family::V6 => "icmpv6",
    }
}

fn for_people(scene: &Scene) -> Result<()> {
    let (here, near) = (scene.demo_on("worker1")?, scene.other_on("worker1")?);
    let user = Workstation::new(&scene.lab)?;
    let address = near.address.to_string();
    let protocol = pings(scene);
    let listening = user.listen(&["--verbose", "--address", &address, "--protocol", protocol])?;
    let mut id = 1000;
    let lines = await_condition("a ping is told to people", SOON, || {
        id += 1;
        ping(&here.site, near.address, id).map_err(|e| format!("{e:#}"))?;
        // A line and five more for each of request and reply.
        let (mark, begun) = (format!(", id {id}, "), Cell::new(false));
        let lines = listening.lines(12, |line| {
            begun.set(begun.get() || line.contains(&mark));
            begun.get()
        });
        if lines.len() == 12 {
            Ok(Some(lines))
        } else {
            Err(format!("{lines:#?}\n{}", listening.said()))
        }
    })?;
    let number = scene.identity(near)?;
    let object = scene
        .lab
        .kubectl()
        .json(&["get", "securityidentity", &number.to_string()])?;
    let labels = object["spec"]["labels"].as_object().context("labels")?;
    let labels: Vec<String> = labels
        .iter()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    let wire = here.wire()?;
    let (a, b) = (here.address, near.address);
    let own = scene.identity(here)?;
    let name = |pod: &Pod| format!("{}/{}", pod.namespace, pod.name);
    let bytes = match scene.family {
        Family::V4 => 98,
        Family::V6 => 118,
    };
    let first = format!(
        " worker1 pod_egress: {protocol} {a} ({}) > {b} ({}), echo request, id {id}, seq 1, New: \
         local delivery to endpoint ",
        name(here),
        name(near)
    );
    let end = format!(" ({}) from identity {own}", name(near));
    ensure!(
        lines[0].contains(&first) && lines[0].ends_with(&end),
        "{lines:#?}\nwanted: {first}…{end}"
    );
    for (line, wanted) in [
        (&lines[1], format!("interface: {}", wire.host_name)),
        (
            &lines[2],
            "lookup:    no entry, the flow is not translated".to_owned(),
        ),
        (
            &lines[4],
            format!("to:        identity {number} ({})", labels.join(", ")),
        ),
        (&lines[5], format!("headers:   {bytes} bytes, TTL 63")),
    ] {
        ensure!(line.trim() == wanted, "{lines:#?}\nwanted: {wanted}");
    }
    Ok(())
}

fn capture(scene: &Scene) -> Result<()> {
    let (here, far) = (scene.demo_on("worker1")?, scene.other_on("worker2")?);
    let user = Workstation::new(&scene.lab)?;
    let (file, address) = (user.path("monitor.pcapng"), far.address.to_string());
    let mut child = user
        .monitor(&[
            "--all-nodes",
            "--address",
            &address,
            "--protocol",
            pings(scene),
            "--count",
            "8",
            "--pcap",
        ])
        .arg(&file)
        .spawn()?;
    let mut id = 2000;
    let ended = await_condition("a capture of eight packets ends", SOON, || {
        id += 1;
        ping(&here.site, far.address, id).map_err(|e| format!("{e:#}"))?;
        match child.try_wait() {
            Ok(Some(status)) => Ok(Some(status)),
            Ok(None) => Err("it is still running".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    })?;
    ensure!(ended.success(), "{ended}");
    let read = Command::new("tcpdump").arg("-nr").arg(&file).output()?;
    let text = String::from_utf8_lossy(&read.stdout).into_owned();
    let echoes = text
        .lines()
        .filter(|l| l.to_lowercase().contains("echo re"))
        .count();
    ensure!(read.status.success() && echoes == 8, "{text}");
    let bytes = std::fs::read(&file)?;
    let holds = |text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    for text in [
        "local delivery to endpoint",
        "worker1:",
        "worker2:",
        "lookup:",
    ] {
        ensure!(holds(text), "the capture lacks {text:?}");
    }
    Ok(())
}

fn silent(scene: &Scene) -> Result<()> {
    let user = Workstation::new(&scene.lab)?;
    let mut listening = user.listen(&["-o", "json"])?;
    let nodes = scene.lab.cluster.node_names();
    let listened = |wanted: bool| {
        let what = format!("programs are listened to: {wanted}");
        await_condition(&what, SOON, || {
            for node in &nodes {
                let machine = scene.lab.node(node).map_err(|e| format!("{e:#}"))?;
                let until = maps::listens_until(&machine).map_err(|e| format!("{e:#}"))?;
                if (until != 0) != wanted {
                    return Err(format!("{node}: until {until}"));
                }
            }
            Ok(Some(()))
        })
    };
    listened(true)?;
    listening.kill()?;
    listened(false)?;
    Ok(())
}
