//! Rebuilds the record of a wired pod from the other traces of it: the kernel's
//! devices and namespaces, the maps, the results that the runtime's CNI library keeps.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_agent_api::{Attachment, HostPort};
use veer_bpf_common::{device::IfIndex, identity::Identity, tables::Interface as InterfaceValue};

use super::{LocalEndpoint, PodAddress, gateway_of};
use crate::{
    family::Family,
    link::{Link, Mac},
};

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
    pub index: IfIndex,
    /// Interface index of the other end, where that is; `None`: it is gone.
    pub peer: Option<IfIndex>,
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
    /// The addresses that it got, with their gateways, in the result's order.
    pub addresses: Vec<(IpAddr, Option<IpAddr>)>,
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
    /// The node's blocks, the primary family's first.
    pub blocks: &'a [IpNet],
}

impl Evidence<'_> {
    /// Whether the two ends are of one veth. Interface indexes repeat from
    /// namespace to namespace, so both must fit, and the MAC where it is known.
    pub fn fits(&self) -> bool {
        let ends = self.pod.peer == Some(self.host.index) && Some(self.pod.index) == self.host.peer;
        ends && self.row().is_none_or(|row| row.mac == self.pod.mac)
    }

    /// The row, if it is of this device and not of one that had its index before.
    fn row(&self) -> Option<InterfaceValue> {
        self.row.filter(|row| row.node_mac == self.host.mac)
    }

    fn kept(&self) -> &[(IpAddr, Option<IpAddr>)] {
        self.kept.map_or(&[], |kept| &kept.addresses)
    }

    /// What the first source that names any address says. The pod itself may have given
    /// its device others than veer's.
    fn addresses(&self) -> Vec<IpAddr> {
        let row = self
            .row()
            .map(|row| [IpAddr::from(row.v4), IpAddr::from(row.v6)]);
        let row = row.into_iter().flatten();
        let kept = self.kept().iter().map(|(address, _)| *address);
        let pod = || self.pod.addresses.iter().copied();
        let in_block = self
            .blocks
            .iter()
            .filter_map(|b| pod().find(|a| b.contains(a)));
        let mut sources = [
            row.filter(|a| !a.is_unspecified()).collect(),
            kept.collect(),
            in_block.collect(),
            Vec::from_iter(pod().find(IpAddr::is_ipv4).or_else(|| pod().next())),
        ];
        let named = sources.iter_mut().find(|source| !source.is_empty());
        named.map(std::mem::take).unwrap_or_default()
    }

    /// The gateway of an address: what it was told, else the one it uses, else the
    /// block's.
    fn gateway(&self, address: IpAddr) -> Option<IpAddr> {
        let told = self.kept().iter().find(|(kept, _)| *kept == address);
        let used = self.pod.gateways.iter().copied();
        let blocks = self.blocks.iter().filter_map(gateway_of);
        let same_family = |gateway: &IpAddr| Family::of(address).has(*gateway);
        told.and_then(|(_, gateway)| *gateway)
            .or_else(|| used.chain(blocks).find(same_family))
    }

    /// The addresses with their gateways, the primary one first: that of the result, else
    /// that of the first block's family.
    fn pod_addresses(&self) -> impl Iterator<Item = PodAddress> {
        let mut addresses = self.addresses();
        let primary = self.kept().first().map(|(address, _)| *address);
        let primary = primary.or(self.blocks.first().map(IpNet::addr));
        addresses.sort_by_key(|a| primary.is_some_and(|p| !Family::of(p).has(*a)));
        addresses.into_iter().filter_map(|address| {
            let gateway = self.gateway(address)?;
            Some(PodAddress { address, gateway })
        })
    }

    /// The record; `None` when nothing tells an address: then the device was
    /// never a pod's. Number and serial are 0 where they are not known.
    pub fn rebuild(&self) -> Option<LocalEndpoint> {
        let mut addresses = self.pod_addresses();
        let PodAddress { address, gateway } = addresses.next()?;
        let second = addresses.find(|a| !Family::of(address).has(a.address));
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
            second,
            endpoint_id: row.map_or(0, |row| row.endpoint_id),
            serial: 0,
            identity: row
                .and_then(|row| Identity::new(row.identity))
                .unwrap_or(Identity::INIT),
            host_ifname: self.host.name.clone(),
            ifindex: Some(self.host.index),
            mac: self.pod.mac,
            node_mac: self.host.mac,
            host_ports: kept.map(|k| k.host_ports.clone()),
        })
    }
}

