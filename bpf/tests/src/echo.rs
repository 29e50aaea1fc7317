//! ICMP echo from a chosen source and with a mark: what the agent's probes are.

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{SockaddrLike as _, SockaddrStorage},
};
use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use crate::{
    family::Family,
    packet::Packet,
    socket::{self, Discovery, never_fragment},
};

/// A socket for echo requests with DF, whatever MTU the route has.
pub struct Echo {
    socket: OwnedFd,
    source: IpAddr,
    identifier: u16,
}

impl Echo {
    /// One in the calling thread's namespace that sends from `source` with
    /// `mark`. Requests and replies are told from others' by `identifier`.
    pub fn new(source: IpAddr, mark: u32, identifier: u16) -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let family = Family::of_address(source);
        let (domain, protocol) = family.pick(
            (libc::AF_INET, libc::IPPROTO_ICMP),
            (libc::AF_INET6, libc::IPPROTO_ICMPV6),
        );
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(domain, kind, protocol) };
        let fd = Errno::result(fd).context("ICMP socket")?;
        // SAFETY: a new descriptor that nothing else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let echo = Self {
            socket,
            source,
            identifier,
        };
        let mark = mark.cast_signed();
        socket::set(&echo.socket, libc::SOL_SOCKET, libc::SO_MARK, mark)?;
        never_fragment(&echo.socket, family, Discovery::Ignore)?;
        let own = socket_address(source);
        // SAFETY: an initialised address of the size given.
        let bound = unsafe { libc::bind(echo.socket.as_raw_fd(), own.as_ptr(), own.len()) };
        Errno::result(bound).with_context(|| format!("bind to {source}"))?;
        Ok(echo)
    }

    /// Sends a request whose IP packet has `length` bytes.
    pub fn send(&self, to: IpAddr, length: usize) -> Result<()> {
        let packet = Packet::echo(self.source, to, self.identifier).total_length(length);
        let bytes = &packet.ip()[Family::of_address(to).header_length()..];
        let to = socket_address(to);
        // SAFETY: readable bytes and an initialised address of the size given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                0,
                to.as_ptr(),
                to.len(),
            )
        };
        Errno::result(sent).with_context(|| format!("send {length} bytes"))?;
        Ok(())
    }

    /// Waits for a reply whose IP packet has `length` bytes.
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
            // The kernel keeps the header of IPv6 to itself.
            let (at, reply, hidden) =
                Family::of_address(self.source).pick((20, 0, 0), (0, 129, 40));
            let ours =
                buffer[at] == reply && buffer[at + 4..at + 6] == self.identifier.to_be_bytes();
            if n + hidden == length && ours {
                return Ok(());
            }
        }
    }
}

fn socket_address(address: IpAddr) -> SockaddrStorage {
    SocketAddr::new(address, 0).into()
}
