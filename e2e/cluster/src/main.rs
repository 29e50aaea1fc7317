//! veer-cluster: makes, describes and removes test clusters by hand.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    reason = "a command line program prints its result"
)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use veer_e2e_cluster::{Cluster, Config, Families, Progress, ProxyMode, Role, Underlay};

#[derive(Parser)]
#[command(
    version,
    about = "A real Kubernetes on this machine, whose nodes are namespaces"
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a cluster without a pod network (one of that name is removed first)
    Up {
        /// Lower-case letters and digits
        name: String,
        /// Nodes beside the control plane's
        #[arg(long, default_value_t = 2)]
        workers: u8,
        /// One link for all nodes, or a router between them
        #[arg(long, value_enum, default_value_t = UnderlayArg::Bridge)]
        underlay: UnderlayArg,
        /// MTU of the links between the nodes
        #[arg(long, default_value_t = 1500)]
        mtu: u16,
        /// How kube-proxy translates services
        #[arg(long, value_enum, default_value_t = ProxyArg::Nftables)]
        proxy_mode: ProxyArg,
        /// Let kube-proxy know its own node's pods by devices whose names begin so
        #[arg(long, value_name = "PREFIX")]
        pod_devices: Option<String>,
        /// Give each node an eth1 in a second network
        #[arg(long)]
        second_uplink: bool,
        /// Put the workers in this many zones, in turn
        #[arg(long, default_value_t = 0)]
        zones: u8,
        /// Address families of nodes and services
        #[arg(long, default_value = "v4", value_parser = ["v4", "v6", "dual"])]
        family: String,
        /// Which of both families is the primary one (default with dual: v4)
        #[arg(long, value_parser = ["v4", "v6"])]
        primary: Option<String>,
    },
    /// Say what a cluster consists of
    Describe {
        name: String,
        /// Print JSON
        #[arg(short, value_parser = ["json"])]
        output: Option<String>,
    },
    /// List all clusters of this machine
    List,
    /// Remove a cluster, whole or in pieces
    Down {
        #[arg(required_unless_present = "all")]
        name: Option<String>,
        /// Remove every cluster of this machine
        #[arg(long)]
        all: bool,
    },
    /// Run a command on a node, or on `world` or `switch`
    Exec {
        name: String,
        node: String,
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Import image archives on all nodes
    LoadImage {
        name: String,
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Change a node while the cluster runs
    #[command(subcommand)]
    Node(NodeAction),
}

#[derive(Subcommand)]
enum NodeAction {
    /// Add a worker
    Add {
        cluster: String,
        node: String,
        /// Namespaces only: no kubelet, no containerd
        #[arg(long)]
        light: bool,
    },
    /// Remove a worker and its disk
    Remove { cluster: String, node: String },
    /// Power cut and start from its disk
    Reboot { cluster: String, node: String },
    /// Freeze all its processes
    Pause { cluster: String, node: String },
    /// Let a paused node go on
    Resume { cluster: String, node: String },
    /// Give a worker another address
    Readdress { cluster: String, node: String },
}

#[derive(Clone, Copy, ValueEnum)]
enum UnderlayArg {
    Bridge,
    Router,
}

#[derive(Clone, Copy, ValueEnum)]
enum ProxyArg {
    Nftables,
    Iptables,
    None,
}

fn main() -> ExitCode {
    match act(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("veer-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up {
            name,
            workers,
            underlay,
            mtu,
            proxy_mode,
            pod_devices,
            second_uplink,
            zones,
            family,
            primary,
        } => {
            let families = Families::named(&family, primary.as_deref())?;
            let underlay = match underlay {
                UnderlayArg::Bridge => Underlay::Bridge,
                UnderlayArg::Router => Underlay::Router,
            };
            let proxy_mode = match proxy_mode {
                ProxyArg::Nftables => ProxyMode::Nftables,
                ProxyArg::Iptables => ProxyMode::Iptables,
                ProxyArg::None => ProxyMode::None,
            };
            Cluster::up(Config {
                name,
                workers,
                underlay,
                mtu,
                proxy_mode,
                pod_devices,
                second_uplink,
                zones,
                families,
            })?;
        }
        Action::Describe { name, output } => describe(&name, output.is_some())?,
        Action::List => {
            for name in Cluster::all()? {
                println!("{name}");
            }
        }
        Action::Down { name, all } => {
            let progress = Progress::start();
            let names = if all {
                Cluster::all()?
            } else {
                name.into_iter().collect()
            };
            for name in names {
                Cluster::down_by_name(&name)?;
                progress.done(&format!("{name} is gone"));
            }
        }
        Action::Exec {
            name,
            node,
            command,
        } => return exec(&name, &node, &command),
        Action::LoadImage { name, files } => {
            let progress = Progress::start();
            let cluster = Cluster::attach(&name)?;
            for file in files {
                cluster.load_image(&file)?;
                progress.done(&format!("{} is on all nodes", file.display()));
            }
        }
        Action::Node(action) => change_node(action)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(name: &str, json: bool) -> Result<()> {
    let cluster = Cluster::attach(name)?;
    let state = cluster.state();
    if json {
        let mut value = serde_json::to_value(state).context("describe the cluster")?;
        value["kubeconfig"] = cluster.kubeconfig().display().to_string().into();
        println!("{value:#}");
        return Ok(());
    }
    println!("cluster     {name}");
    println!("kubeconfig  {}", cluster.kubeconfig().display());
    println!(
        "underlay    {:?}, MTU {}",
        state.config.underlay, state.config.mtu
    );
    println!("kube-proxy  {:?}", state.config.proxy_mode);
    for node in &state.nodes {
        let pid = cluster.node(&node.name)?.init();
        let pid = pid.map_or_else(|e| e.to_string(), |pid| format!("pid {pid}"));
        let addresses: Vec<String> = cluster
            .addresses(&node.name)?
            .iter()
            .map(ToString::to_string)
            .collect();
        println!(
            "node        {:<10} {:<15} {:?}, {pid}",
            node.name,
            addresses.join(" "),
            node.role
        );
    }
    Ok(())
}

fn exec(name: &str, node: &str, words: &[String]) -> Result<ExitCode> {
    let cluster = Cluster::attach(name)?;
    let machine = match node {
        "world" => cluster.world(),
        "switch" => cluster.switch(),
        _ => cluster.node(node)?,
    };
    let (program, args) = words.split_first().context("no command given")?;
    let status = machine
        .command(program)?
        .args(args)
        .status()
        .context("start nsenter")?;
    Ok(status
        .code()
        .and_then(|c| u8::try_from(c).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

fn change_node(action: NodeAction) -> Result<()> {
    let progress = Progress::start();
    match action {
        NodeAction::Add {
            cluster,
            node,
            light,
        } => {
            let role = if light { Role::Light } else { Role::Worker };
            Cluster::attach(&cluster)?.add_node(&node, role)?;
        }
        NodeAction::Remove { cluster, node } => Cluster::attach(&cluster)?.remove_node(&node)?,
        NodeAction::Reboot { cluster, node } => Cluster::attach(&cluster)?.reboot_node(&node)?,
        NodeAction::Pause { cluster, node } => Cluster::attach(&cluster)?.pause_node(&node)?,
        NodeAction::Resume { cluster, node } => Cluster::attach(&cluster)?.resume_node(&node)?,
        NodeAction::Readdress { cluster, node } => {
            let address = Cluster::attach(&cluster)?.readdress_node(&node)?;
            println!("{node} has {address}");
        }
    }
    progress.done("done");
    Ok(())
}
