//! One round of the engine: observe, compare, change. Devices, maps, programs,
//! routes, neighbours, sysctls, nftables.
//!
//! What is in the kernel is read *before* what should be there is worked out:
//! whatever an ADD makes in between is then neither missing nor in the way.

use std::collections::{HashMap, HashSet};

use veer_bpf_common::{
    maps::{ENDPOINTS, INTERFACES, NODES},
    value::Remote,
};
use veer_crds::v1alpha1::Epoch;

use crate::{
    attachments::Attachments,
    datapath::{Datapath, difference, read_all},
    desired::{self, Desired, Facts, Ids, Inputs, Peers, Step},
    engine::Error,
    facts::{self, Wanted},
    held::Held,
    index::Complete,
    netlink::{
        VXLAN, is_host_veth,
        link::{self, Link},
        neighbour, netns, pod,
        route::{self, PROTOCOL, Route},
        sysctl::Sysctls,
        wire::Socket,
    },
    nft,
    shared::Shared,
    status::Report,
};

/// What lives from round to round.
pub(crate) struct Converger {
    ids: Ids,
    /// Entries of the remotes' map as last written.
    present: HashMap<u32, Remote>,
    sysctls: Sysctls,
    attachments: Attachments,
    nft: nft::Table,
    facts: Facts,
    /// MTU that running pods' routes have, in bytes; 0: not known.
    pods_mtu: u32,
    /// The epoch in force.
    applied: Option<Epoch>,
    /// Why the node is not as it should be; empty: it is.
    pub(crate) degraded: String,
    /// Everything of veer is gone from the node.
    pub(crate) decommissioned: bool,
    /// Nothing new is known: what changes now is a repair and counted as one.
    pub(crate) repair: bool,
}

fn netlink(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Netlink { what, source }
}

impl Converger {
    /// Over what is in the maps and on disk.
    pub(crate) fn new(shared: &Shared) -> Result<Self, Error> {
        let present = shared.datapath().maps.used_remotes()?;
        Ok(Self {
            ids: Ids::from_present(&present),
            present,
            sysctls: Sysctls::open(
                &shared.options.proc_sys_net,
                &shared.options.state.join("sysctl.json"),
            ),
            attachments: Attachments::default(),
            nft: nft::Table::default(),
            facts: Facts::default(),
            pods_mtu: 0,
            applied: None,
            degraded: String::new(),
            decommissioned: false,
            repair: false,
        })
    }

    /// One round. With `full` the maps are compared entry by entry.
    pub(crate) fn run(
        &mut self,
        shared: &Shared,
        epoch: Option<&Epoch>,
        full: bool,
    ) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        self.observe(shared, &mut socket)?;
        let underlay = {
            let index = shared.index();
            self.facts
                .underlay_mtu(index.cluster.as_ref().map(|(_, c)| c))
        };
        self.devices(shared, &mut socket, underlay)?;
        let links = link::list(&mut socket).map_err(netlink("list links"))?;
        remove_strays(shared, &mut socket, &links);
        let routes = route::list(&mut socket).map_err(netlink("list routes"))?;
        let neighbours = neighbour::list(&mut socket).map_err(netlink("list neighbours"))?;

        let peers = desired::peers(&shared.index(), &self.facts, &mut self.ids);
        let step = desired::step(epoch, underlay, self.pods_mtu);
        let smaller_first = self.pods_mtu == 0 || step.mtu < self.pods_mtu;
        self.publish_plan(shared, &peers, &step, underlay);

