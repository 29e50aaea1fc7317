//! The chart, rendered or installed by helm against the API server alone: nothing
//! here runs what it describes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::server::{Server, programs_folder};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/veer")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Server {
    /// Runs helm.
    fn helm(&self, args: &[&str]) -> Output {
        Command::new(programs_folder().join("helm"))
            .env("KUBECONFIG", self.kubeconfig())
            .env("HELM_CACHE_HOME", self.dir.path().join("helm"))
            .args(args)
            .output()
            .unwrap()
    }

    /// `helm template`, as scripts and Argo CD do it.
    fn rendered(&self, more: &[&str]) -> String {
        let chart = chart();
        let mut args = vec!["template", "veer", chart.to_str().unwrap()];
        // A helm built from source believes in Kubernetes 1.20.
        args.extend(["--kube-version", "1.34.4"]);
        args.extend(more);
        let out = self.helm(&args);
        assert!(out.status.success(), "{more:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// `kubectl apply -f` of this text; what it said.
    fn applied(&self, yaml: &str, more: &[&str]) -> String {
        let file = self.dir.path().join("rendered.yaml");
        fs::write(&file, yaml).unwrap();
        let mut args = vec!["apply", "-f", file.to_str().unwrap()];
        args.extend(more);
        let out = self.kubectl(&args);
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout)
    }

    /// Versions of what is in the cluster, by kind and name.
    fn versions(&self) -> BTreeMap<String, String> {
        let kinds = "deployments,daemonsets,jobs,configmaps,serviceaccounts,clusternetworks,\
                     clusterroles,clusterrolebindings,roles,rolebindings,crds,\
                     validatingadmissionpolicies,validatingadmissionpolicybindings";
        let columns = "custom-columns=K:.kind,N:.metadata.name,V:.metadata.resourceVersion";
        let out = self.kubectl(&["get", kinds, "-n", "kube-system", "-o", columns]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let (kind, name) = (words.next()?, words.next()?);
            let version = words.next()?;
            name.contains("veer")
                .then(|| (format!("{kind}/{name}"), version.to_owned()))
        };
        text(&out.stdout).lines().filter_map(line).collect()
    }
}

/// Documents of a kind that a cluster without the Prometheus operator lacks.
fn without_pod_monitors(yaml: &str) -> String {
    let documents = yaml.split("\n---\n");
    let known = documents.filter(|d| !d.contains("kind: PodMonitor"));
    known.collect::<Vec<_>>().join("\n---\n")
}

#[tokio::test]
async fn the_rendered_chart_is_valid_with_every_set_of_values() {
    let server = Server::start().await;
    server.add_namespace("flux-system", &[]).await;
    let mut sets = vec![None];
    for entry in fs::read_dir(chart().join("ci")).unwrap() {
        sets.push(Some(entry.unwrap().path()));
    }
    assert!(sets.len() > 3, "{sets:?}");
    for values in sets {
        let more = values
            .as_deref()
            .map_or(vec![], |values| vec!["--values", values.to_str().unwrap()]);
        let yaml = server.rendered(&more);
        assert_eq!(yaml, server.rendered(&more), "renders differ: {values:?}");
        // Strict: a field that does not exist is refused.
        let strict = ["--dry-run=server", "--validate=strict"];
        server.applied(&without_pod_monitors(&yaml), &strict);
    }
}

#[tokio::test]
async fn applying_the_rendered_chart_again_changes_nothing() {
    let server = Server::start().await;
    let chart = chart();
    let out = server.helm(&["install", "veer", chart.to_str().unwrap()]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let installed = server.versions();
    assert!(
        installed.contains_key("DaemonSet/veer-agent"),
        "{installed:?}"
    );

    let yaml = server.rendered(&[]);
    // The first time kubectl notes what it applied.
    server.applied(&yaml, &[]);
    let before = server.versions();
    for _ in 0..2 {
        // kubectl calls "configured" what the server finds to be the same; versions
        // tell.
        server.applied(&server.rendered(&[]), &[]);
    }
    assert_eq!(before, server.versions());
    let names: Vec<_> = installed.keys().collect();
    assert_eq!(names, before.keys().collect::<Vec<_>>());
    assert!(!before.contains_key("Job/veer-cleanup"), "{before:?}");

    // helm uninstall still finds its Job, in what helm kept at install.
    let out = server.helm(&["get", "hooks", "veer"]);
    let hooks = text(&out.stdout);
    assert!(hooks.contains("kind: Job"), "{hooks}");
}

#[tokio::test]
async fn a_namespace_that_would_let_no_agent_start_is_refused_with_the_label_it_needs() {
    let server = Server::start().await;
    let enforce = "pod-security.kubernetes.io/enforce";
    server.add_namespace("net", &[(enforce, "baseline")]).await;
    let chart = chart();
    let install = ["install", "veer", chart.to_str().unwrap(), "-n", "net"];
    let refused = server.helm(&install);
    let said = text(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains(
            "kubectl label --overwrite namespace net pod-security.kubernetes.io/enforce=privileged"
        ),
        "{said}"
    );
    let label = format!("{enforce}=privileged");
    let out = server.kubectl(&["label", "--overwrite", "namespace", "net", &label]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let out = server.helm(&install);
    assert!(out.status.success(), "{}", text(&out.stderr));
}
