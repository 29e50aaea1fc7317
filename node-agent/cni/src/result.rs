//! The result of ADD in the shape of each CNI version.
//!
//! Input: what the agent did. The pod has a host address, a link route to the
//! node's gateway and a default route by it (REFERENCE A1). `interfaces[0]` is the
//! host side of the veth, `interfaces[1]` the pod's, and every address names the
//! second: portmap finds the pod by that.

use std::net::IpAddr;

use serde::Serialize;
use veer_agent_api::Added;

use crate::version;

/// Index of the pod's interface in `interfaces`.
const POD_INTERFACE: usize = 1;

/// A CNI result.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AddResult {
    cni_version: String,
    interfaces: [Interface; 2],
    ips: Vec<Ip>,
    routes: Vec<Route>,
    dns: Dns,
}

#[derive(Debug, Serialize)]
struct Interface {
    name: String,
    mac: String,
    /// In bytes; since CNI 1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    /// Network namespace; the host's has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
}

#[derive(Debug, Serialize)]
struct Ip {
    /// `4` or `6`; until CNI 1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'static str>,
    /// With the prefix length of a host address.
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    interface: usize,
}

#[derive(Debug, Serialize)]
struct Route {
    dst: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    /// In bytes; since CNI 1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    /// 253 is the link's scope (`rtnetlink(7)`); since CNI 1.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<u8>,
}

/// veer leaves name resolution to the kubelet.
#[derive(Debug, Serialize)]
struct Dns {}

impl AddResult {
    /// The result of ADD for `ifname` in `netns`, in the shape of `cni_version`.
    pub(crate) fn new(cni_version: &str, ifname: &str, netns: &str, added: Added) -> Self {
        let newest = version::has(cni_version, "1.1.0");
        let old = !version::has(cni_version, "1.0.0");
        let gateway = |of: &IpAddr| {
            added
                .gateways
                .iter()
                .find(|gateway| gateway.is_ipv4() == of.is_ipv4())
                .copied()
        };
        let ips = added.addresses.iter().map(|address| Ip {
            version: old.then_some(if address.is_ipv4() { "4" } else { "6" }),
            address: host_prefix(address),
            gateway: gateway(address),
            interface: POD_INTERFACE,
        });
        let routes = added.gateways.iter().flat_map(|gateway| {
            let to_gateway = Route {
                dst: host_prefix(gateway),
                gw: None,
                mtu: None,
                scope: newest.then_some(253),
            };
            let to_all = Route {
                dst: if gateway.is_ipv4() {
                    "0.0.0.0/0"
                } else {
                    "::/0"
                }
                .to_owned(),
                gw: Some(*gateway),
                mtu: newest.then_some(added.mtu),
                scope: None,
            };
            [to_gateway, to_all]
        });
        Self {
            cni_version: cni_version.to_owned(),
            ips: ips.collect(),
            routes: routes.collect(),
            interfaces: [
                Interface {
                    name: added.host_ifname,
                    mac: added.host_mac,
                    mtu: None,
                    sandbox: None,
                },
                Interface {
                    name: ifname.to_owned(),
                    mac: added.container_mac,
                    mtu: newest.then_some(added.mtu),
                    sandbox: Some(netns.to_owned()),
                },
            ],
            dns: Dns {},
        }
    }
}

fn host_prefix(address: &IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn added() -> Added {
        Added {
            addresses: vec!["10.0.1.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            gateways: vec!["10.0.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            host_ifname: "veer0123456789".to_owned(),
            host_mac: "02:00:00:00:00:01".to_owned(),
            container_mac: "02:00:00:00:00:02".to_owned(),
            mtu: 1450,
        }
    }

    fn result(version: &str) -> serde_json::Value {
        serde_json::to_value(AddResult::new(version, "eth0", "/run/netns/a", added())).unwrap()
    }

    #[test]
    fn result_of_1_0_has_neither_mtu_nor_address_version() {
        assert_eq!(
            result("1.0.0"),
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [
                    {"name": "veer0123456789", "mac": "02:00:00:00:00:01"},
                    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/a"},
                ],
                "ips": [
                    {"address": "10.0.1.7/32", "gateway": "10.0.1.1", "interface": 1},
                    {"address": "fd00::7/128", "gateway": "fd00::1", "interface": 1},
                ],
                "routes": [
                    {"dst": "10.0.1.1/32"},
                    {"dst": "0.0.0.0/0", "gw": "10.0.1.1"},
                    {"dst": "fd00::1/128"},
                    {"dst": "::/0", "gw": "fd00::1"},
                ],
                "dns": {},
            })
        );
    }

    #[test]
    fn result_of_1_1_has_the_mtu_on_interface_and_default_route() {
        let result = result("1.1.0");
        assert_eq!(result["interfaces"][1]["mtu"], 1450);
        assert_eq!(
            result["routes"][0],
            json!({"dst": "10.0.1.1/32", "scope": 253})
        );
        assert_eq!(
            result["routes"][1],
            json!({"dst": "0.0.0.0/0", "gw": "10.0.1.1", "mtu": 1450})
        );
    }

    #[test]
    fn result_of_0_4_names_the_version_of_each_address() {
        let result = result("0.4.0");
        assert_eq!(result["ips"][0]["version"], "4");
        assert_eq!(result["ips"][1]["version"], "6");
    }
}
