//! The network to measure against, and to try the tests on: the CNI project's
//! bridge plugin with a route per node, as the simplest networks have it.

use anyhow::{Context, Result};
use serde_json::json;
use veer_e2e_cluster::Family;

use crate::lab::Lab;

/// A node's block of a family.
fn block(family: Family, number: usize) -> String {
    match family {
        Family::V4 => format!("10.244.{number}.0/24"),
        Family::V6 => format!("fd00:10:244:{number:x}::/64"),
    }
}

/// Where everything is.
fn everywhere(family: Family) -> String {
    format!("{}/0", family.unspecified())
}

/// Gives every node a bridge, a block of each family and the portmap plugin, and routes
/// to the others.
pub fn install(lab: &Lab) -> Result<()> {
    let nodes = lab.cluster.node_names();
    for (number, name) in nodes.iter().enumerate() {
        let node = lab.node(name)?;
        let families = lab.cluster.families().all();
        let ranges = families
            .iter()
            .map(|f| json!([{"subnet": block(*f, number)}]));
        let routes = families.iter().map(|f| json!({"dst": everywhere(*f)}));
        let conflist = json!({"cniVersion": "1.0.0", "name": "baseline", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
                "hairpinMode": true,
                "ipam": {"type": "host-local", "ranges": ranges.collect::<Vec<_>>(),
                    "routes": routes.collect::<Vec<_>>()}},
            {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]})
        .to_string();
        node.exec_with_input(
            &["sh", "-c", "cat >/etc/cni/net.d/10-baseline.conflist"],
            conflist.as_bytes(),
        )
        .with_context(|| format!("write the network configuration of {name}"))?;
        for (other, peer) in nodes
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != number)
        {
            for family in families {
                let via = lab.address(peer, *family)?.to_string();
                let block = block(*family, other);
                node.exec(&["ip", "route", "replace", &block, "via", &via])?;
            }
        }
        // Bridged packets must reach kube-proxy's rules, as its manual asks.
        node.exec_any(&["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1"])?;
    }
    Ok(())
}
