//! Sockets for datagrams whose arrival the kernel times, and which count what
//! their buffers had no room for. They are of both families: IPv4 addresses are
//! there as IPv6 ones that hold them (RFC 4291, section 2.5.5.2).

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg,
            setsockopt, sockopt,
        },
        time::TimeSpec,
    },
};

use crate::error::{Result, What};

/// Room for what has arrived until the process looks, octets.
const BUFFER: usize = 8 << 20;
/// No datagram is longer.
pub(crate) const LONGEST: usize = 9000;

/// The machine's clock, nanoseconds since 1970: what the kernel stamps
/// arrivals with, and the same in all namespaces.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// A datagram that arrived.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    pub(crate) octets: &'a [u8],
    pub(crate) from: SocketAddrV6,
    /// The address of ours that it was sent to.
    pub(crate) to: Ipv6Addr,
    /// When, by the kernel, nanoseconds since 1970.
    pub(crate) at: u64,
}

/// A UDP socket that never waits.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    /// Datagrams its buffer had no room for.
    pub(crate) overflown: u64,
}

impl Socket {
    /// Waits until something may be received, a refusal included, or until the
    /// deadline; returns which.
    pub(crate) fn readable_before(&self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, left) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(io::Error::from(error)).what(|| "wait for a datagram".to_owned()),
        }
    }

    /// Bound to a port on all addresses; 0: any.
    pub(crate) fn bind(port: u16) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
            .what(|| format!("bind udp port {port}"))?;
        socket
            .set_nonblocking(true)
            .what(|| "set nonblocking".to_owned())?;
        // The larger one wants a capability.
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER).what(|| "set SO_RCVBUF".to_owned())?;
        }
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
            .what(|| "set SO_TIMESTAMPNS".to_owned())?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
            .what(|| "set IPV6_RECVPKTINFO".to_owned())?;
        setsockopt(&socket, sockopt::RxqOvfl, &1).what(|| "set SO_RXQ_OVFL".to_owned())?;
        Ok(Self {
            socket,
            overflown: 0,
        })
    }

    /// Takes datagrams from one peer only, and sends to it.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<()> {
        self.socket.connect(to).what(|| format!("connect udp {to}"))
    }

    /// Sends to the connected peer. An error left behind by an earlier
    /// datagram (an ICMP answer to it) is not one of this.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket
            .send(datagram)
            .or_else(|_| self.socket.send(datagram))
            .map(|_| ())
    }

    /// Sends from a given address of ours: that to which the peer had sent.
    pub(crate) fn send_from(
        &self,
        from: Ipv6Addr,
        to: SocketAddrV6,
        datagram: &[u8],
    ) -> io::Result<()> {
        let info = libc::in6_pktinfo {
            ipi6_ifindex: 0,
            ipi6_addr: libc::in6_addr {
                s6_addr: from.octets(),
            },
        };
        let send = || {
            sendmsg(
                self.socket.as_raw_fd(),
                &[IoSlice::new(datagram)],
                &[ControlMessage::Ipv6PacketInfo(&info)],
                MsgFlags::empty(),
                Some(&SockaddrIn6::from(to)),
            )
        };
        send().or_else(|_| send())?;
        Ok(())
    }

    /// The next datagram, or `None` when there is none now.
    pub(crate) fn receive<'a>(&mut self, buffer: &'a mut [u8; LONGEST]) -> Option<Arrival<'a>> {
        let mut space = cmsg_space!(TimeSpec, libc::in6_pktinfo, u32);
        // An error is what an ICMP message left behind; what matters comes
        // after it.
        for _ in 0..2 {
            let mut slices = [IoSliceMut::new(buffer)];
            let message = recvmsg::<SockaddrIn6>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match message {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return None,
                Err(_) => continue,
            };
            let (length, from) = (message.bytes, message.address?);
            let (mut at, mut to) = (None, Ipv6Addr::UNSPECIFIED);
            for control in message.cmsgs().ok()? {
                if let ControlMessageOwned::ScmTimestampns(time) = &control {
                    at = nanoseconds(time);
                } else if let ControlMessageOwned::Ipv6PacketInfo(info) = &control {
                    to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                } else if let ControlMessageOwned::RxqOvfl(count) = &control {
                    self.overflown = self.overflown.max(u64::from(*count));
                }
            }
            return Some(Arrival {
                octets: &buffer[..length],
                from: SocketAddrV6::new(from.ip(), from.port(), 0, 0),
                to,
                at: at.unwrap_or_else(now),
            });
        }
        None
    }
}

fn nanoseconds(time: &TimeSpec) -> Option<u64> {
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    let rest = u64::try_from(time.tv_nsec()).ok()?;
    Some(seconds * 1_000_000_000 + rest)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    #[test]
    fn an_arrival_says_when_from_where_and_to_where() {
        let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in own {
            let (mut server, mut client) = (
                Socket::bind(0).expect("bind"),
                Socket::bind(0).expect("bind"),
            );
            let port = server.socket.local_addr().expect("bound").port();
            let before = now();
            client.connect((address, port).into()).expect("connect");
            client.send(b"hello").expect("send");
            let mut buffer = [0; LONGEST];
            let arrival = server.receive(&mut buffer).expect("it is there at once");
            assert_eq!(arrival.octets, b"hello");
            assert_eq!(arrival.to.to_canonical(), address);
            assert!(arrival.at >= before && arrival.at <= now());
            let (from, to) = (arrival.to, arrival.from);
            server.send_from(from, to, b"back").expect("send");
            assert_eq!(client.receive(&mut buffer).expect("back").octets, b"back");
            assert!(server.receive(&mut buffer).is_none());
        }
    }
}
