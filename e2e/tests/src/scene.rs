//! The cluster that all tests of a run share, and what is on it.

use std::{
    env,
    net::IpAddr,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use veer_e2e_cluster::{
    Cluster, Config, Families, Family, Progress, ProxyMode, Underlay, await_condition, own_name,
};

use crate::{
    baseline, client, evidence,
    lab::{Lab, Mode},
    pods::{self, Pod},
    translator::{self, Translator},
    workloads,
};

/// What a test does: what it found wrong is its error.
type Run = fn(&Scene) -> Result<()>;

/// A test, and in which of the cluster's families it runs.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// Of what has no family, or asks for all of them itself: with the primary one.
    Once(Run),
    /// In each one.
    Each(Run),
    /// Of what only this family has.
    Only(Family, Run),
}

impl Test {
    /// The families to run it in on a cluster of some; none: it has nothing to say there.
    pub fn families(self, needs: Needs, cluster: Families) -> Vec<Family> {
        let mut all = match self {
            Self::Once(_) => vec![cluster.primary()],
            Self::Each(_) => cluster.all().to_vec(),
            Self::Only(family, _) => vec![family],
        };
        all.retain(|f| cluster.has(*f) && needs.family.is_none_or(|only| only == *f));
        all
    }

    /// Runs it on the shared cluster; all families that fail are named.
    pub fn run(self, needs: Needs, families: &[Family]) -> Result<()> {
        let (Self::Once(test) | Self::Each(test) | Self::Only(_, test)) = self;
        run(needs, |scene| {
            let mut failed = Vec::new();
            for family in families {
                scene.turn_to(*family)?;
                if let Err(error) = test(scene) {
                    failed.push(format!("{family}: {error:#}"));
                }
            }
            ensure!(failed.is_empty(), "{}", failed.join("\n"));
            Ok(())
        })
    }
}

/// The families of the cluster that this run uses, or will make.
pub fn families() -> Result<Families> {
    match env::var("VEER_E2E_CLUSTER") {
        Ok(name) => Ok(Cluster::attach(&name)?.families()),
        Err(_) => Ok(Families::from_environment()?),
    }
}

/// Namespace of the demo's workloads.
pub const DEMO: &str = "e2e-demo";
/// Up to here identity numbers are reserved; the operator's come after.
const LAST_RESERVED: u32 = 255;
/// Namespace of the pods with a known place.
pub const FIXED: &str = "e2e-fixed";

/// What a test needs of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    mode: Mode,
    services: Translator,
    rp_filter: u8,
    family: Option<Family>,
}

impl Needs {
    /// A routing mode.
    pub fn mode(mode: Mode) -> Self {
        Self {
            mode,
            services: Translator::Pods,
            rp_filter: 0,
            family: None,
        }
    }

    /// The host's stack translates what pods send to Services.
    #[must_use]
    pub fn by_kube_proxy(self) -> Self {
        Self {
            services: Translator::KubeProxy,
            ..self
        }
    }

    /// Every node with `rp_filter` 1 on `all`, as some distributions have it. It says
    /// nothing of IPv6.
    #[must_use]
    pub fn strict(self) -> Self {
        Self {
            rp_filter: 1,
            family: Some(Family::V4),
            ..self
        }
    }
}

/// The cluster and the pods on it.
#[derive(Debug)]
pub struct Scene {
    /// The cluster with veer on it.
    pub lab: Lab,
    /// The mode in force.
    pub mode: Mode,
    /// Who translated what is sent to Services, when that was last seen to be in force.
    services: Option<Translator>,
    /// The family that is looked at: addresses of pods and nodes are of it.
    pub family: Family,
    /// The `DaemonSet`'s pods, one per node.
    pub demo: Vec<Pod>,
    /// The Deployment's pods, of another label set, one per worker.
    pub other: Vec<Pod>,
    /// A pod per node with hostPorts and a service of its own.
    pub fixed: Vec<Pod>,
}

/// Kind of the runs' own clusters.
const KIND: &str = "e2e";

static SCENE: OnceLock<Result<Mutex<Scene>, String>> = OnceLock::new();

