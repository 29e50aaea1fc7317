//! The real plugin, run as a container runtime runs it.
//!
//! Where an agent is needed a test double listens in its place: it answers one
//! request with a given line and hands out what it was asked. It proves the shape
//! of what goes over the socket and nothing about wiring.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail the test"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};

use serde_json::{Value, json};
use tempfile::TempDir;
use veer_agent_api::{Add, Added, Answer, Attachment, Check, Del, Failure, Request, code};

/// What the plugin did.
struct Outcome {
    success: bool,
    stdout: Vec<u8>,
}

impl Outcome {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.stdout)))
    }

    #[track_caller]
    fn error(&self) -> Value {
        assert!(!self.success, "{}", String::from_utf8_lossy(&self.stdout));
        self.json()
    }

    #[track_caller]
    fn silent_success(&self) {
        assert!(self.success, "{}", String::from_utf8_lossy(&self.stdout));
        assert_eq!(String::from_utf8_lossy(&self.stdout), "");
    }
}

/// A node without an agent: a socket path, a state directory, a namespace file.
struct Node {
    directory: TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["state", "netns"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::write(directory.path().join("netns/cni-1"), "").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().canonicalize().unwrap().join(name)
    }

    fn netns(&self) -> String {
        self.path("netns/cni-1").to_str().unwrap().to_owned()
    }

    fn config(&self, cni_version: &str) -> Value {
        json!({
            "cniVersion": cni_version,
            "name": "veer",
            "type": "veer-cni",
            "socket": self.path("agent.sock"),
            "queue": self.path("state/queue"),
        })
    }

    /// Answers one request with `answer`.
    fn double<T: serde::Serialize>(&self, answer: &Answer<T>) -> JoinHandle<Request> {
        self.double_line(format!("{}\n", serde_json::to_string(answer).unwrap()))
    }

    fn double_line(&self, line: String) -> JoinHandle<Request> {
        let listener = UnixListener::bind(self.path("agent.sock")).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            (&stream).write_all(line.as_bytes()).unwrap();
            serde_json::from_str(&asked).unwrap()
        })
    }

    fn call(&self, verb: &str, config: &Value) -> Outcome {
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

fn run(variables: &[(&str, &str)], stdin: &[u8]) -> Outcome {
    let mut child = Command::new(env!("CARGO_BIN_EXE_veer-cni"))
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

fn attachment() -> Attachment {
    Attachment {
        container_id: "ab12".to_owned(),
        ifname: "eth0".to_owned(),
    }
}

fn added() -> Answer<Added> {
    Answer::Ok(Added {
        addresses: vec!["10.0.1.7".parse().unwrap()],
        gateways: vec!["10.0.1.1".parse().unwrap()],
        host_ifname: "veer0123456789".to_owned(),
        host_mac: "02:00:00:00:00:01".to_owned(),
        container_mac: "02:00:00:00:00:02".to_owned(),
        mtu: 1450,
    })
}

#[test]
fn add_names_the_pod_to_the_agent_and_prints_its_address() {
    let node = Node::new();
    let agent = node.double(&added());
    let outcome = node.call("ADD", &node.config("1.0.0"));
    assert_eq!(
        agent.join().unwrap(),
        Request::Add(Add {
            attachment: attachment(),
            netns: node.netns(),
            pod_namespace: "shop".to_owned(),
            pod_name: "cart-0".to_owned(),
            pod_uid: "u-1".to_owned(),
        })
    );
    assert!(outcome.success);
    let result = outcome.json();
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(
        result["ips"],
        json!([{"address": "10.0.1.7/32", "gateway": "10.0.1.1", "interface": 1}])
    );
    assert_eq!(result["interfaces"][1]["sandbox"], node.netns());
}

#[test]
fn add_through_a_symbolic_link_gives_the_agent_the_real_directory() {
    let node = Node::new();
    std::os::unix::fs::symlink(node.path("netns"), node.path("link")).unwrap();
    let agent = node.double(&added());
    let through_link = node.path("link/cni-1");
    let outcome = run(
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "ab12"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", through_link.to_str().unwrap()),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"),
        ],
        node.config("1.1.0").to_string().as_bytes(),
    );
    assert!(outcome.success);
    let asked = agent.join().unwrap();
    assert!(
        matches!(&asked, Request::Add(add) if add.netns == node.netns()),
        "{asked:?}"
    );
    assert_eq!(
        outcome.json()["interfaces"][1]["sandbox"],
        through_link.to_str().unwrap()
    );
}

