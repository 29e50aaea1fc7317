//! Links: list, make, change, remove (`include/uapi/linux/if_link.h`).

use std::{io, os::fd::AsRawFd, os::fd::BorrowedFd};

use veer_agent_core::mtu::Mtu;
use veer_bpf_common::device::IfIndex;

pub use veer_agent_core::link::{Link, Mac};

use super::message::{Attrs, CREATE, EXCL, Message, Received, Socket, text, u16_at, u32_at};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_ZERO_CSUM6_RX: u16 = 20;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const AF_INET6: u16 = 10;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_EUI64: u8 = 0;
const ADDR_GEN_NONE: u8 = 1;

/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
const IFF_UP: u32 = 0x1;
const IFF_NOARP: u32 = 0x80;
const HEADER: usize = 16;

/// `LOOPBACK_IFINDEX`: what every namespace's `lo` is, by which own addresses are reached.
pub const LOOPBACK: IfIndex = IfIndex::from_kernel(1);

fn header(index: Option<IfIndex>, flags: u32, change: u32) -> [u8; HEADER] {
    let mut h = [0; HEADER];
    let index = index.map_or(0, IfIndex::get);
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    h
}

fn parse(message: &Received) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let flags = u32_at(&message.body, 8)?;
    let mut link = Link {
        up: flags & IFF_UP != 0,
        noarp: flags & IFF_NOARP != 0,
        ethernet: u16_at(&message.body, 2) == Some(ETHERNET),
        ..Link::new(IfIndex::new(u32_at(&message.body, 4)?)?)
    };
    for (kind, value) in message.attrs(HEADER) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = Mtu::new(u32_at(value, 0)?),
            IFLA_MASTER => link.master = IfIndex::new(u32_at(value, 0)?),
            IFLA_LINK => link.peer = IfIndex::new(u32_at(value, 0)?),
            IFLA_ADDRESS => link.mac = value.try_into().unwrap_or_default(),
            IFLA_XDP => {
                let id = Attrs(value).find(IFLA_XDP_PROG_ID);
                link.xdp = id.and_then(|v| u32_at(v, 0)).unwrap_or_default();
            }
            IFLA_LINKINFO => {
                link.kind = Attrs(value)
                    .find(IFLA_INFO_KIND)
                    .map(text)
                    .unwrap_or_default();
                if link.kind == "vxlan" {
                    let data = Attrs(Attrs(value).find(IFLA_INFO_DATA).unwrap_or(&[]));
                    link.vxlan_port = data
                        .find(IFLA_VXLAN_PORT)
                        .and_then(|v| u16_at(v, 0))
                        .map_or(0, u16::from_be);
                    link.vxlan_external =
                        data.find(IFLA_VXLAN_COLLECT_METADATA) == Some([1].as_slice());
                    link.vxlan_zero_csum6 =
                        data.find(IFLA_VXLAN_ZERO_CSUM6_RX) == Some([1].as_slice());
                }
            }
            _ => {}
        }
    }
    Some(link)
}

/// The name of the link that a notification is of.
pub(super) fn name(message: &Received) -> Option<String> {
    message.attrs(HEADER).find(IFLA_IFNAME).map(text)
}

/// All links of the socket's namespace.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let message = Message::new(RTM_GETLINK, 0, &header(None, 0, 0));
    Ok(socket.dump(&message)?.iter().filter_map(parse).collect())
}