/// Runs a test on the shared cluster, which the first one starts.
pub fn run<T>(needs: Needs, test: impl FnOnce(&mut Scene) -> Result<T>) -> Result<T> {
    let scene = SCENE.get_or_init(|| start().map(Mutex::new).map_err(|e| format!("{e:#}")));
    let scene = scene
        .as_ref()
        .map_err(|e| anyhow!("the cluster did not start: {e}"))?;
    let mut scene = scene.lock().unwrap_or_else(PoisonError::into_inner);
    scene.fulfil(needs)?;
    let primary = scene.lab.primary();
    scene.turn_to(primary)?;
    test(&mut scene)
}

/// Removes the cluster, if this run made it.
pub fn end() -> Result<()> {
    if SCENE.get().is_none() || env::var_os("VEER_E2E_CLUSTER").is_some() {
        return Ok(());
    }
    if is_set("VEER_E2E_KEEP") {
        let name = own_name(KIND);
        Cluster::keep(&name)?;
        eprintln!("the cluster {name} is left up");
        return Ok(());
    }
    Ok(Cluster::down_by_name(&own_name(KIND))?)
}

/// Whether a variable says something.
fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// Whether the network is not veer but the bridge plugin's: a control of the
/// tests of services, which must pass there too.
fn is_control() -> bool {
    is_set("VEER_E2E_CONTROL")
}

fn config() -> Result<Config> {
    let mut config = Config::new(&own_name(KIND));
    config.families = Families::from_environment()?;
    config.proxy_mode = match env::var("VEER_E2E_PROXY").as_deref() {
        Err(_) | Ok("nftables") => ProxyMode::Nftables,
        Ok("iptables") => ProxyMode::Iptables,
        Ok(other) => bail!("VEER_E2E_PROXY is nftables or iptables, not {other}"),
    };
    config.underlay = match env::var("VEER_E2E_UNDERLAY").as_deref() {
        Err(_) | Ok("bridge") => Underlay::Bridge,
        Ok("router") => Underlay::Router,
        Ok(other) => bail!("VEER_E2E_UNDERLAY is bridge or router, not {other}"),
    };
    Ok(config)
}

fn start() -> Result<Scene> {
    let cluster = if let Ok(name) = env::var("VEER_E2E_CLUSTER") {
        Cluster::attach(&name)?
    } else {
        Cluster::remove_abandoned(KIND)?;
        Cluster::up_with(config()?, Progress::quiet())?
    };
    let lab = Lab::new(cluster);
    let control = is_control();
    if control {
        baseline::install(&lab)?;
        lab.cluster.await_nodes_ready(workloads::STARTED)?;
    } else if !lab.is_installed() {
        lab.install(&[])?;
    }
    if !control {
        lab.await_installed()?;
    }
    let (demo, other) = workloads::start_demo(&lab, DEMO)?;
    let nodes = lab.cluster.node_names();
    lab.kubectl().apply(&workloads::fixed(FIXED, &nodes))?;
    let fixed = pods::await_ready(&lab, FIXED, "app=fixed", nodes.len(), workloads::STARTED)?;
    let mode = if control { Mode::Native } else { lab.mode()? };
    Ok(Scene {
        family: lab.primary(),
        lab,
        mode,
        services: None,
        demo,
        other,
        fixed,
    })
}

impl Scene {
    fn fulfil(&mut self, needs: Needs) -> Result<()> {
        for name in self.lab.cluster.node_names() {
            let value = format!("net.ipv4.conf.all.rp_filter={}", needs.rp_filter);
            self.lab
                .node_site(&name)?
                .exec(&["sysctl", "-q", "-w", &value])?;
        }
        // Without veer, after its removal, there is no mode to be in.
        if !is_control() && self.lab.is_installed() {
            // The one before may have failed in the midst of a change.
            self.lab.set_mode(needs.mode)?;
            self.mode = needs.mode;
            if self.services != Some(needs.services) || translator::of(&self.lab)? != needs.services
            {
                self.services = None;
                translator::set(&self.lab, needs.services)?;
                self.services = Some(needs.services);
            }
        }
        Ok(())
    }

    /// Has the tests' pods and nodes looked at in another family.
    fn turn_to(&mut self, family: Family) -> Result<()> {
        self.family = family;
        let pods = [&mut self.demo, &mut self.other, &mut self.fixed];
        pods.into_iter()
            .flatten()
            .try_for_each(|pod| pod.turn_to(family))
    }

