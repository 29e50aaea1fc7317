//! Pods whose device is gone although they live: somebody removed it (a script, a
//! firewall's or another network's clean-up). The pod keeps its sandbox, so the
//! runtime will not ask for another: the pair is made again with what the record
//! says, and no other component has to know.

use std::{collections::HashSet, io};

use veer_api_client::chain;
use veer_bpf_common::device::IfIndex;

use crate::pods::{Pods, add::alive};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    repair::{Kind, RoundLog},
};
use veer_agent_kernel::{
    datapath::{self, Hook},
    netlink::{
        link::{self, Link},
        message::Socket,
        netns,
        pod::{self, Wiring},
    },
};

/// Why a pod could not be given a device again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "{0} is still in the pod, so its other end was renamed or moved away: delete the pod, so \
         that it is made again"
    )]
    HalfThere(String),
    #[error("netlink")]
    Netlink(#[from] io::Error),
    #[error("BPF")]
    Datapath(#[from] datapath::Error),
}

/// Gives pods whose device is not among `links` a new one. Returns what cannot be
/// done, in words.
pub(crate) fn lost_devices(
    pods: &Pods,
    done: &mut RoundLog,
    socket: &mut Socket,
    links: &[Link],
) -> Vec<String> {
    let present: HashSet<_> = links.iter().map(|l| (&*l.name, Some(l.index))).collect();
    let lost: Vec<LocalEndpoint> = {
        let adding = pods.local.adding().clone();
        let store = pods.local.store();
        let gone = |e: &&LocalEndpoint| !present.contains(&(&*e.host_ifname, e.ifindex));
        store
            .iter()
            .filter(gone)
            .filter(|e| store.is_recorded(&e.attachment) && !adding.contains(&e.host_ifname))
            .cloned()
            .collect()
    };
    let mut left = Vec::new();
    for endpoint in lost {
        let pod = endpoint.pod();
        match rewire(pods, socket, endpoint) {
            Ok(false) => {}
            Ok(true) => {
                done.repaired(Kind::Device, format!("the device of pod {pod} was removed"));
            }
            Err(error) => left.push(format!("pod {pod} has no network: {}", chain(&error))),
        }
    }
    left
}

/// Makes the pair again; `false`: there is nothing to do.
fn rewire(pods: &Pods, socket: &mut Socket, mut endpoint: LocalEndpoint) -> Result<bool, Error> {
    // The links were read before the records: this one may be from an ADD since.
    let there = link::by_name(socket, &endpoint.host_ifname)?;
    if there
        .as_ref()
        .is_some_and(|l| Some(l.index) == endpoint.ifindex)
        || !alive(&endpoint)
    {
        return Ok(false);
    }
    let netns = netns::open(&endpoint.netns)?;
    let ifname = endpoint.attachment.ifname.clone();
    let half = link::by_name(&mut netns.socket()?, &ifname)?;
    // With the other end under the pod's name this is a pair that an agent was killed
    // over before it was recorded.
    if half.is_some_and(|pod| there.is_none_or(|host| Some(host.index) != pod.peer)) {
        return Err(Error::HalfThere(ifname));
    }
    let (link_mtu, route_mtu, host_sources) = {
        let plan = pods.plan.read();
        (plan.link_mtu, plan.step.mtu, plan.facts.addresses.clone())
    };
    let wiring = Wiring {
        host_ifname: &endpoint.host_ifname.clone(),
        host_mac: endpoint.node_mac,
        pod_ifname: &ifname,
        pod_mac: endpoint.mac,
        addresses: &endpoint.addresses().collect::<Vec<_>>(),
        link_mtu,
        route_mtu,
        host_sources: &host_sources,
        host_ports: !endpoint.host_ports().is_empty(),
    };
    let host = pod::create(socket, &netns, &wiring)?;
    let before = endpoint.ifindex.replace(host.index);
    let wired = enter(pods, &endpoint, before).and_then(|wanted| {
        if wanted {
            let proc_sys_net = &pods.options.proc_sys_net;
            pod::configure(socket, &netns, &wiring, host.index, proc_sys_net)?;
            pods.local.persist(&endpoint.attachment)?;
        }
        Ok(wanted)
    });
    if !matches!(wired, Ok(true)) {
        // Half of a pair would pass for a whole one in the next round.
        link::delete_veth(socket, &endpoint.host_ifname)?;
    }
    wired
}

/// Attaches the programs and writes the rows; `false`: the pod is being deleted. A
/// DEL forgets the record first and removes the device then, so one that came before
/// the new device is seen here, and a later one removes it.
fn enter(pods: &Pods, endpoint: &LocalEndpoint, before: Option<IfIndex>) -> Result<bool, Error> {
    let mut datapath = pods.datapath.lock();
    {
        let mut store = pods.local.store();
        if !store.is_recorded(&endpoint.attachment) {
            return Ok(false);
        }
        store.insert(endpoint.clone());
    }
    // Pins of the device that is gone.
    datapath.detach(&endpoint.host_ifname)?;
    for hook in [Hook::PodEgress, Hook::PodIngress] {
        datapath.attach(&endpoint.host_ifname, hook)?;
    }
    pods.converge_pod(&mut datapath, endpoint, before)?;
    Ok(true)
}
