//! What the tests play: nodes, their agents, pods; and the operator they watch.

use std::collections::BTreeMap;
use std::process::Command;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use veer_crds::v1alpha1::{
    CLUSTER_NETWORK, ClusterNetwork, NodeNetwork, NodeReport, Phase, PodCIDR, SecurityIdentity,
};

use crate::server::{Process, Server, eventually, free_port};

/// The usual network.
pub(crate) const NETWORK: &str = "podCIDRs: [{cidr: 10.244.0.0/16, nodeMaskSize: 24}]";

impl Server {
    /// Starts an operator that creates the network if there is none.
    pub(crate) fn operator(&self, network: &str, args: &[&str]) -> Process {
        let name = format!("operator-{}", free_port());
        let spec = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&spec, network).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_veer-operator"));
        command
            .env("KUBECONFIG", self.kubeconfig())
            .args([
                "--namespace",
                "default",
                "--identity",
                &name,
                "--lease-seconds",
                "3",
            ])
            .arg(format!("--listen=127.0.0.1:{}", free_port()))
            .args(["--log", "info,kube_client=error"])
            .arg("--initial-network")
            .arg(&spec)
            .args(args);
        Process::start(&command, &self.dir.path().join(format!("{name}.log")))
    }

    pub(crate) fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    pub(crate) fn networks(&self) -> Api<NodeNetwork> {
        Api::all(self.client.clone())
    }

    pub(crate) fn reports(&self) -> Api<NodeReport> {
        Api::all(self.client.clone())
    }

    pub(crate) fn claims(&self) -> Api<PodCIDR> {
        Api::all(self.client.clone())
    }

    pub(crate) fn identities(&self) -> Api<SecurityIdentity> {
        Api::all(self.client.clone())
    }

    pub(crate) fn cluster_networks(&self) -> Api<ClusterNetwork> {
        Api::all(self.client.clone())
    }

    /// A kubelet registers its node.
    pub(crate) async fn add_node(&self, name: &str) {
        let node: Node = parse(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        }));
        self.nodes()
            .create(&PostParams::default(), &node)
            .await
            .unwrap();
        self.kubelet(name, false).await;
    }

    /// A kubelet reports.
    pub(crate) async fn kubelet(&self, name: &str, ready: bool) {
        let ready = if ready { "True" } else { "False" };
        let info = json!({
            "bootID": format!("boot-{name}"), "architecture": "", "containerRuntimeVersion": "",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
            "operatingSystem": "", "osImage": "", "systemUUID": "",
        });
        let status = json!({ "status": {
            "nodeInfo": info,
            "conditions": [{ "type": "Ready", "status": ready }],
        }});
        let params = PatchParams::default();
        self.nodes()
            .patch_status(name, &params, &Patch::Strategic(status))
            .await
            .unwrap();
    }

    /// A kubelet reports the node's addresses.
    pub(crate) async fn addresses(&self, name: &str, addresses: &[&str]) {
        let all: Vec<Value> = addresses
            .iter()
            .map(|a| json!({ "type": "InternalIP", "address": a }))
            .collect();
        let patch = Patch::Merge(json!({ "status": { "addresses": all } }));
        let params = PatchParams::default();
        let nodes = self.nodes();
        nodes.patch_status(name, &params, &patch).await.unwrap();
    }

    /// Labels a node.
    pub(crate) async fn label(&self, name: &str, key: &str, value: Option<&str>) {
        let patch = Patch::Merge(json!({ "metadata": { "labels": { key: value } } }));
        let params = PatchParams::default();
        self.nodes().patch(name, &params, &patch).await.unwrap();
    }

    /// A pod that is bound to a node, and runs there.
    pub(crate) async fn add_pod_on(&self, namespace: &str, name: &str, node: &str) {
        let pod: Pod = parse(json!({
            "metadata": { "name": name },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
        }));
        let pods = self.pods(namespace);
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    pub(crate) async fn delete_node(&self, name: &str) {
        self.nodes()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    /// An agent reports that it is ready, holds what it was told, and has done
    /// what its epoch says; all its probes were answered.
    pub(crate) async fn agent(&self, name: &str) {
        self.agent_failing(name, &[], &[]).await;
    }

    /// As [`Self::agent`], but these peers did not answer in the target form, or
    /// did not after the node had switched.
    pub(crate) async fn agent_failing(&self, name: &str, failed: &[&str], fell_back: &[&str]) {
        let network = self.network_of(name).await;
        let epoch = network.spec.epoch.as_ref();
        let before = network.status.and_then(|s| s.applied);
        // The word for Preflight is the report of the probes.
        let applied = epoch
            .filter(|e| e.phase != Phase::Preflight)
            .or(before.as_ref());
        let peers = |names: &[&str]| -> Vec<Value> {
            let peer = |name| json!({ "node": name, "reason": "no answer to probes" });
            names.iter().map(peer).collect()
        };
        let probes = epoch.map(|epoch| {
            json!({
                "number": epoch.number, "attempt": epoch.attempt, "mode": epoch.mode,
                "failedCount": failed.len(), "failed": peers(failed),
                "fellBackCount": fell_back.len(), "fellBack": peers(fell_back),
            })
        });
        let status = json!({
            "bootID": format!("boot-{name}"),
            "heldPodCIDRs": network.spec.pod_cidrs,
            "applied": applied,
            "probes": probes,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Ready", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        });
        self.report(name, status).await;
    }

    /// An agent reports this, by server-side apply as agents do: what peers need in
    /// its NodeNetwork, the rest in its NodeReport.
    pub(crate) async fn report(&self, name: &str, status: Value) {
        const OF_PEERS: [&str; 5] = [
            "heldPodCIDRs",
            "applied",
            "keptForm",
            "pathMtu",
            "decommissioned",
        ];
        self.network_of(name).await;
        self.report_of(name).await;
        let mut peers = json!({ "heldPodCIDRs": [] });
        let mut people = json!({});
        for (key, value) in status.as_object().unwrap() {
            let to = if OF_PEERS.contains(&key.as_str()) {
                &mut peers
            } else {
                &mut people
            };
            to[key] = value.clone();
        }
        let params = PatchParams::apply("veer-agent").force();
        for (kind, status) in [("NodeNetwork", peers), ("NodeReport", people)] {
            let body = Patch::Apply(json!({
                "apiVersion": "veer.dev/v1alpha1", "kind": kind,
                "metadata": { "name": name }, "status": status,
            }));
            if kind == "NodeNetwork" {
                let networks = self.networks();
                networks.patch_status(name, &params, &body).await.unwrap();
            } else {
                let reports = self.reports();
                reports.patch_status(name, &params, &body).await.unwrap();
            }
        }
    }

    /// The NodeReport of a node, once it exists.
    pub(crate) async fn report_of(&self, name: &str) -> NodeReport {
        eventually(&format!("node {name} has a NodeReport"), async || {
            self.reports().get(name).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// A node whose kubelet is ready and whose agent has reported once.
    pub(crate) async fn join(&self, name: &str) {
        self.add_node(name).await;
        self.kubelet(name, true).await;
        self.network_of(name).await;
        let boot = json!({ "bootID": format!("boot-{name}") });
        self.report(name, boot).await;
    }

    /// The NodeNetwork of a node, once it exists.
    pub(crate) async fn network_of(&self, name: &str) -> NodeNetwork {
        eventually(&format!("node {name} has a NodeNetwork"), async || {
            self.networks().get(name).await.map_err(|e| e.to_string())
        })
        .await
    }

    /// The block of a node, once it has one.
    pub(crate) async fn block_of(&self, name: &str) -> IpNet {
        eventually(&format!("node {name} has a block"), async || {
            let network = self.networks().get(name).await.map_err(|e| e.to_string())?;
            network
                .spec
                .pod_cidrs
                .first()
                .copied()
                .ok_or_else(|| format!("{:?}", network.status))
        })
        .await
    }

    pub(crate) async fn all_claims(&self) -> Vec<PodCIDR> {
        self.claims()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
    }

    pub(crate) async fn network(&self) -> ClusterNetwork {
        eventually("ClusterNetwork default exists", async || {
            self.cluster_networks()
                .get(CLUSTER_NETWORK)
                .await
                .map_err(|e| e.to_string())
        })
        .await
    }

    /// Changes the network's spec as a user does.
    pub(crate) async fn change(&self, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let params = PatchParams::default();
        self.cluster_networks()
            .patch(CLUSTER_NETWORK, &params, &patch)
            .await
            .unwrap();
    }

    /// Awaits a condition of the network.
    pub(crate) async fn await_network(&self, type_: &str, status: &str, reason: &str) -> String {
        eventually(&format!("{type_} is {status} ({reason})"), async || {
            let network = self.network().await;
            let seen = network.status.clone().unwrap_or_default().conditions;
            let met = seen
                .iter()
                .find(|c| c.type_ == type_ && c.status == status && c.reason == reason)
                .filter(|c| c.observed_generation == network.metadata.generation);
            met.map(|c| c.message.clone())
                .ok_or_else(|| format!("{seen:?}"))
        })
        .await
    }

    /// A namespace with the service account that pods need.
    pub(crate) async fn add_namespace(&self, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let namespace: Namespace = parse(json!({ "metadata": { "name": name, "labels": labels } }));
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        self.add_account(name, "default").await;
    }

    pub(crate) async fn add_account(&self, namespace: &str, name: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let account: ServiceAccount = parse(json!({ "metadata": { "name": name } }));
        accounts
            .create(&PostParams::default(), &account)
            .await
            .unwrap();
    }

    pub(crate) async fn add_pod(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) {
        let labels: BTreeMap<_, _> = labels.iter().copied().collect();
        let pod: Pod = parse(json!({
            "metadata": { "name": name, "labels": labels },
            "spec": { "containers": [{ "name": "c", "image": "i" }] },
        }));
        self.pods(namespace)
            .create(&PostParams::default(), &pod)
            .await
            .unwrap();
    }

    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str) {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        self.pods(namespace).delete(name, &now).await.unwrap();
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The identity whose set has this label, once there is one.
    pub(crate) async fn identity_with(&self, key: &str, value: &str) -> SecurityIdentity {
        eventually(&format!("{key}={value} has an identity"), async || {
            let all = self
                .identities()
                .list(&ListParams::default())
                .await
                .unwrap()
                .items;
            let seen: Vec<_> = all
                .iter()
                .map(|i| (i.name_any(), i.spec.labels.clone()))
                .collect();
            let found = all
                .into_iter()
                .find(|i| i.spec.labels.get(key).is_some_and(|v| v == value));
            found.ok_or_else(|| format!("{seen:?}"))
        })
        .await
    }

    /// A client with a token of this account, bound to a node if one is named.
    pub(crate) async fn as_account(
        &self,
        namespace: &str,
        account: &str,
        node: Option<&str>,
    ) -> Client {
        let mut command = vec!["create", "token", account, "-n", namespace];
        if let Some(node) = node {
            command.extend(["--bound-object-kind=Node", "--bound-object-name", node]);
        }
        let out = self.kubectl(&command);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        self.with_token(String::from_utf8_lossy(&out.stdout).trim())
            .await
    }
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}
