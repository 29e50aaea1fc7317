//! One round of the engine: observe, compare, change. Devices, maps, programs,
//! routes, neighbours, sysctls, nftables.
//!
//! The kernel's state is read *before* the desired state is computed: objects that
//! an ADD creates in between are then neither missing nor in the way.
//!
//! The index is held for reading all along: only the engine's thread, which this is,
//! writes it. All other locks are held for moments.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use veer_bpf_common::tables::Remote;
use veer_crds::v1alpha1::Epoch;

use super::{error::Error, services::Translation};
use crate::{
    pods::{Pods, local::Local, recover, rewire},
    state::{handles::Writer, options::Options, plan::Plan},
};
use veer_agent_core::{
    checkpoint::Checkpoint,
    desired::{self, Desired, DesiredInputs},
    facts::Facts,
    family::{self, Families, Family},
    index::Index,
    mtu::Mtu,
    peers::{self, Ids, Left, Peers},
    repair::{Kind, RoundLog},
    switch::{Answer, Ask, Now, RoutingStep, Switch},
    tables::Scope,
};
use veer_agent_kernel::{
    attachments::{Attachments, ProgramsWanted},
    clock::monotonic,
    datapath::Datapath,
    error::{self, netlink},
    lock::Lock,
    netlink::{
        link::{self, Link},
        message::Socket,
        neighbour, route,
        sysctl::Sysctls,
    },
    nft,
    observe::{self, FactsWanted},
    stack::{self, Health, Host, PodMtus, Vxlan},
};

/// How long the node's address may be away, for a renewed lease or a recreated
/// uplink, before it counts as lost.
const ADDRESS_AWAY: Duration = Duration::from_millis(1500);

/// Inputs from which other nodes are computed.
#[derive(PartialEq)]
struct Basis {
    generation: u64,
    complete: bool,
    addresses: Vec<IpAddr>,
}

/// State that lives from round to round.
pub(super) struct Converger {
    pub(super) options: Arc<Options>,
    pub(super) datapath: Arc<Lock<Datapath>>,
    pub(super) local: Arc<Local>,
    pods: Arc<Pods>,
    ids: Ids,
    /// Entries of the remotes' map as last written. A pair's form is what it is
    /// here: the map is read for it when the agent starts, and only then.
    pub(super) present: HashMap<u32, Remote>,
    /// The epoch, and what probes found.
    pub(super) switch: Switch,
    pub(super) health: Health,
    pub(super) vxlan: Vxlan,
    pub(super) host: Host,
    pub(super) attachments: Attachments,
    pub(super) nft: nft::Table,
    pub(super) forward: nft::Forward,
    pub(super) facts: Facts,
    peers: Arc<Peers>,
    /// The inputs of `peers`; `None`: not computed yet.
    basis: Option<Basis>,
    /// Since when the address that stands for the node is not there.
    away: Option<Instant>,
    pub(super) pod_mtus: PodMtus,
    strays: recover::Strays,
    pub(super) translation: Translation,
    /// Faults on the node that veer cannot repair but can work with: the reason of
    /// a condition, and a message.
    pub(super) concerns: Vec<(&'static str, String)>,
    /// Why the node is not as it should be; empty: it is.
    pub(super) degraded: String,
    /// The same as the reason of a condition.
    pub(super) degraded_reason: &'static str,
    /// Everything of veer is gone from the node.
    pub(super) decommissioned: bool,
}

impl Converger {
    /// Over what is in the maps and on disk.
    pub(super) fn new(
        options: Arc<Options>,
        datapath: Arc<Lock<Datapath>>,
        local: Arc<Local>,
        pods: Arc<Pods>,
        held: &Checkpoint,
    ) -> Result<Self, Error> {
        let (present, nodes, rows, translation) = {
            let tables = &mut datapath.lock().maps.tables;
            (
                tables.remotes.read()?,
                tables.nodes.read()?,
                tables.ipcache.read()?,
                Translation::open(tables)?,
            )
        };
        Ok(Self {
            ids: Ids::from_present(Left {
                remotes: &present,
                nodes: &nodes,
                rows: &rows,
            }),
            present,
            switch: Switch::new(held.pairs.clone(), held.applied.clone()),
            health: Health::default(),
            vxlan: Vxlan::default(),
            host: Host::new(Sysctls::open(
                &options.proc_sys_net,
                &options.state.join("sysctl.json"),
            )),
            attachments: Attachments::default(),
            nft: nft::Table::default(),
            forward: nft::Forward::default(),
            facts: Facts::default(),
            peers: Arc::default(),
            basis: None,
            away: None,
            pod_mtus: PodMtus::default(),
            strays: recover::Strays::default(),
            translation,
            concerns: Vec::new(),
            degraded: String::new(),
            degraded_reason: "",
            decommissioned: false,
            options,
            datapath,
            local,
            pods,
        })
    }

