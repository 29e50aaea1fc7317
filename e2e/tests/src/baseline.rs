//! The network to measure against, and to try the tests on: the CNI project's
//! bridge plugin with a route per node, as the simplest networks have it.

use anyhow::{Context, Result};

use crate::lab::Lab;

/// Gives every node a bridge, a /24 and the portmap plugin, and routes to the
/// others.
pub fn install(lab: &Lab) -> Result<()> {
    let nodes = lab.cluster.node_names();
    for (number, name) in nodes.iter().enumerate() {
        let node = lab.node(name)?;
        let conflist = format!(
            r#"{{"cniVersion": "1.0.0", "name": "baseline", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "10.244.{number}.0/24"}}]],
            "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}, "snat": true}}]}}
"#
        );
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
            let block = format!("10.244.{other}.0/24");
            let via = lab.cluster.address(peer)?.to_string();
            node.exec(&["ip", "route", "replace", &block, "via", &via])?;
        }
        // Bridged packets must reach kube-proxy's rules, as its manual asks.
        node.exec_any(&["sysctl", "-q", "-w", "net.bridge.bridge-nf-call-iptables=1"])?;
    }
    Ok(())
}
