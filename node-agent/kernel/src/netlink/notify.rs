//! The kernel's word that links, addresses or routes of the node changed, so
//! that nobody has to wait for the next round.
//!
//! What pods' coming and going alone causes is left out; what veer itself
//! changes comes back once and finds everything in order. Rules, neighbours and
//! sysctls have no notification here (or one that other programs flood): the
//! rounds see to them.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{MsgFlags, recv};

use super::{is_host_veth, link, message::Socket, route};

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`
/// (`include/uapi/linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;

/// Calls `changed` whenever something did, until it returns false.
pub fn listen(mut changed: impl FnMut() -> bool) -> io::Result<()> {
    let socket = Socket::listen(GROUPS)?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let concerns = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => super::message::messages(&buffer[..length])
                .iter()
                .any(concerns_the_node),
            // More came than fits: something that concerns the node may be lost.
            Err(nix::errno::Errno::ENOBUFS) => true,
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => false,
            Err(e) => return Err(e.into()),
        };
        if concerns && !changed() {
            return Ok(());
        }
    }
}

fn concerns_the_node(message: &super::message::Received) -> bool {
    match message.kind {
        RTM_NEWADDR | RTM_DELADDR => true,
        route::RTM_NEWROUTE | route::RTM_DELROUTE => route::concerns_the_node(message),
        link::RTM_NEWLINK | link::RTM_DELLINK => {
            link::name(message).is_some_and(|name| !is_host_veth(&name))
        }
        _ => false,
    }
}
