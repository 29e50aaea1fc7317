//! veer-operator: allocates pod CIDRs and security identities, and changes the
//! routing mode. One replica leads at a time; see `leader` for what that guarantees
//! and `controllers` for what a leader does.

#![forbid(unsafe_code)]

mod apply;
mod args;
mod cache;
mod context;
mod controllers;
mod crd;
mod decommission;
mod error;
mod health;
mod leader;
mod metrics;
mod selection;
mod slim;
mod spoken;
mod term;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use args::{Args, Command};
use health::Health;
use leader::Candidate;
use metrics::Metrics;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .with_context(|| format!("--log {} is no filter: try info or debug", args.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    // Two threads: one so that leases and probes are not kept waiting by the other.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let initial = args.initial_network.as_deref();
    let initial = initial
        .map(controllers::cluster_network::initial::read)
        .transpose()?;
    let client = veer_api_client::connect().await?;
    if let Some(Command::Decommission(arguments)) = &args.command {
        decommission::run(client, &args.namespace, arguments).await?;
        return Ok(());
    }
    let health = Arc::new(Health::default());
    let (metrics, registry) = Metrics::new();
    let identity = args.identity();
    let mut candidate = Candidate::new(
        client.clone(),
        &args.namespace,
        &args.lease_name,
        identity.clone(),
        Duration::from_secs(args.lease_seconds.into()),
    );
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let setup = term::Setup {
        client,
        settings: args.settings(),
        metrics: Arc::new(metrics),
        identity,
        initial,
    };
    let served = health::serve(args.listen, Arc::clone(&health), registry);
    tokio::select! {
        Err(error) = served => {
            return Err(error).with_context(|| {
                format!("cannot serve on {}: choose a free port by --listen", args.listen)
            });
        }
        () = lead(&mut candidate, &setup, &health) => {}
        _ = term.recv() => tracing::info!("SIGTERM"),
        _ = int.recv() => tracing::info!("SIGINT"),
    }
    // Whatever a controller was about to write is dropped before the next
    // leader is let in.
    if let Err(error) = candidate.release().await {
        tracing::warn!("{}", error.chain());
    }
    Ok(())
}

/// Leads again and again, until dropped.
async fn lead(candidate: &mut Candidate, setup: &term::Setup, health: &Health) {
    loop {
        candidate.acquire(health).await;
        tracing::info!("leading");
        setup.metrics.leads(true);
        tokio::select! {
            () = candidate.hold(health) => tracing::warn!("no longer leading"),
            () = term::run(setup) => tracing::error!("a controller ended: beginning a new term"),
        }
        setup.metrics.leads(false);
    }
}
