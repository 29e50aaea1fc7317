//! Options of sockets that Rust does not set, in both families.

use crate::family::Family;
use anyhow::{Context as _, Result};
use nix::{errno::Errno, libc};
use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _},
};

/// What a socket makes of packets that do not fit their path.
#[derive(Clone, Copy, Debug)]
pub enum Discovery {
    /// It learns the path's MTU and sends nothing larger.
    Learn,
    /// It sends them whatever it has learned.
    Ignore,
}

/// Sets an option that is an integer.
pub fn set(socket: impl AsFd, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: a readable integer of the size given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as u32,
        )
    };
    Errno::result(set).with_context(|| format!("socket option {name}"))?;
    Ok(())
}

/// Makes a socket to an address of this family send no fragments.
pub fn never_fragment(socket: impl AsFd, family: Family, how: Discovery) -> Result<()> {
    let (level, name, learn, ignore) = family.pick(
        (
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
            libc::IP_PMTUDISC_PROBE,
        ),
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
            libc::IPV6_PMTUDISC_PROBE,
        ),
    );
    let value = match how {
        Discovery::Learn => learn,
        Discovery::Ignore => ignore,
    };
    set(socket, level, name, value)
}

/// The MTU that a socket connected to this address knows of its path.
pub fn path_mtu(socket: impl AsFd, to: IpAddr) -> Result<u32> {
    let (level, name) = Family::of_address(to).pick(
        (libc::IPPROTO_IP, libc::IP_MTU),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    );
    let mut mtu = 0_i32;
    let mut size = size_of_val(&mtu) as u32;
    // SAFETY: a writable integer of the size given.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut mtu).cast(),
            &raw mut size,
        )
    };
    Errno::result(got).context("the path's MTU")?;
    Ok(u32::try_from(mtu)?)
}