    /// One round. With `full` the maps are compared entry by entry.
    pub(super) fn run(
        &mut self,
        index: &Index,
        plan: &mut Writer<Plan>,
        done: &mut RoundLog,
        epoch: Option<&Epoch>,
        full: bool,
    ) -> Result<(), Error> {
        let cluster = index.cluster.as_ref().map(|(_, c)| c);
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        let families = families(&self.local);
        self.observe(index, self.options.node_ip, families, &mut socket)?;
        let underlay = self.facts.underlay_mtu(cluster);
        let port = desired::tunnel_port(cluster);
        // One part that cannot be put right must not keep the others from it.
        let outside = self.facts.primary.map_or(Family::V4, Family::of);
        let device = self
            .vxlan
            .converge(done, &mut socket, port, underlay, outside);
        if let Ok(index) = device {
            self.facts.vxlan_index = Some(index);
        }
        let links = link::list(&mut socket).map_err(netlink("list links"))?;
        let strays = self.strays.converge(&self.pods, done, &mut socket, &links);
        let mut concerns: Vec<_> = strays.map(|s| ("PodWithoutRecord", s.clone())).collect();
        stack::up(done, &mut socket, &links, &self.local.settled());
        let (blocks, health): (Vec<_>, Vec<_>) = {
            let store = self.local.store();
            (store.blocks().collect(), store.health_addresses().collect())
        };
        let ipv6 = self.host.enable_ipv6(done, &self.local.settled(), &blocks);
        let of_pods = |address| index.nodes.in_any_block(address);
        let health = self
            .health
            .converge(done, &mut socket, &links, &health, of_pods)
            .map_err(netlink("give lo the health address"));
        let routes = route::list(&mut socket).map_err(netlink("list routes"))?;
        let neighbours = neighbour::list(&mut socket).map_err(netlink("list neighbours"))?;

        let complete = index.complete.nodes;
        let peers = self.peers(index);
        let now = now_of(&self.local, index, &peers, &self.facts, &self.present);
        self.switch
            .take_up(done, now, epoch, underlay, self.pod_mtus.route);
        let step = self.switch.step.clone();
        let smaller_first = self.pod_mtus.route.is_none_or(|route| step.mtu < route);
        self.publish_plan(plan, &peers, &step, underlay);
        // Only now: an ADD that ends later finds the new MTUs in the plan.
        let pods = self.local.settled();

        let wanted = self.desired(index, &peers, &step, false);
        let mtus = (underlay, wanted.mtu);
        if smaller_first {
            self.host
                .routes(done, &mut socket, &routes, &links, &wanted, complete);
            self.pod_mtus
                .converge(done, &mut socket, &links, &pods, mtus);
        }
        let filled = self.maps(index, done, &peers, &step, full)?;
        if !self.datapath.lock().may_attach(full && filled) {
            return Err(Error::OtherLayout);
        }
        let attached = self.attachments.converge(
            done,
            &self.datapath,
            ProgramsWanted {
                links: &links,
                facts: &self.facts,
                pods: &pods,
                xdp: cluster.map(|c| c.xdp),
            },
        );
        let stranded = rewire::lost_devices(&self.pods, done, &mut socket, &links);
        concerns.extend(stranded.into_iter().map(|s| ("PodWithoutDevice", s)));
        if !smaller_first {
            self.host
                .routes(done, &mut socket, &routes, &links, &wanted, complete);
            self.pod_mtus
                .converge(done, &mut socket, &links, &pods, mtus);
        }
        self.host
            .neighbours(done, &mut socket, &neighbours, &links, &pods);
        let sysctls = self.host.sysctls(done, &self.facts, &pods, &blocks);
        self.look_around(done, families, concerns);
        if attached.is_ok() {
            self.datapath.lock().all_attached();
            self.translation.all_attached();
        }
        self.services_round(index, done, full);
        let nft = self.nftables(index, done, &links);
        ipv6.and(device.map(drop))
            .and(health)
            .and(attached)
            .and(sysctls)
            .and(nft)?;
        self.switch.acknowledge(now_of(
            &self.local,
            index,
            &peers,
            &self.facts,
            &self.present,
        ));
        Ok(())
    }

