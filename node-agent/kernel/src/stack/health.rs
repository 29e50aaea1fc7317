//! The health address: on `lo`, so that the node's own stack answers there, also
//! while no agent runs.

use std::{io, net::IpAddr};

use crate::netlink::{
    address,
    link::{self, Link},
    message::Socket,
};
use veer_agent_core::repair::{Kind, RoundLog};

#[derive(Debug, Default)]
pub struct Health {
    /// The address that was there after the last round.
    there: Option<IpAddr>,
}

impl Health {
    /// Brings the address on `lo`, and others there that are `of_pods` off it: the
    /// node had another block before.
    pub fn converge(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        links: &[Link],
        wanted: Option<IpAddr>,
        of_pods: impl Fn(IpAddr) -> bool,
    ) -> io::Result<()> {
        let Some(lo) = links.iter().find(|l| l.name == "lo").map(|l| l.index) else {
            return Ok(());
        };
        let mut there = false;
        for found in address::list(socket)? {
            if found.index != lo || !found.host {
                continue;
            }
            if Some(found.ip) == wanted {
                there = true;
            } else if of_pods(found.ip) {
                address::remove(socket, lo, found.ip)?;
            }
        }
        if let Some(wanted) = wanted.filter(|_| !there) {
            address::add_for_host(socket, lo, wanted)?;
            if self.there == Some(wanted) {
                let what = format!("the health address {wanted} was removed from lo");
                done.repaired(Kind::Address, what);
            }
        }
        self.there = wanted;
        Ok(())
    }

    /// Takes it off.
    pub fn remove(&mut self, socket: &mut Socket, address: Option<IpAddr>) -> io::Result<()> {
        self.there = None;
        let Some(health) = address else {
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
