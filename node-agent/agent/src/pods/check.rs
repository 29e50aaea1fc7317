//! CHECK: is a sandbox still wired as ADD left it?

use std::net::IpAddr;

use veer_agent_api::{Check, Failure, code};
use veer_agent_core::endpoint::PodAddress;
use veer_bpf_common::address::IpKey;

use crate::pods::{Pods, internal};
use veer_agent_kernel::{
    datapath::Hook,
    netlink::{link, message::Socket, netns, pod},
};

/// Says what differs, in one line.
pub(crate) fn check(pods: &Pods, check: &Check) -> Result<(), Failure> {
    let endpoint = {
        let store = pods.local.store();
        store.get(&store.known_as(&check.attachment)).cloned()
    };
    let Some(endpoint) = endpoint else {
        return Err(Failure {
            code: code::INTERNAL,
            msg: format!(
                "sandbox {} is not wired by veer on this node: delete its pod",
                check.attachment.container_id
            ),
            details: String::new(),
        });
    };
    let mut wrong = Vec::new();
    let other: Vec<&IpAddr> = check
        .addresses
        .iter()
        .filter(|a| !endpoint.has(**a))
        .collect();
    if !other.is_empty() {
        wrong.push(format!("it has {}, not {other:?}", endpoint.address_text()));
    }
    let host = Socket::route()
        .and_then(|mut s| link::by_name(&mut s, &endpoint.host_ifname))
        .map_err(|e| internal(e.to_string()))?;
    match host {
        Some(l) if Some(l.index) == endpoint.ifindex && l.up => {}
        Some(_) => wrong.push(format!(
            "{} is down or another device",
            endpoint.host_ifname
        )),
        None => wrong.push(format!("{} is missing", endpoint.host_ifname)),
    }
    match netns::open(&check.netns).and_then(|n| {
        pod::check(
            &n,
            &check.attachment.ifname,
            &endpoint.addresses().collect::<Vec<_>>(),
        )
    }) {
        Ok(found) => wrong.extend(found),
        Err(e) => wrong.push(format!("cannot look into {}: {e}", check.netns)),
    }
    {
        let mut datapath = pods.datapath.lock();
        for hook in [Hook::PodEgress, Hook::PodIngress] {
            if datapath.runs(&endpoint.host_ifname, hook).is_none() {
                wrong.push(format!(
                    "{} lacks its program {hook:?}",
                    endpoint.host_ifname
                ));
            }
        }
        for PodAddress { address, .. } in endpoint.addresses() {
            let row = datapath.maps.tables.endpoints.get(&IpKey::from(address));
            let row = row.ok().flatten();
            if row != Some(endpoint.endpoint_value()) {
                wrong.push(format!("the endpoint map lacks {address}"));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(internal(format!(
        "pod {} is not wired as it should be ({}): delete the pod if this stays",
        endpoint.pod(),
        wrong.join("; ")
    )))
}
