//! Pods whose hostPorts the plugin portmap made, for an earlier release that left
//! them to it. Their rules would be gone for good with the next flush of the
//! firewall, so they get veer's own as well, by what the runtime's CNI library keeps
//! of their ADD. Both lead to the same. portmap is not in the chain any more, and it
//! removes nothing without being told the ports; so its DEL is left for veer-cni.

use std::path::Path;

use serde_json::json;
use veer_agent_api::{Attachment, HostPort, PORTMAP_RULES, file};

use crate::pods::{
    Pods,
    results::{self, NETWORK},
};

/// Learns the hostPorts of pods whose ADD did not say them.
pub(crate) fn adopt(pods: &Pods) {
    let unknown: Vec<Attachment> = {
        let store = pods.local.store();
        let all = store.iter().filter(|e| e.host_ports.is_none());
        all.map(|e| e.attachment.clone()).collect()
    };
    for attachment in unknown {
        // An ADD under way has no result yet.
        let Some(kept) = results::of(&pods.options.cni_results, &attachment) else {
            continue;
        };
        let ports = kept.host_ports;
        if ports.is_empty() {
            pods.local.store().set_host_ports(&attachment, ports);
            continue;
        }
        // First, since it is looked at only while the record does not know them.
        let noted = note(&pods.options.socket, &attachment, &ports).and_then(|()| {
            pods.local.store().set_host_ports(&attachment, ports);
            pods.local.persist(&attachment)
        });
        match noted {
            Ok(()) => tracing::info!(
                pod = format!("{}/{}", kept.namespace, kept.pod_name),
                "its hostPorts are in veer's own table now"
            ),
            Err(error) => tracing::error!(%error, "cannot record the rules that portmap made"),
        }
    }
}

/// Leaves the input of portmap's DEL for veer-cni, beside the agent's socket.
fn note(socket: &Path, attachment: &Attachment, ports: &[HostPort]) -> std::io::Result<()> {
    let folder = Path::new(PORTMAP_RULES).file_name();
    let folder = socket.with_file_name(folder.unwrap_or_default());
    std::fs::create_dir_all(&folder)?;
    let mappings: Vec<_> = ports
        .iter()
        .map(|port| {
            json!({
                "hostPort": port.host_port, "containerPort": port.container_port,
                "protocol": port.protocol, "hostIP": port.host_ip,
            })
        })
        .collect();
    let input = json!({
        "cniVersion": "1.0.0", "name": NETWORK, "type": "portmap", "snat": true,
        "runtimeConfig": {"portMappings": mappings},
    });
    file::write(
        &folder.join(attachment.file_name()),
        &serde_json::to_vec(&input)?,
    )
}
