//! Starts the parts and waits for a signal.

mod farewell;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};

use veer_bpf_common::{
    address::{FAMILY_V4, FAMILY_V6},
    identity::Identity,
    node::NodeId,
    tables::Services,
};
use veer_monitoring::Pulse;

use crate::{
    engine::{Engine, Parts},
    pods::{Pods, local::Local},
    report::{
        events::Events,
        http,
        publish::Publisher,
        repairs::Repairs,
        sources::Sources,
        status::{self, StatusReport},
    },
    runtime::conflist::Chain,
    socket::{
        monitor::Monitor,
        server::{self, Served},
    },
    state::{handles::Writer, input::Input, maps::Maps, options::Options, plan::Plan},
    watch::{self as watches, Earlier},
};
use veer_agent_core::{index::Index, prefix::host_prefix, tables::Entries};
use veer_agent_kernel::{
    datapath::{self, Datapath},
    lock::Lock,
    netlink::notify,
};

/// How long to wait for the Node object before the kernel's own boot id is
/// taken.
const BOOT_ID_WAIT: Duration = Duration::from_millis(300);

/// Runs the agent until it is told to stop. Nothing is detached then.
pub(crate) async fn run(options: Options, chain: Chain, metrics: SocketAddr) -> anyhow::Result<()> {
    if cfg!(feature = "next-layout") {
        tracing::warn!("built with a layout of maps that exists for tests only");
    }
    fs::create_dir_all(&options.state)
        .with_context(|| format!("cannot use {}", options.state.display()))?;
    let client = veer_api_client::connect().await?;
    let boot_id = boot_id(&client, &options.node).await;
    let bpffs = options.bpffs.clone();
    let datapath = tokio::task::spawn_blocking(move || Datapath::load(&bpffs))
        .await
        .context("loading the programs was cut off")??;
    let ring = datapath.ring().context("cannot open the ring of events")?;
    let local = Local::open(&options.state)
        .with_context(|| format!("cannot read {}", options.state.display()))?;
    let (to_engine, from_engine) = mpsc::channel();
    let (publisher, wishes) = Publisher::new();
    let (events, event_writer) = Events::new();
    let listener = server::listen(&options.socket)
        .with_context(|| format!("cannot listen on {}", options.socket.display()))?;
    let node = options.node.clone();
    let (options, local) = (Arc::new(options), Arc::new(local));
    let index = Writer::new(Index::new(&node));
    let plan = Writer::new(Plan {
        not_ready: "the agent is starting".into(),
        ..Plan::default()
    });
    let datapath = Arc::new(Lock::new(datapath));
    let repairs = Arc::new(Repairs::new(events.clone()));
    let pulse = Arc::<Pulse>::default();
    let sources = Sources {
        maps: Maps::of(&datapath),
        index: index.reader(),
        plan: plan.reader(),
        store: local.view(),
        repairs: Arc::clone(&repairs),
    };
    let pods = Arc::new(Pods::new(
        Arc::clone(&options),
        Arc::clone(&datapath),
        (index.reader(), plan.reader()),
        Arc::clone(&local),
        publisher,
        to_engine.clone(),
    ));

    let earlier = earlier(&sources.maps).context("cannot read the maps")?;
    watches::start(&client, &node, &to_engine, &events, earlier);
    listen_to_kernel(to_engine.clone())?;
    let (report, reports) = watch::channel(StatusReport::default());
    let engine = Engine::new(Parts {
        options: Arc::clone(&options),
        chain,
        boot_id,
        datapath,
        index,
        plan,
        local,
        pods: Arc::clone(&pods),
        repairs: Arc::clone(&repairs),
        events,
        pulse: Arc::clone(&pulse),
        inbox: (to_engine, from_engine),
        report,
    })
    .context("cannot take over what is in the kernel")?;
    let engine_ends = start(engine)?;
    tokio::spawn(wishes.run(client.clone()));
    tokio::spawn(event_writer.run(client.clone(), node.clone()));
    let requests = Served {
        pods,
        sources: sources.clone(),
        monitor: Monitor::start(ring),
    };
    let path = options.socket.clone();
    let server = tokio::spawn(server::run(requests, path, listener));
    tokio::spawn(http::run(sources.clone(), pulse, metrics));
    tokio::spawn(async move { status::run(client, &node, &repairs, reports).await });

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        // The engine has logged why it ended; without a word it has failed. Everything
        // remains for the next agent.
        ended = engine_ends => std::process::exit(i32::from(ended.is_err())),
    }
    // It would make its socket again where that is removed.
    server.abort();
    let _ = server.await;
    let (state, socket) = (&options.state, &options.socket);
    let directory = socket.parent().unwrap_or(Path::new("/run/veer"));
    let plugins = &options.cni_bin_dir;
    let wired = sources.store.read().len();
    match farewell::leave(state, directory, plugins, wired) {
        Ok(true) => tracing::info!("stopping; veer is gone from this node"),
        Ok(false) => tracing::info!("stopping; programs, maps and routes stay"),
        Err(error) => tracing::error!(%error, "stopping; some files of veer stay"),
    }
    // The engine's thread may be in the middle of a round; every state it can
    // be stopped in is one that the next agent takes over.
    std::process::exit(0);
}

