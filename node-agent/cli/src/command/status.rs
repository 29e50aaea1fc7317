//! `veer status`: the node at a glance.

use veer_agent_api::NodeStatus;

use crate::output::{fields, listed};

pub(super) fn table(status: &NodeStatus) -> String {
    let ready = match (status.ready, status.reason.as_str()) {
        (true, _) => "yes".to_owned(),
        (false, "") => "no".to_owned(),
        (false, reason) => format!("no: {reason}"),
    };
    let repairs: Vec<_> = status
        .repairs
        .iter()
        .map(|(what, times)| format!("{what} {times}×"))
        .collect();
    fields(&[
        ("Node", status.node.clone()),
        ("Ready", ready),
        (
            "Version",
            format!("{} on kernel {}", status.version, status.kernel),
        ),
        (
            "Routing",
            format!("{} (epoch {}, {})", status.mode, status.epoch, status.phase),
        ),
        ("Host Routing", status.host_routing.clone()),
        ("Attached by", status.attach.clone()),
        ("Pod CIDRs", listed(&status.pod_cidrs)),
        ("Gateways", listed(&status.gateways)),
        ("Addresses", listed(&status.addresses)),
        ("Uplinks", listed(&status.uplinks)),
        ("MTU", format!("{} between nodes", status.mtu)),
        (
            "Pods",
            format!(
                "{} here, {} on other nodes",
                status.endpoints, status.remote_endpoints
            ),
        ),
        ("Other nodes", status.remotes.to_string()),
        ("Identities", status.identities.to_string()),
        ("Repairs", listed(&repairs)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_routing_reads_as_one_phrase() {
        let status = NodeStatus {
            ready: true,
            host_routing: "BPF".to_owned(),
            pod_cidrs: vec!["10.244.1.0/24".to_owned()],
            ..NodeStatus::default()
        };
        let table = table(&status);
        assert!(table.contains("\nHost Routing: BPF\n"), "{table}");
        assert!(table.contains("\nReady:        yes\n"), "{table}");
        assert!(table.ends_with("\nRepairs:      -"), "{table}");
    }

    #[test]
    fn node_that_is_not_ready_says_why() {
        let status = NodeStatus {
            reason: "no pod CIDR yet".to_owned(),
            ..NodeStatus::default()
        };
        assert!(table(&status).contains("no: no pod CIDR yet"));
    }
}
