//! `spec.services`: what pods send to Services is translated by the programs on their
//! devices instead of the host's stack, and nobody notices. Who translates is judged by
//! netfilter's counters.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    client::{self, Conversation},
    datagrams::ToOne,
    evidence::{Plan, Trace},
    load::{Load, Path},
    numbered::{self, Flow, Sent, Servers},
    pods::{self, Pod},
    site::Site,
    translator::{self, Translator, Translators},
    workloads::{self, Applied, HTTP, STARTED, of_app},
};

use crate::scene::{DEMO, FIXED, Scene, Test};

/// Tests in tunnel mode.
pub(crate) const IN_TUNNEL: [(&str, Test); 4] = [
    (
        "a_pods_packets_to_a_service_never_enter_the_stack",
        Test::Each(past_the_stack),
    ),
    ("services_answer_in_either_mode", Test::Each(either_mode)),
    (
        "connections_survive_a_change_of_the_translator",
        Test::Once(changes),
    ),
    (
        "datagrams_leave_a_backend_that_is_no_endpoint_any_more",
        Test::Once(leaving),
    ),
];

/// Tests in native mode: what depends on the way to other nodes.
pub(crate) const IN_NATIVE: [(&str, Test); 2] = [IN_TUNNEL[0], IN_TUNNEL[1]];

/// The cluster address with a port of a Service, in the family that is looked at.
fn frontend(scene: &Scene, service: (&str, &str), port: &str) -> Result<SocketAddr> {
    workloads::frontend(&scene.lab, scene.family, service, port)
}

/// Asks `backend` by its Service under watch of netfilter's hooks on the nodes of both.
fn watched(scene: &Scene, from: &Pod, backend: &Pod, port: &str) -> Result<Trace> {
    let to = frontend(scene, (FIXED, &backend.name), port)?;
    let mut plan = Plan::new();
    for node in BTreeSet::from([from.node.as_str(), backend.node.as_str()]) {
        for other in [to.ip(), backend.address] {
            plan = plan.hooks(node, from.address, other);
        }
    }
    let watch = plan.start(&scene.lab)?;
    let name = client::who_answers(&from.site, to, port);
    let trace = watch.stop()?;
    let name = name?;
    ensure!(
        name == backend.name,
        "{name} answered instead of {}",
        backend.name
    );
    Ok(trace)
}

fn past_the_stack(scene: &Scene) -> Result<()> {
    let translators = Translators::hold(&scene.lab)?;
    let from = scene.demo_on("worker1")?;
    for by in [Translator::KubeProxy, Translator::Pods] {
        translators.set(by)?;
        for node in ["worker1", "worker2"] {
            let backend = scene.fixed_on(node)?;
            for port in ["http", "udp"] {
                let what = format!("{} → {} {port} by {}", from.name, backend.name, by.name());
                let trace = watched(scene, from, backend, port).with_context(|| what.clone())?;
                let in_stack = trace.hook_passes() > 0;
                // Seen with kube-proxy, so that a judge that sees nothing is noticed.
                ensure!(
                    in_stack == (by == Translator::KubeProxy),
                    "{what}: netfilter saw\n{}",
                    trace.hooks_seen()
                );
            }
        }
    }
    translators.restored()
}

/// A client keeps its backend.
const STICKY: &str = "e2e-sticky";
/// Only the node's own pod answers.
const LOCAL: &str = "e2e-local";
/// Of no pod.
const NOBODY: &str = "e2e-nobody";

fn either_mode(scene: &Scene) -> Result<()> {
    let ports = json!([{"name": "http", "port": 80, "targetPort": HTTP, "protocol": "TCP"}]);
    let service = |name, app, field| of_app((DEMO, name), app, &ports, field);
    let services = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [
            service(STICKY, "demo", ("sessionAffinity", "ClientIP")),
            service(LOCAL, "demo", ("internalTrafficPolicy", "Local")),
            service(NOBODY, "e2e-nobody", ("sessionAffinity", "None")),
        ],
    });
    let _applied = Applied::new(&scene.lab, services.to_string())?;
    let translators = Translators::hold(&scene.lab)?;
    translators.set(Translator::KubeProxy)?;
    // kube-proxy writes its rules some time after the Services are made.
    await_condition("kube-proxy's Services answer", STARTED, || {
        all_answer(scene).map(Some).map_err(|e| format!("{e:#}"))
    })?;
    translators.set(Translator::Pods)?;
    all_answer(scene).context("translated by the programs")?;
    translators.restored()
}

