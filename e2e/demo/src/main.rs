//! veer-demo: one command that shows what veer is.
//!
//! It starts a real Kubernetes of three nodes without a pod network, installs
//! veer with helm, creates pods, and shows their traffic with the evidence of
//! each path and of each address family side by side, first in the tunnel, then,
//! after one `kubectl patch`, natively routed. What it prints was measured in this run; what does not hold makes
//! it fail.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the demo prints its result")]

mod scenes;
mod steps;
mod tables;

use std::{process::ExitCode, thread};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use scenes::{Cast, Scene};
use steps::Steps;
use veer_e2e_cluster::{Cluster, Config, Families, Progress};
use veer_e2e_tests::{
    lab::{Lab, Mode, RELEASE},
    monitor,
};

/// Name of the demo's cluster and namespace.
const NAME: &str = "demo";

#[derive(Parser)]
#[command(
    version,
    about = "Shows veer on a real Kubernetes of three nodes, on this machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Run the demo and remove everything again
    Up {
        /// Leave the cluster up
        #[arg(long)]
        keep: bool,
    },
    /// Remove every trace of the demo, also of one that broke off
    Down,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Action::Up { keep } => up(keep),
        Action::Down => Cluster::down_by_name(NAME)
            .context("remove the demo's cluster")
            .map(|()| println!("The demo's cluster is gone.")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("veer-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(keep: bool) -> Result<()> {
    let steps = Steps::start();
    let shown = show(&steps);
    if let Err(error) = &shown {
        eprintln!(
            "\nThe demo broke off: {error:#}\n\nThe cluster is left as it is. Look at it with\n\
             \x20 {}/kubectl --kubeconfig /var/lib/veer-e2e/{NAME}/kubeconfig get pods -A\n\
             and remove it with `make demo-down`.",
            veer_e2e_cluster::paths::programs().display()
        );
        std::process::exit(1);
    }
    if keep {
        println!("{}", tables::what_to_try(NAME));
        return Ok(());
    }
    steps.run("everything removed again", || {
        Ok(Cluster::down_by_name(NAME)?)
    })?;
    println!("`make demo KEEP=1` leaves the cluster up to play with.");
    Ok(())
}

/// The demo itself.
fn show(steps: &Steps) -> Result<()> {
    let config = Config {
        families: Families::from_environment()?,
        ..Config::new(NAME)
    };
    let cluster = steps.run(
        "Kubernetes with three nodes, none of them Ready: no pod network",
        || Ok(Cluster::up_with(config, Progress::quiet())?),
    )?;
    let lab = Lab::new(cluster);
    println!("{}", tables::nodes_before(&lab)?);

    steps.run("the two images of veer on every node", || lab.load_images())?;
    println!("$ helm install {RELEASE} charts/veer -n kube-system");
    steps.run("helm install", || lab.helm_install(&[]))?;
    steps.run("nodes Ready, DNS up, all on veer", || lab.await_installed())?;
    println!("{}", tables::nodes(&lab)?);

    println!("$ kubectl apply -f -    # DaemonSet demo, Deployment other, NodePort service demo");
    let cast = steps.run("pods wired and Ready", || Cast::start(&lab, NAME))?;
    println!("{}", tables::pods(&cast)?);
    println!("{}", tables::identities(&lab, &cast)?);

    let mut failed = act(steps, &lab, &cast, Mode::Tunnel)?;
    println!(
        "$ kubectl patch clusternetwork default --type=merge \
         -p '{{\"spec\":{{\"routing\":{{\"mode\":\"Native\"}}}}}}'"
    );
    steps.run("every node routes natively", || lab.set_mode(Mode::Native))?;
    failed += act(steps, &lab, &cast, Mode::Native)?;
    ensure!(
        failed == 0,
        "{failed} of the scenes above did not show what they should"
    );
    Ok(())
}

/// All scenes in one mode; returns how many failed.
fn act(steps: &Steps, lab: &Lab, cast: &Cast, mode: Mode) -> Result<usize> {
    let what = format!(
        "pings and requests in {} mode, every device watched",
        mode.name()
    );
    let families = lab.cluster.families().all();
    let casts: Vec<Cast> = families
        .iter()
        .map(|family| cast.in_family(*family))
        .collect::<Result<_>>()?;
    let scenes: Vec<Scene> = steps.run(&what, || {
        let mut scenes: Vec<Scene> = thread::scope(|scope| {
            let threads: Vec<_> = scenes::TOGETHER
                .iter()
                .flat_map(|scene| casts.iter().map(move |cast| (scene, cast)))
                .map(|(scene, cast)| scope.spawn(move || scene(lab, cast, mode)))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().map_err(|_| anyhow::anyhow!("a scene panicked"))?)
                .collect::<Result<_>>()
        })?;
        for cast in &casts {
            scenes.push(scenes::cluster_ip(lab, cast)?);
            scenes.push(scenes::node_port(lab, cast)?);
        }
        Ok(scenes)
    })?;
    println!("{}", tables::scenes(mode, families, &scenes));
    watched(steps, lab, cast)?;
    Ok(scenes.iter().filter(|s| !s.good).count())
}

/// One ping to another node, as the programs on its way tell it.
fn watched(steps: &Steps, lab: &Lab, cast: &Cast) -> Result<()> {
    let (source, target) = cast.pair()?;
    println!(
        "$ kubectl veer monitor --all-nodes --address {}    # and one ping from {}",
        target.address, source.name
    );
    let told = steps.run("what each program decided on a ping", || {
        monitor::one_ping(lab, source, target, DECISIONS)
    })?;
    println!("{}\n", told.join("\n"));
    Ok(())
}

/// Of a ping to another node: where it leaves and where it arrives, there and back.
const DECISIONS: usize = 4;
