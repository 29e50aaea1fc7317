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
    let lacking = match status.lacking {
        0 => String::new(),
        pods => format!(" ({pods} made before they had addresses of all families)"),
    };
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
        ("Services", status.services.clone()),
        ("Attached by", status.attach.clone()),
        ("Pod CIDRs", listed(&status.pod_cidrs)),
        ("Gateways", listed(&status.gateways)),
        ("Addresses", listed(&status.addresses)),
        ("Uplinks", listed(&status.uplinks)),
        ("MTU", format!("{} between nodes", status.mtu)),
        (
            "Pods",
            format!(
                "{} here{lacking}, {} on other nodes",
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
    fn pods_that_lack_a_family_are_counted_where_there_are_any() {
        let pods = |lacking| {
            let status = NodeStatus {
                endpoints: 12,
                lacking,
                ..NodeStatus::default()
            };
            let table = table(&status);
            let line = table.lines().find(|l| l.starts_with("Pods:")).unwrap();
            line.trim_start_matches("Pods:").trim().to_owned()
        };
        assert_eq!(pods(0), "12 here, 0 on other nodes");
        assert!(pods(3).starts_with("12 here (3 made before"));
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
