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

use veer_api_client::chain;

use super::{Engine, converge::Converger, error::Error};
use crate::pods::gc;
use veer_agent_core::checkpoint::Checkpoint;

impl Converger {
    /// Detaches and removes everything of veer. Pods keep running without a
    /// network until they are deleted.
    pub(super) fn decommission_node(&mut self) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        self.datapath
            .lock()
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
        let health: Vec<_> = self.local.store().health_addresses().collect();
        self.health
            .remove(&mut socket, &health)
            .map_err(netlink("take the health address off lo"))?;
        self.pod_mtus = PodMtus::default();
        self.present.clear();
        self.switch.applied = None;
        Ok(())
    }
}

impl Engine {
    /// The node is wanted again: maps and folders that a start makes are gone, so
    /// the kubelet is to start the agent again.
    pub(super) fn start_again(&mut self) {
        let held = Checkpoint {
            decommissioned: false,
            ..self.held.get().clone()
        };
        match self.held.set(held) {
            Ok(()) => {
                tracing::info!("the node is wanted again: ending, to start from the beginning");
                self.ending = true;
            }
            Err(error) => tracing::error!(%error, "cannot record that the node is wanted again"),
        }
    }

    /// Removes everything of veer from the node, once the operator says so.
    pub(super) fn decommission(&mut self) {
        {
            let mut plan = self.plan.write();
            plan.decommission = true;
            plan.not_ready = "veer is being removed from this node".into();
        }
        let outcome = self.converger.decommission_node();
        let done = outcome.is_ok();
        if let Err(error) = outcome {
            tracing::error!(error = %chain(&error), "clean-up is not complete; trying again");
        }
        let held = Checkpoint {
            decommissioned: done,
            ..self.held.get().clone()
        };
        if let Err(error) = self.held.set(held) {
            tracing::error!(%error, "cannot record the clean-up");
        }
        self.files.leave();
        gc::collect_the_last(&self.pods);
        self.converger.decommissioned = done;
        self.report();
    }
}
