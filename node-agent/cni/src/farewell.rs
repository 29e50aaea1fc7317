//! The end of an uninstalled veer on a node.
//!
//! A runtime that finds no network configuration refuses to remove sandboxes, so
//! an agent that is decommissioned while there are some leaves the conflist and
//! this plugin behind. The DEL of the last sandbox takes both away, with the
//! directories that the agent could only empty.
//!
//! The runtime's CNI library knows the sandboxes: it keeps the result of each ADD in
//! a separate file until the DEL has succeeded. If there is no such directory,
//! nothing is known and nothing is removed.

use std::fs;
use std::path::Path;

use veer_agent_api::Attachment;

use crate::config::Config;

/// Results that libcni keeps, named `<network>-<container id>-<interface>`.
const RESULTS: &str = "/var/lib/cni/results";
/// Directories of the agent, empty by now.
const DIRECTORIES: [&str; 2] = ["/var/lib/veer", "/run/veer"];

/// Removes what is left of veer if `attachment`, which is being deleted, is the
/// last of its network. Failures are ignored: the sandbox must go.
pub(crate) fn after_last(config: &Config, attachment: &Attachment) {
    let own = format!(
        "{}-{}-{}",
        config.name, attachment.container_id, attachment.ifname
    );
    if !is_last(&config.on_node(RESULTS), &format!("{}-", config.name), &own) {
        return;
    }
    for directory in DIRECTORIES {
        // Fails on purpose when it is not empty.
        let _ = fs::remove_dir(config.on_node(directory));
    }
    if let Ok(plugin) = std::env::current_exe() {
        let _ = fs::remove_file(plugin);
    }
    let _ = fs::remove_file(config.conflist());
}

/// Whether `results` is readable and has no entry of the network but `own`.
fn is_last(results: &Path, network: &str, own: &str) -> bool {
    let Ok(entries) = fs::read_dir(results) else {
        return false;
    };
    for entry in entries {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(network) && name != own {
            return false;
        }
    }
    true
}
