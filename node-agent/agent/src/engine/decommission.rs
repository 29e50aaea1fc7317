//! The clean-up of a node that veer leaves.

use veer_agent_kernel::{
    error::netlink,
    netlink::{
        VXLAN, is_host_veth, link,
        message::Socket,
        route::{self, PROTOCOL},
    },
    stack::PodMtus,
};

use super::{Error, converge::Converger};
use crate::shared::Shared;

impl Converger {
    /// Detaches and removes everything of veer. Pods keep running without a
    /// network until they are deleted.
    pub(super) fn decommission_node(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        shared
            .datapath()
            .remove_pins()
            .map_err(netlink("remove pins"))?;
        self.attachments.remove(&self.facts);
        self.nft
            .remove()
            .map_err(netlink("remove the nftables table"))?;
        self.forward
            .remove()
            .map_err(netlink("take rules out of others' chains"))?;
        for (protocol, route) in route::list(&mut socket).map_err(netlink("list routes"))? {
            if protocol == PROTOCOL {
                route::delete(&mut socket, &route).map_err(netlink("remove a route"))?;
            }
        }
        link::delete(&mut socket, VXLAN).map_err(netlink("remove veer_vxlan"))?;
        for device in link::list(&mut socket).map_err(netlink("list links"))? {
            if is_host_veth(&device.name) {
                link::delete(&mut socket, &device.name).map_err(netlink("remove a veth"))?;
            }
        }
        self.host.restore().map_err(netlink("restore sysctls"))?;
        self.vxlan.forget();
        self.health
            .remove(
                &mut socket,
                &shared.store().health_addresses().collect::<Vec<_>>(),
            )
            .map_err(netlink("take the health address off lo"))?;
        self.pod_mtus = PodMtus::default();
        self.present.clear();
        self.switch.applied = None;
        Ok(())
    }
}
