//! The real command, against a test double that answers one question.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use serde_json::json;
use veer_agent_api::{Answer, IpcacheRow, Request};

fn veer(socket: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_veer"))
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn double(socket: &Path, answer: &Answer<Vec<IpcacheRow>>) -> JoinHandle<Request> {
    let listener = UnixListener::bind(socket).unwrap();
    let line = format!("{}\n", serde_json::to_string(answer).unwrap());
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut asked = String::new();
        BufReader::new(&stream).read_line(&mut asked).unwrap();
        (&stream).write_all(line.as_bytes()).unwrap();
        serde_json::from_str(&asked).unwrap()
    })
}

fn row() -> IpcacheRow {
    IpcacheRow {
        prefix: "10.0.1.124/32".to_owned(),
        identity: 40123,
        tunnel_endpoint: "0.0.0.0".parse().unwrap(),
        node_id: 1,
    }
}

#[test]
fn ipcache_under_both_its_names_is_the_same_table() {
    let directory = tempfile::tempdir().unwrap();
    for (name, words) in [
        ("a", &["ipcache", "list"][..]),
        ("b", &["bpf", "ipcache", "list"][..]),
    ] {
        let socket = directory.path().join(name);
        let agent = double(&socket, &Answer::Ok(vec![row()]));
        let output = veer(&socket, words);
        assert_eq!(agent.join().unwrap(), Request::Ipcache);
        assert_eq!(
            text(&output.stdout),
            "PREFIX         IDENTITY  TUNNEL ENDPOINT  NODE ID\n\
             10.0.1.124/32  40123     0.0.0.0          1\n"
        );
    }
}

#[test]
fn json_and_yaml_hold_the_same_rows() {
    let directory = tempfile::tempdir().unwrap();
    let expected = json!([{
        "prefix": "10.0.1.124/32",
        "identity": 40123,
        "tunnel_endpoint": "0.0.0.0",
        "node_id": 1,
    }]);
    for format in ["json", "yaml"] {
        let socket = directory.path().join(format);
        let agent = double(&socket, &Answer::Ok(vec![row()]));
        let output = veer(&socket, &["ipcache", "list", "-o", format]);
        agent.join().unwrap();
        // Every JSON text is a YAML text.
        let parsed: serde_json::Value = serde_yaml::from_slice(&output.stdout).unwrap();
        assert_eq!(parsed, expected, "{format}");
    }
}

#[test]
fn without_an_agent_the_next_step_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let output = veer(&directory.path().join("none"), &["status"]);
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(error.contains("veer --node NODE status"), "{error}");
}

#[test]
fn with_node_kubectl_runs_the_command_in_the_agents_pod() {
    let directory = tempfile::tempdir().unwrap();
    let kubectl = directory.path().join("kubectl");
    // Takes the place of kubectl: names the pod, and prints how it was called.
    let script = "#!/bin/sh\ncase \"$*\" in\n*'get pods'*) echo worker-1 kube-system veer-agent-x ;;\n\
                  *) echo \"$*\" ;;\nesac\n";
    let written = directory.path().join("script");
    std::fs::write(&written, script).unwrap();
    // Written by a process of its own: a command that another thread is just starting
    // could hold a copy of a descriptor from here, and the file were busy (ETXTBSY).
    let installed = Command::new("install").arg(&written).arg(&kubectl).status();
    assert!(installed.unwrap().success());
    let output = Command::new(env!("CARGO_BIN_EXE_veer"))
        .env(
            "PATH",
            format!("{}:/usr/bin:/bin", directory.path().display()),
        )
        .args([
            "--node",
            "worker-1",
            "--context",
            "lab",
            "endpoint",
            "ls",
            "-o",
            "yaml",
        ])
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "--context lab exec --namespace kube-system veer-agent-x --container agent -- /veer \
         endpoint list --output yaml\n"
    );
}

#[test]
fn called_by_kubectl_it_names_itself_so() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("kubectl-veer");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_veer"), &link).unwrap();
    let output = Command::new(&link).arg("--help").output().unwrap();
    assert!(
        text(&output.stdout).contains("Usage: kubectl veer"),
        "{}",
        text(&output.stdout)
    );
}

#[test]
fn version_and_completion_need_no_agent() {
    let nowhere = Path::new("/nonexistent");
    assert!(text(&veer(nowhere, &["version"]).stdout).starts_with("veer "));
    assert!(text(&veer(nowhere, &["completion", "bash"]).stdout).contains("complete"));
}
