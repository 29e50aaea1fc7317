//! A cluster as a whole: up, attach, down, and what tests ask of it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    addons,
    cgroup::{self, Cgroup},
    control,
    error::{Error, IoContext, Result},
    family::{Families, Family},
    kubectl::Kubectl,
    light,
    machine::{Kind, Machine},
    node,
    paths::{self, Paths},
    pki::Pki,
    progress::Progress,
    run::Output,
    state::{self, Config, NodeInfo, Role, State, check_name},
    underlay::{self, Plan},
    wait::await_condition,
};

/// The machine that holds the bridges, or routes between the nodes' links.
pub(crate) const SWITCH: &str = "switch";
/// The machine that plays the world outside.
pub(crate) const WORLD: &str = "world";
/// Image archives that every cluster has on every node.
const IMAGES: [&str; 3] = ["pause", "coredns", "tools"];

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) paths: Paths,
    pub(crate) state: State,
    pub(crate) progress: Progress,
}

impl Cluster {
    /// Starts a cluster. A cluster of that name that is there, whole or in
    /// pieces, is removed first. Returns when all nodes have registered; they
    /// are `NotReady` until a pod network is installed.
    ///
    /// # Errors
    /// Something needed is missing, or a step failed; what was made until
    /// then is left to be looked at, for [`Cluster::down_by_name`] to remove.
    pub fn up(config: Config) -> Result<Self> {
        Self::up_with(config, Progress::start())
    }

