//! `helm uninstall` removes everything, and a new installation starts without
//! leftovers.

use std::time::Duration;

use anyhow::{Result, ensure};
use veer_e2e_cluster::await_condition;
use veer_e2e_tests::{
    client,
    lab::{Lab, NAMESPACE, RELEASE},
    load, maps, pods, workloads,
};

use crate::scene::{DEMO, FIXED, Scene, Test};

/// All tests, in this order: what runs after them has no network.
pub(crate) const TESTS: [(&str, Test); 2] = [
    (
        "helm_uninstall_leaves_nothing_and_pods_can_be_deleted",
        Test::Once(uninstall),
    ),
    (
        "helm_install_afterwards_gives_a_working_network",
        Test::Once(install_again),
    ),
];

/// What is left of veer in a node's kernel, one line per thing.
fn left(lab: &Lab, name: &str) -> Result<Vec<String>> {
    let node = lab.node(name)?;
    let site = lab.node_site(name)?;
    let mut found = Vec::new();
    for link in pods::links(&site)? {
        if link.name.starts_with("veer") {
            found.push(format!("device {}", link.name));
        }
    }
    for line in node.exec(&["bpftool", "net", "show"])?.stdout.lines() {
        if maps::PROGRAMS.iter().any(|p| line.contains(p)) {
            found.push(format!("program {line}"));
        }
    }
    let pins = node.exec_any(&["find", "/sys/fs/bpf", "-path", "*veer*"])?;
    found.extend(pins.stdout.lines().map(|l| format!("pin {l}")));
    let tables = node.exec(&["nft", "list", "tables"])?.stdout;
    found.extend(
        tables
            .lines()
            .filter(|l| l.contains("veer") && !l.contains("veer_e2e"))
            .map(str::to_owned),
    );
    let routes = site.exec(&["ip", "route", "show", "table", "all"])?.stdout;
    found.extend(
        routes
            .lines()
            .filter(|l| l.contains("veer"))
            .map(|l| format!("route {l}")),
    );
    let rules = site.exec(&["ip", "rule", "show"])?.stdout;
    found.extend(rules.lines().skip(3).map(|l| format!("rule {l}")));
    Ok(found)
}

fn uninstall(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    lab.helm(&["uninstall", RELEASE, "-n", NAMESPACE])?;
    for name in lab.cluster.node_names() {
        let what = format!("nothing of veer is left on {name}");
        await_condition(&what, Duration::from_secs(30), || {
            let found = left(lab, &name).map_err(|e| format!("{e:#}"))?;
            if found.is_empty() {
                Ok(Some(()))
            } else {
                Err(found.join("\n"))
            }
        })?;
    }
    // Pods wired by it can still be deleted.
    let kubectl = lab.kubectl();
    for namespace in [DEMO, FIXED, load::NAMESPACE] {
        kubectl.run(&[
            "delete",
            "namespace",
            "--ignore-not-found",
            namespace,
            "--wait=true",
            "--timeout=90s",
        ])?;
    }
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "scale",
        "deployment/coredns",
        "--replicas=0",
    ])?;
    for name in lab.cluster.node_names() {
        let node = lab.node(&name)?;
        let what = format!("the files of veer on {name} went with its last pod");
        await_condition(&what, Duration::from_mins(1), || {
            // Directories may stay, empty: some are mounts of the chart's.
            let words = [
                "find",
                "/etc/cni/net.d",
                "/opt/cni/bin",
                "/run/veer",
                "/var/lib/veer",
                "-not",
                "-type",
                "d",
                "-path",
                "*veer*",
            ];
            let files = node.exec_any(&words).map_err(|e| e.to_string())?.stdout;
            if files.trim().is_empty() {
                Ok(Some(()))
            } else {
                Err(files)
            }
        })?;
    }
    let objects = kubectl.any(&[
        "get",
        "nodenetworks,podendpoints,podcidrs",
        "-A",
        "-o",
        "name",
    ])?;
    ensure!(
        objects.stdout.trim().is_empty(),
        "objects are left:\n{}",
        objects.stdout
    );
    Ok(())
}

fn install_again(scene: &Scene) -> Result<()> {
    let lab = &scene.lab;
    lab.helm_install(&[])?;
    lab.kubectl().run(&[
        "-n",
        NAMESPACE,
        "scale",
        "deployment/coredns",
        "--replicas=1",
    ])?;
    lab.await_installed()?;
    let (demo, other) = workloads::start_demo(lab, DEMO)?;
    for source in &demo {
        for target in &other {
            client::reaches(&source.site, target.address, 2)?;
        }
    }
    lab.kubectl()
        .run(&["delete", "namespace", DEMO, "--wait=true", "--timeout=90s"])?;
    Ok(())
}
