//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::command::{flow, service, traffic};
use crate::monitor::Options;

/// Shows what veer knows and does on a node.
#[derive(Debug, Parser)]
#[command(name = "veer", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,

    /// Ask the agent of this node, through `kubectl exec`, and not this machine's.
    #[arg(long, global = true, value_name = "NODE")]
    pub(crate) node: Option<String>,

    /// With --node or --all-nodes: the kubeconfig file that kubectl is to use.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,

    /// With --node or --all-nodes: the context that kubectl is to use.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,

    /// Where this machine's agent listens.
    #[arg(long, global = true, value_name = "PATH", default_value = crate::default_socket())]
    pub(crate) socket: PathBuf,

    /// What to show.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

impl Arguments {
    /// What contradicts itself, in words; the parser sees one command at a time.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        let all_nodes = matches!(&self.command, Command::Monitor(options) if options.all_nodes);
        if all_nodes && self.node.is_some() {
            return Some("--node and --all-nodes exclude each other");
        }
        let capture = matches!(&self.command, Command::Monitor(options) if options.pcap.is_some());
        if capture && self.output != Format::Table {
            return Some("--pcap writes a capture, and --output says how to print: choose one");
        }
        let kubectl = self.kubeconfig.is_some() || self.context.is_some();
        (kubectl && !all_nodes && self.node.is_none())
            .then_some("--kubeconfig and --context need --node NODE, or monitor --all-nodes")
    }
}

impl Format {
    /// The value of `--output`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Json => "json",
            Self::Yaml => "yaml",
        }
    }
}

/// What to show.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The node at a glance: mode, host routing, addresses, what is wrong.
    Status,
    /// Pods wired on the node.
    #[command(subcommand, visible_alias = "endpoints", alias = "ep")]
    Endpoint(List),
    /// Security identities and the labels behind each number.
    #[command(subcommand, visible_alias = "identities", alias = "id")]
    Identity(List),
    /// Which prefix has which identity and is on which node.
    #[command(subcommand)]
    Ipcache(List),
    /// Which pod CIDR is tunnelled to which node address.
    #[command(subcommand)]
    Tunnel(List),
    /// Nodes, and the form in which traffic to each of them travels.
    #[command(subcommand, alias = "node")]
    Remote(List),
    /// Packets by program and by how they ended.
    #[command(subcommand)]
    Metrics(List),
    /// Packets that were dropped lately, why, and what to do about it.
    #[command(subcommand, alias = "drop")]
    Drops(List),
    /// Flows that the host's stack or veer translates (Services, hostPorts).
    #[command(subcommand)]
    Flow(Flow),
    /// Services: who translates what pods send to them, and to how many backends it may go
    /// (-o json names them).
    #[command(subcommand, visible_alias = "services", alias = "svc")]
    Service(Service),
    /// Who talks to whom: packets and bytes by identities.
    #[command(subcommand)]
    Traffic(Traffic),
    /// Every packet's decision as it is made: who, where to, why not.
    Monitor(Box<Options>),
    /// The BPF maps, by the names that other tools of this kind use.
    #[command(subcommand)]
    Bpf(Bpf),
    /// The version of this command; the agent's is in `status`.
    Version,
    /// A completion script, for example: source <(veer completion bash).
    Completion {
        /// The shell it is for.
        shell: clap_complete::Shell,
    },
}

/// What can be done with a kind of thing.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum List {
    /// All of them.
    #[command(visible_alias = "ls")]
    List,
}

/// See [`Command::Flow`].
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Flow {
    /// All of them, or those that are as the options say.
    ///
    /// Values of one option are alternatives, and all options must hold together. Addresses
    /// and ports may be of either end, or of the backend.
    #[command(visible_alias = "ls")]
    List(flow::Options),
}

/// See [`Command::Service`].
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Service {
    /// All of them, or those that are as the options say.
    ///
    /// Values of one option are alternatives, and all options must hold together. Addresses
    /// and ports may be of frontends or of backends.
    #[command(visible_alias = "ls")]
    List(service::Options),
}

/// See [`Command::Traffic`].
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Traffic {
    /// All of it since the programs were first loaded, or what is as the options say.
    ///
    /// Packets between pods of two nodes are counted on both: as sent on the one, as
    /// delivered on the other. What goes through the host's stack is counted when it goes up
    /// and when it comes down. A node has room for some thousand pairs of identities; beyond
    /// that a pair with few packets makes way for another. Values of one option are
    /// alternatives, and all options must hold together.
    #[command(visible_alias = "ls")]
    List(traffic::Options),
}

/// See [`Command::Bpf`].
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Bpf {
    /// Pods wired on the node.
    #[command(subcommand)]
    Endpoint(List),
    /// Which prefix has which identity and is on which node.
    #[command(subcommand)]
    Ipcache(List),
    /// Which pod CIDR is tunnelled to which node address.
    #[command(subcommand)]
    Tunnel(List),
    /// Packets by program and by how they ended.
    #[command(subcommand)]
    Metrics(List),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for (words, allowed) in [
            (&["--context", "c", "status"][..], false),
            (&["--context", "c", "--node", "n", "status"], true),
            (&["--context", "c", "monitor"], false),
            (&["--context", "c", "monitor", "--all-nodes"], true),
            (&["--node", "n", "monitor", "--all-nodes"], false),
            (&["monitor", "--pcap", "f"], true),
            (&["monitor", "--pcap", "f", "-o", "json"], false),
        ] {
            let parsed = Arguments::try_parse_from([&["veer"], words].concat()).unwrap();
            assert_eq!(parsed.contradiction().is_none(), allowed, "{words:?}");
        }
    }

    #[test]
    fn definition_is_consistent() {
        Arguments::command().debug_assert();
    }
}
