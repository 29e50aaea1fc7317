use std::{os::unix::process::ExitStatusExt, process::Command, thread};

use nix::sched::{CloneFlags, unshare};

use super::{
    Rules, Table,
    expression::Expression,
    rules::{Hook, chains},
};

fn rules() -> Rules {
    Rules {
        primary: "172.30.0.11".parse().ok(),
        local_cidrs: vec!["10.244.0.0/24".parse().unwrap()],
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        masquerade: true,
        exclude: vec!["192.0.2.0/24".parse().unwrap()],
        bare_to_nodes: vec!["172.30.0.12".parse().unwrap()],
        tunnel_port: 8472,
    }
}

/// Runs in a thread whose network namespace is new and empty, and goes with it.
fn in_new_netns(body: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (run as root)");
            body();
        });
    });
}

#[test]
fn without_masquerade_no_rule_masquerades() {
    let off = Rules {
        masquerade: false,
        ..rules()
    };
    let masquerades = |r: &Rules| {
        chains(r)
            .iter()
            .flat_map(|c| &c.rules)
            .filter(|r| r.contains(&Expression::Masquerade))
            .count()
    };
    assert_eq!(masquerades(&rules()), 1);
    assert_eq!(masquerades(&off), 0);
}

#[test]
fn source_translation_comes_before_that_of_kube_proxy() {
    let all = chains(&rules());
    let chain = all.iter().find(|c| c.hook == Hook::PostRouting).unwrap();
    assert!(
        chain.priority < 100,
        "kube-proxy's chain is at 100 (srcnat)"
    );
}

#[test]
fn a_table_is_written_once_and_again_after_someone_else_changed_it() {
    in_new_netns(|| {
        let mut table = Table::default();
        assert!(table.apply(&rules()).unwrap(), "there was none");
        assert!(!table.apply(&rules()).unwrap(), "nothing changed");
        assert!(
            !Table::default().apply(&rules()).unwrap(),
            "a new agent finds it right"
        );

        let flushed = Command::new("nft")
            .args(["flush", "chain", "inet", "veer", "postrouting"])
            .status();
        assert_eq!(flushed.unwrap().into_raw(), 0);
        assert!(table.apply(&rules()).unwrap(), "someone flushed a chain");

        let native = Rules {
            bare_to_nodes: Vec::new(),
            ..rules()
        };
        assert!(table.apply(&native).unwrap(), "other rules");
        table.remove().unwrap();
        table.remove().unwrap();
        assert!(table.apply(&native).unwrap(), "it was removed");
    });
}

#[test]
fn a_table_for_thousands_of_nodes_is_one_transaction() {
    in_new_netns(|| {
        let nodes = (0..5000_u32)
            .map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n))
            .collect();
        let many = Rules {
            bare_to_nodes: nodes,
            ..rules()
        };
        assert!(Table::default().apply(&many).unwrap());
        assert!(!Table::default().apply(&many).unwrap());
    });
}