    /// [`Cluster::up`] with a given clock for its progress.
    ///
    /// # Errors
    /// As there.
    pub fn up_with(config: Config, progress: Progress) -> Result<Self> {
        config.check()?;
        preflight()?;
        let paths = Paths::of(&config.name);
        if is_there(&config.name)? {
            sweep(&config.name)?;
            progress.done("removed what was left of a cluster of that name");
        }
        let mut cluster = Self::record(config, paths, progress)?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Takes an index and writes the record.
    fn record(config: Config, paths: Paths, progress: Progress) -> Result<Self> {
        let _lock = state::lock()?;
        state::raise_limits()?;
        let index = state::free_index()?;
        let plan = Plan::new(index, config.underlay);
        let mut nodes = Vec::new();
        for number in 1..=config.workers + 1 {
            let (name, role) = if number == 1 {
                ("control".to_owned(), Role::ControlPlane)
            } else {
                (format!("worker{}", number - 1), Role::Worker)
            };
            let address = plan.link(number, false)?.address;
            nodes.push(NodeInfo {
                name,
                role,
                number,
                address,
            });
        }
        let dir = paths.root();
        fs::create_dir_all(dir).what(|| format!("make {}", dir.display()))?;
        let state = State {
            config,
            index,
            nodes,
        };
        state.save(&paths)?;
        Ok(Self {
            paths,
            state,
            progress,
        })
    }

    fn start(&mut self) -> Result<()> {
        let pki = Pki::create(self.paths.pki())?;
        let control = self.state.control()?.clone();
        let families = self.state.config.families;
        let server = control::server(families.primary().planned(control.address));
        let admin = Some("system:masters");
        pki.kubeconfig(&self.paths.kubeconfig(), &server, "kubernetes-admin", admin)?;
        Cgroup::of_cluster(&self.state.config.name).create()?;
        let (switch, world) = (self.switch(), self.world());
        switch.start()?;
        world.start()?;
        underlay::wire_world(self.plan(), &self.state.config, &switch, &world)?;
        self.progress.done("underlay and world");

        let first = self.machine(&control.name);
        node::prepare(&pki, &self.state.config, control.address, &first, &control)?;
        control::prepare(&pki, &first, control.address, families)?;
        self.start_machine(&control)?;
        self.start_control_plane()?;
        let cluster = &*self;
        let joined: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> = cluster
                .state
                .nodes
                .iter()
                .map(|info| scope.spawn(move || cluster.join(info)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(panicked())))
                .collect()
        });
        joined.into_iter().collect::<Result<()>>()?;
        self.kubectl().apply(&addons::manifests(families))?;
        self.progress
            .done("CoreDNS applied (it starts once there is a pod network)");
        self.await_registered()?;
        self.progress.done(&format!(
            "{} nodes registered; KUBECONFIG={}",
            self.state.nodes.len(),
            self.paths.kubeconfig().display()
        ));
        Ok(())
    }

    /// Starts etcd, API server, controller manager and scheduler.
    pub(crate) fn start_control_plane(&self) -> Result<()> {
        let control = self.state.control()?;
        let first = self.machine(&control.name);
        let (address, families) = (control.address, self.state.config.families);
        for component in &control::COMPONENTS[..2] {
            control::start(&first, component, address, families)?;
        }
        control::await_ready(&self.kubectl(), &first)?;
        self.progress.done("etcd and API server ready");
        for component in &control::COMPONENTS[2..] {
            control::start(&first, component, address, families)?;
        }
        Ok(())
    }

    /// Starts a node's namespaces and plugs it in.
    pub(crate) fn start_machine(&self, info: &NodeInfo) -> Result<()> {
        let machine = self.machine(&info.name);
        node::write_names(&self.state, &self.paths.machine(&info.name))?;
        machine.start()?;
        underlay::attach_node(
            self.plan(),
            &self.state.config,
            &self.switch(),
            &machine,
            info,
        )
    }

    /// Brings a node from nothing, or from its disk, into the cluster.
    pub(crate) fn join(&self, info: &NodeInfo) -> Result<()> {
        let machine = self.machine(&info.name);
        if info.role != Role::ControlPlane {
            let pki = Pki::at(self.paths.pki());
            let api = self.state.control()?.address;
            node::prepare(&pki, &self.state.config, api, &machine, info)?;
            self.start_machine(info)?;
        }
        if info.role == Role::Light {
            light::register(&self.kubectl(), &machine, info, self.families())?;
            self.progress
                .done(&format!("{} ({}) registered", info.name, info.address));
            return Ok(());
        }
        node::start_containerd(&machine)?;
        let import = |image: &&str| {
            node::import_image(&machine, &paths::images().join(format!("{image}.tar")))
        };
        // The sandbox's image is all that the kubelet needs to register; the
        // others arrive while it does.
        let (first, others) = IMAGES.split_at(1);
        first.iter().try_for_each(import)?;
        node::start_kubelet(&machine, info, &self.state.config)?;
        node::start_proxy(&machine, info, &self.state.config)?;
        others.iter().try_for_each(import)?;
        self.progress
            .done(&format!("{} ({}) started", info.name, info.address));
        Ok(())
    }

    /// Waits until every node has registered, and labels the first one.
    pub(crate) fn await_registered(&self) -> Result<()> {
        let wanted: Vec<&str> = self
            .state
            .nodes
            .iter()
            .filter(|n| n.role != Role::Light)
            .map(|n| n.name.as_str())
            .collect();
        await_condition("all nodes have registered", Duration::from_mins(2), || {
            let out = self.kubectl().any(&["get", "nodes", "-o", "name"]);
            let out = out.map_err(|e| e.to_string())?;
            let missing: Vec<String> = wanted
                .iter()
                .filter(|name| !out.stdout.lines().any(|l| l == format!("node/{name}")))
                .map(|name| format!("{name}: {}", self.machine(name).log_tail("kubelet")))
                .collect();
            if missing.is_empty() {
                Ok(Some(()))
            } else {
                Err(missing.join("; "))
            }
        })?;
        let first = self.state.control()?.name.clone();
        let label = "node-role.kubernetes.io/control-plane=";
        self.kubectl()
            .run(&["label", "--overwrite", "node", &first, label])?;
        Ok(())
    }

    /// A cluster that is up.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn attach(name: &str) -> Result<Self> {
        check_name(name)?;
        let paths = Paths::of(name);
        let state = State::load(&paths)?;
        Ok(Self {
            paths,
            state,
            progress: Progress::start(),
        })
    }

    /// Removes the cluster: no process, mount, namespace, control group,
    /// device or file of it stays.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn down(self) -> Result<()> {
        Self::down_by_name(&self.state.config.name)
    }

    /// [`Cluster::down`] for a cluster in any condition, also half made or
    /// crashed. One that is not there is fine.
    ///
    /// # Errors
    /// Something could not be removed.
    pub fn down_by_name(name: &str) -> Result<()> {
        check_name(name)?;
        sweep(name)
    }

    /// The names of all clusters of which there is anything.
    ///
    /// # Errors
    /// The control groups cannot be read.
    pub fn all() -> Result<Vec<String>> {
        let mut names = cgroup::clusters()?;
        names.extend(state::recorded());
        Ok(names.into_iter().collect())
    }

    /// What is recorded of the cluster.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.paths.kubeconfig()
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.paths.kubeconfig())
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan::new(self.state.index, self.state.config.underlay)
    }

    pub(crate) fn machine(&self, name: &str) -> Machine {
        Machine::new(&self.paths, name, Kind::Node)
    }

    /// The machine with the bridges, or the router.
    pub fn switch(&self) -> Machine {
        Machine::new(&self.paths, SWITCH, Kind::Network)
    }

    /// The world outside.
    pub fn world(&self) -> Machine {
        Machine::new(&self.paths, WORLD, Kind::Network)
    }

    /// A node, to run commands on.
    ///
    /// # Errors
    /// The cluster has no such node.
    pub fn node(&self, name: &str) -> Result<Machine> {
        Ok(self.machine(&self.state.node(name)?.name))
    }

    /// A node, the world or the switch by name.
    pub(crate) fn any_machine(&self, name: &str) -> Result<Machine> {
        match name {
            SWITCH => Ok(self.switch()),
            WORLD => Ok(self.world()),
            _ => self.node(name),
        }
    }

    /// The address families of nodes and services.
    pub fn families(&self) -> Families {
        self.state.config.families
    }

    /// A node's IPv4 address on its first uplink.
    ///
    /// # Errors
    /// The cluster has no such node, or no IPv4.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        if !self.families().has(Family::V4) {
            return Err(Error::State(
                "the cluster has no IPv4 addresses: ask for those of all its families".to_owned(),
            ));
        }
        Ok(self.state.node(name)?.address)
    }

    /// A node's addresses on its first uplink, the primary family's first.
    ///
    /// # Errors
    /// The cluster has no such node.
    pub fn addresses(&self, name: &str) -> Result<Vec<IpAddr>> {
        Ok(self.families().planned(self.state.node(name)?.address))
    }

    /// Names of all nodes that run a kubelet, the control plane's first.
    pub fn node_names(&self) -> Vec<String> {
        let real = self.state.nodes.iter().filter(|n| n.role != Role::Light);
        real.map(|n| n.name.clone()).collect()
    }

    /// Imports an image archive (OCI or docker) on every node.
    ///
    /// # Errors
    /// A node refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .node_names()
                .into_iter()
                .map(|n| scope.spawn(move || node::import_image(&self.machine(&n), archive)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or_else(|_| Err(panicked())))
                .collect()
        });
        results.into_iter().collect()
    }

    /// Runs a command in a pod's first container.
    ///
    /// # Errors
    /// kubectl exec fails, or the command does.
    pub fn exec_in_pod(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<Output> {
        let mut args = vec!["-n", namespace, "exec", pod, "--"];
        args.extend(words);
        self.kubectl().run(&args)
    }
}