    fn nftables(
        &mut self,
        index: &Index,
        done: &mut RoundLog,
        links: &[Link],
    ) -> Result<(), error::Error> {
        let guarded = self.attachments.guarded(links);
        let (blocks, pods) = {
            let store = self.local.store();
            (store.blocks().collect::<Vec<_>>(), store.wired_now())
        };
        let wanted = nft::TableInputs {
            index,
            facts: &self.facts,
            step: &self.switch.step,
            blocks: &blocks,
            uplinks: &guarded,
            pods: &pods,
            unserved: self.translation.unserved(index),
        };
        self.nft
            .converge(done, wanted)
            .map_err(netlink("write the nftables table"))
    }

    /// Writes what changed of the nftables table, between two rounds: pods' hostPorts, and
    /// frontends that nobody serves.
    pub(super) fn rules(&mut self, index: &Index, done: &mut RoundLog) -> Result<(), Error> {
        let mut socket = Socket::route().map_err(netlink("open a socket"))?;
        let links = link::list(&mut socket).map_err(netlink("list links"))?;
        Ok(self.nftables(index, done, &links)?)
    }

    /// The probes to send now, see [`Switch::asks`].
    pub(super) fn asks(&mut self, index: &Index) -> Option<(Vec<IpAddr>, u64, Vec<Ask>)> {
        let peers = Arc::clone(&self.peers);
        let now = now_of(&self.local, index, &peers, &self.facts, &self.present);
        self.switch.asks(&self.local.store(), now)
    }

    /// Takes in what probes found.
    pub(super) fn probed(&mut self, index: &Index, round: u64, answers: Vec<Answer>) {
        let peers = Arc::clone(&self.peers);
        let now = now_of(&self.local, index, &peers, &self.facts, &self.present);
        self.switch.probed(now, round, answers);
    }

    fn observe(
        &mut self,
        index: &Index,
        node_ip: Option<IpAddr>,
        of_pods: Families,
        socket: &mut Socket,
    ) -> Result<(), Error> {
        // Of a new agent nothing is known yet, and what its pairs use stays.
        let primary = self.facts.primary;
        let asked: Families = Family::ALL
            .into_iter()
            .filter(|f| of_pods.has(*f) || primary.is_none_or(|own| f.has(own)))
            .collect();
        self.ids.update(&index.nodes);
        let said: Vec<IpAddr> = self.ids.addresses(index.own()).collect();
        let (uplinks, direct, peers, pods, hint) = {
            let cluster = index.cluster.as_ref().map(|(_, c)| c);
            let peers: Vec<_> = index
                .nodes
                .iter()
                .filter(|n| n.name != index.own())
                .flat_map(|n| {
                    let all: Vec<IpAddr> = self.ids.addresses(&n.name).collect();
                    asked
                        .iter()
                        .filter_map(|f| f.first(&all))
                        .collect::<Vec<_>>()
                })
                .collect();
            let of_nodes = index.nodes.iter().flat_map(|n| &n.pod_cidrs).copied();
            let of_cluster = cluster.into_iter().flat_map(|c| &c.pod_cidrs);
            (
                cluster.map(|c| c.uplinks.clone()).unwrap_or_default(),
                cluster.is_none_or(|c| c.routing.native.auto_direct_node_routes),
                peers,
                of_cluster
                    .map(|e| e.cidr)
                    .chain(of_nodes)
                    .collect::<Vec<_>>(),
                observe::hint(&said, &self.facts.addresses, node_ip),
            )
        };
        let found = observe::gather(
            socket,
            FactsWanted {
                uplinks: &uplinks,
                hint,
                said: &said,
                peers: &peers,
                direct,
                pods: &pods,
            },
            &self.facts,
        )
        .map_err(netlink("read the node's addresses and routes"))?;
        if let (Some(old), Some(new)) = (self.facts.primary, found.primary)
            && !found.addresses.contains(&old)
        {
            let since = *self.away.get_or_insert_with(Instant::now);
            if since.elapsed() < ADDRESS_AWAY {
                return Err(Error::AddressGone(old));
            }
            nft::addresses_gone(&self.facts.addresses, &found.addresses);
            return Err(Error::Moved { old, new });
        }
        self.away = None;
        nft::addresses_gone(&self.facts.addresses, &found.addresses);
        self.facts = found;
        Ok(())
    }

