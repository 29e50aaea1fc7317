//! A path between two nodes that the underlay does not carry any more, in one
//! of the two forms.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use serde_json::Value;
use veer_e2e_cluster::decode::VXLAN_PORT;

use crate::{lab::Lab, underlay_rules::Rules};

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

/// A node's share of the pod addresses.
pub fn pod_cidr(lab: &Lab, node: &str) -> Result<String> {
    let network = lab.kubectl().json(&["get", "nodenetwork", node])?;
    let cidr = network["spec"]["podCIDRs"][0].as_str();
    Ok(cidr
        .with_context(|| format!("{node} has no pod CIDR"))?
        .to_owned())
}

/// The address that a node answers probes at: the first of its block.
pub fn health(cidr: &str) -> Result<Ipv4Addr> {
    let base: Ipv4Addr = cidr
        .split('/')
        .next()
        .unwrap_or_default()
        .parse()
        .with_context(|| format!("{cidr} is no block"))?;
    Ok(Ipv4Addr::from(u32::from(base) + 1))
}

impl Broken {
    /// Breaks the path between two nodes.
    pub fn between(lab: &Lab, nodes: [&str; 2], form: Form) -> Result<Self> {
        let [a, b] = nodes;
        let mut chains = Vec::new();
        for (from, to) in [(a, b), (b, a)] {
            let rules = match form {
                Form::Tunnel => format!(
                    "ip saddr {} ip daddr {} udp dport {VXLAN_PORT} counter name {PODS} drop",
                    lab.cluster.address(from)?,
                    lab.cluster.address(to)?
                ),
                Form::Bare => {
                    let (source, target) = (pod_cidr(lab, from)?, pod_cidr(lab, to)?);
                    let probes = health(&source)?;
                    format!(
                        "ip saddr {source} ip daddr {target} ip saddr != {probes} \
                         counter name {PODS} drop\nip saddr {source} ip daddr {target} drop"
                    )
                }
            };
            chains.push((from, rules));
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

#[cfg(test)]
mod tests {
    use super::health;

    #[test]
    fn probes_are_answered_at_the_first_address_of_the_block() {
        let address = health("10.244.3.0/24").expect("a block");
        assert_eq!(address.to_string(), "10.244.3.1");
        assert!(health("nonsense").is_err());
    }
}