#[test]
fn add_without_an_agent_says_try_again_and_where_to_look() {
    let node = Node::new();
    let error = node.call("ADD", &node.config("1.0.0")).error();
    assert_eq!(error["cniVersion"], "1.0.0");
    assert_eq!(error["code"], code::TRY_AGAIN);
    let socket = node.path("agent.sock");
    assert_eq!(
        error["msg"],
        format!(
            "shop/cart-0: veer-agent on this node does not answer on {}: kubectl -n kube-system \
             get pods -l app.kubernetes.io/name=veer-agent -o wide",
            socket.display()
        )
    );
    assert!(!node.path("state/queue").exists(), "ADD is never queued");
}

#[test]
fn refusal_of_the_agent_reaches_the_runtime_word_for_word() {
    let node = Node::new();
    let refusal = Failure {
        code: code::NOT_AVAILABLE,
        msg: "shop/cart-0: node a has no pod CIDR yet: kubectl get nodenetwork a".to_owned(),
        details: String::new(),
    };
    let agent = node.double(&Answer::<()>::Error(refusal.clone()));
    let error = node.call("ADD", &node.config("1.1.0")).error();
    agent.join().unwrap();
    assert_eq!(error["code"], refusal.code);
    assert_eq!(error["msg"], refusal.msg);
}

#[test]
fn agent_that_dies_in_the_middle_of_its_answer_counts_as_absent() {
    let node = Node::new();
    let agent = node.double_line(r#"{"ok":{"addre"#.to_owned());
    let error = node.call("ADD", &node.config("1.0.0")).error();
    agent.join().unwrap();
    assert_eq!(error["code"], code::TRY_AGAIN);
    assert_eq!(
        error["details"],
        "connection ended after 13 bytes of an answer"
    );
}

#[test]
fn add_into_a_namespace_that_is_not_there_is_refused_before_the_agent_is_asked() {
    let node = Node::new();
    fs::remove_file(node.path("netns/cni-1")).unwrap();
    let error = node.call("ADD", &node.config("1.0.0")).error();
    assert_eq!(error["code"], code::INVALID_ENVIRONMENT);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .starts_with("shop/cart-0: CNI_NETNS"),
        "{error}"
    );
}

#[test]
fn del_goes_to_the_agent_and_prints_nothing() {
    let node = Node::new();
    let agent = node.double(&Answer::Ok(json!({})));
    node.call("DEL", &node.config("1.0.0")).silent_success();
    assert_eq!(
        agent.join().unwrap(),
        Request::Del(Del {
            attachment: attachment(),
            netns: Some(node.netns())
        })
    );
    assert!(!node.path("state/queue").exists());
}

#[test]
fn del_of_a_namespace_that_is_gone_still_unwires_the_rest() {
    let node = Node::new();
    fs::remove_file(node.path("netns/cni-1")).unwrap();
    let agent = node.double(&Answer::Ok(()));
    node.call("DEL", &node.config("1.0.0")).silent_success();
    assert_eq!(
        agent.join().unwrap(),
        Request::Del(Del {
            attachment: attachment(),
            netns: None
        })
    );
}

#[test]
fn del_without_an_agent_is_kept_for_it_and_succeeds() {
    let node = Node::new();
    for _ in 0..2 {
        node.call("DEL", &node.config("1.0.0")).silent_success();
    }
    let kept = fs::read(node.path("state/queue/ab12-eth0.json")).unwrap();
    assert_eq!(
        serde_json::from_slice::<Request>(&kept).unwrap(),
        Request::Del(Del {
            attachment: attachment(),
            netns: Some(node.netns())
        })
    );
    assert_eq!(fs::read_dir(node.path("state/queue")).unwrap().count(), 1);
}

#[test]
fn del_after_veer_is_uninstalled_succeeds_and_leaves_nothing() {
    let node = Node::new();
    fs::remove_dir(node.path("state")).unwrap();
    node.call("DEL", &node.config("1.0.0")).silent_success();
    assert!(!node.path("state").exists());
}

#[test]
fn del_that_can_be_neither_done_nor_kept_fails() {
    let node = Node::new();
    fs::write(node.path("state/queue"), "not a directory").unwrap();
    let error = node.call("DEL", &node.config("1.0.0")).error();
    assert!(
        error["msg"].as_str().unwrap().contains("cannot be kept"),
        "{error}"
    );
}