        let wanted = self.desired(shared, &peers, &step);
        if smaller_first {
            self.routes(shared, &mut socket, &routes, &links, &wanted);
            self.pod_mtus(shared, wanted.mtu);
        }
        if full {
            self.maps(shared, &peers, &step)?;
        }
        self.attachments.converge(shared, &links, &self.facts)?;
        if !smaller_first {
            self.routes(shared, &mut socket, &routes, &links, &wanted);
            self.pod_mtus(shared, wanted.mtu);
        }
        self.neighbours(shared, &mut socket, &neighbours, &links);
        self.sysctls(shared)?;
        self.nft
            .converge(shared, &self.facts, &step)
            .map_err(netlink("write the nftables table"))?;
        if full {
            self.applied.clone_from(&step.epoch);
        }
        Ok(())
    }

    fn observe(&mut self, shared: &Shared, socket: &mut Socket) -> Result<(), Error> {
        let (uplinks, direct, peers) = {
            let index = shared.index();
            let cluster = index.cluster.as_ref().map(|(_, c)| c);
            let peers: Vec<_> = index
                .nodes
                .iter()
                .filter(|n| n.name != index.own())
                .filter_map(|n| n.addresses.iter().copied().find(std::net::IpAddr::is_ipv4))
                .collect();
            (
                cluster.map(|c| c.uplinks.clone()).unwrap_or_default(),
                cluster.is_none_or(|c| c.routing.native.auto_direct_node_routes),
                peers,
            )
        };
        self.facts = facts::gather(
            socket,
            Wanted {
                uplinks: &uplinks,
                hint: shared.options.node_ip,
                peers: &peers,
                direct,
            },
            &self.facts,
        )
        .map_err(netlink("read the node's addresses and routes"))?;
        Ok(())
    }

    /// The VXLAN device: made if missing, made again if another's, never down.
    fn devices(
        &mut self,
        shared: &Shared,
        socket: &mut Socket,
        underlay: u32,
    ) -> Result<(), Error> {
        let port = {
            let index = shared.index();
            desired::tunnel_port(index.cluster.as_ref().map(|(_, c)| c))
        };
        let mut found = link::by_name(socket, VXLAN).map_err(netlink("find veer_vxlan"))?;
        if let Some(link) = &found
            && (link.kind != "vxlan" || !link.vxlan_external || link.vxlan_port != port)
        {
            tracing::warn!(?link, "veer_vxlan is not as veer makes it; making it again");
            link::delete(socket, VXLAN).map_err(netlink("remove a foreign veer_vxlan"))?;
            found = None;
        }
        if found.is_none() {
            link::add_vxlan(socket, VXLAN, port, underlay).map_err(netlink(
                "make veer_vxlan (is the kernel module vxlan there, is UDP port free?)",
            ))?;
            self.count(shared, "device", 1);
            found = link::by_name(socket, VXLAN).map_err(netlink("find veer_vxlan"))?;
        }
        let Some(link) = found else {
            return Err(netlink("find veer_vxlan")(
                std::io::ErrorKind::NotFound.into(),
            ));
        };
        if link.mtu != underlay {
            link::set_mtu(socket, link.index, underlay)
                .map_err(netlink("set the MTU of veer_vxlan"))?;
        }
        if !link.noarp {
            link::set_noarp(socket, link.index).map_err(netlink("arp off on veer_vxlan"))?;
        }
        if !link.up {
            link::no_ipv6_autoconf(socket, link.index).map_err(netlink("veer_vxlan"))?;
            link::set_up(socket, link.index).map_err(netlink("set veer_vxlan up"))?;
        }
        self.facts.vxlan_index = link.index;
        Ok(())
    }

    fn count(&self, shared: &Shared, what: &str, times: usize) {
        if self.repair {
            shared.count(what, times);
        }
    }

    fn publish_plan(&self, shared: &Shared, peers: &Peers, step: &Step, underlay: u32) {
        let mut plan = shared.plan_mut();
        plan.facts.clone_from(&self.facts);
        plan.peers.clone_from(peers);
        plan.step.clone_from(step);
        plan.link_mtu = underlay;
    }

    fn desired(&self, shared: &Shared, peers: &Peers, step: &Step) -> Desired {
        let index = shared.index();
        let store = shared.store();
        desired::desired(Inputs {
            index: &index,
            store: &store,
            facts: &self.facts,
            peers,
            step,
            present: &self.present,
        })
    }

    /// Compares and writes all maps. Works the desired state out again under the
    /// lock, so that no ADD or DEL comes between.
    fn maps(&mut self, shared: &Shared, peers: &Peers, step: &Step) -> Result<(), Error> {
        let mut datapath = shared.datapath();
        self.present = datapath.maps.used_remotes()?;
        let (wanted, complete) = {
            let index = shared.index();
            let complete = Complete {
                nodes: index.complete.nodes && peers.all_known,
                ..index.complete
            };
            drop(index);
            (self.desired(shared, peers, step), complete)
        };
        let changes = write_maps(
            &mut datapath,
            &wanted,
            &self.present,
            complete.nodes,
            complete.nodes && complete.endpoints,
        )?;
        self.count(shared, "map entries", changes);
        if complete.nodes {
            self.present.clone_from(&wanted.remotes);
        } else {
            self.present.extend(wanted.remotes);
        }
        Ok(())
    }

    fn routes(
        &self,
        shared: &Shared,
        socket: &mut Socket,
        present: &[(u8, Route)],
        links: &[Link],
        wanted: &Desired,
    ) {
        let complete = wanted.all_known && shared.index().complete.nodes;
        let own: HashSet<&Route> = present
            .iter()
            .filter(|(protocol, _)| *protocol == PROTOCOL)
            .map(|(_, r)| r)
            .collect();
        let want: HashSet<&Route> = wanted.routes.iter().collect();
        let devices: HashSet<u32> = links.iter().map(|l| l.index).collect();
        let mut changed = 0;
        for route in want.difference(&own) {
            if route.index != 0 && !devices.contains(&route.index) {
                continue;
            }
            match route::replace(socket, route) {
                Ok(()) => changed += 1,
                Err(error) => {
                    tracing::warn!(to = %route.destination, %error, "cannot write a route");
                }
            }
        }
        let destinations: HashSet<_> = want.iter().map(|r| r.destination).collect();
        for route in own {
            // One that only differs was replaced above.
            let gone = !destinations.contains(&route.destination);
            let remote = route.gateway.is_some();
            if gone && (complete || !remote) {
                match route::delete(socket, route) {
                    Ok(()) => changed += 1,
                    Err(error) => {
                        tracing::warn!(to = %route.destination, %error, "cannot remove a route");
                    }
                }
            }
        }
        self.count(shared, "routes", changed);
    }

    /// Running pods' default routes.
    fn pod_mtus(&mut self, shared: &Shared, mtu: u32) {
        if self.pods_mtu == mtu {
            return;
        }
        let endpoints: Vec<_> = shared.store().iter().cloned().collect();
        for e in endpoints {
            let result = netns::open(&e.netns)
                .and_then(|n| pod::set_route_mtu(&n, &e.attachment.ifname, e.gateway, mtu));
            if let Err(error) = result {
                tracing::warn!(pod = e.pod(), %error, "cannot set the MTU of the pod's route");
            }
        }
        self.pods_mtu = mtu;
    }

    fn neighbours(
        &self,
        shared: &Shared,
        socket: &mut Socket,
        present: &[(u32, std::net::IpAddr, link::Mac)],
        links: &[Link],
    ) {
        let devices: HashSet<u32> = links.iter().map(|l| l.index).collect();
        let present: HashSet<_> = present.iter().copied().collect();
        let adding = shared.adding().clone();
        let missing: Vec<_> = shared
            .store()
            .iter()
            .filter(|e| !adding.contains(&e.host_ifname))
            .map(|e| (e.ifindex, e.address, e.mac))
            .filter(|n| devices.contains(&n.0) && !present.contains(n))
            .collect();
        for (index, address, mac) in &missing {
            if let Err(error) = neighbour::replace(socket, *index, *address, *mac) {
                tracing::warn!(%address, %error, "cannot write a neighbour entry");
            }
        }
        self.count(shared, "neighbours", missing.len());
    }

    fn sysctls(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut changed = 0;
        let mut set = |key: &str, value: &str, what| {
            self.sysctls
                .set(key, value, true)
                .map(|c| changed += usize::from(c))
                .map_err(netlink(what))
        };
        set("ipv4/ip_forward", "1", "set net.ipv4.ip_forward")?;
        let loose = |name: &str| format!("ipv4/conf/{name}/rp_filter");
        set(&loose(VXLAN), "2", "set rp_filter of veer_vxlan")?;
        for uplink in &self.facts.uplinks {
            set(&loose(&uplink.name), "2", "set rp_filter of an uplink")?;
        }
        self.count(shared, "sysctls", changed);
        Ok(())
    }

    /// Detaches and removes everything of veer. Pods keep running without a
    /// network until they are deleted.
    pub(crate) fn decommission(&mut self, shared: &Shared) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        shared
            .datapath()
            .remove_pins()
            .map_err(netlink("remove pins"))?;
        self.attachments.remove(&self.facts);
        self.nft
            .remove()
            .map_err(netlink("remove the nftables table"))?;
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
        self.sysctls.restore().map_err(netlink("restore sysctls"))?;
        self.pods_mtu = 0;
        self.applied = None;
        Ok(())
    }

    /// What to report.
    pub(crate) fn report(&self, shared: &Shared, held: &Held) -> Report {
        Report::new(
            shared,
            held,
            &self.facts,
            &self.attachments,
            self.applied.clone(),
            self.pods_mtu,
            &self.degraded,
            self.decommissioned,
        )
    }
}

