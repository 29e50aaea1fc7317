//! The table and others' chains as they are written and put back.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    super::{content::Elements, forward::Changes},
    *,
};

#[test]
fn a_node_without_ipv6_has_nothing_of_it_in_the_table() {
    let node = lab::namespace();
    let content = with_blocks(&blocks()[..1], &["far0"]);
    node.run(|| {
        let mut socket = Socket::netfilter().unwrap();
        Table::default().write(&mut socket, &content).unwrap();
    });
    let listed = node.command("nft", "list table inet veer");
    assert!(listed.contains("nodes4"), "{listed}");
    for word in ["ipv6", "ip6", "nodes6", "::"] {
        assert!(!listed.contains(word), "{word}: {listed}");
    }
}

#[test]
fn fifteen_thousand_nodes_are_one_transaction_and_one_more_is_an_element_of_each_family() {
    let node = lab::namespace();
    let many = |last: u32| {
        let mut content = content(&["far0"]);
        let v4 = (0..last).map(|n| Ipv4Addr::from(0x0a00_0000 + n).into());
        content.sets[0].elements = Elements::Addresses(v4.collect());
        let v6 = (0..last).map(|n| Ipv6Addr::from(0xfd << 120 | u128::from(n)).into());
        let nodes6 = content
            .sets
            .iter_mut()
            .find(|s| s.name == "nodes6")
            .unwrap();
        nodes6.elements = Elements::Addresses(v6.collect());
        content
    };
    node.run(|| {
        let mut table = Table::default();
        let mut socket = Socket::netfilter().unwrap();
        for (content, restored) in [(many(15_000), true), (many(15_001), false)] {
            let wrote = table.write(&mut socket, &content).unwrap();
            assert_eq!((wrote.restored, wrote.changed), (restored, None));
            let again = table.write(&mut socket, &content).unwrap();
            assert!(!again.restored && again.changed.is_none());
        }
        let fewer = many(10);
        table.write(&mut socket, &fewer).unwrap();
    });
    let listed = node.command("nft", "list set inet veer nodes4");
    assert!(
        listed.contains("10.0.0.9") && !listed.contains("10.0.0.10"),
        "{listed}"
    );
    node.command("nft", "delete element inet veer nodes4 { 10.0.0.9 }");
}

#[test]
fn another_program_that_changes_its_own_table_is_no_reason_to_write_veers() {
    let node = lab::namespace();
    let content = content(&["far0"]);
    let mut table = Table::default();
    let mut round = || {
        let mut socket = Socket::netfilter().unwrap();
        table.write(&mut socket, &content).unwrap()
    };
    node.run(&mut round);
    node.command("nft", "add table ip another");
    assert_eq!(node.run(&mut round).changed, None);
    node.command("nft", "flush set inet veer pods4");
    let changed = node.run(&mut round).changed;
    assert_eq!(changed.as_deref(), Some("elements"));
    node.command("nft", "flush ruleset");
    let wrote = node.run(&mut round);
    assert!(wrote.restored && wrote.changed.is_some());
    assert_eq!(node.run(&mut round).changed, None);
}

#[test]
fn a_foreign_forward_chain_gets_veers_rules_before_what_drops_the_rest() {
    for (program, table, one) in [
        ("iptables-nft", "ip", "169.254.169.254/32"),
        ("ip6tables-nft", "ip6", "fd00:ec2::254/128"),
    ] {
        let node = lab::namespace();
        let mut forward = Forward::default();
        let mut round = || {
            let changes = node.run(|| forward.converge(true).unwrap());
            let again = node.run(|| forward.converge(true).unwrap());
            assert_eq!(again, Changes::default());
            changes
        };
        let tables = |rule: &str| node.command(program, rule);
        let rules = || {
            let all = tables("-S FORWARD");
            all.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
        };
        let is_own = |rule: &String| rule.contains("veer+") && rule.contains("-j ACCEPT");
        let chain = format!("chain FORWARD of table {table} filter");

        tables(&format!("-A FORWARD -d {one} -j DROP"));
        assert_eq!(
            round(),
            Changes::default(),
            "what is accepted needs no rule"
        );
        tables("-P FORWARD DROP");
        assert_eq!(round().opened, [chain.as_str()]);
        let seen = rules();
        assert_eq!(seen.len(), 3, "{seen:?}");
        assert!(
            !is_own(&seen[0]) && seen[1..].iter().all(is_own),
            "{seen:?}"
        );

        tables("-F FORWARD");
        assert_eq!(round().again, [chain.as_str()]);
        assert_eq!(rules().len(), 2);

        // Its owner accepts by policy, and refuses all by a chain of his own.
        tables("-P FORWARD ACCEPT");
        round();
        assert!(rules().is_empty(), "not needed any more");
        tables("-N LAST");
        tables("-A LAST -j REJECT");
        tables("-A FORWARD -j LAST");
        assert_eq!(round().opened.len(), 1);
        let seen = rules();
        assert!(
            seen[..2].iter().all(is_own) && seen[2] == "-A FORWARD -j LAST",
            "{seen:?}"
        );

        // A firewall that speaks nft.
        node.command("nft", "add table inet fw");
        node.command(
            "nft",
            "add chain inet fw f { type filter hook forward priority 10 ; policy drop ; }",
        );
        assert_eq!(round().opened, ["chain f of table inet fw"]);
        // Where pods have no IPv6, its chains are none of veer's.
        node.run(|| forward.converge(false).unwrap());
        assert_eq!(rules().len(), if table == "ip" { 3 } else { 1 });
        node.run(|| forward.remove().unwrap());
        assert_eq!(rules(), ["-A FORWARD -j LAST"]);
        let left = node.command("nft", "list table inet fw");
        assert!(!left.contains("veer"), "{left}");
    }
}
