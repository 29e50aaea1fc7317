//! Where load runs: the pods, and the flows of each path.

use std::{fmt::Write, net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use veer_e2e_cluster::{Family, await_condition, paths};
use veer_e2e_load::{
    order::{FlowSpec, Kind, Progress},
    protocol::{BULK, DATAGRAMS, ECHO},
    report::Side,
};

use super::place::Place;
use crate::{
    lab::Lab,
    pods::{self, Pod},
    workloads::{STARTED, service},
};

/// Namespace of the pods.
pub const NAMESPACE: &str = "e2e-load";
/// Their image, from `e2e/images/build`.
const IMAGE: &str = "veer.dev/e2e/load:1";

/// What runs where: name, node, and whether in the node's own network.
const PODS: [(&str, &str, bool); 6] = [
    ("client", "worker1", false),
    ("near", "worker1", false),
    ("far", "worker2", false),
    ("third", "control", false),
    ("host1", "worker1", true),
    ("host2", "worker2", true),
];
/// The pods that have a service.
const SERVED: [&str; 2] = ["far", "third"];

/// A way for packets to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// Pod to pod on worker1.
    SameNode,
    /// Pod on worker1 to pod on worker2.
    CrossNode,
    /// Pod on worker1 to worker2 itself.
    PodToHost,
    /// worker1 itself to a pod on worker2.
    HostToPod,
    /// Pod on worker1 to a pod on worker2 by its `ClusterIP`.
    ClusterIp,
    /// Pod on worker1 to a pod on the control plane's node by worker2's
    /// `NodePort`, masqueraded there.
    NodePortFromPod,
    /// The world to a pod on worker2 by worker1's `NodePort`, masqueraded
    /// there.
    NodePortFromWorld,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::SameNode,
        Self::CrossNode,
        Self::PodToHost,
        Self::HostToPod,
        Self::ClusterIp,
        Self::NodePortFromPod,
        Self::NodePortFromWorld,
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::CrossNode => "cross node",
            Self::PodToHost => "pod to host",
            Self::HostToPod => "host to pod",
            Self::ClusterIp => "ClusterIP",
            Self::NodePortFromPod => "NodePort from a pod",
            Self::NodePortFromWorld => "NodePort from the world",
        }
    }

    /// The places at both ends.
    fn ends(self) -> (&'static str, &'static str) {
        match self {
            Self::SameNode => ("client", "near"),
            Self::CrossNode | Self::ClusterIp => ("client", "far"),
            Self::PodToHost => ("client", "host2"),
            Self::HostToPod => ("host1", "far"),
            Self::NodePortFromPod => ("client", "third"),
            Self::NodePortFromWorld => (WORLD, "far"),
        }
    }
}

/// The place in the world.
const WORLD: &str = "world";

/// What flows on every path, of all families of the cluster together: each has its share
/// of the rates. The load is of a priority above the cluster's own, which starves where the
/// load alone wants all processors. So the rates leave half of two slow ones: twice as much
/// took all of them on a machine on which a packet cost 300 ns in a program, not 190, and
/// no API server came up there.
const KINDS: [(&str, u16, Kind); 3] = [
    (
        "udp",
        DATAGRAMS,
        Kind::Datagrams {
            rate: 250,
            size: 100,
        },
    ),
    ("echo", ECHO, Kind::Echo { rate: 500 }),
    ("bulk", BULK, Kind::Bulk { rate: 500_000 }),
];

/// One of so many equal shares of what a flow carries.
fn share(kind: Kind, of: u32) -> Kind {
    match kind {
        Kind::Datagrams { rate, size } => Kind::Datagrams {
            rate: rate / of,
            size,
        },
        Kind::Echo { rate } => Kind::Echo { rate: rate / of },
        Kind::Bulk { rate } => Kind::Bulk { rate: rate / of },
    }
}

/// A flow of the load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its path.
    pub path: Path,
    /// The family of its addresses.
    pub family: Family,
    /// `udp`, `echo` or `bulk`.
    pub kind: &'static str,
    pub(super) spec: FlowSpec,
    /// Index of the place that opens it.
    pub(super) from: usize,
}

impl Planned {
    /// For people.
    pub fn name(&self) -> String {
        format!("{} {} {}", self.path.name(), self.family, self.kind)
    }

    fn of(&self, side: Side, all: &[Progress]) -> (u64, u64) {
        let own = all
            .iter()
            .find(|p| p.flow == self.spec.flow && p.side == side);
        own.map_or((0, 0), |p| (p.sent, p.received))
    }

    /// What has not been received since `before` of what belongs to `time`.
    pub(super) fn behind(
        &self,
        before: &[Progress],
        now: &[Progress],
        time: Duration,
    ) -> Option<String> {
        let rate = match self.spec.kind {
            Kind::Datagrams { rate, .. } | Kind::Echo { rate } | Kind::Bulk { rate } => rate,
        };
        let wanted = u64::from(rate) * u64::try_from(time.as_millis()).unwrap_or(0) / 1000;
        let sides: &[Side] = match self.spec.kind {
            Kind::Echo { .. } => &[Side::Client],
            Kind::Datagrams { .. } | Kind::Bulk { .. } => &[Side::Client, Side::Server],
        };
        sides.iter().find_map(|side| {
            let got = self.of(*side, now).1;
            let more = got.saturating_sub(self.of(*side, before).1);
            (got == 0 || more < wanted)
                .then(|| format!("{} {side:?}: {more} of {wanted}", self.name()))
        })
    }

