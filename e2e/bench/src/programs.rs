//! Nanoseconds per packet of each BPF program, as the kernel tests' example
//! measures them (`BPF_PROG_TEST_RUN`).

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_tests::lab::repository;

use crate::figures::Figures;

/// Quantity of these series.
pub(crate) const NANOSECONDS: &str = "ns per packet";

/// The same of the same packets in IPv6.
pub(crate) const NANOSECONDS_V6: &str = "ns, IPv6";

/// Quantity of the ratios of IPv6 to IPv4.
pub(crate) const TO_V4: &str = "IPv6 to IPv4";

/// Quantity of the ratios to an earlier revision's programs.
pub(crate) const TO_BEFORE: &str = "ratio to before";

/// Builds the programs of a git revision and returns the object's path.
fn build_before(revision: &str, into: &Path) -> Result<PathBuf> {
    let root = repository();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&root).args(arguments);
        command
    };
    let commit = format!("{revision}^{{commit}}");
    let found = git(&["rev-parse", "--verify", "--quiet", &commit]).output()?;
    ensure!(
        found.status.success(),
        "{revision} is no revision of this repository"
    );
    let commit = String::from_utf8(found.stdout)?.trim().to_owned();
    let tree = into.join(&commit);
    std::fs::create_dir_all(&tree)?;
    let archive = tree.join("tree.tar");
    let archived = git(&["archive", "--format=tar", "-o"])
        .arg(&archive)
        .arg(&commit)
        .status()?;
    ensure!(archived.success(), "git archive ended with {archived}");
    let extracted = Command::new("tar")
        .args(["-x", "-f"])
        .arg(&archive)
        .arg("-C")
        .arg(&tree)
        .status()?;
    ensure!(extracted.success(), "tar ended with {extracted}");
    let target = tree.join("target");
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--release", "-p", "veer-bpf-object"])
        .env("CARGO_TARGET_DIR", &target)
        .current_dir(&tree)
        .status()
        .context("start cargo")?;
    ensure!(built.success(), "the programs of {revision} did not build");
    let builds = std::fs::read_dir(target.join("release/build"))?;
    let mut objects = builds
        .filter_map(Result::ok)
        .map(|folder| folder.path().join("out/veer.bpf.o"));
    objects
        .find(|object| object.is_file())
        .context("the build left no veer.bpf.o")
}

/// Builds and runs the example; with `before`, a git revision, against its programs.
pub(crate) fn measure(figures: &mut Figures, before: Option<&str>) -> Result<()> {
    let mut command = Command::new("cargo");
    if let Some(revision) = before {
        let object = build_before(revision, &repository().join("build/before"))?;
        command.env("VEER_BPF_BEFORE", object);
    }
    let out = command
        .args([
            "run",
            "--quiet",
            "--release",
            "-p",
            "veer-bpf-tests",
            "--example",
            "ns_per_packet",
        ])
        .current_dir(repository())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(
        out.status.success(),
        "the example ns_per_packet ended with {}",
        out.status
    );
    let rows: Value = serde_json::from_slice(&out.stdout).context("its JSON")?;
    for row in rows.as_array().context("its JSON is no list")? {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let name = format!("{}: {}", text("program"), text("packet"));
        for (key, quantity) in [
            ("ns_p50", NANOSECONDS),
            ("ns_v6_p50", NANOSECONDS_V6),
            ("v6_to_v4_p50", TO_V4),
        ] {
            let value = row[key]
                .as_f64()
                .with_context(|| format!("no figure {key} for {name}"))?;
            figures.add(&name, quantity, value);
        }
        if let Some(ratio) = row["to_before_p50"].as_f64() {
            figures.add(&name, TO_BEFORE, ratio);
        }
    }
    Ok(())
}
