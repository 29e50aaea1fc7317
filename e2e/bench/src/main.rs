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
mod measure;
mod places;
mod programs;
mod report;
mod wiring;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use figures::Figures;
use veer_e2e_cluster::{Cluster, Config, Families, Progress, own_name};
use veer_e2e_tests::lab::{Lab, NAMESPACE};

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
    /// Where the JSON goes
    #[arg(long, default_value = "build/bench.json")]
    json: PathBuf,
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
    let own = own_name(KIND);
    let cluster = if let Some(name) = &cli.cluster {
        Cluster::attach(name)?
    } else {
        Cluster::remove_abandoned(KIND)?;
        let config = Config {
            families: Families::V4V6,
            ..Config::new(&own)
        };
        Cluster::up_with(config, Progress::start())?
    };
    let lab = Lab::new(cluster);
    let measured = measure_all(cli, &lab);
    if cli.cluster.is_none() {
        Cluster::down_by_name(&own)?;
    }
    let figures = measured?;
    if cli.network {
        println!("{}", report::networks(&figures));
    } else {
        println!("{}", report::tables(&figures));
    }
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
    let progress = Progress::start();
    let mut figures = Figures::default();
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
