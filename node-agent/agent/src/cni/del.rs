//! DEL: unwires a sandbox. Succeeds when there is nothing to do.

use std::{io, sync::Arc};

use veer_agent_api::Attachment;

use super::remove_rows;
use crate::{
    endpoint::host_ifname,
    netlink::{link, wire::Socket},
    publish,
    shared::Shared,
};

/// Unwires a sandbox's interface: the pod's object, its rows, its device (both
/// ends go together, with their routes and neighbours), its pins, its record.
pub(super) fn unwire(shared: &Arc<Shared>, attachment: &Attachment) -> io::Result<()> {
    let device = host_ifname(attachment);
    let mut socket = Socket::route()?;
    link::delete(&mut socket, &device)?;
    let removed = {
        let mut datapath = shared.datapath();
        let removed = shared.store().remove(attachment)?;
        if let Some(endpoint) = &removed {
            remove_rows(&mut datapath, endpoint).map_err(io::Error::other)?;
        }
        datapath.detach(&device)?;
        removed
    };
    if let Some(endpoint) = removed {
        shared.publisher.withdraw(publish::key(&endpoint));
    }
    Ok(())
}
