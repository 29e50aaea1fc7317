//! Pods wired on this node: their records on disk and the addresses they hold.
//!
//! Invariants: an address is handed out once at a time; a record is on disk
//! before ADD answers, and is off it before its address is handed out again; a
//! record without a pod is removed by DEL or collection, never by the loss of a
//! list, and the loss of a record removes no pod (`rebuild`).

mod pool;
mod rebuild;
mod store;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use veer_agent_api::{Attachment, HostPort};
use veer_bpf_common::{
    address::IpKey,
    device::IfIndex,
    identity::Identity,
    tables::{Endpoint as EndpointValue, Interface as InterfaceValue},
};
use veer_crds::labels::fnv1a;

pub use pool::{Claims, Pool, gateway_of};
pub use rebuild::{Evidence, Kept, PodEnd};
pub use store::{Reservation, Store, StoreError};

use crate::link::{HOST_VETH, Mac, host_veth_digits};

/// One address of a pod, with the next hop of its routes.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, Hash)]
pub struct PodAddress {
    /// The address.
    pub address: IpAddr,
    /// The gateway, of the same family.
    pub gateway: IpAddr,
}

/// A wired pod, as the record on disk holds it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct LocalEndpoint {
    /// Which interface of which sandbox.
    #[serde(flatten)]
    pub attachment: Attachment,
    /// Path of the sandbox's network namespace.
    pub netns: String,
    /// Its inode: the path alone comes back for another namespace.
    pub netns_inode: u64,
    /// The pod.
    pub namespace: String,
    /// The pod.
    pub pod_name: String,
    /// UID as the kubelet gave it; a static pod's is its config hash.
    pub pod_uid: String,
    /// UID of the API object, where that is another one (static pods).
    #[serde(default)]
    pub object_uid: Option<String>,
    /// Its address; of two the one in its node's primary family of pods.
    pub address: IpAddr,
    /// The gateway of that.
    pub gateway: IpAddr,
    /// The address in the other family, if the node had a block there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<PodAddress>,
    /// Its number on this node.
    pub endpoint_id: u16,
    /// Rises with every allocation on this node.
    pub serial: i64,
    /// Its security identity.
    #[serde(with = "identity_number")]
    pub identity: Identity,
    /// Host side of its veth.
    pub host_ifname: String,
    /// Interface index of that; `None`, on disk 0: not known, so there is no such device.
    #[serde(with = "ifindex_number")]
    pub ifindex: Option<IfIndex>,
    /// MAC of its eth0.
    pub mac: Mac,
    /// MAC of the host side.
    pub node_mac: Mac,
    /// Ports of the node that lead to it; `None`: not known yet, and asked of what
    /// the runtime's CNI library keeps (`pods::portmap` of the agent). On disk the record of a pod
    /// without any is the same, whether that is known or not.
    #[serde(default, skip_serializing_if = "none_known")]
    pub host_ports: Option<Vec<HostPort>>,
}

/// An identity as its number on disk; illegal numbers make a record unreadable.
mod identity_number {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use veer_bpf_common::identity::Identity;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes the field")]
    pub(super) fn serialize<S: Serializer>(id: &Identity, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(id.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Identity, D::Error> {
        let number = u32::deserialize(from)?;
        Identity::new(number).ok_or_else(|| D::Error::custom("no identity has this number"))
    }
}

/// An interface index as its number on disk; 0: none.
mod ifindex_number {
    use serde::{Deserialize, Deserializer, Serializer};
    use veer_bpf_common::device::IfIndex;

    #[expect(
        clippy::ref_option,
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes the field"
    )]
    pub(super) fn serialize<S: Serializer>(
        index: &Option<IfIndex>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_u32(index.map_or(0, IfIndex::get))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<IfIndex>, D::Error> {
        u32::deserialize(from).map(IfIndex::new)
    }
}

/// Whether there is no port to keep.
#[expect(clippy::ref_option, reason = "serde passes the field")]
fn none_known(ports: &Option<Vec<HostPort>>) -> bool {
    ports.as_ref().is_none_or(Vec::is_empty)
}

impl LocalEndpoint {
    /// Ports of the node that lead to it, as far as known.
    pub fn host_ports(&self) -> &[HostPort] {
        self.host_ports.as_deref().unwrap_or_default()
    }

