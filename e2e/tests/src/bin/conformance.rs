//! veer-conformance: Kubernetes' own network suite against veer on a cluster
//! of three nodes (the wide form: of seven), of some address families, in both
//! routing modes; a table of what passed.
#![expect(clippy::print_stdout, reason = "its table is its result")]

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets::ASCII_MARKDOWN};
use veer_e2e_cluster::{Cluster, Families, Progress, own_name};
use veer_e2e_tests::{
    baseline,
    conformance::{self, Plan, Scope, Spec},
    lab::{Lab, Mode, ProxyArg},
};

/// Kind of the runs' own clusters.
const KIND: &str = "conf";

const HEAD: &str = "\
# Kubernetes' own network suite: what runs, and what does not

`make test-conformance-wide` runs every [sig-network] spec of Kubernetes but those \
named at the end, each group with its reason; one that skips itself counts as failed. \
What passed is in the README. `veer-conformance --scope wide --list` prints this page.
";

#[derive(Parser)]
#[command(
    version,
    about = "Kubernetes' own network conformance specs against veer"
)]
struct Cli {
    /// Which specs
    #[arg(long, value_enum, default_value_t = ScopeArg::Full)]
    scope: ScopeArg,
    /// Print what runs, and what is left out for which reason, and run nothing
    #[arg(long)]
    list: bool,
    /// Only specs whose name has this part (any of several)
    #[arg(long)]
    only: Vec<String>,
    /// How many specs run at a time
    #[arg(long, default_value_t = conformance::PROCESSES)]
    processes: usize,
    /// A running cluster to use and to leave up (veer is installed if it is not)
    #[arg(long, env = "VEER_E2E_CLUSTER")]
    cluster: Option<String>,
    /// The cluster's address families: v4, v6, dual, or all: one cluster after another,
    /// of every choice
    #[arg(long, default_value = "v4", conflicts_with = "cluster")]
    family: String,
    /// Of a dual cluster the family that comes first: v4 or v6
    #[arg(long, conflicts_with = "cluster")]
    primary: Option<String>,
    /// Only this mode
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Change the mode to and fro, once a minute, while the suite runs
    #[arg(long, conflicts_with_all = ["mode", "baseline"])]
    switching: bool,
    /// How kube-proxy translates services
    #[arg(long, value_enum, default_value_t = ProxyArg::Nftables)]
    proxy_mode: ProxyArg,
    /// Who translates what is sent to Services; without it the chart decides, and of a
    /// cluster without kube-proxy: full
    #[arg(long, value_enum)]
    services: Option<ServicesArg>,
    /// Judge the CNI project's bridge plugin instead: what the suite says of a
    /// network that is known
    #[arg(long)]
    baseline: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScopeArg {
    /// A few of each kind
    Quick,
    /// Conformance
    Full,
    /// All that such a cluster can judge
    Wide,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    Tunnel,
    Native,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServicesArg {
    /// The host's stack
    KubeProxy,
    /// veer, at the pods' devices
    Pods,
    /// veer, there and at the nodes' own sockets
    Full,
}

impl Cli {
    /// Values of the chart beside those that the cluster asks for.
    fn values(&self) -> &'static [&'static str] {
        match self.services {
            None => &[],
            Some(ServicesArg::KubeProxy) => &["clusterNetwork.services=KubeProxy"],
            Some(ServicesArg::Pods) => &["clusterNetwork.services=Pods"],
            Some(ServicesArg::Full) => &["clusterNetwork.services=Full"],
        }
    }

    /// Refuses what cannot work, before a cluster is made in vain.
    fn check(&self) -> Result<()> {
        let has_proxy = self.proxy_mode != ProxyArg::None;
        let by_veer = match self.services {
            None | Some(ServicesArg::Full) => !self.baseline,
            Some(ServicesArg::KubeProxy | ServicesArg::Pods) => false,
        };
        ensure!(
            has_proxy || by_veer,
            "without kube-proxy nobody but veer translates for nodes: --services full"
        );
        Ok(())
    }
}

fn main() -> ExitCode {
    match judge(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("veer-conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What ran, by the name of the column.
type Columns = Vec<(String, Vec<Spec>)>;

fn judge(cli: &Cli) -> Result<()> {
    cli.check()?;
    let scope = match cli.scope {
        ScopeArg::Quick => Scope::Quick,
        ScopeArg::Full => Scope::Full,
        ScopeArg::Wide => Scope::Wide,
    };
    let folder =
        PathBuf::from(env::var_os("VEER_OUTPUT").unwrap_or_else(|| "build/conformance".into()));
    let all = match cli.family.as_str() {
        "all" => Families::ALL.to_vec(),
        family => vec![Families::named(family, cli.primary.as_deref())?],
    };
    if cli.list {
        return all
            .into_iter()
            .try_for_each(|families| list(scope, families, &folder));
    }
    let plan = Plan {
        scope,
        only: cli.only.clone(),
        processes: cli.processes,
    };
    let mut columns = Columns::new();
    let mut broken = Vec::new();
    if let Some(name) = &cli.cluster {
        let lab = Lab::new(Cluster::attach(name)?);
        judge_on(cli, &lab, &plan, &folder, &mut columns)?;
    } else {
        for families in all {
            // The others say something all the same.
            if let Err(error) = judge_own(cli, families, &plan, &folder, &mut columns) {
                broken.push(format!("{families}: {error:#}"));
            }
        }
    }
    report(&columns, &folder)?;
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

/// On a cluster that is made for it.
fn judge_own(
    cli: &Cli,
    families: Families,
    plan: &Plan,
    folder: &Path,
    columns: &mut Columns,
) -> Result<()> {
    let own = own_name(KIND);
    let mut config = conformance::config(&own, plan.scope, families);
    config.proxy_mode = cli.proxy_mode.into();
    if cli.baseline {
        config.pod_devices = None;
    }
    Cluster::remove_abandoned(KIND)?;
    let lab = Lab::new(Cluster::up_with(config, Progress::start())?);
    let judged = judge_on(cli, &lab, plan, folder, columns);
    Cluster::down_by_name(&own)?;
    judged
}

fn judge_on(cli: &Cli, lab: &Lab, plan: &Plan, folder: &Path, columns: &mut Columns) -> Result<()> {
    conformance::prepare(lab, plan.scope)?;
    let families = lab.cluster.families();
    let mut run = |what: &str| -> Result<()> {
        let name = format!("{what} {families}");
        let logs = folder.join(name.replace(' ', "-"));
        columns.push((name, conformance::run(lab, plan, &logs)?));
        Ok(())
    };
    if cli.baseline {
        baseline::install(lab)?;
        lab.cluster
            .await_nodes_ready(std::time::Duration::from_mins(1))?;
        return run("baseline");
    }
    if lab
        .helm(&["status", "veer", "-n", veer_e2e_tests::lab::NAMESPACE])
        .is_err()
    {
        lab.install(cli.values())?;
    }
    lab.await_installed()?;
    if cli.switching {
        let ((), changes) = conformance::while_switching(lab, || run("switching"))?;
        println!("the mode changed {changes} times meanwhile");
        return Ok(());
    }
    for mode in [Mode::Tunnel, Mode::Native] {
        let wanted = match cli.mode {
            None => true,
            Some(ModeArg::Tunnel) => mode == Mode::Tunnel,
            Some(ModeArg::Native) => mode == Mode::Native,
        };
        if wanted {
            lab.set_mode(mode)?;
            run(mode.name())?;
        }
    }
    Ok(())
}

/// Prints what ran; it is an error when some of it did not pass.
fn report(columns: &Columns, folder: &Path) -> Result<()> {
    println!("{}", table(columns));
    let mut failed = 0;
    for (name, specs) in columns {
        for spec in specs.iter().filter(|s| !s.passed()) {
            failed += 1;
            println!("{name}: {} {}: {}", spec.state, spec.name, spec.message);
        }
    }
    ensure!(
        failed == 0,
        "{failed} specs did not pass; logs are in {}",
        folder.display()
    );
    Ok(())
}

/// Names of what runs and what does not, as `docs/conformance.md` has them.
fn list(scope: Scope, families: Families, folder: &Path) -> Result<()> {
    let all = conformance::list(folder, scope, families)?;
    let sorted = conformance::sort_out(&all, scope, families)?;
    println!("{HEAD}");
    println!("## Run: {}\n", sorted.run.len());
    for name in &sorted.run {
        println!("- {}", name.trim());
    }
    println!("\n## Left out: {}", sorted.left_out.len());
    for rule in &conformance::LEFT_OUT {
        println!("\n### `{}`: {}\n", rule.part, rule.reason);
        let fitting = sorted
            .left_out
            .iter()
            .filter(|(_, because)| *because == rule);
        for (name, _) in fitting {
            println!("- {}", name.trim());
        }
    }
    Ok(())
}

/// Per area of the suite and mode: how many passed of how many.
fn table(columns: &Columns) -> Table {
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["[sig-network]".to_owned()];
    header.extend(columns.iter().map(|(name, _)| name.clone()));
    table.set_header(header);
    let mut areas: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, (_, specs)) in columns.iter().enumerate() {
        for spec in specs {
            for area in [spec.area(), "total"] {
                let counts = areas
                    .entry(area)
                    .or_insert_with(|| vec![(0, 0); columns.len()]);
                counts[index].1 += 1;
                counts[index].0 += usize::from(spec.passed());
            }
        }
    }
    let total = areas.remove("total");
    for (area, counts) in areas.into_iter().chain(total.map(|t| ("total", t))) {
        let mut row = vec![area.to_owned()];
        row.extend(
            counts
                .iter()
                .map(|(passed, all)| format!("{passed} of {all}")),
        );
        table.add_row(row);
    }
    let seconds = |specs: &[Spec]| specs.iter().map(|s| s.time.as_secs()).sum::<u64>();
    let mut row = vec!["seconds of specs".to_owned()];
    row.extend(columns.iter().map(|(_, specs)| seconds(specs).to_string()));
    table.add_row(row);
    table
}
