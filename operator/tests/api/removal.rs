//! `veer-operator decommission`, which a Job runs: it removes veer where that is
//! asked for, and changes nothing where it is merely started.

use std::process::{Command, ExitStatus};

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use veer_crds::v1alpha1::{CLUSTER_NETWORK, NodeNetwork, NodeNetworkSpec};

use crate::play::NETWORK;
use crate::server::{Process, Server, eventually, free_port};

/// Namespace of the release.
const NAMESPACE: &str = "kube-system";
const NODES: [&str; 2] = ["a", "b"];

/// An installed veer: its network, two nodes, and a Deployment of two operators
/// that nobody runs.
async fn installed() -> Server {
    let server = Server::start().await;
    for node in NODES {
        server.add_node(node).await;
    }
    let operator = server.operator(NETWORK, &[]);
    for node in NODES {
        server.block_of(node).await;
        server.agent(node).await;
    }
    operator.terminate();
    server
        .apply(
            "apiVersion: apps/v1
kind: Deployment
metadata: {name: veer-operator, namespace: kube-system}
spec:
  replicas: 2
  selector: {matchLabels: {app.kubernetes.io/name: veer-operator}}
  template:
    metadata: {labels: {app.kubernetes.io/name: veer-operator}}
    spec: {containers: [{name: operator, image: i}]}
",
        )
        .unwrap();
    server
}

impl Server {
    /// What the Job runs.
    fn decommission(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_veer-operator"));
        command.env("KUBECONFIG", self.kubeconfig()).args([
            "decommission",
            "--namespace",
            NAMESPACE,
            "--release",
            "veer",
        ]);
        let log = format!("decommission-{}.log", free_port());
        Process::start(&command, &self.dir.path().join(log))
    }

    /// Helm records a revision of the release.
    async fn revision(&self, version: u32, status: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let name = format!("sh.helm.release.v1.veer.v{version}");
        let record = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "helm.sh/release.v1",
            "metadata": { "name": name, "labels": {
                "owner": "helm", "name": "veer", "version": version.to_string(), "status": status,
            }},
        });
        let params = PatchParams::apply("helm").force();
        secrets
            .patch(&name, &params, &Patch::Apply(record))
            .await
            .unwrap();
    }

    /// A person annotates the ClusterNetwork.
    async fn annotate(&self, value: &str) {
        let patch = json!({ "metadata": { "annotations": { "veer.dev/uninstall": value } } });
        let params = PatchParams::default();
        self.cluster_networks()
            .patch(CLUSTER_NETWORK, &params, &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Operators wanted, and what nodes are asked.
    async fn asked(&self) -> (String, Vec<bool>) {
        let operator = ["get", "-n", NAMESPACE, "deployment/veer-operator"];
        let replicas = [&operator[..], &["-o", "jsonpath={.spec.replicas}"]].concat();
        let replicas = String::from_utf8(self.kubectl(&replicas).stdout).unwrap();
        let networks = self.networks().list(&ListParams::default()).await.unwrap();
        let nodes = networks.iter().map(|n| n.spec.decommission).collect();
        (replicas, nodes)
    }

    /// It ends without having changed anything, and says why.
    async fn refuses(&self, why: &str) {
        let mut job = self.decommission();
        let status = ended(&mut job).await;
        let said = job.said();
        assert!(!status.success(), "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        assert!(said.contains("veer.dev/uninstall=true"), "{said}");
        assert_eq!(self.asked().await, ("2".into(), vec![false; 2]), "{why}");
    }

    /// It asks every node, and once they have answered it ends well.
    async fn removes(&self) {
        let mut job = self.decommission();
        eventually("every node is asked", async || match self.asked().await {
            (replicas, nodes) if replicas == "0" && nodes == [true; 2] => Ok(()),
            seen => Err(format!("{seen:?}; {}", job.said())),
        })
        .await;
        for node in NODES {
            self.report(node, json!({ "decommissioned": true })).await;
        }
        let status = ended(&mut job).await;
        assert!(status.success(), "{}", job.said());
        let left = self.networks().list(&ListParams::default()).await.unwrap();
        assert!(left.items.is_empty(), "{left:?}");
    }
}

async fn ended(job: &mut Process) -> ExitStatus {
    eventually("the Job ends", async || {
        let status = job.child.try_wait().map_err(|e| e.to_string())?;
        status.ok_or_else(|| job.said())
    })
    .await
}

#[tokio::test]
async fn a_job_that_is_merely_applied_changes_nothing() {
    let server = installed().await;
    server.refuses("Helm has no release kube-system/veer").await;
    server.revision(1, "deployed").await;
    server.refuses("kube-system/veer is deployed").await;
    // An uninstall was given up, and the release upgraded afterwards.
    server.revision(1, "uninstalling").await;
    server.revision(2, "deployed").await;
    server.refuses("kube-system/veer is deployed").await;
    server.annotate("false").await;
    server.refuses("kube-system/veer is deployed").await;
}

#[tokio::test]
async fn helm_uninstall_removes_veer() {
    let server = installed().await;
    server.revision(1, "superseded").await;
    server.revision(2, "uninstalling").await;
    server.removes().await;
}

#[tokio::test]
async fn a_node_that_never_ran_an_agent_does_not_stop_the_removal() {
    let server = installed().await;
    server.add_node("bare").await;
    let mut bare = NodeNetwork::new("bare", NodeNetworkSpec::default());
    bare.spec.node_uid = server.nodes().get("bare").await.unwrap().uid().unwrap();
    let params = PostParams::default();
    server.networks().create(&params, &bare).await.unwrap();
    server.revision(1, "uninstalling").await;
    let mut job = server.decommission();
    for node in NODES {
        eventually("it is asked", async || {
            let network = server.network_of(node).await;
            network
                .spec
                .decommission
                .then_some(())
                .ok_or_else(|| job.said())
        })
        .await;
        server.report(node, json!({ "decommissioned": true })).await;
    }
    let status = ended(&mut job).await;
    assert!(status.success(), "{}", job.said());
    let said = job.said();
    assert!(
        said.contains("no agent ever ran") && said.contains("bare"),
        "{said}"
    );
}

#[tokio::test]
async fn an_annotation_removes_veer_once() {
    let server = installed().await;
    server.revision(1, "deployed").await;
    server.annotate("true").await;
    server.removes().await;
    let network = server.network().await;
    let annotations = network.metadata.annotations.unwrap_or_default();
    assert!(annotations.is_empty(), "{annotations:?}");
}
