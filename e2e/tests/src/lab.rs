//! A cluster with the product on it, installed as its users install it: with `helm
//! install` on nodes that are `NotReady` because they have no network.

use std::{
    env,
    fmt::Write,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
use veer_e2e_cluster::{
    API_PORT, Cluster, Families, Family, Kubectl, Machine, Output, ProxyMode, await_condition,
    paths,
};

use crate::site::Site;

/// Namespace and name of the release.
pub const NAMESPACE: &str = "kube-system";
/// How the names of the host sides of pods' veths begin.
pub const POD_DEVICES: &str = "veer0";
/// Name of the release.
pub const RELEASE: &str = "veer";
/// The agents' `DaemonSet`.
pub const AGENT: &str = "daemonset/veer-agent";
/// The operator's Deployment.
pub const OPERATOR: &str = "deployment/veer-operator";
/// How long an installation may take until all nodes are Ready. Seconds, in
/// truth; a machine that builds beside it is slow.
const INSTALL: Duration = Duration::from_mins(2);

/// The kube-proxy of a cluster, as the option of a command names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProxyArg {
    /// By nftables
    Nftables,
    /// By iptables
    Iptables,
    /// There is none: veer translates for nodes, too
    None,
}

impl From<ProxyArg> for ProxyMode {
    fn from(arg: ProxyArg) -> Self {
        match arg {
            ProxyArg::Nftables => Self::Nftables,
            ProxyArg::Iptables => Self::Iptables,
            ProxyArg::None => Self::None,
        }
    }
}

/// The routing modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// VXLAN between nodes.
    Tunnel,
    /// Bare packets between nodes.
    Native,
    /// Bare packets between nodes on one link, VXLAN between others.
    Hybrid,
}

impl Mode {
    /// As the resource spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "Tunnel",
            Self::Native => "Native",
            Self::Hybrid => "Hybrid",
        }
    }
}

/// The chart's value for the pods' blocks of some families; `None` where the chart's
/// own has them.
fn blocks(families: Families) -> Option<String> {
    if families == Families::default() {
        return None;
    }
    let block =
        |family: &Family| json!({"cidr": family.pod_cidr(), "nodeMaskSize": family.node_mask()});
    let all: Vec<Value> = families.all().iter().map(block).collect();
    Some(format!("clusterNetwork.podCIDRs={}", Value::from(all)))
}

/// The chart's values for a cluster without kube-proxy, where nobody else translates: the
/// product itself must find the API server by an address of its own.
fn without_proxy(api: SocketAddr) -> [String; 3] {
    [
        format!("k8sServiceHost={}", api.ip()),
        format!("k8sServicePort={}", api.port()),
        "clusterNetwork.services=Full".to_owned(),
    ]
}

/// A running cluster and what tests do with it.
#[derive(Debug)]
pub struct Lab {
    /// The cluster.
    pub cluster: Cluster,
}

/// The folder of the project.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent()
        .and_then(Path::parent)
        .unwrap_or(own)
        .to_path_buf()
}

/// `VEER_E2E_CLSACT`: whether agents attach as on kernels before 6.6, which know no
/// tcx.
pub fn clsact() -> bool {
    env::var_os("VEER_E2E_CLSACT").is_some_and(|v| !v.is_empty())
}

