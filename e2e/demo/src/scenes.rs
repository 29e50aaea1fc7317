//! The scenes: each sends something, watches every device on the way, and
//! says whether what was seen is what veer promises.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use serde_json::Value;
use veer_e2e_cluster::{Family, decode::VXLAN_PORT};
use veer_e2e_tests::{
    client,
    evidence::{Place, Plan, UPLINK, Walk, at, echo_filter},
    forge::own_source,
    lab::{Lab, Mode},
    pods::{self, Pod},
    site::Site,
    workloads,
};

/// Requests to a Service in a scene.
const REQUESTS: usize = 12;
/// Pings per scene.
const PINGS: u32 = 3;
/// The identity that a node's own stack has on other nodes.
const REMOTE_NODE: u32 = 6;

/// Who acts.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    /// The family of the addresses that they send to.
    pub(crate) family: Family,
    /// The `DaemonSet`'s pods.
    pub(crate) demo: Vec<Pod>,
    /// The Deployment's pods, one on each worker.
    pub(crate) other: Vec<Pod>,
    /// The service's port on every node.
    pub(crate) node_port: u16,
    /// Identity numbers of the two label sets.
    pub(crate) identities: (u32, u32),
}

impl Cast {
    /// Creates the workloads and waits for them.
    pub(crate) fn start(lab: &Lab, namespace: &str) -> Result<Self> {
        let (demo, other) = workloads::start_demo(lab, namespace)?;
        let service = lab
            .kubectl()
            .json(&["-n", namespace, "get", "service", "demo"])?;
        let node_port = service["spec"]["ports"][0]["nodePort"]
            .as_u64()
            .and_then(|p| u16::try_from(p).ok())
            .context("the service has no port on the nodes")?;
        let list = lab
            .kubectl()
            .json(&["-n", namespace, "get", "podendpoints"])?;
        let identities = (identity(&list, &demo)?, identity(&list, &other)?);
        Ok(Self {
            family: lab.primary(),
            demo,
            other,
            node_port,
            identities,
        })
    }

    /// The same, who send in another family.
    pub(crate) fn in_family(&self, family: Family) -> Result<Self> {
        let mut cast = self.clone();
        cast.family = family;
        let pods = cast.demo.iter_mut().chain(&mut cast.other);
        for pod in pods {
            pod.turn_to(family)?;
        }
        Ok(cast)
    }

    /// Pods on two nodes.
    pub(crate) fn pair(&self) -> Result<(&Pod, &Pod)> {
        let source = pods::on(&self.demo, "worker1")?;
        Ok((source, pods::on(&self.other, "worker2")?))
    }

    /// The nodes of the `DaemonSet`'s pods that have these names.
    fn nodes_of(&self, names: &BTreeSet<String>) -> BTreeSet<&str> {
        let those = self.demo.iter().filter(|pod| names.contains(&pod.name));
        those.map(|pod| pod.node.as_str()).collect()
    }
}

/// The number that a set of pods shares.
fn identity(endpoints: &Value, pods: &[Pod]) -> Result<u32> {
    let first = pods.first().context("no pods")?;
    endpoints["items"]
        .as_array()
        .context("a list without items")?
        .iter()
        .find(|e| e["spec"]["podUID"] == first.uid.as_str())
        .and_then(|e| e["spec"]["identity"].as_u64())
        .and_then(|n| u32::try_from(n).ok())
        .with_context(|| format!("no PodEndpoint of {}", first.name))
}

/// What a scene came to.
#[derive(Debug)]
pub(crate) struct Scene {
    /// From where to where.
    pub(crate) what: &'static str,
    /// The family of the addresses.
    pub(crate) family: Family,
    /// Whether it is what veer promises.
    pub(crate) good: bool,
    /// Answers of requests.
    pub(crate) result: String,
    /// TTL of the answers.
    pub(crate) ttl: String,
    /// The path taken, in words.
    pub(crate) path: String,
    /// What was seen.
    pub(crate) evidence: Vec<String>,
}

