//! The chart in the hands of those who render and apply it, as Argo CD and scripts
//! do, beside or instead of Helm.

use std::fs;

use anyhow::{Result, ensure};
use veer_e2e_tests::{
    lab::{AGENT, Lab, NAMESPACE, OPERATOR, RELEASE, repository},
    load::{self, Path},
    processes::REPLACED,
};

use crate::scene::{Scene, Test};

/// All tests.
pub(crate) const TESTS: [(&str, Test); 1] = [(
    "no_packet_is_lost_and_nothing_removed_while_chart_and_hooks_are_applied",
    Test::Once(applied),
)];

/// What a removal changes first: how many operators are wanted, and what the nodes
/// are asked.
fn asked(lab: &Lab) -> Result<String> {
    let kubectl = lab.kubectl();
    let operator = kubectl.json(&["-n", NAMESPACE, "get", OPERATOR])?;
    let nodes = kubectl.json(&["get", "nodenetworks"])?;
    let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
    let nodes: Vec<String> = nodes
        .iter()
        .map(|n| format!("{} {}", n["metadata"]["name"], n["spec"]["decommission"]))
        .collect();
    Ok(format!(
        "{}; {}",
        operator["spec"]["replicas"],
        nodes.join(", ")
    ))
}

fn applied(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    let kubectl = lab.kubectl();
    let before = asked(lab)?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let values = lab.helm(&["get", "values", RELEASE, "-n", NAMESPACE, "-o", "json"])?;
    let values = file("values.json", &values.stdout)?;
    let chart = repository().join("charts/veer");
    let render = || -> Result<String> {
        let out = lab.helm(&[
            "template",
            RELEASE,
            &chart.to_string_lossy(),
            "-n",
            NAMESPACE,
            "--values",
            &values,
            "--kube-version",
            "1.34.4",
        ])?;
        file("chart.yaml", &out.stdout)
    };
    let ((), report) = load::under(lab, &Path::ALL, || {
        for _ in 0..2 {
            kubectl.run(&["apply", "-f", &render()?])?;
        }
        ensure!(
            kubectl
                .any(&["-n", NAMESPACE, "get", "job/veer-cleanup"])?
                .code
                != 0,
            "the rendered chart has the clean-up Job"
        );
        // What helm keeps for its uninstall is there for everybody to apply, too.
        let hooks = lab.helm(&["get", "hooks", RELEASE, "-n", NAMESPACE])?;
        let hooks = file("hooks.yaml", &hooks.stdout)?;
        kubectl.run(&["apply", "-f", &hooks])?;
        let failed = "--for=condition=Failed";
        let job = "job/veer-cleanup";
        kubectl.run(&["-n", NAMESPACE, "wait", failed, job, "--timeout=180s"])?;
        let said = kubectl.run(&["-n", NAMESPACE, "logs", job])?.stdout;
        ensure!(said.contains("nothing was changed"), "the Job says: {said}");
        kubectl.run(&["delete", "-f", &hooks])?;
        lab.cluster.await_rollout(NAMESPACE, AGENT, REPLACED)?;
        Ok(lab.cluster.await_rollout(NAMESPACE, OPERATOR, REPLACED)?)
    })?;
    report.unharmed()?;
    let after = asked(lab)?;
    ensure!(before == after, "before: {before}; after: {after}");
    ensure!(lab.is_installed(), "helm no longer knows the release");
    Ok(())
}