impl Lab {
    /// A lab on a cluster that is up.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The family that nodes report first; the tunnel's outside is of it.
    pub fn primary(&self) -> Family {
        self.cluster.families().primary()
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Kubectl {
        self.cluster.kubectl()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Result<Machine> {
        Ok(self.cluster.node(name)?)
    }

    /// A node's address of a family on its first uplink.
    pub fn address(&self, node: &str, family: Family) -> Result<IpAddr> {
        let mut all = self.cluster.addresses(node)?.into_iter();
        all.find(|address| Family::of(*address) == family)
            .with_context(|| format!("{node} has no {family} address"))
    }

    /// A node's share of the pod addresses of a family.
    pub fn pod_cidr(&self, node: &str, family: Family) -> Result<String> {
        let network = self.kubectl().json(&["get", "nodenetwork", node])?;
        let mut all = network["spec"]["podCIDRs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        let of_family = |cidr: &&str| {
            let base = cidr.split('/').next().unwrap_or_default().parse();
            base.is_ok_and(|base| Family::of(base) == family)
        };
        let cidr = all.find(of_family);
        Ok(cidr
            .with_context(|| format!("{node} has no pod CIDR of {family}"))?
            .to_owned())
    }

    /// A node's own network.
    pub fn node_site(&self, name: &str) -> Result<Site> {
        Site::of_machine(&self.node(name)?)
    }

    /// The world outside.
    pub fn world(&self) -> Result<Site> {
        Site::of_machine(&self.cluster.world())
    }

    /// Helm against this cluster.
    pub fn helm(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(paths::programs().join("helm"));
        command
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .args(args);
        let out = command.output().context("start helm: run make setup")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(
            out.status.success(),
            "helm {}: {}",
            args.join(" "),
            text(&out.stderr).trim()
        );
        Ok(Output {
            stdout: text(&out.stdout),
            stderr: text(&out.stderr),
            code: 0,
        })
    }

    /// Whether there is a release of veer.
    pub fn is_installed(&self) -> bool {
        self.helm(&["status", RELEASE, "-n", NAMESPACE]).is_ok()
    }

    /// Imports the product's images, as `make image` left them, on all nodes.
    pub fn load_images(&self) -> Result<()> {
        for name in ["veer-operator", "veer-node"] {
            let path = repository().join(format!("build/images/{name}.tar"));
            ensure!(
                path.exists(),
                "{} is missing: run make image",
                path.display()
            );
            self.cluster.load_image(&path)?;
        }
        Ok(())
    }

    /// `helm install veer charts/veer`, with blocks of the cluster's families, what a
    /// cluster without kube-proxy needs, and further values; returns at once.
    pub fn helm_install(&self, values: &[&str]) -> Result<()> {
        let chart = repository().join("charts/veer");
        let chart = chart.to_string_lossy();
        let mut args = vec!["install", RELEASE, &*chart, "-n", NAMESPACE];
        let own = self.own_values()?;
        // The last one counts, so the caller's come behind.
        for value in own.iter().map(String::as_str).chain(values.iter().copied()) {
            args.extend(["--set", value]);
        }
        let blocks = blocks(self.cluster.families());
        if let Some(blocks) = &blocks {
            args.extend(["--set-json", blocks]);
        }
        if clsact() {
            let force = r#"agent.extraEnv=[{"name":"VEER_FORCE_CLSACT","value":"1"}]"#;
            args.extend(["--set-json", force]);
        }
        self.helm(&args)?;
        Ok(())
    }

    /// Values that the cluster itself asks for.
    fn own_values(&self) -> Result<Vec<String>> {
        match self.cluster.state().config.proxy_mode {
            ProxyMode::Nftables | ProxyMode::Iptables => Ok(Vec::new()),
            ProxyMode::None => {
                let nodes = self.cluster.node_names();
                let control = nodes.first().context("a cluster without nodes")?;
                let api = self.address(control, self.primary())?;
                Ok(without_proxy((api, API_PORT).into()).to_vec())
            }
        }
    }

    /// Waits until the product runs everywhere and the cluster with it: nodes
    /// Ready, DNS served.
    pub fn await_installed(&self) -> Result<()> {
        let waited = self
            .cluster
            .await_nodes_ready(INSTALL)
            .and_then(|()| self.cluster.await_rollout(NAMESPACE, AGENT, INSTALL))
            .and_then(|()| self.cluster.await_rollout(NAMESPACE, OPERATOR, INSTALL))
            .and_then(|()| {
                self.cluster
                    .await_rollout(NAMESPACE, "deployment/coredns", INSTALL)
            });
        if let Err(error) = waited {
            bail!("{error}\n{}", self.product_seen());
        }
        Ok(())
    }

    /// Images, chart, and the wait for it all.
    pub fn install(&self, values: &[&str]) -> Result<()> {
        self.load_images()?;
        self.helm_install(values)?;
        self.await_installed()
    }

    /// What the product's pods are and said last, for error texts.
    pub fn product_seen(&self) -> String {
        let mut text = String::new();
        let pods = ["-n", NAMESPACE, "get", "pods", "-o", "wide"];
        if let Ok(out) = self.kubectl().any(&pods) {
            text.push_str(&out.stdout);
        }
        for what in [OPERATOR, AGENT] {
            let logs = [
                "-n",
                NAMESPACE,
                "logs",
                what,
                "--tail=8",
                "--all-containers",
            ];
            if let Ok(out) = self.kubectl().any(&logs) {
                let _infallible = write!(text, "--- {what}\n{}{}", out.stdout, out.stderr);
            }
        }
        text
    }

    /// The `veer` command in the agent's pod of a node.
    pub fn veer(&self, node: &str, words: &[&str]) -> Result<Output> {
        let pod = self.agent_pod(node)?;
        let mut args = vec!["-n", NAMESPACE, "exec", &pod, "--", "/veer"];
        args.extend(words);
        Ok(self.kubectl().run(&args)?)
    }

    /// `veer … -o json`.
    pub fn veer_json(&self, node: &str, words: &[&str]) -> Result<Value> {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        let out = self.veer(node, &words)?;
        serde_json::from_str(&out.stdout)
            .with_context(|| format!("veer {} on {node}: {}", words.join(" "), out.stdout))
    }

    /// The name of the agent's pod on a node.
    pub fn agent_pod(&self, node: &str) -> Result<String> {
        let field = format!("spec.nodeName={node}");
        let list = self.kubectl().json(&[
            "-n",
            NAMESPACE,
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=veer-agent",
            "--field-selector",
            &field,
        ])?;
        let pods = list["items"].as_array().context("a list without items")?;
        let alive = pods
            .iter()
            .find(|p| p["metadata"]["deletionTimestamp"].is_null());
        let name = alive.and_then(|p| p["metadata"]["name"].as_str());
        Ok(name
            .with_context(|| format!("no agent's pod on {node}"))?
            .to_owned())
    }

    /// The mode that traffic moves by now.
    pub fn mode(&self) -> Result<Mode> {
        let network = self.kubectl().json(&["get", "clusternetwork", "default"])?;
        match network["status"]["activeMode"].as_str() {
            Some("Tunnel") => Ok(Mode::Tunnel),
            Some("Native") => Ok(Mode::Native),
            Some("Hybrid") => Ok(Mode::Hybrid),
            other => bail!("the ClusterNetwork's active mode is {other:?}"),
        }
    }

    /// `kubectl patch clusternetwork default`, and nothing more.
    pub fn patch_network(&self, patch: &str) -> Result<()> {
        self.kubectl().run(&[
            "patch",
            "clusternetwork",
            "default",
            "--type=merge",
            "-p",
            patch,
        ])?;
        Ok(())
    }

    /// Changes the mode and waits until every node reports it.
    pub fn set_mode(&self, mode: Mode) -> Result<()> {
        let name = mode.name();
        self.patch_network(&format!(r#"{{"spec":{{"routing":{{"mode":"{name}"}}}}}}"#))?;
        self.await_mode(mode)
    }

    /// Waits until a mode is in force on every node.
    pub fn await_mode(&self, mode: Mode) -> Result<()> {
        let name = mode.name();
        let wanted = self.cluster.node_names();
        let what = format!("every node routes by {name}");
        await_condition(&what, Duration::from_mins(3), || {
            let kubectl = self.kubectl();
            let network = kubectl
                .json(&["get", "clusternetwork", "default"])
                .map_err(|e| e.to_string())?;
            let nodes = kubectl
                .json(&["get", "nodenetworks"])
                .map_err(|e| e.to_string())?;
            let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
            let status = &network["status"];
            let current =
                status["observedGeneration"].as_i64() >= network["metadata"]["generation"].as_i64();
            let there = wanted.iter().all(|node| {
                nodes.iter().any(|n| {
                    n["metadata"]["name"] == node.as_str()
                        && n["status"]["applied"]["mode"] == name
                        && n["status"]["applied"]["phase"] == "Ready"
                })
            });
            if current && there && status["activeMode"] == name && status["phase"] == "Ready" {
                return Ok(Some(()));
            }
            let applied: Vec<String> = nodes
                .iter()
                .map(|n| format!("{}: {}", n["metadata"]["name"], n["status"]["applied"]))
                .collect();
            Err(format!(
                "active {} phase {}; {}",
                status["activeMode"],
                status["phase"],
                applied.join("; ")
            ))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kube_proxy_the_chart_is_told_of_the_api_server() {
        let api = "[fd76:6565:7200::ac1e:b]:6443".parse().expect("an address");
        let wanted = [
            "k8sServiceHost=fd76:6565:7200::ac1e:b",
            "k8sServicePort=6443",
            "clusterNetwork.services=Full",
        ];
        assert_eq!(without_proxy(api), wanted);
    }

    #[test]
    fn a_cluster_of_both_families_gets_a_block_of_each_the_primary_ones_first() {
        assert_eq!(blocks(Families::V4), None);
        let value = blocks(Families::V6V4).expect("blocks");
        let list = value
            .strip_prefix("clusterNetwork.podCIDRs=")
            .expect("a value");
        let list: Value = serde_json::from_str(list).expect("JSON");
        assert_eq!(
            list,
            json!([
                {"cidr": "fd00:10:244::/56", "nodeMaskSize": 64},
                {"cidr": "10.244.0.0/16", "nodeMaskSize": 24},
            ])
        );
    }
}