type Act = fn(&Lab, &Cast, Mode) -> Result<Scene>;

/// Those of which none sends between the pods that another one watches.
pub(crate) const TOGETHER: [Act; 4] = [same_node, other_node, host_and_pod, outside];

fn ttl_text(ttl: Option<u8>) -> String {
    ttl.map_or_else(|| "-".to_owned(), |t| t.to_string())
}

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = values.into_iter().map(|v| v.to_string()).collect();
    if texts.is_empty() {
        "none".to_owned()
    } else {
        texts.join(", ")
    }
}

fn same_node(lab: &Lab, cast: &Cast, _: Mode) -> Result<Scene> {
    let source = pods::on(&cast.demo, "worker1")?;
    let target = pods::on(&cast.other, "worker1")?;
    let walk = Walk::ping(lab, source, target, PINGS)?;
    let wire = walk.echoes(at::SOURCE_UPLINK);
    let good = redirected(&walk) && walk.pings.ttl == Some(63) && wire.none();
    let mut evidence = veths(&walk);
    evidence.extend([
        format!("uplink: {} packets", wire.requests + wire.wrapped_requests),
        format!(
            "netfilter hooks of {}: {} packets",
            source.node,
            walk.trace.hook_passes()
        ),
    ]);
    Ok(Scene {
        what: "pod → pod, same node",
        family: cast.family,
        good,
        result: format!("{}/{}", walk.pings.received, walk.pings.sent),
        ttl: ttl_text(walk.pings.ttl),
        path: walk.path(),
        evidence,
    })
}

/// Whether all was answered, left each pod by a program and not by the stack, and
/// came to the other past its host side.
fn redirected(walk: &Walk) -> bool {
    let all = PINGS as usize;
    let (near, far) = (walk.echoes(at::SOURCE_VETH), walk.echoes(at::TARGET_VETH));
    walk.pings.complete()
        && (near.requests, near.replies) == (all, 0)
        && (far.requests, far.replies) == (0, all)
        && walk.trace.hook_passes() == 0
}

/// What was seen on the host sides.
fn veths(walk: &Walk) -> Vec<String> {
    [
        ("source", at::SOURCE_VETH, &walk.source_wire),
        ("target", at::TARGET_VETH, &walk.target_wire),
    ]
    .map(|(whose, label, wire)| {
        let (name, seen) = (&wire.host_name, walk.echoes(label));
        format!(
            "{whose} veth {name}: {} requests, {} replies",
            seen.requests, seen.replies
        )
    })
    .into()
}

fn other_node(lab: &Lab, cast: &Cast, mode: Mode) -> Result<Scene> {
    let source = pods::on(&cast.demo, "worker1")?;
    let target = pods::on(&cast.other, "worker2")?;
    let walk = Walk::ping(lab, source, target, PINGS)?;
    let wire = walk.echoes(at::SOURCE_UPLINK);
    let hooks = walk.trace.hook_passes();
    let all = PINGS as usize;
    let mut evidence = veths(&walk);
    let (own, theirs) = cast.identities;
    let on_wire = match mode {
        Mode::Tunnel => {
            evidence.push(format!(
                "uplink: UDP {VXLAN_PORT}, VNI {} there (demo is {own}), {} back (other is {theirs})",
                list(&wire.request_vnis),
                list(&wire.reply_vnis)
            ));
            let macs = wire
                .inner_request_macs
                .iter()
                .map(|(a, b)| format!("{a} > {b}"));
            evidence.push(format!(
                "inner MACs (pod's eth0 > its host side): {}",
                list(macs)
            ));
            walk.pings.ttl == Some(63)
                && wire.request_vnis == BTreeSet::from([own])
                && wire.reply_vnis == BTreeSet::from([theirs])
                && wire.requests + wire.replies == 0
        }
        Mode::Native | Mode::Hybrid => {
            let macs = wire.macs.iter().map(|(a, b)| format!("{a} > {b}"));
            evidence.push(format!("uplink: bare packets, NIC MACs {}", list(macs)));
            evidence.push(format!(
                "uplink: {} packets of UDP {VXLAN_PORT}",
                wire.wrapped_requests + wire.wrapped_replies
            ));
            walk.pings.ttl == Some(62)
                && (wire.requests, wire.replies) == (all, all)
                && wire.wrapped_requests + wire.wrapped_replies == 0
        }
    };
    evidence.push(format!("netfilter hooks of both nodes: {hooks} packets"));
    Ok(Scene {
        what: "pod → pod, other node",
        family: cast.family,
        good: redirected(&walk) && on_wire,
        result: format!("{}/{}", walk.pings.received, walk.pings.sent),
        ttl: ttl_text(walk.pings.ttl),
        path: walk.path(),
        evidence,
    })
}