fn all_answer(scene: &Scene) -> Result<()> {
    let (own, other) = (scene.fixed_on("worker1")?, scene.fixed_on("worker2")?);
    if scene.family == scene.lab.primary() {
        // The API server is on one node's own network, and the DNS is pods.
        for from in [own, scene.fixed_on("control")?] {
            api_and_dns(scene, from)?;
        }
    }
    // A pod by its own Service, and one of another node. The port is another one there.
    for backend in [own, other] {
        for port in ["http", "udp"] {
            let to = frontend(scene, (FIXED, &backend.name), port)?;
            let name = client::who_answers(&own.site, to, port)?;
            ensure!(name == backend.name, "{to}: {name} answered {}", own.name);
        }
    }
    sticky(scene)?;
    local(scene)?;
    let nobody = frontend(scene, (DEMO, NOBODY), "http")?;
    client::refused_at_once(&scene.demo_on("worker1")?.site, nobody)
}

fn api_and_dns(scene: &Scene, from: &Pod) -> Result<()> {
    // Both are the primary family's alone.
    let primary = scene.lab.primary();
    for transport in ["+notcp", "+tcp"] {
        client::dns(&from.site, primary, &[transport]).with_context(|| transport.to_owned())?;
    }
    client::api_server(&from.site, primary)
}

/// Who answers so many connections of a pod.
fn names(from: &Pod, to: SocketAddr, count: u32) -> Result<BTreeSet<String>> {
    let name = |_| client::who_answers(&from.site, to, "http");
    (0..count).map(name).collect()
}

fn sticky(scene: &Scene) -> Result<()> {
    const TIMES: u32 = 20;
    let from = scene.other_on("worker1")?;
    let one = names(from, frontend(scene, (DEMO, STICKY), "http")?, TIMES)?;
    ensure!(one.len() == 1, "one client was answered by {one:?}");
    // The same pods by a Service without affinity.
    let some = names(from, frontend(scene, (DEMO, "demo"), "http")?, TIMES)?;
    ensure!(some.len() > 1, "{TIMES} connections all went to {some:?}");
    Ok(())
}

fn local(scene: &Scene) -> Result<()> {
    const TIMES: u32 = 8;
    let to = frontend(scene, (DEMO, LOCAL), "http")?;
    for node in ["worker1", "worker2"] {
        let own = scene.demo_on(node)?;
        let seen = names(scene.other_on(node)?, to, TIMES)?;
        ensure!(
            seen == BTreeSet::from([own.name.clone()]),
            "{node} has {}, and {seen:?} answered",
            own.name
        );
    }
    Ok(())
}

fn changes(scene: &Scene) -> Result<()> {
    use Translator::{KubeProxy, Pods};
    let translators = Translators::hold(&scene.lab)?;
    let from = &scene.demo_on("worker1")?.site;
    translators.set(KubeProxy)?;
    survives(
        scene,
        from,
        &translators,
        (&[Pods, KubeProxy, Pods, KubeProxy], &Path::ALL),
    )?;
    // Now with load that the programs translate from its first packet on.
    translators.set(Pods)?;
    survives(scene, from, &translators, (&[KubeProxy, Pods], &Path::ALL))?;
    translators.restored()
}

/// Load, and connections opened from a place before each change: all of them go on through
/// all changes.
pub(crate) fn survives(
    scene: &Scene,
    from: &Site,
    translators: &Translators<'_>,
    (to, paths): (&[Translator], &[Path]),
) -> Result<()> {
    /// How long load goes on after each change.
    const MOMENT: Duration = Duration::from_millis(300);
    let mut backends = Vec::new();
    for node in ["worker1", "worker2"] {
        let backend = scene.fixed_on(node)?;
        for family in scene.lab.cluster.families().all() {
            let service = (FIXED, backend.name.as_str());
            let of = |port| workloads::frontend(&scene.lab, *family, service, port);
            backends.push(([of("http")?, of("udp")?], backend));
        }
    }
    let (mut open, mut sockets) = (Vec::new(), Vec::new());
    let mut load = Load::start(&scene.lab, paths)?;
    let changed = to.iter().try_for_each(|by| {
        for ([http, udp], backend) in &backends {
            open.push((*http, *backend, Conversation::open(from, *http)?));
            sockets.push(ToOne::open(from, *udp, backend)?);
        }
        let all_go_on = |open: &mut [_]| {
            go_on(open)?;
            sockets.iter().try_for_each(ToOne::answered)
        };
        all_go_on(&mut open).with_context(|| format!("before {}", by.name()))?;
        translators.set(*by)?;
        load.goes_on(MOMENT)?;
        all_go_on(&mut open).with_context(|| format!("after {}", by.name()))
    });
    let report = load.stop()?;
    changed.with_context(|| report.losses())?;
    report.unharmed()
}

fn go_on(open: &mut [(SocketAddr, &Pod, Conversation)]) -> Result<()> {
    for (number, (to, backend, conversation)) in open.iter_mut().enumerate() {
        let name = conversation
            .ask("/hostname")
            .with_context(|| format!("connection {number}, to {to}"))?;
        ensure!(name == backend.name, "{to}: {name} answered");
    }
    Ok(())
}

