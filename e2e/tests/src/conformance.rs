//! Kubernetes' own network suite against the cluster: the judge that nobody
//! here wrote. The specs are shared out to some processes, each with names of
//! its own, since they wait more than they work.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use veer_e2e_cluster::paths;

use crate::lab::{Lab, Mode};

/// Which specs to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// A few of each kind, for every run of the tests.
    Quick,
    /// All [sig-network] Conformance specs that may run beside others.
    Full,
}

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

/// How many processes share the specs.
const PROCESSES: usize = 3;

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
pub fn run(lab: &Lab, scope: Scope, folder: &Path) -> Result<Vec<Spec>> {
    let program = paths::programs().join("network.test");
    ensure!(
        program.exists(),
        "{} is missing: run make setup",
        program.display()
    );
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let names = list(lab, scope, folder)?;
    ensure!(!names.is_empty(), "the suite has no specs of that scope");
    let mut shares: Vec<Vec<String>> = vec![Vec::new(); PROCESSES.min(names.len())];
    let count = shares.len();
    for (index, name) in names.iter().enumerate() {
        shares[index % count].push(name.clone());
    }
    let reports: Vec<Result<Vec<Spec>>> = thread::scope(|scope| {
        let threads: Vec<_> = shares
            .iter()
            .enumerate()
            .map(|(number, share)| {
                scope.spawn(move || suite(lab, share, &folder.join(format!("part{number}")), false))
            })
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

/// Names of the specs in scope.
fn list(lab: &Lab, scope: Scope, folder: &Path) -> Result<Vec<String>> {
    let focus = match scope {
        Scope::Full => vec!["[Conformance]".to_owned()],
        Scope::Quick => QUICK.map(str::to_owned).to_vec(),
    };
    let specs = suite(lab, &focus, &folder.join("list"), true)?;
    Ok(specs
        .into_iter()
        .map(|s| s.name)
        // The suite brings specs of other groups along.
        .filter(|n| n.contains("[sig-network]") && n.contains("[Conformance]"))
        .filter(|n| !n.contains("[Serial]") && !n.contains("[Disruptive]"))
        .collect())
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

fn suite(lab: &Lab, names: &[String], stem: &Path, dry: bool) -> Result<Vec<Spec>> {
    let report: PathBuf = stem.with_extension("json");
    let log = stem.with_extension("log");
    let file = fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    let focus: Vec<String> = names.iter().map(|n| literal(n)).collect();
    let mut command = Command::new(paths::programs().join("network.test"));
    command
        .args([
            "--provider=skeleton",
            "--ginkgo.no-color",
            "--ginkgo.timeout=1h",
        ])
        .arg(format!(
            "--kubeconfig={}",
            lab.cluster.kubeconfig().display()
        ))
        .arg(format!("--ginkgo.focus={}", focus.join("|")))
        .arg(r"--ginkgo.skip=\[Serial\]|\[Disruptive\]")
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
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_out_of_focus_is_no_spec() {
        let spec = |state: &str, message: &str, kind: &str| {
            json!({"LeafNodeType": kind, "LeafNodeText": "should serve [Conformance]",
                "ContainerHierarchyTexts": ["[sig-network] Services"], "State": state,
                "RunTime": 2_000_000_000_u64, "Failure": {"Message": message}})
        };
        let report = json!([{"SpecReports": [
            spec("passed", "", "It"), spec("skipped", "", "It"),
            spec("skipped", "needs two nodes", "It"), spec("passed", "", "BeforeSuite")]}]);
        let specs = parse(&report).expect("a report");
        assert_eq!(specs.len(), 2);
        assert_eq!(specs[0].area(), "Services");
        assert_eq!(specs[0].time, Duration::from_secs(2));
        assert!(specs[0].passed() && !specs[1].passed());
        let broken =
            json!([{"SpecReports": [spec("failed", "no nodes", "SynchronizedBeforeSuite")]}]);
        assert!(parse(&broken).is_err());
    }

    #[test]
    fn names_are_matched_literally() {
        assert_eq!(literal("a [x] (1.0)"), r"a \[x\] \(1\.0\)");
    }
}
