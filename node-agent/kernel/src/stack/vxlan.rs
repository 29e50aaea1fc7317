//! The VXLAN device: made if missing, made again if another's, never down.

use nix::libc::{EADDRINUSE, EEXIST};
use veer_bpf_common::device::IfIndex;

use crate::{
    error::{Error, netlink},
    netlink::{
        VXLAN,
        link::{self, Link},
        message::Socket,
    },
};
use veer_agent_core::{
    family::Family,
    mtu::Mtu,
    repair::{Kind, RoundLog},
};

/// What the device was to be like in the last round.
#[derive(Debug, Default)]
pub struct Vxlan {
    /// MTU; `None` before the first round and after a clean-up.
    last: Option<Mtu>,
}

impl Vxlan {
    /// Makes the device so and returns its interface index; `outside` is the family of the
    /// packets that carry the tunnel. Only over IPv6 one without
    /// `udp6zerocsumrx`, which is set when it is made, is made again: an earlier release's.
    pub fn converge(
        &mut self,
        done: &mut RoundLog,
        socket: &mut Socket,
        port: u16,
        mtu: Mtu,
        outside: Family,
    ) -> Result<IfIndex, Error> {
        let mut tell = |how: &str, known: bool| {
            if known {
                done.repaired(Kind::Device, format!("{VXLAN} {how}"));
            }
        };
        let known = self.last.is_some();
        let mut found = find(socket)?;
        if let Some(link) = &found
            && (link.kind != "vxlan"
                || !link.vxlan_external
                || link.vxlan_port != port
                || (outside == Family::V6 && !link.vxlan_zero_csum6))
        {
            tracing::warn!(?link, "veer_vxlan is not as veer makes it; making it again");
            link::delete(socket, VXLAN).map_err(netlink("remove a foreign veer_vxlan"))?;
            found = None;
        }
        let made = found.is_none();
        if made {
            if let Err(error) = link::add_vxlan(socket, VXLAN, port, mtu) {
                let what = "make veer_vxlan (is the kernel module vxlan there, is UDP port free?)";
                return Err(taken(socket, port, error, what));
            }
            tell("was removed", known);
            found = find(socket)?;
        }
        let Some(link) = found else {
            return Err(netlink("find veer_vxlan")(
                std::io::ErrorKind::NotFound.into(),
            ));
        };
        if link.mtu != Some(mtu) {
            link::set_mtu(socket, link.index, mtu).map_err(netlink("set the MTU of veer_vxlan"))?;
            tell("had another MTU", self.last == Some(mtu));
        }
        if !link.noarp {
            link::set_noarp(socket, link.index).map_err(netlink("arp off on veer_vxlan"))?;
            tell("had arp on", known);
        }
        if !link.up {
            link::set_link_local(socket, link.index, false).map_err(netlink("veer_vxlan"))?;
            if let Err(error) = link::set_up(socket, link.index) {
                return Err(taken(socket, port, error, "set veer_vxlan up"));
            }
            tell("was set down", known && !made);
        }
        self.last = Some(mtu);
        Ok(link.index)
    }

    /// The device was removed on purpose.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

/// Why the device cannot be made or set up: another network's, with the same port,
/// or what the kernel says.
fn taken(socket: &mut Socket, port: u16, error: std::io::Error, what: &'static str) -> Error {
    let in_use = matches!(error.raw_os_error(), Some(EADDRINUSE | EEXIST));
    let links = link::list(socket).unwrap_or_default();
    let holders: Vec<String> = links
        .into_iter()
        .filter(|l| l.vxlan_port == port && l.name != VXLAN)
        .map(|l| l.name)
        .collect();
    if in_use && !holders.is_empty() {
        let devices = holders.join(", ");
        return Error::PortTaken { port, devices };
    }
    netlink(what)(error)
}

fn find(socket: &mut Socket) -> Result<Option<Link>, Error> {
    link::by_name(socket, VXLAN).map_err(netlink("find veer_vxlan"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::lab;

    #[test]
    fn another_networks_device_on_the_tunnels_port_is_named() {
        let node = lab::namespace();
        let flannel = "link add flannel.1 type vxlan id 1 dstport 8472 local 127.0.0.1 nolearning";
        node.command("ip", flannel);
        node.command("ip", "link set flannel.1 up");
        let up = || {
            let mut socket = Socket::route().unwrap();
            let index = find(&mut socket).unwrap().unwrap().index;
            let error = link::set_up(&mut socket, index).err()?;
            Some(taken(&mut socket, 8472, error, "set up").to_string())
        };
        node.run(|| {
            let mut socket = Socket::route().unwrap();
            link::add_vxlan(&mut socket, VXLAN, 8472, Mtu::ETHERNET).unwrap();
        });
        let why = node.run(up).expect("the port is taken");
        assert!(why.contains("flannel.1") && why.contains("8472"), "{why}");
        node.command("ip", "link del flannel.1");
        assert_eq!(node.run(up), None);
    }
}
