//! Rebuilds the record of a wired pod from the other traces of it: the kernel's
//! devices and namespaces, the maps, the results that the runtime's CNI library keeps.

use std::net::IpAddr;

use veer_agent_api::{Attachment, HostPort};
use veer_bpf_common::{identity::Identity, tables::Interface as InterfaceValue};

use super::LocalEndpoint;
use crate::link::{Link, Mac};

/// Begins the container id of a record whose sandbox has no known one. Its DEL
/// finds it by the device all the same.
const NAMELESS: &str = "rebuilt-";

/// The pod's end of a veth, in its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// Path of the namespace.
    pub netns: String,
    /// Its inode.
    pub inode: u64,
    /// Name.
    pub ifname: String,
    /// Interface index there.
    pub index: u32,
    /// Interface index of the other end, where that is.
    pub peer: u32,
    /// MAC.
    pub mac: Mac,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Next hops of the default routes over it.
    pub gateways: Vec<IpAddr>,
}

/// An ADD that succeeded, as the runtime's CNI library keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which interface of which sandbox.
    pub attachment: Attachment,
    /// The pod.
    pub namespace: String,
    /// The pod.
    pub pod_name: String,
    /// UID as the kubelet gave it.
    pub pod_uid: String,
    /// The address that it got.
    pub address: Option<IpAddr>,
    /// Its gateway.
    pub gateway: Option<IpAddr>,
    /// Its hostPorts, whichever plugin made them.
    pub host_ports: Vec<HostPort>,
}

/// What is known of one host-side device that no record knows.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The device.
    pub host: &'a Link,
    /// Its other end.
    pub pod: &'a PodEnd,
    /// Its row in the interfaces' map.
    pub row: Option<InterfaceValue>,
    /// What the runtime's CNI library keeps.
    pub kept: Option<&'a Kept>,
    /// The gateway of the node's block.
    pub gateway: Option<IpAddr>,
}

