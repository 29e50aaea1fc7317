//! veer-bench: how fast veer is on the test cluster, compared with the machine
//! itself.
//!
//! All network figures come from interleaved rounds of one run. They are ratios to a
//! bare veth pair and to node-to-node traffic, since changes of the machine's speed
//! affect all of them alike. Client and server of a round trip share one CPU, so that
//! the length of the path is measured and not the wake-up of a CPU; streams have one
//! CPU each.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its table is its result")]

mod families;
mod figures;
mod gaps;
mod listening;
mod measure;
mod places;
mod programs;
mod report;
mod services;
mod traffic;
mod wiring;

use std::{collections::BTreeSet, fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use figures::Figures;
use veer_e2e_cluster::{Cluster, Config, Families, Progress, own_name};
use veer_e2e_tests::lab::{Lab, NAMESPACE, ProxyArg};

#[derive(Parser)]
#[command(
    version,
    about = "Measures veer on a real Kubernetes of three nodes, on this machine"
)]
struct Cli {
    /// Interleaved rounds
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Pods that are wired at once
    #[arg(long, default_value_t = 100)]
    pods: u32,
    /// A running cluster to use and to leave up (veer is installed if it is not)
    #[arg(long, env = "VEER_E2E_CLUSTER")]
    cluster: Option<String>,
    /// A git revision whose programs are measured beside these, such as the last release's
    #[arg(long)]
    before: Option<String>,
    /// Only nanoseconds per packet of each program: needs no cluster
    #[arg(long)]
    programs: bool,
    /// Only round trips and streams
    #[arg(long, conflicts_with = "programs")]
    network: bool,
    /// Only what it takes to listen to the programs' decisions
    #[arg(long, conflicts_with_all = ["programs", "network", "before", "pods"])]
    monitor: bool,
    /// Only connections and round trips through one Service among so many others that nobody
    /// talks to (10,1000), translated by kube-proxy and by veer, on a cluster of IPv4; and
    /// what so many cost the agents
    #[arg(
        long,
        value_name = "COUNTS",
        value_delimiter = ',',
        conflicts_with_all = ["programs", "network", "monitor", "before", "pods"]
    )]
    services: Vec<usize>,
    /// How kube-proxy translates, with --services
    #[arg(
        long,
        value_enum,
        default_value_t = ProxyArg::Nftables,
        requires = "services",
        conflicts_with = "cluster"
    )]
    proxy_mode: ProxyArg,
    /// Where the JSON goes
    #[arg(long, default_value = "build/bench.json")]
    json: PathBuf,
}

impl Cli {
    /// The cluster to make.
    fn config(&self, name: &str) -> Config {
        // One family of Services says what there is to say of them.
        let families = if self.services.is_empty() {
            Families::V4V6
        } else {
            Families::V4
        };
        Config {
            families,
            proxy_mode: self.proxy_mode.into(),
            ..Config::new(name)
        }
    }

    /// What to measure of Services: more of them each time.
    fn plan(&self) -> services::Plan {
        let sizes: BTreeSet<usize> = self.services.iter().copied().collect();
        services::Plan {
            sizes: sizes.into_iter().collect(),
            rounds: self.rounds,
            seconds: self.seconds,
            is_left_up: self.cluster.is_some(),
        }
    }
}

fn main() -> ExitCode {
    match bench(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("veer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Kind of the runs' own clusters.
const KIND: &str = "bench";

fn bench(cli: &Cli) -> Result<()> {
    if cli.programs {
        let mut figures = Figures::default();
        programs::measure(&mut figures, cli.before.as_deref())?;
        println!("{}", report::programs(&figures));
        return Ok(());
    }
    // Before a cluster is made in vain.
    ensure!(
        cli.proxy_mode != ProxyArg::None,
        "without kube-proxy there is nothing to compare with"
    );
    let own = own_name(KIND);
    let cluster = if let Some(name) = &cli.cluster {
        Cluster::attach(name)?
    } else {
        Cluster::remove_abandoned(KIND)?;
        Cluster::up_with(cli.config(&own), Progress::start())?
    };
    let lab = Lab::new(cluster);
    let measured = measure_all(cli, &lab);
    if cli.cluster.is_none() {
        Cluster::down_by_name(&own)?;
    }
    let figures = measured?;
    let text = if !cli.services.is_empty() {
        report::services(&figures, &cli.plan().sizes)
    } else if cli.monitor {
        report::monitor(&figures)
    } else if cli.network {
        report::networks(&figures)
    } else {
        report::tables(&figures)
    };
    println!("{text}");
    if let Some(folder) = cli.json.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(&cli.json, format!("{:#}\n", figures.json()))
        .with_context(|| format!("write {}", cli.json.display()))?;
    println!("JSON: {}", cli.json.display());
    Ok(())
}

fn measure_all(cli: &Cli, lab: &Lab) -> Result<Figures> {
    if lab.helm(&["status", "veer", "-n", NAMESPACE]).is_err() {
        lab.install(&[])?;
    }
    lab.await_installed()?;
    let mut figures = Figures::default();
    if !cli.services.is_empty() {
        services::measure(lab, &cli.plan(), &mut figures)?;
        return Ok(figures);
    }
    if cli.monitor {
        listening::measure(lab, (cli.rounds, cli.seconds), &mut figures)?;
        return Ok(figures);
    }
    let progress = Progress::start();
    measure::network(lab, cli.rounds, cli.seconds, &progress, &mut figures)?;
    if cli.network {
        return Ok(figures);
    }
    wiring::memory(lab, &mut figures)?;
    progress.done("resident memory");
    wiring::attach(lab, &mut figures)?;
    wiring::restart(lab, &mut figures)?;
    gaps::measure(lab, cli.rounds.min(3), &mut figures)?;
    progress.done("gaps of load while things change");
    progress.done("time from a killed agent to ready");
    wiring::add(lab, cli.pods, &progress, &mut figures)?;
    programs::measure(&mut figures, cli.before.as_deref())?;
    progress.done("nanoseconds per packet of each program");
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, builder::Resettable};
    use veer_e2e_cluster::ProxyMode;

    use super::*;

    fn parsed(words: &[&str]) -> Result<Cli, clap::Error> {
        // Whatever cluster the tests are run with.
        let command = Cli::command().mut_arg("cluster", |arg| arg.env(Resettable::Reset));
        let words = [&["veer-bench"], words].concat();
        Cli::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn sizes_are_measured_in_ascending_order_on_a_cluster_of_one_family() {
        Cli::command().debug_assert();
        let cli = parsed(&["--services", "1000,10,1000", "--proxy-mode", "iptables"]);
        let cli = cli.expect("good words");
        assert_eq!(cli.plan().sizes, [10, 1000]);
        let config = cli.config("a");
        let made = (config.families, config.proxy_mode);
        assert_eq!(made, (Families::V4, ProxyMode::Iptables));
        let plain = parsed(&[]).expect("no words").config("a");
        let made = (plain.families, plain.proxy_mode);
        assert_eq!(made, (Families::V4V6, ProxyMode::Nftables));
    }

    #[test]
    fn what_cannot_be_measured_at_once_is_refused() {
        for bad in [
            &["--services", "10", "--network"][..],
            &["--services", "10", "--programs"],
            &["--services", "ten"],
            &["--proxy-mode", "iptables"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
