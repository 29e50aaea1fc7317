//! The command line. Every flag can come from the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::decommission;

/// Allocates pod CIDRs and security identities and drives the routing mode of
/// veer's pod network.
///
/// Talks to the API server of the cluster it runs in, or of KUBECONFIG. Several
/// may run: one leads, the others wait.
#[derive(Clone, Debug, Parser)]
#[command(name = "veer-operator", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// YAML file with the spec of the ClusterNetwork `default`, which is created
    /// from it if there is none and never written again.
    #[arg(long, env = "VEER_INITIAL_NETWORK", value_name = "FILE")]
    pub(crate) initial_network: Option<PathBuf>,
    /// Namespace of the Lease.
    #[arg(
        long,
        env = "POD_NAMESPACE",
        default_value = "kube-system",
        global = true
    )]
    pub(crate) namespace: String,
    /// Name of this replica in the Lease; host name and process id if not given.
    #[arg(long, env = "POD_NAME")]
    pub(crate) identity: Option<String>,
    /// Name of the Lease.
    #[arg(long, env = "VEER_LEASE_NAME", default_value = "veer-operator")]
    pub(crate) lease_name: String,
    /// Seconds after which the Lease of a silent leader may be taken.
    #[arg(long, env = "VEER_LEASE_SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u16).range(3..=300))]
    pub(crate) lease_seconds: u16,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, env = "VEER_LISTEN", default_value = "[::]:9871")]
    pub(crate) listen: SocketAddr,
    /// Seconds for which the blocks of a deleted Node are kept, unless its agent
    /// confirms sooner that it is empty.
    #[arg(long, env = "VEER_CIDR_QUARANTINE_SECONDS", default_value_t = 3600)]
    pub(crate) cidr_quarantine_seconds: u64,
    /// The same where no other block is left for a new node: how long the Node must
    /// have been gone.
    #[arg(long, env = "VEER_CIDR_SCARCE_SECONDS", default_value_t = 90)]
    pub(crate) cidr_scarce_seconds: u64,
    /// Seconds after which an identity without pods retires.
    #[arg(long, env = "VEER_IDENTITY_UNUSED_SECONDS", default_value_t = 600)]
    pub(crate) identity_unused_seconds: u64,
    /// What to log: error, warn, info, debug, trace, or a tracing filter.
    #[arg(long, env = "VEER_LOG", default_value = "info", global = true)]
    pub(crate) log: String,
}

/// What is to be done instead of leading.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Has veer removed from every node, and ends: what `helm uninstall` runs.
    Decommission(decommission::Arguments),
}

/// The settings of the controllers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// How long a deleted Node's blocks are kept.
    pub(crate) quarantine: Duration,
    /// The same where no other block is left.
    pub(crate) scarce: Duration,
    /// How long an identity without pods stays active.
    pub(crate) unused: Duration,
}

impl Args {
    /// The settings of the controllers.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            quarantine: Duration::from_secs(self.cidr_quarantine_seconds),
            scarce: Duration::from_secs(self.cidr_scarce_seconds.min(self.cidr_quarantine_seconds)),
            unused: Duration::from_secs(self.identity_unused_seconds),
        }
    }

    /// This replica's name in the Lease.
    pub(crate) fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("{}-{}", host.trim(), std::process::id())
        })
    }
}
