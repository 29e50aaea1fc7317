//! The health address: on `lo`, so that the node's own stack answers there, also
//! while no agent runs.

use std::{io, net::IpAddr};

use crate::{
    desired,
    netlink::{
        address,
        link::{self, Link},
        wire::Socket,
    },
    repair::Kind,
    shared::Shared,
};

#[derive(Debug, Default)]
pub(crate) struct Health {
    /// The address that was there after the last round.
    there: Option<IpAddr>,
}

impl Health {
    /// Brings the address on `lo`, and one of a block that the node had before
    /// off it.
    pub(crate) fn converge(
        &mut self,
        shared: &Shared,
        socket: &mut Socket,
        links: &[Link],
    ) -> io::Result<()> {
        let Some(lo) = links.iter().find(|l| l.name == "lo").map(|l| l.index) else {
            return Ok(());
        };
        let wanted = desired::health_address(&shared.store());
        let mut there = false;
        for found in address::list(socket)? {
            if found.index != lo || !found.host {
                continue;
            }
            if Some(found.ip) == wanted {
                there = true;
            } else if shared.index().nodes.in_any_block(found.ip) {
                address::remove(socket, lo, found.ip)?;
            }
        }
        if let Some(wanted) = wanted.filter(|_| !there) {
            address::add_for_host(socket, lo, wanted)?;
            if self.there == Some(wanted) {
                let what = format!("the health address {wanted} was removed from lo");
                shared.repaired(Kind::Address, what);
            }
        }
        self.there = wanted;
        Ok(())
    }

    /// Takes it off.
    pub(crate) fn remove(&mut self, shared: &Shared, socket: &mut Socket) -> io::Result<()> {
        self.there = None;
        let Some(health) = desired::health_address(&shared.store()) else {
            return Ok(());
        };
        let Some(lo) = link::by_name(socket, "lo")? else {
            return Ok(());
        };
        let found = address::list(socket)?;
        if found.iter().any(|a| a.index == lo.index && a.ip == health) {
            address::remove(socket, lo.index, health)?;
        }
        Ok(())
    }
}
