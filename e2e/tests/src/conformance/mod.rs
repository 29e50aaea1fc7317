//! Kubernetes' own network suite against the cluster: a judge that was not written
//! here. Several processes share the specs, each with names of its own, since they
//! wait more than they work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use veer_e2e_cluster::{Config, Families, paths};

use crate::lab::{Lab, Mode, POD_DEVICES};

/// Which specs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A few of each kind, for every run of the tests.
    Quick,
    /// All [sig-network] Conformance specs that may run beside others.
    Full,
    /// All [sig-network] specs but those of [`LEFT_OUT`]. They want three zones of
    /// two workers each, and the images of [`WIDE_IMAGES`].
    Wide,
}

/// Specs that the wide scope leaves out.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// A part of their names.
    pub part: &'static str,
    /// Why.
    pub reason: &'static str,
}

/// All that the wide scope leaves out. A spec that fits several is there for the
/// first reason.
pub static LEFT_OUT: [LeftOut; 13] = [
    LeftOut {
        part: "[Serial]",
        reason: "run alone, and change what all others use",
    },
    LeftOut {
        part: "[Disruptive]",
        reason: "restart or break parts of Kubernetes",
    },
    LeftOut {
        part: "[Feature:NetworkPolicy]",
        reason: "ask for policies, which veer does not enforce",
    },
    LeftOut {
        part: DUAL,
        reason: "ask for a cluster of both families, where they run",
    },
    LeftOut {
        part: "[Feature:Networking-IPv6]",
        reason: "asks for IPv6, and for the internet",
    },
    LeftOut {
        part: "[Feature:LoadBalancer]",
        reason: "ask for a cloud that has load balancers",
    },
    LeftOut {
        part: "[Provider:GCE]",
        reason: "asks for that cloud",
    },
    LeftOut {
        part: "[Feature:SCTPConnectivity]",
        reason: "ask for SCTP, which the kernel of the tests lacks",
    },
    LeftOut {
        part: "[Feature:Networking-IPv4]",
        reason: "asks for the internet",
    },
    LeftOut {
        part: "[Feature:Networking-DNS]",
        reason: "asks for the internet",
    },
    LeftOut {
        part: "KubeProxy should set TCP CLOSE_WAIT",
        reason: "judges a setting that kube-proxy makes",
    },
    LeftOut {
        part: "[Feature:KubeProxyNFAcct]",
        reason: "judges a counter that kube-proxy keeps",
    },
    LeftOut {
        part: "[Feature:OffByDefault]",
        reason: "asks for a feature that is off by default",
    },
];

/// What specs have in their names that want both address families.
const DUAL: &str = "[Feature:IPv6DualStack]";

/// Image archives that specs of the wide scope name beside those that every
/// cluster has, or in place of them.
const WIDE_IMAGES: [&str; 3] = ["tools-wide", "busybox", "regression-issue-74839"];

/// What the quick scope holds, by parts of their names.
const QUICK: [&str; 7] = [
    "Granular Checks: Pods should function for intra-pod communication: http",
    "Granular Checks: Pods should function for intra-pod communication: udp",
    "Granular Checks: Pods should function for node-pod communication: http",
    "Services should serve a basic endpoint from pods",
    "Services should have session affinity work for NodePort service",
    "DNS should provide DNS for the cluster",
    "HostPort validates that there is no conflict between pods with same hostPort",
];

/// What the quick scope holds besides on a cluster of both families.
const QUICK_DUAL: [&str; 2] = [
    "[Feature:IPv6DualStack] should be able to reach pod on ipv4 and ipv6 ip",
    "[Feature:IPv6DualStack] Granular Checks: Services Secondary IP Family [LinuxOnly] \
     should function for pod-Service: http",
];

/// How many processes share the specs, unless told otherwise.
pub const PROCESSES: usize = 3;

/// A cluster of some families and of the kind that a scope wants.
pub fn config(name: &str, scope: Scope, families: Families) -> Config {
    let plain = Config {
        families,
        ..Config::new(name)
    };
    match scope {
        Scope::Quick | Scope::Full => plain,
        Scope::Wide => Config {
            workers: 6,
            zones: 3,
            // One spec tells the pods of other nodes from those of the own.
            pod_devices: Some(POD_DEVICES.to_owned()),
            ..plain
        },
    }
}

/// Gives the cluster the images that a scope wants beside those that it has.
pub fn prepare(lab: &Lab, scope: Scope) -> Result<()> {
    let images: &[&str] = match scope {
        Scope::Quick | Scope::Full => &[],
        Scope::Wide => &WIDE_IMAGES,
    };
    for image in images {
        let path = paths::images().join(format!("{image}.tar"));
        lab.cluster.load_image(&path)?;
    }
    Ok(())
}