#[test]
fn check_hands_over_the_addresses_of_the_add() {
    let node = Node::new();
    let agent = node.double(&Answer::Ok(json!({})));
    let mut config = node.config("1.0.0");
    config["prevResult"] = json!({"ips": [{"address": "10.0.1.7/32"}]});
    node.call("CHECK", &config).silent_success();
    assert_eq!(
        agent.join().unwrap(),
        Request::Check(Check {
            attachment: attachment(),
            netns: node.netns(),
            addresses: vec!["10.0.1.7".parse().unwrap()],
        })
    );
}

#[test]
fn check_without_the_result_of_the_add_is_a_wrong_configuration() {
    let node = Node::new();
    let error = node.call("CHECK", &node.config("1.0.0")).error();
    assert_eq!(error["code"], code::INVALID_CONFIG);
}

#[test]
fn gc_names_the_attachments_to_keep() {
    let node = Node::new();
    let agent = node.double(&Answer::Ok(json!({})));
    let mut config = node.config("1.1.0");
    config["cni.dev/valid-attachments"] = json!([{"containerID": "ab12", "ifname": "eth0"}]);
    node.call("GC", &config).silent_success();
    assert_eq!(
        agent.join().unwrap(),
        Request::Gc {
            valid: vec![attachment()]
        }
    );
}

#[test]
fn verbs_of_1_1_are_refused_in_a_configuration_of_1_0() {
    let node = Node::new();
    for verb in ["GC", "STATUS"] {
        let error = node.call(verb, &node.config("1.0.0")).error();
        assert_eq!(error["code"], 1, "{error}");
    }
}

#[test]
fn status_without_an_agent_is_not_available() {
    let node = Node::new();
    let error = node.call("STATUS", &node.config("1.1.0")).error();
    assert_eq!(error["code"], code::NOT_AVAILABLE);
    assert!(
        error["msg"].as_str().unwrap().contains("does not answer"),
        "{error}"
    );
}

#[test]
fn status_of_a_serving_agent_succeeds() {
    let node = Node::new();
    let agent = node.double(&Answer::Ok(json!({})));
    node.call("STATUS", &node.config("1.1.0")).silent_success();
    assert_eq!(agent.join().unwrap(), Request::Status);
}

#[test]
fn version_needs_neither_agent_nor_network() {
    let outcome = run(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"1.0.0"}"#);
    assert!(outcome.success);
    assert_eq!(
        outcome.json(),
        json!({
            "cniVersion": "1.0.0",
            "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}

#[test]
fn missing_and_wrong_variables_are_named() {
    let node = Node::new();
    let config = node.config("1.0.0").to_string();
    let full = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "ab12"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/cni-1"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"),
    ];
    for (left_out, _) in full {
        let variables: Vec<_> = full
            .into_iter()
            .filter(|(name, _)| *name != left_out)
            .collect();
        let error = run(&variables, config.as_bytes()).error();
        assert_eq!(
            error["code"],
            code::INVALID_ENVIRONMENT,
            "{left_out}: {error}"
        );
        assert!(
            error["msg"].as_str().unwrap().starts_with(left_out),
            "{left_out}: {error}"
        );
    }
    let error = run(&[("CNI_COMMAND", "FROB")], b"").error();
    assert_eq!(error["code"], code::INVALID_ENVIRONMENT);
}

#[test]
fn version_that_is_not_spoken_is_refused_with_those_that_are() {
    let node = Node::new();
    for version in ["", "0.2.0", "1.0", "2.0.0"] {
        let error = node.call("ADD", &node.config(version)).error();
        assert_eq!(error["code"], 1, "{version}: {error}");
        assert!(
            error["msg"]
                .as_str()
                .unwrap()
                .ends_with("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{error}"
        );
    }
}

#[test]
fn broken_and_oversized_configurations_are_refused() {
    let command = [("CNI_COMMAND", "ADD")];
    assert_eq!(run(&command, b"{").error()["code"], code::DECODE);
    let oversized = vec![b' '; (4 << 20) + 1];
    let error = run(&command, &oversized).error();
    assert_eq!(error["code"], code::INVALID_CONFIG);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("longer than 4194304 bytes"),
        "{error}"
    );
}