    /// The `DaemonSet`'s pod on a node.
    pub fn demo_on(&self, node: &str) -> Result<&Pod> {
        pods::on(&self.demo, node).context("demo")
    }

    /// The Deployment's pod on a node.
    pub fn other_on(&self, node: &str) -> Result<&Pod> {
        pods::on(&self.other, node).context("other")
    }

    /// The pod with a known place on a node.
    pub fn fixed_on(&self, node: &str) -> Result<&Pod> {
        pods::on(&self.fixed, node).context("fixed")
    }

    /// All pods that tests use.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.demo.iter().chain(&self.other).chain(&self.fixed)
    }

    /// A pod's identity number, from its `PodEndpoint`.
    pub fn identity(&self, pod: &Pod) -> Result<u32> {
        identity_of(&self.lab, pod)
    }

    /// A node's address.
    pub fn address(&self, node: &str) -> Result<IpAddr> {
        self.lab.address(node, self.family)
    }

    /// A node's address at which it takes the tunnel's packets, whatever is inside.
    pub fn tunnel_address(&self, node: &str) -> Result<IpAddr> {
        let primary = self.lab.primary();
        self.lab.address(node, primary)
    }

    /// A port of a service of [`FIXED`].
    pub fn service(&self, name: &str, port: &str) -> Result<workloads::Service> {
        workloads::service(&self.lab, self.family, (FIXED, name), port)
    }

    /// The form in which pods of two nodes reach each other, on the wire.
    pub fn path(&self, from: &str, to: &str) -> Result<Mode> {
        evidence::form_on_wire(&self.lab, self.demo_on(from)?, self.demo_on(to)?)
    }

    /// Waits until that is so.
    pub fn await_path(&self, from: &str, to: &str, form: Mode) -> Result<()> {
        let what = format!("{from} sends to {to} by {}", form.name());
        await_condition(&what, Duration::from_mins(1), || {
            let now = self.path(from, to).map_err(|e| format!("{e:#}"))?;
            Ok((now == form).then_some(()))
        })?;
        Ok(())
    }

    /// Pings between pods of two nodes, ten a second for a while, all of which
    /// must be answered.
    pub fn pings_for(&self, from: &str, to: &str, time: Duration) -> Result<()> {
        let (source, target) = (self.demo_on(from)?, self.demo_on(to)?);
        let count = u32::try_from(time.as_millis() / 100).unwrap_or(u32::MAX);
        client::reaches(&source.site, target.address, count)
    }

    /// The octets that the tunnel adds to a packet.
    pub fn tunnel_overhead(&self) -> u32 {
        match self.lab.primary() {
            Family::V4 => 50,
            Family::V6 => 70,
        }
    }

    /// The MTU that the mode in force leaves to pods, on the uplink's 1500.
    pub fn pod_mtu(&self) -> u32 {
        let uplink = u32::from(self.lab.cluster.state().config.mtu);
        match self.mode {
            Mode::Tunnel | Mode::Hybrid => uplink - self.tunnel_overhead(),
            Mode::Native => uplink,
        }
    }
}

/// Waits for a pod's identity to be a number of its own: on a busy machine the pod can
/// be Ready before the operator has given that out, and is `init` until then.
pub fn await_identity(lab: &Lab, pod: &Pod, within: Duration) -> Result<u32> {
    let what = format!("{} has an identity of its own", pod.name);
    Ok(await_condition(&what, within, || {
        let number = identity_of(lab, pod).map_err(|e| format!("{e:#}"))?;
        if number > LAST_RESERVED {
            Ok(Some(number))
        } else {
            Err(format!("it has the reserved identity {number}"))
        }
    })?)
}

/// A pod's identity number now, from its `PodEndpoint`.
pub fn identity_of(lab: &Lab, pod: &Pod) -> Result<u32> {
    let list = lab
        .kubectl()
        .json(&["-n", &pod.namespace, "get", "podendpoints"])?;
    let items: &Vec<Value> = list["items"].as_array().context("a list without items")?;
    items
        .iter()
        .find(|e| e["spec"]["podUID"] == pod.uid.as_str())
        .and_then(|e| e["spec"]["identity"].as_u64())
        .and_then(|n| u32::try_from(n).ok())
        .with_context(|| format!("no PodEndpoint of {}", pod.name))
}
