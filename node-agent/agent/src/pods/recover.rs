//! Devices of pods without a record: the state folder was emptied, the disk was
//! full, a file was damaged. The record is rebuilt and the pod goes on; only a
//! device that was never a pod's (an ADD that was killed half-way) is removed.
//!
//! There is no pod left to end here: a device whose other end is in no named
//! namespace belongs to a sandbox that the runtime itself counts as ended.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use veer_bpf_common::device::IfIndex;

use crate::{
    pods::{Pods, local::Local, results},
    state::input::Input,
};
use veer_agent_core::{
    endpoint::{Evidence, LocalEndpoint, PodEnd},
    repair::{Kind, RoundLog},
};
use veer_agent_kernel::{
    clock,
    netlink::{
        address, host_veth_digits, is_host_veth,
        link::{self, Link},
        message::Socket,
        netns, route,
    },
};

/// The other ends of unknown devices, as far as they can be seen.
struct PodEnds {
    found: Vec<PodEnd>,
    /// A namespace could not be looked into: what is missing here may be there.
    complete: bool,
}

/// Between two looks at devices that nothing can be done about: a look enters every
/// namespace.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Devices without a record that stay without one, and why, in words.
#[derive(Debug, Default)]
pub(crate) struct Strays {
    left: BTreeMap<String, String>,
    looked: Option<Instant>,
}

impl Strays {
    /// Looks at host-side veths that no record and no ADD under way knows. Returns
    /// what cannot be put right, in words.
    pub(crate) fn converge(
        &mut self,
        pods: &Pods,
        done: &mut RoundLog,
        socket: &mut Socket,
        links: &[Link],
    ) -> impl Iterator<Item = &String> {
        let unknown = unknown(&pods.local, links);
        self.left
            .retain(|name, _| unknown.iter().any(|l| l.name == *name));
        let lately = self.looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN);
        if !(lately && unknown.iter().all(|l| self.left.contains_key(&l.name))) {
            self.left = look(pods, done, socket, &unknown);
            self.looked = Some(Instant::now());
        }
        self.left.values()
    }
}

fn unknown<'a>(local: &Local, links: &'a [Link]) -> Vec<&'a Link> {
    let known: HashSet<String> = {
        let adding = local.adding().clone();
        let store = local.store();
        adding
            .into_iter()
            .chain(store.iter().map(|e| e.host_ifname.clone()))
            .collect()
    };
    let unknown = |l: &&Link| is_host_veth(&l.name) && l.kind == "veth" && !known.contains(&l.name);
    links.iter().filter(unknown).collect()
}

/// Finds the pods of devices. Returns why, by device, where that cannot be.
fn look(
    pods: &Pods,
    done: &mut RoundLog,
    socket: &mut Socket,
    unknown: &[&Link],
) -> BTreeMap<String, String> {
    let mut left = BTreeMap::new();
    if unknown.is_empty() {
        return left;
    }
    let kept = results::read(&pods.options.cni_results);
    let ends = match pod_ends(&pods.options.netns) {
        Ok(ends) => ends,
        Err(error) => {
            tracing::error!(%error, "cannot look for the pods of devices without a record");
            return left;
        }
    };
    for &host in unknown {
        // A DEL takes the device first: one that is gone has no pod.
        let there = link::by_name(socket, &host.name)
            .ok()
            .flatten()
            .is_some_and(|l| l.index == host.index);
        if !there {
            continue;
        }
        let (row, blocks) = in_maps(pods, host.index);
        let evidence = ends
            .found
            .iter()
            .map(|pod| Evidence {
                host,
                pod,
                row,
                kept: host_veth_digits(&host.name).and_then(|digits| kept.get(digits)),
                blocks: &blocks,
            })
            .find(Evidence::fits);
        match evidence.and_then(|e| e.rebuild()) {
            Some(endpoint) => {
                if let Err(why) = adopt(pods, done, endpoint) {
                    left.insert(host.name.clone(), why);
                }
            }
            None if evidence.is_none() && !ends.complete => {
                tracing::warn!(device = host.name, "its pod is not found yet; it stays");
            }
            None => {
                tracing::warn!(device = host.name, "removing a veth that belongs to no pod");
                if let Err(error) = link::delete(socket, &host.name) {
                    tracing::warn!(device = host.name, %error, "cannot remove it");
                }
            }
        }
    }
    left
}

