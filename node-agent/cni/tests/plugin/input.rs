//! Wrong variables and configurations.

use veer_agent_api::code;

use crate::node::{Node, run};

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