/// Removes host-side veths that no record and no ADD under way knows: left by
/// an ADD that was killed half-way.
fn remove_strays(shared: &Shared, socket: &mut Socket, links: &[Link]) {
    let known: HashSet<String> = {
        let adding = shared.adding().clone();
        let store = shared.store();
        adding
            .into_iter()
            .chain(store.iter().map(|e| e.host_ifname.clone()))
            .collect()
    };
    let strays = links
        .iter()
        .filter(|l| is_host_veth(&l.name) && !known.contains(&l.name));
    for stray in strays {
        tracing::warn!(
            device = stray.name,
            "removing a veth that belongs to no pod"
        );
        if let Err(error) = link::delete(socket, &stray.name) {
            tracing::warn!(device = stray.name, %error, "cannot remove it");
        }
    }
}

/// Writes the differences. Targets come before what points to them, and go
/// after. Returns how many entries were written or removed.
fn write_maps(
    datapath: &mut Datapath,
    wanted: &Desired,
    present: &HashMap<u32, Remote>,
    nodes_complete: bool,
    rows_complete: bool,
) -> Result<usize, Error> {
    let maps = &mut datapath.maps;
    let mut changes = usize::from(maps.set_config(wanted.config)?);

    let interfaces = read_all(&maps.interfaces, INTERFACES)?;
    let endpoints = read_all(&maps.endpoints, ENDPOINTS)?;
    let remotes = difference(present, &wanted.remotes, nodes_complete);
    let nodes = difference(
        &read_all(&maps.nodes, NODES)?,
        &wanted.nodes,
        nodes_complete,
    );
    let rows = difference(&maps.ipcache_rows()?, &wanted.ipcache, rows_complete);
    let interfaces = difference(&interfaces, &wanted.interfaces, true);
    let endpoints = difference(&endpoints, &wanted.endpoints, true);
    changes += remotes.write.len() + remotes.remove.len();
    changes += nodes.write.len() + nodes.remove.len();
    changes += rows.write.len() + rows.remove.len();
    changes += interfaces.write.len() + interfaces.remove.len();
    changes += endpoints.write.len() + endpoints.remove.len();

    for (id, remote) in remotes.write {
        maps.set_remote(id, remote)?;
    }
    for (address, id) in nodes.write {
        maps.set_node(address, Some(id))?;
    }
    for (index, interface) in interfaces.write {
        maps.set_interface(index, Some(interface))?;
    }
    for (address, endpoint) in endpoints.write {
        maps.set_endpoint(address, Some(endpoint))?;
    }
    for (prefix, entry) in rows.write {
        maps.set_ipcache(prefix, Some(entry))?;
    }
    for prefix in rows.remove {
        maps.set_ipcache(prefix, None)?;
    }
    for address in endpoints.remove {
        maps.set_endpoint(address, None)?;
    }
    for index in interfaces.remove {
        maps.set_interface(index, None)?;
    }
    for address in nodes.remove {
        maps.set_node(address, None)?;
    }
    for id in remotes.remove {
        maps.set_remote(id, Remote::default())?;
    }
    Ok(changes)
}