fn panicked() -> Error {
    Error::State("a thread of the harness panicked".to_owned())
}

/// What must be there before a cluster can start.
fn preflight() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::State(
            "a cluster needs root: run it with sudo".to_owned(),
        ));
    }
    for component in control::COMPONENTS
        .iter()
        .chain(&["kubelet", "kube-proxy", "kubectl"])
    {
        let path = paths::programs().join(component);
        if !path.exists() {
            return Err(Error::State(format!(
                "{} is missing: run make setup",
                path.display()
            )));
        }
    }
    for program in [
        "containerd",
        "ctr",
        "runc",
        "nft",
        "ip",
        "nsenter",
        "unshare",
        "tcpdump",
    ] {
        if !paths::search_path()
            .split(':')
            .any(|dir| Path::new(dir).join(program).exists())
        {
            return Err(Error::State(format!(
                "{program} is not installed: run make setup"
            )));
        }
    }
    for image in IMAGES {
        let path = paths::images().join(format!("{image}.tar"));
        if !path.exists() {
            return Err(Error::State(format!(
                "{} is missing: run e2e/images/build",
                path.display()
            )));
        }
    }
    Ok(())
}

fn is_there(name: &str) -> Result<bool> {
    Ok(Paths::of(name).root().exists() || Cgroup::of_cluster(name).exists()?)
}

/// Removes everything of a cluster, whatever is there of it.
fn sweep(name: &str) -> Result<()> {
    let paths = Paths::of(name);
    let group = Cgroup::of_cluster(name);
    // Killing the processes ends the namespaces, and with them devices,
    // mounts and rules.
    group.kill()?;
    if group.exists()? {
        group.remove()?;
    }
    let _lock = state::lock()?;
    if let Ok(state) = State::load(&paths) {
        underlay::unwire_harness(state.index);
    }
    remove_dir(paths.root())?;
    if state::recorded().is_empty() {
        state::forget_all();
    }
    Ok(())
}

/// Removes a directory; the mounts that hold its files end with the last
/// process of their namespace, which may take a moment.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    await_condition(
        &format!("{} is removed", dir.display()),
        Duration::from_secs(20),
        || match fs::remove_dir_all(dir) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Some(())),
            Err(error) => Err(error.to_string()),
        },
    )
}
