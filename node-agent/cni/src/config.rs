//! The network configuration: what the runtime passes of the conflist.
//!
//! Fields that are not veer's are let pass, as the specification asks.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use veer_agent_api::host_port::{self, BadPorts};
use veer_agent_api::{Attachment, CONF_DIR, CONFLIST, HostPort};

use crate::error::Error;

/// The configuration of one call.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    /// CNI version that the result must have.
    #[serde(default)]
    pub(crate) cni_version: String,
    /// Name of the network.
    #[serde(default)]
    pub(crate) name: String,
    /// Directory that stands for `/` in every path of veer on the node, when it is
    /// another.
    root: Option<PathBuf>,
    /// The folder of network configurations, when it is not the usual one.
    conf_dir: Option<String>,
    /// What the runtime says by way of the entry's capabilities. Read by ADD alone,
    /// so that nothing in it fails a DEL.
    #[serde(default, rename = "runtimeConfig")]
    runtime: Value,
    /// Result of the plugin before this one, or (CHECK, DEL) of the whole ADD.
    pub(crate) prev_result: Option<PreviousResult>,
    /// GC: attachments that are still wanted.
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
}

/// The fields of an earlier result that are read.
#[derive(Debug, Deserialize)]
pub(crate) struct PreviousResult {
    #[serde(default)]
    ips: Vec<PreviousAddress>,
}

#[derive(Debug, Deserialize)]
struct PreviousAddress {
    /// `address/prefix length`.
    address: String,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Config {
    /// Parses what came on standard input.
    pub(crate) fn parse(input: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(input).map_err(Error::DecodeConfig)
    }

    /// The place of the absolute `path` on this node.
    pub(crate) fn on_node(&self, path: &str) -> PathBuf {
        match &self.root {
            Some(root) => root.join(path.trim_start_matches('/')),
            None => PathBuf::from(path),
        }
    }

    /// veer's own configuration.
    pub(crate) fn conflist(&self) -> PathBuf {
        let folder = self.conf_dir.as_deref().unwrap_or(CONF_DIR);
        self.on_node(folder).join(CONFLIST)
    }

    /// The attachments to keep. Their absence is an error and not an empty list,
    /// because everything else is removed.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>, Error> {
        let valid = self.valid_attachments.as_ref().ok_or(Error::InvalidConfig(
            "GC without cni.dev/valid-attachments would unwire every pod: the runtime must pass \
             the list",
        ))?;
        Ok(valid
            .iter()
            .map(|one| Attachment {
                container_id: one.container_id.clone(),
                ifname: one.ifname.clone(),
            })
            .collect())
    }

    /// The pod's hostPorts; `None` when the runtime says nothing of them.
    pub(crate) fn host_ports(&self) -> Result<Option<Vec<HostPort>>, BadPorts> {
        let mappings = self.runtime.get("portMappings");
        mappings
            .filter(|mappings| !mappings.is_null())
            .map(host_port::parse)
            .transpose()
    }

    /// Addresses that the result of ADD named; of those that cannot be read none.
    pub(crate) fn previous_addresses(&self) -> Vec<IpAddr> {
        let rows = self.prev_result.iter().flat_map(|result| &result.ips);
        rows.filter_map(|row| row.address.split('/').next()?.parse().ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_collection_without_a_list_is_refused_and_an_empty_list_is_not() {
        let none = Config::parse(br#"{"cniVersion":"1.1.0","name":"veer"}"#).unwrap();
        assert!(matches!(
            none.valid_attachments(),
            Err(Error::InvalidConfig(_))
        ));
        let empty = Config::parse(br#"{"cni.dev/valid-attachments":[]}"#).unwrap();
        assert_eq!(empty.valid_attachments().unwrap(), []);
    }

    #[test]
    fn unknown_fields_pass_and_paths_are_the_nodes_own() {
        let config = Config::parse(br#"{"type":"veer-cni","capabilities":{"x":true}}"#).unwrap();
        assert_eq!(config.on_node("/run/veer"), PathBuf::from("/run/veer"));
        let elsewhere = Config::parse(br#"{"root":"/srv/node"}"#).unwrap();
        assert_eq!(
            elsewhere.on_node("/run/veer"),
            PathBuf::from("/srv/node/run/veer")
        );
        assert_eq!(
            config.conflist(),
            PathBuf::from("/etc/cni/net.d/05-veer.conflist")
        );
        let k3s = Config::parse(br#"{"confDir":"/var/lib/rancher/k3s/agent/etc/cni/net.d"}"#);
        assert_eq!(
            k3s.unwrap().conflist(),
            PathBuf::from("/var/lib/rancher/k3s/agent/etc/cni/net.d/05-veer.conflist")
        );
    }

    #[test]
    fn addresses_of_the_earlier_result_lose_their_prefix_length() {
        let config =
            Config::parse(br#"{"prevResult":{"ips":[{"address":"10.0.1.7/32"},{"address":"?"}]}}"#)
                .unwrap();
        assert_eq!(
            config.previous_addresses(),
            ["10.0.1.7".parse::<IpAddr>().unwrap()]
        );
    }
}
