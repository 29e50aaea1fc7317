//! ICMP echo from a chosen source and with a mark: what the agent's probes are.

use anyhow::{Context as _, Result, bail};
use nix::{errno::Errno, libc};
use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use crate::packet::Packet;

/// Bytes of IPv4 and ICMP headers together.
pub const HEADERS: usize = 28;

/// A socket for echo requests with DF, whatever MTU the route has.
pub struct Echo {
    socket: OwnedFd,
    source: Ipv4Addr,
    identifier: u16,
}

impl Echo {
    /// One in the calling thread's namespace that sends from `source` with
    /// `mark`. Requests and replies are told from others' by `identifier`.
    pub fn new(source: Ipv4Addr, mark: u32, identifier: u16) -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_ICMP) };
        let fd = Errno::result(fd).context("ICMP socket")?;
        // SAFETY: a new descriptor that nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let echo = Self {
            socket,
            source,
            identifier,
        };
        echo.option(libc::SOL_SOCKET, libc::SO_MARK, mark.cast_signed())?;
        let probe = libc::IP_PMTUDISC_PROBE;
        echo.option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe)?;
        let own = socket_address(source);
        // SAFETY: an initialised address of the size given.
        let bound = unsafe {
            libc::bind(
                echo.socket.as_raw_fd(),
                (&raw const own).cast(),
                size_of::<libc::sockaddr_in>() as u32,
            )
        };
        Errno::result(bound).with_context(|| format!("bind to {source}"))?;
        Ok(echo)
    }

    fn option(&self, level: i32, name: i32, value: i32) -> Result<()> {
        // SAFETY: a readable integer of the size given.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                size_of::<i32>() as u32,
            )
        };
        Errno::result(set).with_context(|| format!("socket option {name}"))?;
        Ok(())
    }

    /// Sends a request whose IPv4 packet has `length` bytes.
    pub fn send(&self, to: Ipv4Addr, length: usize) -> Result<()> {
        let packet = Packet::echo(self.source, to, self.identifier).total_length(length);
        let bytes = &packet.ip()[20..];
        let to = socket_address(to);
        // SAFETY: readable bytes and an initialised address of the size given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_in>() as u32,
            )
        };
        Errno::result(sent).with_context(|| format!("send {length} bytes"))?;
        Ok(())
    }

    /// Waits for a reply whose IPv4 packet has `length` bytes.
    pub fn reply(&self, length: usize, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no reply of {length} bytes within {within:?}");
            }
            let mut poll = libc::pollfd {
                fd: self.socket.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let milliseconds = i32::try_from(left.as_millis())?.max(1);
            // SAFETY: one initialised structure.
            let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
            if Errno::result(ready).context("poll")? == 0 {
                continue;
            }
            // SAFETY: writable bytes of the size given.
            let n = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            let n = usize::try_from(Errno::result(n).context("receive")?)?;
            let ours = buffer[20] == 0 && buffer[24..26] == self.identifier.to_be_bytes();
            if n == length && ours {
                return Ok(());
            }
        }
    }
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    }
}