/// What to run, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which specs.
    pub scope: Scope,
    /// Of these only those whose name has one of these parts; all if there are none.
    pub only: Vec<String>,
    /// How many processes share the specs.
    pub processes: usize,
}

impl Plan {
    /// All specs of a scope.
    pub fn of(scope: Scope) -> Self {
        Self {
            scope,
            only: Vec::new(),
            processes: PROCESSES,
        }
    }
}

/// From one change of mode to the next under the suite.
const BETWEEN: Duration = Duration::from_mins(1);

/// One spec's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Its full name, tags included.
    pub name: String,
    /// `passed`, `failed`, `skipped` or another of ginkgo's words.
    pub state: String,
    /// How long it took.
    pub time: Duration,
    /// Why it failed, first line.
    pub message: String,
}

impl Spec {
    /// Whether it passed.
    pub fn passed(&self) -> bool {
        self.state == "passed"
    }

    /// The area it belongs to: the word after `[sig-network]`.
    pub fn area(&self) -> &str {
        if self.name.contains(DUAL) {
            return "IPv6DualStack";
        }
        let rest = self
            .name
            .split("[sig-network]")
            .nth(1)
            .unwrap_or(&self.name)
            .trim();
        let end = rest.find([' ', '[']).unwrap_or(rest.len());
        &rest[..end]
    }
}

/// Runs the suite; `folder` gets the logs and reports.
pub fn run(lab: &Lab, plan: &Plan, folder: &Path) -> Result<Vec<Spec>> {
    let cluster = [
        format!("--kubeconfig={}", lab.cluster.kubeconfig().display()),
        // Specs that want two nodes or more believe this, and skip themselves without.
        format!("--num-nodes={}", lab.cluster.node_names().len() - 1),
    ];
    let share_of = |names: &[String], stem: &str| suite(&cluster, names, &folder.join(stem), false);
    let families = lab.cluster.families();
    let all = list(folder, plan.scope, families)?;
    let mut names = sort_out(&all, plan.scope, families)?.run;
    names.retain(|n| plan.only.is_empty() || plan.only.iter().any(|part| n.contains(part)));
    ensure!(!names.is_empty(), "the suite has no specs of that scope");
    let mut shares: Vec<Vec<String>> = vec![Vec::new(); plan.processes.clamp(1, names.len())];
    let count = shares.len();
    for (index, name) in names.iter().enumerate() {
        shares[index % count].push(name.clone());
    }
    let reports: Vec<Result<Vec<Spec>>> = thread::scope(|scope| {
        let threads: Vec<_> = shares
            .iter()
            .enumerate()
            .map(|(number, share)| scope.spawn(move || share_of(share, &format!("part{number}"))))
            .collect();
        threads
            .into_iter()
            .map(|t| {
                t.join()
                    .unwrap_or_else(|_| Err(anyhow!("a runner panicked")))
            })
            .collect()
    });
    let mut specs = Vec::new();
    for report in reports {
        specs.extend(report?);
    }
    ensure!(
        specs.len() == names.len(),
        "{} of {} specs ran; the logs are in {}",
        specs.len(),
        names.len(),
        folder.display()
    );
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(specs)
}

/// Does `work` while the mode changes to and fro, once a minute; says how often
/// it did.
pub fn while_switching<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let (stop, stopped) = channel::<()>();
    thread::scope(|scope| {
        let switcher = scope.spawn(move || {
            let mut changes = 0;
            for mode in [Mode::Native, Mode::Tunnel].into_iter().cycle() {
                lab.set_mode(mode)?;
                changes += 1;
                if stopped.recv_timeout(BETWEEN) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            Ok(changes)
        });
        let worked = work();
        // It may have ended by an error of its own.
        let _ended = stop.send(());
        let changes: Result<u32> = switcher
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the switcher panicked")));
        Ok((worked?, changes.context("change the mode under the suite")?))
    })
}

/// Names of the suite's specs, among them all of the scope. Needs no cluster.
pub fn list(folder: &Path, scope: Scope, families: Families) -> Result<Vec<String>> {
    let (parts, of_both): (&[&str], &[&str]) = match scope {
        Scope::Wide => (&["[sig-network]"], &[]),
        Scope::Full => (&["[Conformance]"], &[DUAL]),
        Scope::Quick => (&QUICK, &QUICK_DUAL),
    };
    let of_both = of_both.iter().filter(|_| families.is_dual());
    let parts: Vec<String> = parts
        .iter()
        .chain(of_both)
        .map(|p| (*p).to_owned())
        .collect();
    let nowhere = ["--kubeconfig=/nonexistent".to_owned()];
    let specs = suite(&nowhere, &parts, &folder.join("list"), true)?;
    // The suite brings specs of other groups along.
    let own = specs
        .into_iter()
        .map(|s| s.name)
        .filter(|n| n.contains("[sig-network]"));
    let mut names: Vec<String> = own.collect();
    names.sort();
    Ok(names)
}

