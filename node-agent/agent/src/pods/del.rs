//! DEL: unwires a sandbox. Succeeds when there is nothing to do.

use std::{io, sync::Arc};

use veer_agent_api::Attachment;

use crate::{pods::Pods, report::publish::place, state::input::Input};
use veer_agent_core::endpoint::{LocalEndpoint, former_ifname, host_ifname};
use veer_agent_kernel::{
    datapath,
    netlink::{link, message::Socket},
};
use veer_crds::condition::explain;

/// Why a sandbox could not be unwired.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its device or its record stays.
    #[error("cannot remove its device or its record: {0}")]
    Io(#[from] io::Error),
    /// Its rows stay.
    #[error("cannot remove its rows: {}", explain(.0))]
    Datapath(#[from] datapath::Error),
}

/// Unwires a sandbox's interface: its device (both ends go together, with their
/// routes and neighbours), its record, its rows, its pins, the pod's object.
pub(crate) fn unwire(pods: &Pods, attachment: &Attachment) -> Result<(), Error> {
    let removed = forget(pods, attachment)?;
    if let Some(endpoint) = removed.filter(|e| !e.is_nameless()) {
        let key = place::key(&pods.index.read().endpoints, &endpoint);
        pods.publisher.withdraw(key);
    }
    Ok(())
}

/// The part of [`unwire`] that concerns this node alone. The address is free
/// again when nothing on disk or in the maps has it.
pub(crate) fn forget(
    pods: &Pods,
    attachment: &Attachment,
) -> Result<Option<Arc<LocalEndpoint>>, Error> {
    let known_as = pods.local.store().known_as(attachment);
    // Before the device goes: one that a record lacks is made again.
    let endpoint = pods.local.store().leave(&known_as);
    let devices = match &endpoint {
        Some(known) => vec![known.host_ifname.clone()],
        None => vec![host_ifname(attachment), former_ifname(attachment)],
    };
    let mut socket = Socket::route()?;
    for device in &devices {
        link::delete_veth(&mut socket, device)?;
    }
    pods.local.persist(&known_as)?;
    let mut datapath = pods.datapath.lock();
    if let Some(endpoint) = &endpoint {
        pods.converge_pod(&mut datapath, endpoint, endpoint.ifindex)?;
    }
    for device in &devices {
        datapath.detach(device)?;
    }
    pods.local.store().remove(&known_as);
    if endpoint
        .as_ref()
        .is_some_and(|e| !e.host_ports().is_empty())
    {
        let _ = pods.engine.send(Input::HostPorts(None));
    }
    Ok(endpoint)
}
