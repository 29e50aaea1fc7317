//! What runs on the cluster to be talked to. All of it is the test image's
//! netexec: HTTP on 8080, UDP on 8081.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use veer_e2e_cluster::Family;

use crate::{
    lab::Lab,
    pods::{self, Pod},
};

/// The test image.
pub const IMAGE: &str = "veer.dev/e2e/tools:1";
/// netexec's HTTP port in a pod.
pub const HTTP: u16 = 8080;
/// netexec's UDP port in a pod.
pub const UDP: u16 = 8081;
/// How long pods may take to be Ready.
pub const STARTED: Duration = Duration::from_secs(90);

/// A pod's spec that runs netexec; `ports` is YAML for the container's ports.
fn netexec(extra: &str, ports: &str) -> String {
    format!(
        "{{terminationGracePeriodSeconds: 0, \
         tolerations: [{{operator: Exists}}], {extra} \
         containers: [{{name: netexec, image: {IMAGE}, imagePullPolicy: Never, \
         args: [netexec, --http-port={HTTP}, --udp-port={UDP}], ports: [{ports}], \
         readinessProbe: {{httpGet: {{path: /healthz, port: {HTTP}}}, periodSeconds: 1}}}}]}}"
    )
}

/// The demo's workloads (REFERENCE A13): a `DaemonSet` with one pod per node, a
/// Deployment of another label set with one pod on each worker, and a `NodePort`
/// service of the first.
pub fn demo(namespace: &str) -> String {
    let everywhere = netexec("", "");
    let workers = netexec(
        "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, \
         whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: other}}}], \
         affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
         {nodeSelectorTerms: [{matchExpressions: [{key: node-role.kubernetes.io/control-plane, \
         operator: DoesNotExist}]}]}}},",
        "",
    );
    format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: demo, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: demo}}}}
  template: {{metadata: {{labels: {{app: demo}}}}, spec: {everywhere}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: other, namespace: {namespace}}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: other}}}}
  template: {{metadata: {{labels: {{app: other}}}}, spec: {workers}}}
---
apiVersion: v1
kind: Service
metadata: {{name: demo, namespace: {namespace}}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {{app: demo}}
  ports:
  - {{name: http, port: 80, targetPort: {HTTP}, protocol: TCP}}
  - {{name: udp, port: 81, targetPort: {UDP}, protocol: UDP}}
"
    )
}

/// Ports on the node that [`fixed`]'s pods have as hostPorts, TCP.
pub const HOST_HTTP: u16 = 18_080;
/// The same for UDP.
pub const HOST_UDP: u16 = 18_081;

/// One bare pod per node, `at-NODE`, with hostPorts, and a `NodePort` service of
/// its own for each: where a backend is, is known.
pub fn fixed(namespace: &str, nodes: &[String]) -> String {
    let mut text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n");
    for node in nodes {
        let spec = netexec(
            &format!("nodeSelector: {{kubernetes.io/hostname: {node}}},"),
            &format!(
                "{{containerPort: {HTTP}, hostPort: {HOST_HTTP}, protocol: TCP}}, \
                 {{containerPort: {UDP}, hostPort: {HOST_UDP}, protocol: UDP}}"
            ),
        );
        let _infallible = write!(
            text,
            r"---
apiVersion: v1
kind: Pod
metadata: {{name: at-{node}, namespace: {namespace}, labels: {{app: fixed, at: {node}}}}}
spec: {spec}
---
apiVersion: v1
kind: Service
metadata: {{name: at-{node}, namespace: {namespace}}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {{at: {node}}}
  ports:
  - {{name: http, port: 80, targetPort: {HTTP}, protocol: TCP}}
  - {{name: udp, port: 81, targetPort: {UDP}, protocol: UDP}}
  - {{name: nobody, port: 82, targetPort: 9, protocol: UDP}}
"
        );
    }
    text
}

/// A bare pod on one node, with labels (YAML flow) of the caller's.
pub fn single(namespace: &str, name: &str, node: &str, labels: &str) -> String {
    // Past the scheduler, which may take minutes to come back after the API server.
    let spec = netexec(&format!("nodeName: {node},"), "");
    format!(
        "apiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {labels}}}\nspec: {spec}\n"
    )
}

/// A `NodePort` service of the pods of an app, with one more field in its spec.
pub fn of_app(
    (namespace, name): (&str, &str),
    app: &str,
    ports: &Value,
    (field, value): (&str, &str),
) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
            "selector": {"app": app}, "ports": ports,
        },
    });
    service["spec"][field] = value.into();
    service
}

