//! A directory that stands for a node, and the plugin run in it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use veer_agent_api::{Added, Answer, Attachment, Request, SERVED_NAME};

/// The socket, from the root of a [`Node`].
pub(crate) const SOCKET: &str = "run/veer/agent.sock";
/// The conflist, from the root of a [`Node`].
pub(crate) const CONFLIST: &str = "etc/cni/net.d/05-veer.conflist";

/// The outcome of a run of the plugin.
pub(crate) struct Outcome {
    pub(crate) success: bool,
    stdout: Vec<u8>,
}

impl Outcome {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.stdout)))
    }

    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        assert!(!self.success, "{}", String::from_utf8_lossy(&self.stdout));
        self.json()
    }

    #[track_caller]
    pub(crate) fn silent_success(&self) {
        assert!(self.success, "{}", String::from_utf8_lossy(&self.stdout));
        assert_eq!(String::from_utf8_lossy(&self.stdout), "");
    }
}

/// A node without an agent: a socket path, a state directory, a namespace file.
pub(crate) struct Node {
    directory: TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "run/veer",
            "var/lib/veer",
            "var/lib/cni/results",
            "etc/cni/net.d",
            "run/netns",
        ] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        for name in ["run/netns/cni-1", "var/lib/veer/held.json", CONFLIST] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn netns(&self) -> String {
        self.path("run/netns/cni-1").to_str().unwrap().to_owned()
    }

    pub(crate) fn config(&self, cni_version: &str) -> Value {
        json!({
            "cniVersion": cni_version,
            "name": "veer",
            "type": "veer-cni",
            "root": self.path(""),
        })
    }

    /// Answers one request with `answer`.
    pub(crate) fn double<T: serde::Serialize>(&self, answer: &Answer<T>) -> JoinHandle<Request> {
        self.double_line(format!("{}\n", serde_json::to_string(answer).unwrap()))
    }

    pub(crate) fn double_line(&self, line: String) -> JoinHandle<Request> {
        let _ = fs::remove_file(self.path(SOCKET));
        let listener = UnixListener::bind(self.path(SOCKET)).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            (&stream).write_all(line.as_bytes()).unwrap();
            serde_json::from_str(&asked).unwrap()
        })
    }

    /// Leaves the node as an agent does that could wire pods so long ago.
    pub(crate) fn served(&self, ago: Duration) {
        let path = self.path(SOCKET).with_file_name(SERVED_NAME);
        let file = fs::File::create(path).unwrap();
        file.set_modified(SystemTime::now() - ago).unwrap();
    }

    /// Leaves the node as an agent does that is decommissioned.
    pub(crate) fn uninstall(&self) {
        fs::remove_file(self.path("var/lib/veer/held.json")).unwrap();
    }

    pub(crate) fn call(&self, verb: &str, config: &Value) -> Outcome {
        let netns = self.netns();
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;K8S_POD_UID=u-1";
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "ab12"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &netns),
            ("CNI_ARGS", args),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        run(&variables, config.to_string().as_bytes())
    }
}

pub(crate) fn run(variables: &[(&str, &str)], stdin: &[u8]) -> Outcome {
    run_plugin(Path::new(env!("CARGO_BIN_EXE_veer-cni")), variables, stdin)
}

pub(crate) fn run_plugin(plugin: &Path, variables: &[(&str, &str)], stdin: &[u8]) -> Outcome {
    let mut child = Command::new(plugin)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // A plugin that refuses its variables ends without reading.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    Outcome {
        success: output.status.success(),
        stdout: output.stdout,
    }
}

pub(crate) fn attachment() -> Attachment {
    Attachment {
        container_id: "ab12".to_owned(),
        ifname: "eth0".to_owned(),
    }
}

pub(crate) fn added() -> Answer<Added> {
    Answer::Ok(Added {
        addresses: vec!["10.0.1.7".parse().unwrap()],
        gateways: vec!["10.0.1.1".parse().unwrap()],
        host_ifname: "veer0123456789".to_owned(),
        host_mac: "02:00:00:00:00:01".to_owned(),
        container_mac: "02:00:00:00:00:02".to_owned(),
        mtu: 1450,
    })
}
