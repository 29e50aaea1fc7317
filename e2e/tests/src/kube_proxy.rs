//! kube-proxy of a node, taken away with its rules and put back.

use std::time::Duration;

use anyhow::{Result, ensure};
use veer_e2e_cluster::{Family, Machine, ProxyMode, await_condition};

use crate::lab::Lab;

/// Its process, and its nftables tables.
const NAME: &str = "kube-proxy";
/// The chain by which its iptables rules are reached.
const CHAIN: &str = "KUBE-SERVICES";
/// How long it may take to start and to write its rules.
const BACK: Duration = Duration::from_mins(1);

/// A node without kube-proxy and its rules. Both are there again when this is dropped.
#[derive(Debug)]
pub struct Absent<'a> {
    lab: &'a Lab,
    node: &'a str,
    /// It was put back.
    done: bool,
}

impl<'a> Absent<'a> {
    /// Ends it on a node.
    pub fn on(lab: &'a Lab, node: &'a str) -> Result<Self> {
        ensure!(
            mode(lab) != ProxyMode::None,
            "the cluster has no kube-proxy to end"
        );
        let done = false;
        // Before anything is done: it must be undone if a part of it fails.
        let absent = Self { lab, node, done };
        lab.cluster.stop_process(node, NAME)?;
        let machine = lab.node(node)?;
        for family in Family::ALL {
            if has_rules(&machine, mode(lab), family)? {
                clear(&machine, mode(lab), family)?;
            }
            ensure!(
                !has_rules(&machine, mode(lab), family)?,
                "{node} still has kube-proxy's rules of {family}"
            );
        }
        Ok(absent)
    }

    /// Starts it, and waits until its rules are there.
    pub fn back(mut self) -> Result<()> {
        self.done = true;
        self.start()
    }

    fn start(&self) -> Result<()> {
        let (lab, node) = (self.lab, self.node);
        lab.cluster.start_process(node, NAME)?;
        let machine = lab.node(node)?;
        let what = format!("kube-proxy's rules are on {node} again");
        await_condition(&what, BACK, || {
            for family in lab.cluster.families().all() {
                let there = has_rules(&machine, mode(lab), *family);
                if !there.map_err(|e| format!("{e:#}"))? {
                    return Err(format!("none of {family}"));
                }
            }
            Ok(Some(()))
        })?;
        Ok(())
    }
}

impl Drop for Absent<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The test's own outcome says more than this one.
            let _outcome = self.start();
        }
    }
}

fn mode(lab: &Lab) -> ProxyMode {
    lab.cluster.state().config.proxy_mode
}

fn iptables(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn has_rules(node: &Machine, mode: ProxyMode, family: Family) -> Result<bool> {
    match mode {
        ProxyMode::Nftables => {
            let tables = node.exec(&["nft", "list", "tables"])?.stdout;
            let own = format!("table {} {NAME}", family.nft());
            Ok(tables.lines().any(|line| line == own))
        }
        ProxyMode::Iptables => {
            // Without the chain it fails.
            let words = [iptables(family), "-w", "-t", "nat", "-S", CHAIN];
            let rules = node.exec_any(&words)?.stdout;
            Ok(rules.lines().any(|line| line.starts_with("-A")))
        }
        ProxyMode::None => Ok(false),
    }
}

fn clear(node: &Machine, mode: ProxyMode, family: Family) -> Result<()> {
    match mode {
        ProxyMode::Nftables => {
            node.exec(&["nft", "delete", "table", family.nft(), NAME])?;
        }
        ProxyMode::Iptables => {
            // What translates, and what refuses for Services without endpoints.
            for table in ["nat", "filter"] {
                node.exec(&[iptables(family), "-w", "-t", table, "-F", CHAIN])?;
            }
        }
        ProxyMode::None => {}
    }
    Ok(())
}