impl LocalEndpoint {
    /// Adds the address of the other family, where an object of the pod names both and that
    /// one is of a block of the node.
    pub fn complete(&mut self, named: &[IpAddr], blocks: &[IpNet]) {
        if self.second.is_some() || !named.contains(&self.address) {
            return;
        }
        let (address, gateway) = (self.address, self.gateway);
        let found = named.iter().find_map(|other| {
            let block = blocks.iter().find(|block| block.contains(other))?;
            let gateway = gateway_of(block)?;
            (!Family::of(address).has(*other)).then_some(PodAddress {
                address: *other,
                gateway,
            })
        });
        let Some(other) = found else {
            return;
        };
        if named.first() == Some(&other.address) {
            (self.address, self.gateway) = (other.address, other.gateway);
            self.second = Some(PodAddress { address, gateway });
        } else {
            self.second = Some(other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::{host_ifname, mac};
    use std::net::Ipv4Addr;
    use veer_agent_api::{HostPort, host_port::Protocol};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// The blocks of a node, the primary family's first.
    fn blocks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|b| b.parse().unwrap()).collect()
    }

    const BOTH: [&str; 2] = ["10.0.1.0/24", "fd00::/64"];

    fn all(record: &LocalEndpoint) -> Vec<(IpAddr, IpAddr)> {
        let all = record.addresses();
        all.map(|a| (a.address, a.gateway)).collect()
    }

    fn v4() -> (IpAddr, IpAddr) {
        (ip("10.0.1.7"), ip("10.0.1.1"))
    }

    fn v6() -> (IpAddr, IpAddr) {
        (ip("fd00::7"), ip("fd00::1"))
    }

    fn attachment() -> Attachment {
        Attachment {
            container_id: "ab12".into(),
            ifname: "eth0".into(),
        }
    }

    fn host() -> Link {
        Link {
            peer: IfIndex::new(2),
            name: host_ifname(&attachment()),
            mac: mac(&attachment(), true),
            kind: "veth".into(),
            up: true,
            ..Link::new(IfIndex::from_kernel(17))
        }
    }

    fn pod() -> PodEnd {
        PodEnd {
            netns: "/run/netns/cni-1".into(),
            inode: 4_026_532_000,
            ifname: "eth0".into(),
            index: IfIndex::from_kernel(2),
            peer: IfIndex::new(17),
            mac: mac(&attachment(), false),
            addresses: ["10.0.1.7", "fd00::7"].map(ip).to_vec(),
            gateways: ["10.0.1.1", "fd00::1"].map(ip).to_vec(),
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
            v6: "fd00::7".parse::<std::net::Ipv6Addr>().unwrap().octets(),
        }
    }

    fn kept() -> Kept {
        Kept {
            attachment: attachment(),
            namespace: "shop".into(),
            pod_name: "cart-0".into(),
            pod_uid: "u-1".into(),
            addresses: vec![
                (ip("10.0.1.7"), Some(ip("10.0.1.1"))),
                (ip("fd00::7"), Some(ip("fd00::1"))),
            ],
            host_ports: vec![host_port()],
        }
    }

    fn host_port() -> HostPort {
        HostPort {
            protocol: Protocol::Tcp,
            host_ip: Ipv4Addr::UNSPECIFIED.into(),
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
            blocks: &[],
        };
        assert!(evidence.fits());
        let record = evidence.rebuild().unwrap();
        assert_eq!(record.attachment, attachment());
        assert_eq!(record.pod(), "shop/cart-0");
        assert_eq!(record.endpoint_value().identity, 4711);
        assert_eq!(record.interface_value(), row());
        assert_eq!(record.netns_inode, pod.inode);
        assert_eq!(record.host_ports(), [host_port()]);
        assert_eq!(all(&record), [v4(), v6()]);
    }

    #[test]
    fn the_kernel_alone_tells_enough_to_keep_the_pod_wired() {
        let (host, mut pod) = (host(), pod());
        // What the pod has given itself comes first and is not veer's.
        pod.addresses.insert(0, ip("198.51.100.7"));
        pod.addresses.insert(0, ip("2001:db8::7"));
        for (own, expected) in [
            (&BOTH[..], vec![v4(), v6()]),
            (&["fd00::/64", "10.0.1.0/24"], vec![v6(), v4()]),
            (&BOTH[..1], vec![v4()]),
            (&BOTH[1..], vec![v6()]),
            (&[], vec![(ip("198.51.100.7"), v4().1)]),
        ] {
            let record = Evidence {
                host: &host,
                pod: &pod,
                row: None,
                kept: None,
                blocks: &blocks(own),
            }
            .rebuild()
            .unwrap();
            assert_eq!(all(&record), expected);
            assert_eq!(record.identity, Identity::INIT);
            assert!(record.is_nameless());
            assert!(record.attachment.container_id.starts_with(NAMELESS));
        }
    }

    #[test]
    fn a_pod_of_ipv6_alone_is_kept_while_the_nodes_block_is_not_known() {
        let (host, mut pod) = (host(), pod());
        pod.addresses.retain(IpAddr::is_ipv6);
        let record = Evidence {
            host: &host,
            pod: &pod,
            row: None,
            kept: None,
            blocks: &[],
        }
        .rebuild()
        .unwrap();
        assert_eq!(all(&record), [v6()]);
    }

    #[test]
    fn a_pod_that_took_its_own_addresses_and_routes_off_is_still_a_pod() {
        let (host, mut pod) = (host(), pod());
        pod.addresses.clear();
        pod.gateways.clear();
        let of_one_family = InterfaceValue {
            v6: [0; 16],
            ..row()
        };
        for (row, own, expected) in [
            (row(), BOTH, vec![v4(), v6()]),
            (row(), [BOTH[1], BOTH[0]], vec![v6(), v4()]),
            (of_one_family, BOTH, vec![v4()]),
        ] {
            let record = Evidence {
                host: &host,
                pod: &pod,
                row: Some(row),
                kept: None,
                blocks: &blocks(&own),
            }
            .rebuild()
            .unwrap();
            assert_eq!(all(&record), expected);
            assert_eq!(record.interface_value(), row);
        }
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
            blocks: &blocks(&BOTH),
        };
        assert!(evidence.fits());
        assert_eq!(evidence.rebuild(), None);
    }

    #[test]
    fn an_object_of_the_pod_names_the_address_that_nothing_else_does() {
        let (host, mut pod) = (host(), pod());
        pod.addresses.truncate(1);
        let mut record = Evidence {
            host: &host,
            pod: &pod,
            row: None,
            kept: None,
            blocks: &blocks(&BOTH),
        }
        .rebuild()
        .unwrap();
        let (a, b) = (v4().0, v6().0);
        for strange in [vec![b], vec![a], vec![a, ip("2001:db8::7")]] {
            record.complete(&strange, &blocks(&BOTH));
            record.complete(&[a, b], &blocks(&BOTH[..1]));
            assert_eq!(all(&record), [v4()]);
        }
        for (named, expected) in [([a, b], [v4(), v6()]), ([b, a], [v6(), v4()])] {
            let mut record = record.clone();
            record.complete(&named, &blocks(&BOTH));
            assert_eq!(all(&record), expected);
        }
    }

    #[test]
    fn an_index_that_repeats_in_another_namespace_does_not_fit() {
        let host = host();
        let other = PodEnd {
            index: IfIndex::from_kernel(3),
            ..pod()
        };
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
                blocks: &[],
            };
            assert!(!evidence.fits());
        }
    }
}
