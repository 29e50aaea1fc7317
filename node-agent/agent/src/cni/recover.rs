//! Devices of pods without a record: the state folder was emptied, the disk was
//! full, a file was damaged. The record is made anew and the pod goes on; only a
//! device that was never a pod's (an ADD that was killed half-way) is removed.
//!
//! There is no pod left to end here: a device whose other end is in no named
//! namespace belongs to a sandbox that the runtime itself counts as ended.

use std::{collections::HashSet, fs, io, net::IpAddr, path::Path};

use super::results;
use crate::{
    endpoint::{Evidence, LocalEndpoint, PodEnd, gateway_of},
    engine::Input,
    netlink::{
        address, is_host_veth,
        link::{self, Link},
        netns, route,
        wire::Socket,
    },
    repair::Kind,
    shared::Shared,
};

/// What the other ends of unknown devices are, as far as it can be seen.
struct PodEnds {
    found: Vec<PodEnd>,
    /// A namespace could not be looked into: what is missing here may be there.
    complete: bool,
}

/// Looks at host-side veths that no record and no ADD under way knows.
pub(crate) fn unknown_devices(shared: &Shared, socket: &mut Socket, links: &[Link]) {
    let known: HashSet<String> = {
        let adding = shared.adding().clone();
        let store = shared.store();
        adding
            .into_iter()
            .chain(store.iter().map(|e| e.host_ifname.clone()))
            .collect()
    };
    let unknown: Vec<&Link> = links
        .iter()
        .filter(|l| is_host_veth(&l.name) && l.kind == "veth" && !known.contains(&l.name))
        .collect();
    if unknown.is_empty() {
        return;
    }
    let kept = results::read(&shared.options.cni_results);
    let ends = match pod_ends(&shared.options.netns) {
        Ok(ends) => ends,
        Err(error) => {
            tracing::error!(%error, "cannot look for the pods of devices without a record");
            return;
        }
    };
    for host in unknown {
        // A DEL takes the device first: one that is gone has no pod.
        let there = link::by_name(socket, &host.name)
            .ok()
            .flatten()
            .is_some_and(|l| l.index == host.index);
        if !there {
            continue;
        }
        let (row, gateway) = in_maps(shared, host.index);
        let evidence = ends
            .found
            .iter()
            .map(|pod| Evidence {
                host,
                pod,
                row,
                kept: kept.get(&host.name),
                gateway,
            })
            .find(Evidence::fits);
        match evidence.and_then(|e| e.rebuild()) {
            Some(endpoint) => adopt(shared, endpoint),
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
}

/// What the maps say of a device, and the gateway of the node's pods.
fn in_maps(
    shared: &Shared,
    index: u32,
) -> (Option<veer_bpf_common::value::Interface>, Option<IpAddr>) {
    let (row, config) = {
        let datapath = shared.datapath();
        (
            datapath.maps.interfaces.get(&index, 0).ok(),
            datapath.maps.present_config().ok(),
        )
    };
    let block = shared.store().block().and_then(|b| gateway_of(&b.into()));
    let gateway = block.or_else(|| {
        config
            .map(|c| IpAddr::from(c.gateway_v4))
            .filter(|a| !a.is_unspecified())
    });
    (row, gateway)
}

fn adopt(shared: &Shared, mut endpoint: LocalEndpoint) {
    {
        // What other nodes know it by, where the API server has said it already.
        let index = shared.index();
        let object = index
            .endpoints
            .own()
            .find(|row| row.addresses.contains(&endpoint.address));
        endpoint.serial = object.map_or(0, |row| row.serial);
    }
    let adopted = shared.store().adopt(endpoint.clone());
    let Some(endpoint) = adopted else {
        let text = format!(
            "device {} has address {} of another pod: delete one of the two pods",
            endpoint.host_ifname, endpoint.address
        );
        tracing::error!("{text}");
        return;
    };
    if let Err(error) = shared.persist(&endpoint.attachment) {
        tracing::error!(%error, "cannot write a rebuilt record; it is written again later");
    }
    // The number that its labels have now, and its name.
    let _ = shared.engine.send(Input::Identities);
    let who = if endpoint.is_nameless() {
        format!("the pod with address {}", endpoint.address)
    } else {
        format!("pod {} ({})", endpoint.pod(), endpoint.address)
    };
    shared.repaired(Kind::Record, format!("the record of {who} was missing"));
}

/// Writes again the records that are not on disk any more.
pub(crate) fn absent_records(shared: &Shared) {
    let absent: Vec<LocalEndpoint> = {
        let all: Vec<_> = {
            let store = shared.store();
            store
                .iter()
                .filter(|e| store.is_recorded(&e.attachment))
                .map(|e| (store.path(&e.attachment), e.clone()))
                .collect()
        };
        all.into_iter()
            .filter(|(path, _)| !path.exists())
            .map(|(_, endpoint)| endpoint)
            .collect()
    };
    for endpoint in absent {
        match shared.persist(&endpoint.attachment) {
            Ok(()) => {
                let what = format!("the record of pod {} was removed", endpoint.pod());
                shared.repaired(Kind::Record, what);
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
                .filter(|(_, r)| r.index == l.index && r.destination.prefix_len() == 0)
                .filter_map(|(_, r)| r.gateway)
                .collect(),
            ifname: l.name,
        });
    Ok(ends.collect())
}