    /// Whether all that was sent has arrived.
    pub(super) fn complete(&self, now: &[Progress]) -> bool {
        let (client, server) = (self.of(Side::Client, now), self.of(Side::Server, now));
        match self.spec.kind {
            Kind::Echo { .. } => client.0 == client.1,
            Kind::Datagrams { .. } | Kind::Bulk { .. } => {
                client.0 == server.1 && server.0 == client.1
            }
        }
    }
}

/// Makes pods and services, if they are not there.
pub(super) fn prepare(lab: &Lab) -> Result<()> {
    let running = pods::running(lab, NAMESPACE, "app=load").unwrap_or_default();
    if running.len() < PODS.len() {
        let archive = paths::images().join("load.tar");
        ensure!(
            archive.exists(),
            "{} is missing: run e2e/images/build",
            archive.display()
        );
        lab.cluster.load_image(&archive)?;
        lab.kubectl().apply(&manifests())?;
        pods::await_ready(lab, NAMESPACE, "app=load", PODS.len(), STARTED)?;
    }
    if Place::connect(&lab.world()?).is_err() {
        let program = paths::images().join("veer-load");
        lab.cluster
            .world()
            .daemon("load", &[&program.to_string_lossy()])?;
        await_condition(
            "the world's veer-load takes orders",
            Duration::from_secs(10),
            || {
                let world = lab.world().and_then(|w| Place::connect(&w));
                world.map(Some).map_err(|e| format!("{e:#}"))
            },
        )?;
    }
    Ok(())
}

fn manifests() -> String {
    let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n");
    for (name, node, host) in PODS {
        // NET_ADMIN for receive buffers that a slow moment does not fill.
        let _infallible = write!(
            text,
            r"---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: load, load: {name}}}}}
spec:
  nodeName: {node}
  hostNetwork: {host}
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  containers:
  - name: load
    image: {IMAGE}
    imagePullPolicy: Never
    securityContext: {{capabilities: {{add: [NET_ADMIN]}}}}
    readinessProbe: {{tcpSocket: {{port: {ECHO}}}, periodSeconds: 1}}
"
        );
    }
    for name in SERVED {
        let _infallible = write!(
            text,
            r"---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {NAMESPACE}}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {{load: {name}}}
  ports:
  - {{name: udp, port: {DATAGRAMS}, protocol: UDP}}
  - {{name: echo, port: {ECHO}, protocol: TCP}}
  - {{name: bulk, port: {BULK}, protocol: TCP}}
"
        );
    }
    text
}

/// Takes command of all places, and makes the flows of the paths in each family of the
/// cluster.
pub(super) fn connect(lab: &Lab, wanted: &[Path]) -> Result<(Vec<Place>, Vec<Planned>)> {
    let pods = pods::await_ready(lab, NAMESPACE, "app=load", PODS.len(), STARTED)?;
    let mut names: Vec<&str> = pods.iter().map(|p| p.name.as_str()).collect();
    let mut places = Vec::new();
    for pod in &pods {
        places.push(Place::connect(&pod.site)?);
    }
    names.push(WORLD);
    places.push(Place::connect(&lab.world()?)?);
    let mut plan = Vec::new();
    let families = lab.cluster.families().all();
    let count = u32::try_from(families.len())?;
    for path in wanted {
        let (from, to) = path.ends();
        let from = names.iter().position(|n| *n == from);
        let from = from.with_context(|| format!("no place for {}", path.name()))?;
        let pod = pods.iter().find(|p| p.name == to);
        let pod = pod.with_context(|| format!("no pod {to}"))?;
        for family in families {
            for (kind, port, carries) in KINDS {
                let to = address(lab, (*path, *family), pod, kind, port)?;
                let flow = u32::try_from(plan.len() + 1).unwrap_or_default();
                plan.push(Planned {
                    path: *path,
                    family: *family,
                    kind,
                    spec: FlowSpec {
                        flow,
                        kind: share(carries, count),
                        to: to.into(),
                    },
                    from,
                });
            }
        }
    }
    Ok((places, plan))
}

fn address(
    lab: &Lab,
    (path, family): (Path, Family),
    pod: &Pod,
    kind: &str,
    port: u16,
) -> Result<(IpAddr, u16)> {
    let service = || service(lab, family, (NAMESPACE, &pod.name), kind);
    Ok(match path {
        Path::SameNode | Path::CrossNode | Path::HostToPod => (pod.address_in(family)?, port),
        Path::PodToHost => (lab.address(&pod.node, family)?, port),
        Path::ClusterIp => (service()?.address, port),
        Path::NodePortFromPod => (lab.address("worker2", family)?, service()?.node_port),
        Path::NodePortFromWorld => (lab.address("worker1", family)?, service()?.node_port),
    })
}