/// The suite's specs as a scope sees them.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Names of those that run.
    pub run: Vec<String>,
    /// Names of those that do not, each with the reason.
    pub left_out: Vec<(String, &'static LeftOut)>,
}

/// Says which specs of these names a scope runs on a cluster of some families.
pub fn sort_out(names: &[String], scope: Scope, families: Families) -> Result<Sorted> {
    let counts = |left_out: &LeftOut| !families.is_dual() || left_out.part != DUAL;
    let mut sorted = Sorted::default();
    let mut fitting = [false; LEFT_OUT.len()];
    for name in names {
        let fits = |l: &LeftOut| counts(l) && name.contains(l.part);
        let reason = LEFT_OUT.iter().position(fits);
        if let Some(index) = reason {
            fitting[index] = true;
            sorted.left_out.push((name.clone(), &LEFT_OUT[index]));
        } else if scope == Scope::Wide || name.contains("[Conformance]") || name.contains(DUAL) {
            sorted.run.push(name.clone());
        }
    }
    let mut reasons = LEFT_OUT.iter().zip(fitting);
    let stale = reasons.find(|(left_out, fits)| counts(left_out) && !fits);
    if let (Scope::Wide, Some((left_out, _))) = (scope, stale) {
        let part = left_out.part;
        bail!("no spec has {part:?} in its name: it need not be left out");
    }
    Ok(sorted)
}

/// A regular expression that matches exactly this text.
fn literal(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if "\\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn suite(cluster: &[String], names: &[String], stem: &Path, dry: bool) -> Result<Vec<Spec>> {
    let program = paths::programs().join("network.test");
    ensure!(
        program.exists(),
        "{} is missing: run make setup",
        program.display()
    );
    if let Some(folder) = stem.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let report: PathBuf = stem.with_extension("json");
    let log = stem.with_extension("log");
    let file = fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    // To list, parts of names are given; to run, whole names, some of which others
    // begin with.
    let end = if dry { "" } else { "$" };
    let focus: Vec<String> = names.iter().map(|n| literal(n) + end).collect();
    let mut command = Command::new(program);
    command
        .args([
            "--provider=skeleton",
            "--ginkgo.no-color",
            "--ginkgo.timeout=3h",
        ])
        .args(cluster)
        .arg(format!("--ginkgo.focus={}", focus.join("|")))
        .arg(format!("--ginkgo.json-report={}", report.display()))
        .stdin(Stdio::null())
        .stderr(file.try_clone()?)
        .stdout(file);
    if dry {
        command.arg("--ginkgo.dry-run");
    }
    // Failed specs make its status; the report says which.
    let _status = command.status().context("start network.test")?;
    let text = fs::read_to_string(&report)
        .with_context(|| format!("the suite left no report; its log is {}", log.display()))?;
    parse(&serde_json::from_str(&text).context("ginkgo's report")?)
}

/// The specs of ginkgo's JSON report that were in focus.
fn parse(report: &Value) -> Result<Vec<Spec>> {
    let suites = report.as_array().context("ginkgo's report is no list")?;
    let mut specs = Vec::new();
    for spec in suites
        .iter()
        .flat_map(|s| s["SpecReports"].as_array().into_iter().flatten())
    {
        let state = spec["State"].as_str().unwrap_or_default();
        let message = spec["Failure"]["Message"].as_str().unwrap_or_default();
        if spec["LeafNodeType"] != "It" {
            ensure!(
                state != "failed",
                "the suite's own set-up failed: {message}"
            );
            continue;
        }
        // What is out of focus is "skipped" without a word.
        if state == "skipped" && message.is_empty() {
            continue;
        }
        let containers = spec["ContainerHierarchyTexts"].as_array();
        let mut words: Vec<&str> = containers
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        words.extend(spec["LeafNodeText"].as_str());
        specs.push(Spec {
            name: words.join(" "),
            state: state.to_owned(),
            time: Duration::from_nanos(spec["RunTime"].as_u64().unwrap_or_default()),
            message: message.lines().next().unwrap_or_default().to_owned(),
        });
    }
    Ok(specs)
}

#[cfg(test)]
mod tests;
