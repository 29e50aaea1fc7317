//! DEL: with an agent, without one, and after veer is uninstalled.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::json;
use veer_agent_api::{Answer, Del, PORTMAP_RULES, Request};

use crate::node::{CONFLIST, Node, attachment, run, run_plugin};

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
    assert!(!node.path("var/lib/veer/queue").exists());
}

#[test]
fn del_of_a_namespace_that_is_gone_still_unwires_the_rest() {
    let node = Node::new();
    fs::remove_file(node.path("run/netns/cni-1")).unwrap();
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
    let kept = fs::read(node.path("var/lib/veer/queue/ab12-eth0.json")).unwrap();
    assert_eq!(
        serde_json::from_slice::<Request>(&kept).unwrap(),
        Request::Del(Del {
            attachment: attachment(),
            netns: Some(node.netns())
        })
    );
    assert_eq!(
        fs::read_dir(node.path("var/lib/veer/queue"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn del_after_veer_is_uninstalled_keeps_nothing() {
    let node = Node::new();
    node.uninstall();
    fs::write(node.path("var/lib/cni/results/veer-ab12-eth0"), "").unwrap();
    fs::write(node.path("var/lib/cni/results/veer-cd34-eth0"), "").unwrap();
    node.call("DEL", &node.config("1.0.0")).silent_success();
    assert!(!node.path("var/lib/veer/queue").exists());
    assert!(
        node.path(CONFLIST).exists(),
        "another sandbox still needs it"
    );
}

#[test]
fn last_del_after_veer_is_uninstalled_takes_the_rest_of_veer_away() {
    let node = Node::new();
    node.uninstall();
    for name in ["veer-ab12-eth0", "cni-loopback-cd34-lo", "other-cd34-eth0"] {
        fs::write(node.path("var/lib/cni/results").join(name), "").unwrap();
    }
    // A plugin that removes itself must not be the one that other tests run. Written
    // by a process of its own: a command that another thread is just starting could
    // hold a copy of a descriptor from here, and the file were busy (ETXTBSY).
    let plugin = node.path("veer-cni");
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_veer-cni"))
        .arg(&plugin)
        .status();
    assert!(copied.unwrap().success());
    let variables = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "ab12"),
        ("CNI_IFNAME", "eth0"),
    ];
    run_plugin(
        &plugin,
        &variables,
        node.config("1.0.0").to_string().as_bytes(),
    )
    .silent_success();
    for gone in [CONFLIST, "veer-cni", "var/lib/veer", "run/veer"] {
        assert!(!node.path(gone).exists(), "{gone} is still there");
    }
    assert!(node.path("var/lib/cni/results/other-cd34-eth0").exists());
}

#[test]
fn without_the_runtimes_results_nothing_is_taken_away() {
    let node = Node::new();
    node.uninstall();
    fs::remove_dir(node.path("var/lib/cni/results")).unwrap();
    node.call("DEL", &node.config("1.0.0")).silent_success();
    assert!(node.path(CONFLIST).exists());
}

#[test]
fn del_that_can_be_neither_done_nor_kept_fails() {
    let node = Node::new();
    fs::write(node.path("var/lib/veer/queue"), "not a directory").unwrap();
    let error = node.call("DEL", &node.config("1.0.0")).error();
    assert!(
        error["msg"].as_str().unwrap().contains("cannot be kept"),
        "{error}"
    );
}

/// As the plugin portmap behaves that keeps what it was told and what for.
const PORTMAP: &str =
    "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $(cat)\" >\"${0%/*}/told\"\n";

#[test]
fn del_has_portmap_remove_what_it_made_for_an_earlier_release() {
    let node = Node::new();
    let rules = node
        .path(PORTMAP_RULES.trim_start_matches('/'))
        .join(attachment().file_name());
    fs::create_dir_all(rules.parent().unwrap()).unwrap();
    fs::write(&rules, "{\"name\":\"veer\"}").unwrap();
    let bin = node.path("bin");
    fs::create_dir(&bin).unwrap();
    let variables = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "ab12"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", bin.to_str().unwrap()),
        ("PATH", "/usr/bin:/bin"),
    ];
    let config = node.config("1.0.0").to_string();
    let del = || run(&variables, config.as_bytes());
    // If it is gone for a while, the runtime repeats the DEL.
    let error = del().error();
    assert!(
        error["msg"].as_str().unwrap().contains("CNI_PATH"),
        "{error}"
    );
    assert!(rules.exists());
    for (program, done) in [("#!/bin/sh\necho locked; exit 1\n", false), (PORTMAP, true)] {
        fs::write(bin.join("portmap"), program).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(bin.join("portmap"), mode).unwrap();
        let outcome = del();
        assert_eq!((outcome.success, !rules.exists()), (done, done));
    }
    let told = fs::read_to_string(bin.join("told")).unwrap();
    assert_eq!(told.trim(), "DEL ab12 {\"name\":\"veer\"}");
    fs::remove_file(bin.join("told")).unwrap();
    del().silent_success();
    assert!(!bin.join("told").exists(), "once is enough");
}