/// What the maps say of a device, and the node's blocks.
fn in_maps(
    pods: &Pods,
    index: IfIndex,
) -> (Option<veer_bpf_common::tables::Interface>, Vec<IpNet>) {
    let (row, config) = {
        let tables = &pods.datapath.lock().maps.tables;
        (
            tables.interfaces.get(&index.get()).ok().flatten(),
            tables.config.get(&0).ok().flatten(),
        )
    };
    let known: Vec<IpNet> = pods.local.store().blocks().collect();
    let configured = || {
        let gateways = config.map(|c| {
            [
                (IpAddr::from(c.gateway_v4), c.block_bits_v4),
                (IpAddr::from(c.gateway_v6), c.block_bits_v6),
            ]
        });
        let gateways = gateways.into_iter().flatten();
        let filled = gateways.filter(|(gateway, _)| !gateway.is_unspecified());
        filled
            .filter_map(|(gateway, bits)| Some(IpNet::new(gateway, bits).ok()?.trunc()))
            .collect()
    };
    let blocks = if known.is_empty() {
        configured()
    } else {
        known
    };
    (row, blocks)
}

/// # Errors
///
/// Why not, in words.
fn adopt(pods: &Pods, done: &mut RoundLog, mut endpoint: LocalEndpoint) -> Result<(), String> {
    {
        // What other nodes use and the kubelet says, if the API server has said it already.
        let (index, store) = (pods.index.read(), pods.local.store());
        let mut objects = index.endpoints.own();
        let object = objects.find(|row| row.addresses.iter().any(|a| endpoint.has(*a)));
        endpoint.serial = object.map_or(0, |row| row.serial);
        let pod = endpoint.addresses().find_map(|a| index.pod_at(a.address));
        let named = object.map(|row| &row.addresses);
        let blocks: Vec<IpNet> = store.blocks().collect();
        for addresses in named.into_iter().chain(pod.map(|pod| &pod.addresses)) {
            let free = addresses.iter().filter(|a| store.by_address(**a).is_none());
            endpoint.complete(&free.copied().collect::<Vec<_>>(), &blocks);
        }
    }
    let adopted = pods
        .local
        .store()
        .adopt(endpoint.clone(), clock::unix_millis());
    let endpoint = adopted.ok_or_else(|| {
        format!(
            "device {} has address {} of another pod: delete one of the two pods",
            endpoint.host_ifname,
            endpoint.address_text()
        )
    })?;
    if let Err(error) = pods.local.persist(&endpoint.attachment) {
        tracing::error!(%error, "cannot write a rebuilt record; it is written again later");
    }
    // The number that its labels have now, and its name.
    let _ = pods.engine.send(Input::Identities);
    let who = if endpoint.is_nameless() {
        format!("the pod with address {}", endpoint.address_text())
    } else {
        format!("pod {} ({})", endpoint.pod(), endpoint.address_text())
    };
    done.repaired(Kind::Record, format!("the record of {who} was missing"));
    Ok(())
}

/// Writes again the records that are not on disk any more.
pub(crate) fn absent_records(local: &Local, done: &mut RoundLog) {
    let absent: Vec<LocalEndpoint> = {
        let all: Vec<_> = {
            let store = local.store();
            store
                .iter()
                .filter(|e| store.is_recorded(&e.attachment))
                .map(|e| (local.path(&e.attachment), e.clone()))
                .collect()
        };
        all.into_iter()
            .filter(|(path, _)| !path.exists())
            .map(|(_, endpoint)| endpoint)
            .collect()
    };
    for endpoint in absent {
        match local.persist(&endpoint.attachment) {
            Ok(()) => {
                let what = format!("the record of pod {} was removed", endpoint.pod());
                done.repaired(Kind::Record, what);
            }
            Err(error) => {
                tracing::error!(pod = endpoint.pod(), %error, "cannot write its record");
            }
        }
    }
}

/// Both ends' worth of every veth in the named namespaces.
fn pod_ends(folder: &Path) -> io::Result<PodEnds> {
    let mut ends = PodEnds {
        found: Vec::new(),
        complete: true,
    };
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match look_into(&path.to_string_lossy()) {
            Ok(found) => ends.found.extend(found),
            // It went meanwhile, or its mount did and the file stayed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot look into a namespace");
                ends.complete = false;
            }
        }
    }
    Ok(ends)
}

fn look_into(path: &str) -> io::Result<Vec<PodEnd>> {
    let netns = netns::open(path)?;
    let mut socket = netns.socket()?;
    let links = link::list(&mut socket)?;
    let addresses = address::list(&mut socket)?;
    let routes = route::list(&mut socket)?;
    let ends = links
        .into_iter()
        .filter(|l| l.kind == "veth")
        .map(|l| PodEnd {
            netns: path.to_owned(),
            inode: netns.inode,
            index: l.index,
            peer: l.peer,
            mac: l.mac,
            addresses: addresses
                .iter()
                .filter(|a| a.index == l.index && a.global)
                .map(|a| a.ip)
                .collect(),
            gateways: routes
                .iter()
                .filter(|(_, r)| r.index == Some(l.index) && r.destination.prefix_len() == 0)
                .filter_map(|(_, r)| r.gateway)
                .collect(),
            ifname: l.name,
        });
    Ok(ends.collect())
}