/// The Service, and the app of its pods.
const LEAVING: &str = "e2e-leaving";
/// Flows of each family to each of the two pods.
const FLOWS: usize = 2;

fn leaving(scene: &Scene) -> Result<()> {
    /// Answers before the pod is deleted, and after its node knows.
    const ANSWERS: usize = 100;
    let lab = &scene.lab;
    let families = lab.cluster.families().all();
    let ports = json!([
        {"name": "udp", "port": 81, "targetPort": numbered::PORT, "protocol": "UDP"},
    ]);
    let _applied = Applied::new(lab, workloads::pair((DEMO, LEAVING), &ports))?;
    let pods = pods::await_ready(lab, DEMO, &format!("app={LEAVING}"), 2, STARTED)?;
    let gone = pods.iter().position(|p| p.node == "worker2");
    let gone = gone.context("no pod on worker2")?;
    let translators = Translators::hold(lab)?;
    translators.set(Translator::Pods)?;
    let from = scene.demo_on("worker1")?;
    let _servers = Servers::start(&pods, families)?;
    let (mut flows, mut frontends) = (Vec::new(), Vec::new());
    for family in families {
        let to = workloads::frontend(lab, *family, (DEMO, LEAVING), "udp")?;
        translator::await_backends(lab, &from.node, (to, translator::UDP), 2)?;
        flows.extend(opened(from, to)?);
        frontends.push(to);
    }
    let ((deleted, settled), sent) = numbered::during(&flows, |answered| {
        await_condition("datagrams are answered", STARTED, || {
            Ok((answered.load(Ordering::Relaxed) >= ANSWERS).then_some(()))
        })?;
        let deleted = Instant::now();
        let name = &pods[gone].name;
        lab.kubectl()
            .run(&["-n", DEMO, "delete", "pod", name, "--wait=false"])?;
        pods::await_no_endpoint(lab, LEAVING, &pods[gone], STARTED)?;
        for to in &frontends {
            translator::await_backends(lab, &from.node, (*to, translator::UDP), 1)?;
        }
        let settled = Instant::now();
        let enough = answered.load(Ordering::Relaxed) + ANSWERS;
        await_condition("datagrams are answered by the other pod", STARTED, || {
            Ok((answered.load(Ordering::Relaxed) >= enough).then_some(()))
        })?;
        Ok((deleted, settled))
    })?;
    let lost = judged(&flows, &sent, gone, (deleted, settled))?;
    eprintln!(
        "{lost} of {} datagrams were lost between the deletion of a pod and its Service's \
         knowledge of it",
        sent.len()
    );
    translators.restored()
}

/// As many flows as are wanted to each of the two pods: which one a flow gets is chance.
fn opened(from: &Pod, to: SocketAddr) -> Result<Vec<Flow>> {
    const TRIES: usize = 64;
    let mut open: Vec<Flow> = Vec::new();
    for _ in 0..TRIES {
        let flow = Flow::open(&from.site, to)?;
        if open.iter().filter(|f| f.first == flow.first).count() < FLOWS {
            open.push(flow);
        }
        if open.len() == 2 * FLOWS {
            return Ok(open);
        }
    }
    let first: Vec<usize> = open.iter().map(|f| f.first).collect();
    bail!("{TRIES} flows to {to} are not enough: kept are those to pods {first:?}")
}

/// Returns how many datagrams were lost while they could be: those of flows to the pod
/// that is gone, from its deletion until that was known. All others must have been
/// answered, and by the right one.
fn judged(
    flows: &[Flow],
    sent: &[Sent],
    gone: usize,
    (deleted, settled): (Instant, Instant),
) -> Result<usize> {
    let stays = 1 - gone;
    let (mut lost, mut moved) = (0, 0);
    let mut wrong = Vec::new();
    for (number, one) in sent.iter().enumerate() {
        let first = flows[one.flow].first;
        let right = if first == stays || one.at < deleted {
            one.by == Some(first)
        } else if one.at < settled {
            lost += usize::from(one.by.is_none());
            true
        } else {
            moved += 1;
            one.by == Some(stays)
        };
        if !right {
            let after = one.at.saturating_duration_since(deleted);
            wrong.push(format!(
                "{number} of flow {}, {after:?} after the deletion: first {first}, then {:?}",
                one.flow, one.by
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {} datagrams went wrong (pod {gone} was deleted, known everywhere after {:?}; \
         {lost} more were lost before): {}",
        wrong.len(),
        sent.len(),
        settled.saturating_duration_since(deleted),
        wrong[..wrong.len().min(8)].join("; ")
    );
    ensure!(moved > 0, "no datagram was sent after the pod was gone");
    Ok(lost)
}