    /// Other nodes: worked out when the API server or the own addresses say
    /// something new.
    fn peers(&mut self, index: &Index) -> Arc<Peers> {
        let basis = Basis {
            generation: index.nodes.generation(),
            complete: index.complete.nodes,
            addresses: self.facts.addresses.clone(),
        };
        if self.basis.as_ref() != Some(&basis) {
            self.peers = Arc::new(peers::peers(index, &self.facts, &mut self.ids));
            self.basis = Some(basis);
        }
        Arc::clone(&self.peers)
    }

    fn publish_plan(
        &self,
        plan: &mut Writer<Plan>,
        peers: &Arc<Peers>,
        step: &RoutingStep,
        underlay: Mtu,
    ) {
        let mut plan = plan.write();
        if plan.facts != self.facts {
            plan.facts.clone_from(&self.facts);
        }
        plan.peers = Arc::clone(peers);
        plan.step.clone_from(step);
        plan.troubles = self.switch.pairs.troubles();
        plan.link_mtu = underlay;
    }

    fn desired(&self, index: &Index, peers: &Peers, step: &RoutingStep, rows: bool) -> Desired {
        let store = self.local.store();
        desired::desired(DesiredInputs {
            index,
            store: &store,
            facts: &self.facts,
            peers,
            step,
            present: &self.present,
            pairs: &self.switch.pairs,
            now: monotonic(),
            rows,
        })
    }

    /// Compares and writes the maps, with `full` the ipcache too. Works the
    /// desired state out again under the lock, so that no ADD or DEL comes between.
    /// Returns whether it was made of complete lists.
    fn maps(
        &mut self,
        index: &Index,
        done: &mut RoundLog,
        peers: &Peers,
        step: &RoutingStep,
        full: bool,
    ) -> Result<bool, Error> {
        let mut datapath = self.datapath.lock();
        for path in datapath.repin()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            done.repaired(Kind::Pin, format!("the pin of map {name} was removed"));
        }
        let tables = &mut datapath.maps.tables;
        let found = tables.remotes.read()?;
        self.present = tables.own_remotes(&found);
        let complete = index.complete;
        let wanted = self.desired(index, peers, step, full);
        let scope = Scope {
            nodes: complete.nodes,
            rows: complete.nodes && complete.endpoints,
            ipcache: full,
        };
        tables.converge(&wanted, found, scope, |what| {
            done.repaired(Kind::MapEntry, what);
        })?;
        datapath.maps.beat(monotonic())?;
        if complete.nodes {
            self.present.clone_from(&wanted.remotes);
        } else {
            self.present.extend(wanted.remotes);
        }
        Ok(scope.rows)
    }
}

/// The families of this node's pods.
fn families(local: &Local) -> Families {
    let blocks: Vec<IpNet> = local.store().blocks().collect();
    family::of_nets(&blocks)
}

fn now_of<'a>(
    local: &Local,
    index: &'a Index,
    peers: &'a Peers,
    facts: &'a Facts,
    present: &'a HashMap<u32, Remote>,
) -> Now<'a> {
    Now {
        index,
        peers,
        facts,
        families: families(local),
        present,
        clock: monotonic(),
    }
}