/// Starts the engine's thread. The receiver gets a word when it ends, and an error if it
/// fails.
fn start(engine: Engine) -> anyhow::Result<oneshot::Receiver<()>> {
    let (ended, engine_ends) = oneshot::channel();
    thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            engine.run();
            // The receiver is gone only if the agent ends by a signal.
            let _ = ended.send(());
        })
        .context("cannot start the engine")?;
    Ok(engine_ends)
}

/// How much an earlier agent knew.
fn earlier(maps: &Maps) -> Result<Earlier, datapath::Error> {
    let pods = maps.ipcache()?;
    Ok(Earlier {
        nodes: maps.remotes()?.len(),
        pods: pods
            .iter()
            .filter(|(prefix, row)| {
                prefix
                    .ip
                    .to_ip()
                    .is_some_and(|ip| **prefix == host_prefix(ip))
                    && row.node_id >= NodeId::FIRST_REMOTE.get()
                    && row.identity >= Identity::FIRST_ALLOCATED.get()
            })
            .count(),
        services: addresses_of_one_family(&maps.services()?),
    })
}

/// How many Services these frontends are of, if each has one address in each family.
fn addresses_of_one_family(services: &Entries<Services>) -> usize {
    let all: BTreeSet<(u8, [u8; 16])> = services.keys().map(|f| (f.family, f.address)).collect();
    let of = |family| all.iter().filter(|(tag, _)| *tag == family).count();
    of(FAMILY_V4).max(of(FAMILY_V6))
}

/// Has the engine look whenever the kernel says that the node changed.
fn listen_to_kernel(to_engine: mpsc::Sender<Input>) -> anyhow::Result<()> {
    thread::Builder::new()
        .name("notify".into())
        .spawn(move || {
            let result = notify::listen(|| to_engine.send(Input::Kernel).is_ok());
            if let Err(error) = result {
                tracing::warn!(%error, "no word from the kernel; changes are seen by the rounds");
            }
        })
        .context("cannot start listening to the kernel")?;
    Ok(())
}

/// The node's boot id, as the chart mounts it or as the kubelet reported it
/// (which is what the operator compares with); else the one this process sees.
async fn boot_id(client: &Client, node: &str) -> String {
    if let Ok(text) = fs::read_to_string("/host/proc/sys/kernel/random/boot_id") {
        return text.trim().to_owned();
    }
    let nodes: Api<Node> = Api::all(client.clone());
    let reported = tokio::time::timeout(BOOT_ID_WAIT, nodes.get_opt(node)).await;
    if let Ok(Ok(Some(node))) = reported
        && let Some(info) = node.status.and_then(|s| s.node_info)
        && !info.boot_id.is_empty()
    {
        return info.boot_id;
    }
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}
