//! CHECK, GC, STATUS and VERSION.

use std::time::Duration;

use serde_json::json;
use veer_agent_api::{Answer, Check, Failure, Request, code};

use crate::node::{Node, attachment, run};

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

/// A runtime asks before every look at its network, as go-cni's `Status` does: a
/// no turns the node `NotReady`.
#[test]
fn status_while_the_agent_restarts_stays_well() {
    let node = Node::new();
    node.served(Duration::from_secs(5));
    node.call("STATUS", &node.config("1.1.0")).silent_success();
    // The new agent listens before its first round is through.
    let starting = Failure {
        code: code::NOT_AVAILABLE,
        msg: "veer-agent cannot wire pods: the agent is starting".to_owned(),
        details: String::new(),
    };
    let agent = node.double(&Answer::<()>::Error(starting));
    node.call("STATUS", &node.config("1.1.0")).silent_success();
    agent.join().unwrap();
}

#[test]
fn status_is_not_available_once_add_has_not_worked_for_a_minute() {
    let node = Node::new();
    let refusal = Failure {
        code: code::NOT_AVAILABLE,
        msg: "veer-agent cannot wire pods: no pod CIDR".to_owned(),
        details: String::new(),
    };
    for served in [None, Some(Duration::from_mins(2))] {
        if let Some(ago) = served {
            node.served(ago);
        }
        let error = node.call("STATUS", &node.config("1.1.0")).error();
        assert_eq!(error["code"], code::NOT_AVAILABLE);
        assert!(
            error["msg"].as_str().unwrap().contains("does not answer"),
            "{error}"
        );
    }
    let agent = node.double(&Answer::<()>::Error(refusal.clone()));
    let error = node.call("STATUS", &node.config("1.1.0")).error();
    agent.join().unwrap();
    assert_eq!(error["code"], code::NOT_AVAILABLE);
    assert_eq!(error["msg"], refusal.msg);
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