    /// Its addresses, the primary first.
    pub fn addresses(&self) -> impl Iterator<Item = PodAddress> + use<> {
        let first = PodAddress {
            address: self.address,
            gateway: self.gateway,
        };
        [first].into_iter().chain(self.second)
    }

    /// Its addresses for people.
    pub fn address_text(&self) -> String {
        let all: Vec<String> = self.addresses().map(|a| a.address.to_string()).collect();
        all.join(" and ")
    }

    /// Whether an address is its.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|a| a.address == address)
    }

    /// `namespace/name` of the pod.
    pub fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.pod_name)
    }

    /// Rebuilt, and whose it is is not known yet.
    pub fn is_nameless(&self) -> bool {
        self.pod_name.is_empty()
    }

    /// Row of the endpoints' map.
    pub fn endpoint_value(&self) -> EndpointValue {
        EndpointValue {
            ifindex: self.ifindex.map_or(0, IfIndex::get),
            identity: self.identity.get(),
            endpoint_id: self.endpoint_id,
            flags: 0,
            mac: self.mac,
            node_mac: self.node_mac,
        }
    }

    /// Row of the interfaces' map.
    pub fn interface_value(&self) -> InterfaceValue {
        let (mut v4, mut v6) = ([0; 4], [0; 16]);
        for PodAddress { address, .. } in self.addresses() {
            match address {
                IpAddr::V4(a) => v4 = a.octets(),
                IpAddr::V6(a) => v6 = a.octets(),
            }
        }
        InterfaceValue {
            identity: self.identity.get(),
            endpoint_id: self.endpoint_id,
            flags: 0,
            mac: self.mac,
            node_mac: self.node_mac,
            v4,
            v6,
        }
    }

    /// Keys of its addresses in the maps.
    pub fn keys(&self) -> impl Iterator<Item = IpKey> + use<> {
        self.addresses().map(|a| IpKey::from(a.address))
    }

    /// Whether its own number is still unknown.
    pub fn is_init(&self) -> bool {
        self.identity == Identity::INIT
    }
}

/// 64 bits that follow from a sandbox's interface (FNV-1a).
fn seed(attachment: &Attachment, salt: u8) -> u64 {
    let (container, interface) = (&attachment.container_id, &attachment.ifname);
    let ends = container.bytes().chain([0]).chain(interface.bytes());
    fnv1a(ends.chain([0, salt]))
}

/// The digits in the name of the host side of a sandbox's veth.
pub fn device_digits(attachment: &Attachment) -> String {
    format!("{:09x}", seed(attachment, 0) & 0xf_ffff_ffff)
}

/// Its name as earlier releases had it.
pub fn former_ifname(attachment: &Attachment) -> String {
    format!("veer{:010x}", seed(attachment, 0) & 0xff_ffff_ffff)
}

/// Name of the host side of a sandbox's veth.
pub fn host_ifname(attachment: &Attachment) -> String {
    format!("{HOST_VETH}{}", device_digits(attachment))
}

/// Whether a device is the host side of a sandbox's veth, whichever release made it.
pub fn is_device_of(name: &str, attachment: &Attachment) -> bool {
    host_veth_digits(name).is_some_and(|digits| digits == device_digits(attachment))
}