fn host_and_pod(lab: &Lab, cast: &Cast, mode: Mode) -> Result<Scene> {
    let node = lab.node_site("worker1")?;
    let local = pods::on(&cast.demo, "worker1")?;
    let remote = pods::on(&cast.demo, "worker2")?;
    let (local_ip, remote_ip) = (local.address, remote.address);
    let node_ip = lab.address("worker1", cast.family)?;
    let filter = format!("({}) or udp port {VXLAN_PORT}", echo_filter(node_ip));
    let watch = Plan::new()
        .device("uplink", Place::Node("worker1", UPLINK), &filter)
        .start(lab)?;
    let near = client::ping(&node, local_ip, PINGS)?;
    let far = client::ping(&node, remote_ip, PINGS)?;
    let back = client::ping(&local.site, node_ip, PINGS)?;
    let trace = watch.stop()?;
    let (mut there, mut bare) = (BTreeSet::new(), 0);
    for packet in trace.of("uplink") {
        let inner = packet.innermost();
        if inner.is_echo_request() && inner.is_between(node_ip, remote_ip) {
            match &packet.vxlan {
                Some(vxlan) => drop(there.insert(vxlan.vni)),
                None => bare += 1,
            }
        }
    }
    let (form, as_promised) = match mode {
        Mode::Tunnel => (
            format!(
                "to the other node's pod: VNI {} (remote-node is {REMOTE_NODE})",
                list(&there)
            ),
            there == BTreeSet::from([REMOTE_NODE]) && bare == 0,
        ),
        Mode::Native | Mode::Hybrid => (
            format!("to the other node's pod: {bare} bare packets"),
            there.is_empty() && bare == PINGS as usize,
        ),
    };
    Ok(Scene {
        what: "host ↔ pod",
        family: cast.family,
        good: as_promised && [&near, &far, &back].iter().all(|p| p.complete()),
        result: format!(
            "own {}/{}, far {}/{}, pod → host {}/{}",
            near.received, near.sent, far.received, far.sent, back.received, back.sent
        ),
        ttl: [near.ttl, far.ttl, back.ttl].map(ttl_text).join(", "),
        path: "host's stack to the veth; to the other node by the mode's form".to_owned(),
        evidence: vec![
            form,
            "kubelet's probes: every pod above is Ready".to_owned(),
        ],
    })
}

/// Requests to a Service: how many were answered, and by which pods.
fn requests(from: &Site, to: SocketAddr) -> (usize, BTreeSet<String>) {
    let asked = (0..REQUESTS).map(|_| client::http_get(from, to, "/hostname"));
    let answers: Vec<String> = asked.filter_map(Result::ok).collect();
    (answers.len(), answers.into_iter().collect())
}

