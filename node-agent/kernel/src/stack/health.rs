//! The health addresses: on `lo`, so that the node's own stack answers there, also
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
    /// The addresses that were there after the last round.
    there: Vec<IpAddr>,
}

impl Health {
    /// Brings the addresses on `lo`, and others there that are `of_pods` off it: the
    /// node had another block before.
    pub fn converge(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        links: &[Link],
        wanted: &[IpAddr],
        of_pods: impl Fn(IpAddr) -> bool,
    ) -> io::Result<()> {
        let Some(lo) = links.iter().find(|l| l.name == "lo").map(|l| l.index) else {
            return Ok(());
        };
        let found: Vec<IpAddr> = address::list(socket)?
            .iter()
            .filter(|a| a.index == lo && a.host)
            .map(|a| a.ip)
            .collect();
        for former in found.iter().filter(|a| !wanted.contains(a)) {
            if of_pods(*former) {
                address::remove(socket, lo, *former)?;
            }
        }
        let mut there = Vec::new();
        let mut failure = None;
        for health in wanted {
            if !found.contains(health) {
                if let Err(error) = address::add_for_host(socket, lo, *health) {
                    // A kernel without IPv6 keeps no IPv4 address from its place.
                    failure = failure.or(Some(error));
                    continue;
                }
                if self.there.contains(health) {
                    let what = format!("the health address {health} was removed from lo");
                    done.repaired(Kind::Address, what);
                }
            }
            there.push(*health);
        }
        self.there = there;
        failure.map_or(Ok(()), Err)
    }

    /// Takes them off.
    pub fn remove(&mut self, socket: &mut Socket, addresses: &[IpAddr]) -> io::Result<()> {
        self.there.clear();
        let Some(lo) = link::by_name(socket, "lo")? else {
            return Ok(());
        };
        for found in address::list(socket)? {
            if found.index == lo.index && addresses.contains(&found.ip) {
                address::remove(socket, lo.index, found.ip)?;
            }
        }
        Ok(())
    }
}
