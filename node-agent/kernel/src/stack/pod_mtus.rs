//! MTUs of running pods.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use veer_bpf_common::device::IfIndex;

use crate::netlink::{
    link::{self, Link},
    message::Socket,
    netns, pod,
};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    mtu::Mtu,
    repair::{Kind, RoundLog},
};

/// What running pods were given last.
#[derive(Debug, Default)]
pub struct PodMtus {
    /// MTU of their default routes; `None`: not known.
    pub route: Option<Mtu>,
    /// MTU of both ends of their veths; `None`: not known.
    link: Option<Mtu>,
    /// Devices of pods that could not be given these.
    left: HashSet<String>,
}

impl PodMtus {
    /// MTUs of running pods' default routes, and of both ends of their veths. The
    /// host's end is never the smaller one, since what is too large for it is
    /// dropped without a word.
    pub fn converge(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        links: &[Link],
        pods: &[Arc<LocalEndpoint>],
        (link_mtu, route_mtu): (Mtu, Mtu),
    ) {
        let all = (self.link, self.route) != (Some(link_mtu), Some(route_mtu));
        let ends: HashMap<(&str, IfIndex), Option<Mtu>> = links
            .iter()
            .map(|l| ((l.name.as_str(), l.index), l.mtu))
            .collect();
        let mut unseen = HashSet::new();
        let mut endpoints: Vec<(&LocalEndpoint, IfIndex, Option<Mtu>)> = Vec::new();
        for e in pods {
            let device = e.ifindex.map(|index| (e.host_ifname.as_str(), index));
            let Some((device, end)) = device.and_then(|d| Some((d.1, ends.get(&d)?))) else {
                // Its ADD made it after the links were listed.
                unseen.insert(e.host_ifname.clone());
                continue;
            };
            let left = self.left.contains(&e.host_ifname);
            if all || left || *end != Some(link_mtu) {
                endpoints.push((e, device, *end));
            }
        }
        self.left = unseen;
        for (e, device, end) in endpoints {
            let mut host = |when: bool| {
                if when {
                    link::set_mtu(socket, device, link_mtu)
                } else {
                    Ok(())
                }
            };
            let result = host(end < Some(link_mtu)).and_then(|()| {
                let netns = netns::open(&e.netns)?;
                let ifname = &e.attachment.ifname;
                let addresses: Vec<_> = e.addresses().collect();
                pod::set_mtus(&netns, ifname, &addresses, link_mtu, route_mtu)?;
                host(end > Some(link_mtu))
            });
            match result {
                Ok(()) if !all && end != Some(link_mtu) => {
                    let what = format!("the MTU of {} was changed", e.host_ifname);
                    done.repaired(Kind::Device, what);
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(pod = e.pod(), %error, "cannot set the MTUs of the pod");
                    self.left.insert(e.host_ifname.clone());
                }
            }
        }
        self.link = Some(link_mtu);
        self.route = Some(route_mtu);
    }
}