/// A pod's requests to a Service, of which each node's netfilter must see nothing. Not beside
/// others: the backend may be one of the pods they watch.
pub(crate) fn cluster_ip(lab: &Lab, cast: &Cast) -> Result<Scene> {
    let client_pod = pods::on(&cast.other, "worker1")?;
    let service = (client_pod.namespace.as_str(), "demo");
    let to = workloads::frontend(lab, cast.family, service, "http")?;
    let mut plan = Plan::new();
    for node in lab.cluster.node_names() {
        let backends = cast.demo.iter().map(|pod| pod.address);
        for other in backends.chain([to.ip()]) {
            plan = plan.hooks(&node, client_pod.address, other);
        }
    }
    let watch = plan.start(lab)?;
    let (answered, backends) = requests(&client_pod.site, to);
    let trace = watch.stop()?;
    let nodes = cast.nodes_of(&backends);
    let hooks = trace.hook_passes();
    Ok(Scene {
        what: "pod → ClusterIP",
        family: cast.family,
        good: answered == REQUESTS && hooks == 0,
        result: format!("{answered}/{REQUESTS}"),
        ttl: "-".to_owned(),
        path: "translated at the pod's veth, then as pod to pod".to_owned(),
        evidence: vec![
            format!("{to} answered by pods on {}", list(nodes)),
            format!("netfilter hooks of all nodes: {hooks} packets"),
        ],
    })
}

/// Not beside others: the backend that kube-proxy chooses may be one of the pods
/// they watch.
pub(crate) fn node_port(lab: &Lab, cast: &Cast) -> Result<Scene> {
    let world = lab.world()?;
    let node = lab.address("worker1", cast.family)?;
    let to = SocketAddr::from((node, cast.node_port));
    let source = own_source(&world, node)?;
    let watch = Plan::new().hooks("worker1", source, node).start(lab)?;
    let (answered, backends) = requests(&world, to);
    let client_pod = pods::on(&cast.other, "worker2")?;
    let by_pod = client::http_get(&client_pod.site, to, "/hostname").is_ok();
    let trace = watch.stop()?;
    let nodes = cast.nodes_of(&backends);
    Ok(Scene {
        what: "world → NodePort",
        family: cast.family,
        good: answered == REQUESTS && by_pod && !nodes.is_empty(),
        result: format!(
            "{answered}/{REQUESTS}, from a pod {}",
            if by_pod { "1/1" } else { "0/1" }
        ),
        ttl: "-".to_owned(),
        path: "host's stack (kube-proxy translates), then the pods' paths".to_owned(),
        evidence: vec![
            format!("{to} answered by pods on {}", list(nodes)),
            format!(
                "netfilter hooks, translated on purpose: {} packets",
                trace.hook_passes()
            ),
        ],
    })
}

fn outside(lab: &Lab, cast: &Cast, _: Mode) -> Result<Scene> {
    let pod = pods::on(&cast.demo, "worker1")?;
    let to = cast.family.outside();
    let watch = Plan::new()
        .device("world", Place::Node("world", UPLINK), echo_filter(to))
        .hooks("worker1", pod.address, to)
        .start(lab)?;
    let pings = client::ping(&pod.site, to, PINGS)?;
    let trace = watch.stop()?;
    let seen: BTreeSet<IpAddr> = trace
        .of("world")
        .iter()
        .filter(|p| p.is_echo_request() && p.destination() == Some(to))
        .filter_map(veer_e2e_cluster::Packet::source)
        .collect();
    let node = lab.address("worker1", cast.family)?;
    Ok(Scene {
        what: "pod → outside",
        family: cast.family,
        good: pings.complete() && seen == BTreeSet::from([node]),
        result: format!("{}/{}", pings.received, pings.sent),
        ttl: ttl_text(pings.ttl),
        path: "host's stack, masqueraded".to_owned(),
        evidence: vec![
            format!("{to} saw source {} (worker1 is {node})", list(&seen)),
            format!(
                "netfilter hooks of worker1: {} packets",
                trace.hook_passes()
            ),
        ],
    })
}
