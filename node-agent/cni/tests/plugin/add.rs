//! ADD: what the agent is asked, what the runtime is answered.

use std::fs;

use serde_json::json;
use veer_agent_api::{Add, Answer, Failure, Request, code};

use crate::node::{Node, SOCKET, added, attachment, run};

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
            host_ports: None,
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
    std::os::unix::fs::symlink(node.path("run/netns"), node.path("link")).unwrap();
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
    let socket = node.path(SOCKET);
    assert_eq!(
        error["msg"],
        format!(
            "shop/cart-0: veer-agent on this node does not answer on {}: kubectl -n kube-system \
             get pods -l app.kubernetes.io/name=veer-agent -o wide",
            socket.display()
        )
    );
    assert!(
        !node.path("var/lib/veer/queue").exists(),
        "ADD is never queued"
    );
}

#[test]
fn refusal_of_the_agent_reaches_the_runtime_word_for_word() {
    let node = Node::new();
    let refusal = Failure {
        code: code::TRY_AGAIN,
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
    fs::remove_file(node.path("run/netns/cni-1")).unwrap();
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
fn namespace_of_a_process_is_refused_with_the_paths_that_can_be_wired() {
    let node = Node::new();
    let netns = format!("/proc/{}/ns/net", std::process::id());
    let outcome = run(
        &[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "ab12"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &netns),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0"),
        ],
        node.config("1.0.0").to_string().as_bytes(),
    );
    let error = outcome.error();
    assert_eq!(error["code"], code::INVALID_ENVIRONMENT);
    let message = error["msg"].as_str().unwrap();
    for word in ["shop/cart-0", netns.as_str(), "/run/netns", "cri-dockerd"] {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn add_passes_host_ports_on_and_refuses_what_is_none() {
    let node = Node::new();
    let agent = node.double(&added());
    let mut config = node.config("1.0.0");
    config["runtimeConfig"] = json!({"portMappings": [
        {"hostPort": 8088, "containerPort": 8080, "protocol": "tcp", "hostIP": ""}]});
    assert!(node.call("ADD", &config).success);
    let asked = agent.join().unwrap();
    let Request::Add(add) = &asked else {
        panic!("{asked:?}");
    };
    let ports = add.host_ports.as_ref().unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].to_string(), "tcp/8088");
    config["runtimeConfig"]["portMappings"][0]["hostIP"] = json!("192.0.2.1/24");
    let error = node.call("ADD", &config).error();
    assert_eq!(error["code"], code::INVALID_CONFIG);
    let text = error["msg"].as_str().unwrap();
    assert!(
        text.contains("shop/cart-0") && text.contains("hostIP"),
        "{text}"
    );
    // A DEL ignores fields that make an ADD fail.
    node.call("DEL", &config).silent_success();
}
