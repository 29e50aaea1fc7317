//! The kernel's word that links, addresses or routes of the node changed, so
//! that nobody has to wait for the next round.
//!
//! What pods' coming and going alone causes is left out; what veer itself
//! changes comes back once and finds everything in order. Rules, neighbours and
//! sysctls have no notification here (or one that other programs flood): the
//! rounds see to them.

use std::{collections::HashMap, io, net::IpAddr, os::fd::AsRawFd};

use nix::sys::socket::{MsgFlags, recv};
use veer_bpf_common::device::IfIndex;

use super::{
    address::{self, Address},
    is_host_veth, link,
    message::{Received, Socket},
    route,
};

/// `RTMGRP_LINK`, and `RTMGRP_*_IFADDR` and `RTMGRP_*_ROUTE` of IPv4 and IPv6
/// (`include/uapi/linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;

/// Addresses as the last notification had them: a router's advertisement tells the same
/// again, with other lifetimes.
#[derive(Default)]
struct Known(HashMap<(IfIndex, IpAddr), Address>);

/// Calls `changed` whenever something did, until it returns false.
pub fn listen(mut changed: impl FnMut() -> bool) -> io::Result<()> {
    let socket = Socket::listen(GROUPS)?;
    let mut buffer = vec![0; 32 << 10];
    let mut known = Known::default();
    loop {
        let concerns = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                super::message::messages(&buffer[..length])
                    .iter()
                    // Each of them is to be known.
                    .filter(|m| known.concerns_the_node(m))
                    .count()
                    > 0
            }
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

impl Known {
    fn concerns_the_node(&mut self, message: &Received) -> bool {
        match message.kind {
            RTM_NEWADDR => address::parse(message).is_none_or(|now| {
                let key = (now.index, now.ip);
                self.0.insert(key, now) != Some(now)
            }),
            RTM_DELADDR => {
                if let Some(gone) = address::parse(message) {
                    self.0.remove(&(gone.index, gone.ip));
                }
                true
            }
            route::RTM_NEWROUTE | route::RTM_DELROUTE => route::concerns_the_node(message),
            link::RTM_NEWLINK | link::RTM_DELLINK => {
                link::name(message).is_some_and(|name| !is_host_veth(&name))
            }
            _ => false,
        }
    }
}
