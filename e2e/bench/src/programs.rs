//! Nanoseconds per packet of each BPF program, as the kernel tests' example
//! measures them (`BPF_PROG_TEST_RUN`).

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use veer_e2e_tests::lab::repository;

use crate::figures::Figures;

/// Quantity of these series.
pub(crate) const NANOSECONDS: &str = "ns per packet";

/// Builds and runs the example.
pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let out = Command::new("cargo")
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
        let value = row["ns_p50"]
            .as_f64()
            .with_context(|| format!("no figure for {name}"))?;
        figures.add(&name, NANOSECONDS, value);
    }
    Ok(())
}