/// One link by name; `None` when there is none.
pub fn by_name(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    let mut message = Message::new(RTM_GETLINK, 0, &header(None, 0, 0));
    message.string(IFLA_IFNAME, name);
    match socket.get(message) {
        Ok(received) => Ok(parse(&received)),
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes the one VXLAN device: `external`, no learning, `arp off`, no address. Over IPv6
/// it takes packets without a UDP checksum, as those that the programs send are.
pub fn add_vxlan(socket: &mut Socket, name: &str, port: u16, mtu: Mtu) -> io::Result<()> {
    let mut message = Message::new(
        RTM_NEWLINK,
        CREATE | EXCL,
        &header(None, IFF_NOARP, IFF_NOARP),
    );
    message
        .string(IFLA_IFNAME, name)
        .u32(IFLA_MTU, mtu.get())
        .nest(IFLA_LINKINFO, |m| {
            m.attr(IFLA_INFO_KIND, b"vxlan").nest(IFLA_INFO_DATA, |m| {
                m.attr(IFLA_VXLAN_COLLECT_METADATA, &[1])
                    .attr(IFLA_VXLAN_LEARNING, &[0])
                    .attr(IFLA_VXLAN_ZERO_CSUM6_RX, &[1])
                    .attr(IFLA_VXLAN_PORT, &port.to_be_bytes());
            });
        });
    socket.request(message)
}

/// One side of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// MAC.
    pub mac: Mac,
}

/// Makes a veth pair whose second end is born inside another namespace.
pub fn add_veth(
    socket: &mut Socket,
    host: VethEnd<'_>,
    pod: VethEnd<'_>,
    mtu: Mtu,
    netns: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut message = Message::new(RTM_NEWLINK, CREATE | EXCL, &header(None, 0, 0));
    message
        .string(IFLA_IFNAME, host.name)
        .u32(IFLA_MTU, mtu.get())
        .attr(IFLA_ADDRESS, &host.mac)
        .nest(IFLA_LINKINFO, |m| {
            m.attr(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.raw(&header(None, 0, 0))
                        .string(IFLA_IFNAME, pod.name)
                        .u32(IFLA_MTU, mtu.get())
                        .attr(IFLA_ADDRESS, &pod.mac)
                        .u32(IFLA_NET_NS_FD, netns.as_raw_fd().cast_unsigned());
                });
            });
        });
    socket.request(message)
}

/// Sets a link up.
pub fn set_up(socket: &mut Socket, index: IfIndex) -> io::Result<()> {
    socket.request(Message::new(
        RTM_SETLINK,
        0,
        &header(Some(index), IFF_UP, IFF_UP),
    ))
}

/// Switches ARP off on a link.
pub fn set_noarp(socket: &mut Socket, index: IfIndex) -> io::Result<()> {
    let flags = header(Some(index), IFF_NOARP, IFF_NOARP);
    socket.request(Message::new(RTM_SETLINK, 0, &flags))
}

/// Sets a link's MTU.
pub fn set_mtu(socket: &mut Socket, index: IfIndex, mtu: Mtu) -> io::Result<()> {
    let mut message = Message::new(RTM_SETLINK, 0, &header(Some(index), 0, 0));
    message.u32(IFLA_MTU, mtu.get());
    socket.request(message)
}

/// Sets a link's MAC.
pub fn set_mac(socket: &mut Socket, index: IfIndex, mac: Mac) -> io::Result<()> {
    let mut message = Message::new(RTM_SETLINK, 0, &header(Some(index), 0, 0));
    message.attr(IFLA_ADDRESS, &mac);
    socket.request(message)
}

/// Has the kernel make an IPv6 link-local address when the link comes up (of its MAC), or
/// none, so that it sends no router solicitations. Fine on kernels without IPv6.
pub fn set_link_local(socket: &mut Socket, index: IfIndex, wanted: bool) -> io::Result<()> {
    let mode = if wanted {
        ADDR_GEN_EUI64
    } else {
        ADDR_GEN_NONE
    };
    let mut message = Message::new(RTM_SETLINK, 0, &header(Some(index), 0, 0));
    message.nest(IFLA_AF_SPEC, |m| {
        m.nest(AF_INET6, |m| {
            m.attr(IFLA_INET6_ADDR_GEN_MODE, &[mode]);
        });
    });
    match socket.request(message) {
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(nix::libc::EAFNOSUPPORT | nix::libc::EOPNOTSUPP | nix::libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Removes a veth with its other end; fine when there is none. A device of that
/// name and another kind is somebody else's and stays.
pub fn delete_veth(socket: &mut Socket, name: &str) -> io::Result<()> {
    match by_name(socket, name)? {
        Some(found) if found.kind == "veth" => delete(socket, name),
        Some(_) | None => Ok(()),
    }
}

/// Removes a link by name; fine when there is none.
pub fn delete(socket: &mut Socket, name: &str) -> io::Result<()> {
    let mut message = Message::new(RTM_DELLINK, 0, &header(None, 0, 0));
    message.string(IFLA_IFNAME, name);
    match socket.request(message) {
        Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        other => other,
    }
}
