//! veer-agent: turns veer's resources into eBPF maps, routes and attached
//! programs on one node, and wires pods for veer-cni.
//!
//! watch → index → desired → difference → kernel. An agent that ends leaves
//! traffic running; the next one takes over.

#![forbid(unsafe_code)]

mod engine;
mod pods;
mod report;
mod run;
mod runtime;
mod socket;
mod state;
mod watch;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Parser, Subcommand};
use veer_agent_api::CONF_DIR;

use runtime::conflist::Chain;
use state::options::Options;

/// Node agent of the veer pod network.
#[derive(Debug, Parser)]
#[command(name = "veer-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (the default).
    Run(Box<RunArgs>),
    /// Copy the CNI plugins to the node.
    Install {
        /// The node's folder of CNI plugins.
        #[arg(long, default_value = "/host/opt/cni/bin")]
        cni_bin_dir: PathBuf,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct RunArgs {
    /// The node's name.
    #[arg(long, env = "NODE_NAME", default_value = "")]
    node_name: String,
    /// The node's address as the kubelet knows it (a hint).
    #[arg(long, env = "NODE_IP")]
    node_ip: Option<IpAddr>,
    /// The node's folder of CNI configurations.
    #[arg(long, env = "VEER_CNI_CONF_DIR", default_value = "/host/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The node's folder of CNI plugins, to take veer-cni away at uninstall.
    #[arg(long, env = "VEER_CNI_BIN_DIR", default_value = "/host/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The former as the node has it.
    #[arg(long, env = "VEER_CNI_HOST_CONF_DIR", default_value = CONF_DIR)]
    cni_host_conf_dir: String,
    /// Entries that the CNI configuration gets behind veer's own: a JSON list.
    #[arg(long, env = "VEER_CNI_PLUGINS", default_value = "")]
    cni_plugins: String,
    /// Move CNI configurations aside that the runtime takes before veer's.
    #[arg(
        long,
        env = "VEER_CNI_EXCLUSIVE",
        default_value_t = false,
        action = clap::ArgAction::Set
    )]
    cni_exclusive: bool,
    /// The results that the runtime's CNI library keeps, to read.
    #[arg(long, default_value = "/host/var/lib/cni/results")]
    cni_results_dir: PathBuf,
    /// Folder of the pods' network namespaces.
    #[arg(long, default_value = "/run/netns")]
    netns_dir: PathBuf,
    /// Folder of what survives a restart.
    #[arg(long, default_value = "/var/lib/veer")]
    state_dir: PathBuf,
    /// The node's bpffs.
    #[arg(long, default_value = "/sys/fs/bpf")]
    bpffs: PathBuf,
    /// Socket for veer-cni and the veer command.
    #[arg(long, default_value = veer_agent_api::SOCKET)]
    socket: PathBuf,
    /// A writable /proc/sys/net; default: /host/proc/sys/net if that is there.
    #[arg(long)]
    proc_sys_net: Option<PathBuf>,
    /// The node's cgroups, where the programs of its own sockets are attached.
    #[arg(long, default_value = "/sys/fs/cgroup")]
    cgroup_dir: PathBuf,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, env = "VEER_METRICS_ADDR", default_value = "127.0.0.1:9917")]
    metrics_addr: SocketAddr,
}

impl RunArgs {
    fn options(self) -> anyhow::Result<(Options, Chain, SocketAddr)> {
        anyhow::ensure!(
            !self.node_name.is_empty(),
            "the node's name is missing: set --node-name or NODE_NAME"
        );
        let host = Path::new("/host/proc/sys/net");
        let proc_sys_net = self.proc_sys_net.unwrap_or_else(|| {
            if host.is_dir() {
                host.to_owned()
            } else {
                PathBuf::from("/proc/sys/net")
            }
        });
        let chain = Chain::parse(&self.cni_plugins, &self.cni_host_conf_dir)?;
        let options = Options {
            node: self.node_name,
            node_ip: self.node_ip,
            cni_conf_dir: self.cni_conf_dir,
            cni_bin_dir: self.cni_bin_dir,
            exclusive: self.cni_exclusive,
            cni_results: self.cni_results_dir,
            netns: self.netns_dir,
            state: self.state_dir,
            bpffs: self.bpffs,
            cgroups: self.cgroup_dir,
            socket: self.socket,
            proc_sys_net,
        };
        Ok((options, chain, self.metrics_addr))
    }
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,kube=warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Install { cni_bin_dir }) => {
            let copied = runtime::install::install(&cni_bin_dir)
                .with_context(|| format!("cannot install into {}", cni_bin_dir.display()))?;
            tracing::info!(?copied, "installed");
            Ok(())
        }
        Some(Command::Run(args)) => run(*args),
        None => run(cli.run),
    }
}

fn run(args: RunArgs) -> anyhow::Result<()> {
    let (options, chain, metrics) = args.options()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(12)
        .thread_stack_size(512 << 10)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(run::run(options, chain, metrics))
}