/// A MAC for one end of a sandbox's veth: locally administered, unicast.
pub fn mac(attachment: &Attachment, host_side: bool) -> Mac {
    let s = seed(attachment, if host_side { 1 } else { 2 }).to_be_bytes();
    [(s[2] & 0xfe) | 0x02, s[3], s[4], s[5], s[6], s[7]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_macs_differ_by_sandbox_and_side() {
        let one = Attachment {
            container_id: "a".into(),
            ifname: "eth0".into(),
        };
        let two = Attachment {
            container_id: "b".into(),
            ifname: "eth0".into(),
        };
        assert_ne!(host_ifname(&one), host_ifname(&two));
        assert!(is_device_of(&host_ifname(&one), &one));
        assert!(!is_device_of(&host_ifname(&one), &two));
        assert_ne!(mac(&one, true), mac(&one, false));
        assert_eq!(mac(&one, true)[0] & 3, 2);
    }

    #[test]
    fn a_record_holds_the_second_address_only_where_there_is_one() {
        let first = serde_json::json!({
            "container_id": "a", "ifname": "eth0", "netns": "", "netns_inode": 0,
            "namespace": "shop", "pod_name": "cart-0", "pod_uid": "u", "object_uid": null,
            "address": "10.0.1.7", "gateway": "10.0.1.1", "endpoint_id": 1, "serial": 1,
            "identity": 5, "host_ifname": "", "ifindex": 3,
            "mac": [0, 0, 0, 0, 0, 0], "node_mac": [0, 0, 0, 0, 0, 0],
        });
        let mut both = first.clone();
        both["second"] = serde_json::json!({"address": "fd00::7", "gateway": "fd00::1"});
        for (json, v6) in [(first, None), (both, Some("fd00::7"))] {
            let record: LocalEndpoint = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::to_value(&record).unwrap(), json);
            let v6: Option<std::net::Ipv6Addr> = v6.map(|a| a.parse().unwrap());
            let row = record.interface_value();
            assert_eq!(row.v4, [10, 0, 1, 7]);
            assert_eq!(row.v6, v6.map_or([0; 16], |a| a.octets()));
            assert_eq!(record.addresses().count(), 1 + usize::from(v6.is_some()));
            assert!(v6.is_none_or(|a| record.has(a.into())));
        }
    }

    #[test]
    fn a_record_holds_the_bare_number_of_its_device_and_0_is_none() {
        let of = |ifindex: serde_json::Value| {
            let mut json = serde_json::json!({
                "container_id": "a", "ifname": "eth0", "netns": "", "netns_inode": 0,
                "namespace": "shop", "pod_name": "cart-0", "pod_uid": "u", "object_uid": null,
                "address": "10.0.1.7", "gateway": "10.0.1.1", "endpoint_id": 1, "serial": 1,
                "identity": 5, "host_ifname": "",
                "mac": [0, 0, 0, 0, 0, 0], "node_mac": [0, 0, 0, 0, 0, 0],
            });
            if !ifindex.is_null() {
                json["ifindex"] = ifindex;
            }
            let record: Result<LocalEndpoint, _> = serde_json::from_value(json.clone());
            (json, record)
        };
        for (number, index) in [
            (0, None),
            (3, IfIndex::new(3)),
            (u32::MAX, IfIndex::new(u32::MAX)),
        ] {
            let (json, record) = of(number.into());
            let record = record.unwrap();
            assert_eq!(record.ifindex, index);
            assert_eq!(record.endpoint_value().ifindex, number);
            assert_eq!(serde_json::to_value(&record).unwrap(), json);
        }
        // As ever: a record always has a number.
        for unreadable in [
            serde_json::Value::Null,
            "3".into(),
            (-1).into(),
            (1_u64 << 32).into(),
        ] {
            assert!(of(unreadable).1.is_err());
        }
    }

    #[test]
    fn a_device_that_an_earlier_release_made_is_its_sandboxes() {
        let sandbox = Attachment {
            container_id: "a".into(),
            ifname: "eth0".into(),
        };
        assert!(is_device_of(&former_ifname(&sandbox), &sandbox));
        // 15 characters are the most; earlier releases know it too.
        assert_eq!(host_ifname(&sandbox).len(), former_ifname(&sandbox).len());
        for foreign in ["veer_vxlan", "veer0123", "veer0123456789a", "eth0", ""] {
            assert!(!crate::link::is_host_veth(foreign), "{foreign}");
        }
    }
}
