//! The cache of the runtime's CNI library for each sandbox: the arguments and the
//! result of its ADD, one file each until its DEL has succeeded (libcni, "cached
//! result"). Read-only, and only where the agent's own record is missing or does
//! not say all.

use std::{collections::HashMap, fs, net::IpAddr, path::Path};

use serde::Deserialize;
use serde_json::Value;
use veer_agent_api::{Attachment, host_port};

use veer_agent_core::endpoint::{Kept, device_digits};

/// The network's name in veer's configuration.
pub(crate) const NETWORK: &str = "veer";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    container_id: String,
    if_name: String,
    network_name: String,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    capability_args: Value,
    #[serde(default)]
    result: Option<AddResult>,
}

#[derive(Default, Deserialize)]
struct AddResult {
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    gateway: Option<IpAddr>,
}

/// All of veer's, by the digits in the name of the host side of the sandbox's veth. Files that
/// cannot be read are none.
pub(crate) fn read(folder: &Path) -> HashMap<String, Kept> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| parse(&fs::read(entry.ok()?.path()).ok()?))
        .map(|kept| (device_digits(&kept.attachment), kept))
        .collect()
}

/// That of one interface; `None` where there is none that can be read.
pub(crate) fn of(folder: &Path, attachment: &Attachment) -> Option<Kept> {
    let Attachment {
        container_id,
        ifname,
    } = attachment;
    let bytes = fs::read(folder.join(format!("{NETWORK}-{container_id}-{ifname}"))).ok()?;
    parse(&bytes).filter(|kept| kept.attachment == *attachment)
}

fn parse(bytes: &[u8]) -> Option<Kept> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    if file.network_name != NETWORK {
        return None;
    }
    let arg = |name: &str| {
        let mut args = file.cni_args.iter();
        args.find(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .unwrap_or_default()
    };
    let ips = file.result.map(|result| result.ips).unwrap_or_default();
    Some(Kept {
        namespace: arg("K8S_POD_NAMESPACE"),
        pod_name: arg("K8S_POD_NAME"),
        pod_uid: arg("K8S_POD_UID"),
        addresses: ips
            .iter()
            .filter_map(|ip| Some((ip.address.split('/').next()?.parse().ok()?, ip.gateway)))
            .collect(),
        host_ports: file
            .capability_args
            .get("portMappings")
            .and_then(|mappings| host_port::parse(mappings).ok())
            .unwrap_or_default(),
        attachment: Attachment {
            container_id: file.container_id,
            ifname: file.if_name,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: &str = r#"{"kind":"cniCacheV1","containerId":"ab12","config":"e30=","ifName":"eth0",
        "networkName":"veer","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],
        ["K8S_POD_NAME","cart-0"],["K8S_POD_UID","u-1"]],"capabilityArgs":{"dns":{},
        "portMappings":[{"HostPort":8088,"ContainerPort":8080,"Protocol":"tcp","HostIP":""}]},
        "result":{"cniVersion":"1.0.0","ips":[{"address":"10.0.1.7/32","gateway":"10.0.1.1",
        "interface":1},{"address":"fd00::7/128","gateway":"fd00::1","interface":1}]}}"#;

    #[test]
    fn what_the_runtime_keeps_names_the_pod_and_its_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let other = KEPT.replace(r#""veer""#, r#""bridge""#);
        for (name, content) in [
            ("veer-ab12-eth0", KEPT),
            ("bridge-ab12-eth0", other.as_str()),
            ("veer-cd34-eth0", "{"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let found = read(folder.path());
        assert_eq!(found.len(), 1);
        let kept = found.values().next().unwrap();
        assert_eq!(
            (
                kept.namespace.as_str(),
                kept.pod_name.as_str(),
                kept.pod_uid.as_str()
            ),
            ("shop", "cart-0", "u-1")
        );
        let both = [("10.0.1.7", "10.0.1.1"), ("fd00::7", "fd00::1")];
        let both = both.map(|(a, g)| (a.parse().unwrap(), Some(g.parse().unwrap())));
        assert_eq!(kept.addresses, both);
        assert_eq!(kept.host_ports[0].to_string(), "tcp/8088");
        assert_eq!(of(folder.path(), &kept.attachment).as_ref(), Some(kept));
        assert!(found.contains_key(&device_digits(&kept.attachment)));
        assert!(read(Path::new("/does/not/exist")).is_empty());
    }
}