impl Evidence<'_> {
    /// Whether the two ends are of one veth. Interface indexes repeat from
    /// namespace to namespace, so both must fit, and the MAC where it is known.
    pub fn fits(&self) -> bool {
        let ends = self.pod.peer == self.host.index && self.pod.index == self.host.peer;
        ends && self.row().is_none_or(|row| row.mac == self.pod.mac)
    }

    /// The row, if it is of this device and not of one that had its index before.
    fn row(&self) -> Option<InterfaceValue> {
        self.row.filter(|row| row.node_mac == self.host.mac)
    }

    fn address(&self) -> Option<IpAddr> {
        let row = self
            .row()
            .map(|row| IpAddr::from(row.v4))
            .filter(|a| !a.is_unspecified());
        row.or_else(|| self.kept?.address)
            .or_else(|| self.pod.addresses.iter().copied().find(IpAddr::is_ipv4))
    }

    /// The record; `None` when nothing tells an address: then the device was
    /// never a pod's. Number and serial are 0 where they are not known.
    pub fn rebuild(&self) -> Option<LocalEndpoint> {
        let address = self.address()?;
        let gateway = self
            .kept
            .and_then(|kept| kept.gateway)
            .or_else(|| self.pod.gateways.first().copied())
            .or(self.gateway)?;
        let (row, kept) = (self.row(), self.kept);
        Some(LocalEndpoint {
            attachment: kept.map_or_else(
                || Attachment {
                    container_id: format!("{NAMELESS}{}", self.host.name),
                    ifname: self.pod.ifname.clone(),
                },
                |kept| kept.attachment.clone(),
            ),
            netns: self.pod.netns.clone(),
            netns_inode: self.pod.inode,
            namespace: kept.map(|k| k.namespace.clone()).unwrap_or_default(),
            pod_name: kept.map(|k| k.pod_name.clone()).unwrap_or_default(),
            pod_uid: kept.map(|k| k.pod_uid.clone()).unwrap_or_default(),
            object_uid: None,
            address,
            gateway,
            second: None,
            endpoint_id: row.map_or(0, |row| row.endpoint_id),
            serial: 0,
            identity: row
                .and_then(|row| Identity::new(row.identity))
                .unwrap_or(Identity::INIT),
            host_ifname: self.host.name.clone(),
            ifindex: self.host.index,
            mac: self.pod.mac,
            node_mac: self.host.mac,
            host_ports: kept.map(|k| k.host_ports.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{host_ifname, mac};
    use std::net::Ipv4Addr;
    use veer_agent_api::{HostPort, host_port::Protocol};

    fn attachment() -> Attachment {
        Attachment {
            container_id: "ab12".into(),
            ifname: "eth0".into(),
        }
    }

    fn host() -> Link {
        Link {
            index: 17,
            peer: 2,
            name: host_ifname(&attachment()),
            mac: mac(&attachment(), true),
            kind: "veth".into(),
            up: true,
            ..Link::default()
        }
    }

    fn pod() -> PodEnd {
        PodEnd {
            netns: "/run/netns/cni-1".into(),
            inode: 4_026_532_000,
            ifname: "eth0".into(),
            index: 2,
            peer: 17,
            mac: mac(&attachment(), false),
            addresses: vec!["10.0.1.7".parse().unwrap()],
            gateways: vec!["10.0.1.1".parse().unwrap()],
        }
    }

    fn row() -> InterfaceValue {
        InterfaceValue {
            identity: 4711,
            endpoint_id: 9,
            flags: 0,
            mac: mac(&attachment(), false),
            node_mac: mac(&attachment(), true),
            v4: [10, 0, 1, 7],
            v6: [0; 16],
        }
    }

    fn kept() -> Kept {
        Kept {
            attachment: attachment(),
            namespace: "shop".into(),
            pod_name: "cart-0".into(),
            pod_uid: "u-1".into(),
            address: Some("10.0.1.7".parse().unwrap()),
            gateway: Some("10.0.1.1".parse().unwrap()),
            host_ports: vec![host_port()],
        }
    }

    fn host_port() -> HostPort {
        HostPort {
            protocol: Protocol::Tcp,
            host_ip: Ipv4Addr::UNSPECIFIED,
            host_port: 8088.try_into().unwrap(),
            container_port: 8080.try_into().unwrap(),
        }
    }

    #[test]
    fn with_maps_and_the_runtimes_word_the_record_is_what_it_was() {
        let (host, pod, kept) = (host(), pod(), kept());
        let evidence = Evidence {
            host: &host,
            pod: &pod,
            row: Some(row()),
            kept: Some(&kept),
            gateway: None,
        };
        assert!(evidence.fits());
        let record = evidence.rebuild().unwrap();
        assert_eq!(record.attachment, attachment());
        assert_eq!(record.pod(), "shop/cart-0");
        assert_eq!(record.endpoint_value().identity, 4711);
        assert_eq!(record.interface_value(), row());
        assert_eq!(record.netns_inode, pod.inode);
        assert_eq!(record.host_ports(), [host_port()]);
    }

    #[test]
    fn the_kernel_alone_tells_enough_to_keep_the_pod_wired() {
        let (host, pod) = (host(), pod());
        let record = Evidence {
            host: &host,
            pod: &pod,
            row: None,
            kept: None,
            gateway: None,
        }
        .rebuild()
        .unwrap();
        assert_eq!(record.address, pod.addresses[0]);
        assert_eq!(record.gateway, pod.gateways[0]);
        assert_eq!(record.identity, Identity::INIT);
        assert!(record.is_nameless());
        assert!(record.attachment.container_id.starts_with(NAMELESS));
    }

    #[test]
    fn a_pod_that_took_its_own_address_and_route_off_is_still_a_pod() {
        let (host, mut pod) = (host(), pod());
        pod.addresses.clear();
        pod.gateways.clear();
        let gateway = "10.0.1.1".parse().unwrap();
        let record = Evidence {
            host: &host,
            pod: &pod,
            row: Some(row()),
            kept: None,
            gateway: Some(gateway),
        }
        .rebuild()
        .unwrap();
        assert_eq!(record.address, IpAddr::from([10, 0, 1, 7]));
        assert_eq!(record.gateway, gateway);
    }

    #[test]
    fn a_device_without_any_address_was_never_a_pods() {
        let (host, mut pod) = (host(), pod());
        pod.addresses.clear();
        // The row is of a device that had this index before.
        let stale = InterfaceValue {
            node_mac: [2; 6],
            ..row()
        };
        let evidence = Evidence {
            host: &host,
            pod: &pod,
            row: Some(stale),
            kept: None,
            gateway: Some("10.0.1.1".parse().unwrap()),
        };
        assert!(evidence.fits());
        assert_eq!(evidence.rebuild(), None);
    }

    #[test]
    fn an_index_that_repeats_in_another_namespace_does_not_fit() {
        let host = host();
        let other = PodEnd { index: 3, ..pod() };
        let of_another = PodEnd {
            mac: [2; 6],
            ..pod()
        };
        for pod in [&other, &of_another] {
            let evidence = Evidence {
                host: &host,
                pod,
                row: Some(row()),
                kept: None,
                gateway: None,
            };
            assert!(!evidence.fits());
        }
    }
}
