//! A path between two nodes that the underlay does not carry any more, in one
//! of the two forms.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;
use veer_e2e_cluster::decode::VXLAN_PORT;

use crate::{blocks::health, lab::Lab, underlay_rules::Rules};

/// Name of the table.
const TABLE: &str = "veer_e2e_broken";
/// Its counter of what pods sent; probes of agents are not in it.
const PODS: &str = "pods";

/// What is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Packets between pods' addresses.
    Bare,
    /// Packets of the tunnel.
    Tunnel,
}

/// Two nodes between which packets of one form vanish, both ways, without a
/// word. Whole again when dropped.
#[derive(Debug)]
pub struct Broken(Rules);

/// Rules that drop what a node sends to another one in a form, in all families: a pair
/// of nodes has one form, and it works in all of them or is not used.
fn rules(lab: &Lab, from: &str, to: &str, form: Form) -> Result<String> {
    let families = lab.cluster.families();
    let mut text = String::new();
    match form {
        Form::Tunnel => {
            let outer = families.primary();
            let _infallible = write!(
                text,
                "{ip} saddr {} {ip} daddr {} udp dport {VXLAN_PORT} counter name {PODS} drop",
                lab.address(from, outer)?,
                lab.address(to, outer)?,
                ip = outer.nft()
            );
        }
        Form::Bare => {
            for family in families.all() {
                let ip = family.nft();
                let (source, target) = (lab.pod_cidr(from, *family)?, lab.pod_cidr(to, *family)?);
                let probes = health(&source)?;
                let _infallible = writeln!(
                    text,
                    "{ip} saddr {source} {ip} daddr {target} {ip} saddr != {probes} \
                     counter name {PODS} drop\n{ip} saddr {source} {ip} daddr {target} drop"
                );
            }
        }
    }
    Ok(text)
}

impl Broken {
    /// Breaks the path between two nodes.
    pub fn between(lab: &Lab, nodes: [&str; 2], form: Form) -> Result<Self> {
        let [a, b] = nodes;
        let mut chains = Vec::new();
        for (from, to) in [(a, b), (b, a)] {
            chains.push((from, rules(lab, from, to, form)?));
        }
        let counter = format!("counter {PODS} {{ }}");
        Ok(Self(Rules::put(lab, TABLE, &counter, &chains)?))
    }

    /// How many packets were dropped that are no probes of bare packets.
    pub fn dropped(&self) -> Result<u64> {
        let out = self.0.list("counter", PODS)?;
        let list: Value = serde_json::from_str(&out).context("nft -j")?;
        let counters = list["nftables"].as_array();
        let packets = counters
            .into_iter()
            .flatten()
            .find_map(|c| c["counter"]["packets"].as_u64());
        packets.with_context(|| format!("no counter in {out}"))
    }

    /// Mends it.
    pub fn mend(self) -> Result<()> {
        self.0.remove()
    }
}