/// A service, and the pods of its app: a bare one on each worker.
pub fn pair((namespace, name): (&str, &str), ports: &Value) -> String {
    let labels = format!("{{app: {name}}}");
    let pod = |node: &str| single(namespace, &format!("{name}-{node}"), node, &labels);
    let service = of_app((namespace, name), name, ports, ("sessionAffinity", "None"));
    [pod("worker1"), pod("worker2"), service.to_string()].join("---\n")
}

/// Objects of a test, which go when this is dropped.
#[derive(Debug)]
pub struct Applied<'a> {
    lab: &'a Lab,
    manifests: String,
}

impl<'a> Applied<'a> {
    /// Applies them.
    pub fn new(lab: &'a Lab, manifests: String) -> Result<Self> {
        let applied = Self { lab, manifests };
        lab.kubectl().apply(&applied.manifests)?;
        Ok(applied)
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        // The test's own outcome says more than this one.
        let _gone = self.lab.kubectl().delete(&self.manifests);
    }
}

/// A Deployment that can be scaled, of pods that only exist.
pub fn crowd(namespace: &str, replicas: u32) -> String {
    format!(
        r"
apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: crowd}}}}
  template:
    metadata: {{labels: {{app: crowd}}}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{{operator: Exists}}]
      containers:
      - {{name: pause, image: 'registry.k8s.io/pause:3.10.1', imagePullPolicy: Never}}
"
    )
}

/// One port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// Its cluster address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// The same port on every node.
    pub node_port: u16,
}

/// A `NodePort` service's address of a family and port of that name.
pub fn service(
    lab: &Lab,
    family: Family,
    (namespace, name): (&str, &str),
    port: &str,
) -> Result<Service> {
    let service = lab
        .kubectl()
        .json(&["-n", namespace, "get", "service", name])?;
    let ports = service["spec"]["ports"].as_array();
    let found = ports.into_iter().flatten().find(|p| p["name"] == port);
    let number = |key: &str| {
        let number = found.and_then(|p| p[key].as_u64());
        number
            .and_then(|p| u16::try_from(p).ok())
            .with_context(|| format!("service {name} has no {key} {port}"))
    };
    let addresses = service["spec"]["clusterIPs"].as_array();
    let mut addresses = addresses
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str()?.parse::<IpAddr>().ok());
    let address = addresses.find(|address| Family::of(*address) == family);
    Ok(Service {
        address: address.with_context(|| format!("service {name} has no {family} address"))?,
        port: number("port")?,
        node_port: number("nodePort")?,
    })
}

/// A `NodePort` service's cluster address of a family with a port of that name.
pub fn frontend(lab: &Lab, family: Family, name: (&str, &str), port: &str) -> Result<SocketAddr> {
    let service = service(lab, family, name, port)?;
    Ok((service.address, service.port).into())
}

/// Applies [`demo`] and waits for it; returns the `DaemonSet`'s pods and the
/// Deployment's.
pub fn start_demo(lab: &Lab, namespace: &str) -> Result<(Vec<Pod>, Vec<Pod>)> {
    lab.kubectl().apply(&demo(namespace))?;
    let nodes = lab.cluster.node_names().len();
    let demo = pods::await_ready(lab, namespace, "app=demo", nodes, STARTED)?;
    let other = pods::await_ready(lab, namespace, "app=other", 2, STARTED)?;
    Ok((demo, other))
}
