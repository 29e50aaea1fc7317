//! Whether other nodes answer in a form: asked before the form is used, and
//! again to confirm that it works.
//!
//! A probe is an ICMP echo from this node's health address to the peer's. Its
//! mark names the form, whatever form traffic has now, so probes disturb
//! nothing. The peer's kernel answers: a peer whose agent is dead still does.
//!
//! All peers of a job are asked at once, in all families.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, Ipv4Header, Ipv6FlowLabel, Ipv6Header,
    PacketBuilder, ip_number,
};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom,
        sendto, setsockopt, socket,
        sockopt::{Mark, RcvBuf, SetStruct},
    },
};
use veer_bpf_common::{mark, tables::Form};

use veer_agent_core::{
    family::Family,
    switch::{Answer, Ask},
};

/// How often a packet that was not answered is sent again.
const TRIES: u32 = 5;
/// How long each try is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// Packets sent before answers are read: less than a socket's buffer holds.
const BURST: usize = 64;
/// Bytes of the small probe's IP packet.
const SMALL: usize = 64;
/// Bytes of an ICMP echo header of either family.
const ECHO: usize = 8;
/// Types of an echo reply, of ICMP and of `ICMPv6`.
const REPLIES: [u8; 2] = [0, 129];
/// Bytes of the receiving socket's buffer.
const BUFFER: usize = 1 << 20;

/// `IP_MTU_DISCOVER` (`ip(7)`).
#[derive(Clone, Copy, Debug)]
struct MtuDiscover;

nix::setsockopt_impl!(
    MtuDiscover,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

/// `IPV6_MTU_DISCOVER` (`ipv6(7)`).
#[derive(Clone, Copy, Debug)]
struct MtuDiscoverV6;

nix::setsockopt_impl!(
    MtuDiscoverV6,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int,
    SetStruct<'_, libc::c_int>
);

/// The option [`Unwanted`] (`include/uapi/linux/icmpv6.h`).
const ICMPV6_FILTER: libc::c_int = 1;

/// `ICMPV6_FILTER` (RFC 3542, section 3.2), with the types that are not wanted.
#[derive(Clone, Copy, Debug)]
struct Unwanted;

nix::setsockopt_impl!(
    Unwanted,
    libc::IPPROTO_ICMPV6,
    ICMPV6_FILTER,
    [u32; 8],
    SetStruct<'_, [u32; 8]>
);

/// Which packet of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Size {
    Small,
    Full,
}

/// An echo that is not answered yet.
#[derive(Debug)]
struct Open {
    at: usize,
    size: Size,
    error: Option<String>,
}

/// Asks all, from the own health addresses. Takes at most some seconds.
///
/// # Errors
///
/// The sockets cannot be opened (`CAP_NET_RAW`, `CAP_NET_ADMIN`).
pub fn run(from: &[IpAddr], asks: Vec<Ask>) -> io::Result<Vec<Answer>> {
    let asked = |family: &Family| asks.iter().any(|ask| family.has(ask.to));
    let families = Family::ALL.into_iter().filter(asked);
    let sockets: Vec<Sockets> = families.map(Sockets::open).collect::<io::Result<_>>()?;
    // Two echoes of an ask have numbers 2n and 2n + 1.
    let mut open: HashMap<u16, Open> = HashMap::new();
    for at in 0..asks.len() {
        for size in [Size::Small, Size::Full] {
            if let Some(number) = number(at, size) {
                let error = None;
                open.insert(number, Open { at, size, error });
            }
        }
    }
    let id = identifier();
    for _ in 0..TRIES {
        let mut numbers: Vec<u16> = open.keys().copied().collect();
        numbers.sort_unstable();
        for burst in numbers.chunks(BURST) {
            for number in burst {
                let Some(echo) = open.get_mut(number) else {
                    continue;
                };
                let ask = &asks[echo.at];
                let length = match echo.size {
                    Size::Small => SMALL,
                    Size::Full => ask.full.into(),
                };
                let sent = send(&sockets, from, ask, (id, *number), length);
                echo.error = sent.err().map(|e| e.to_string());
            }
            receive(&sockets, &asks, id, &mut open, Instant::now())?;
        }
        receive(&sockets, &asks, id, &mut open, Instant::now() + PATIENCE)?;
        if open.is_empty() {
            break;
        }
    }
    Ok(answers(asks, &open))
}

fn number(at: usize, size: Size) -> Option<u16> {
    u16::try_from(at * 2 + usize::from(size == Size::Full)).ok()
}

/// A number that tells this job's answers from those of the last.
fn identifier() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(Instant::now());
    u16::try_from(random & 0xffff).unwrap_or(1)
}

/// The sockets of one family.
#[derive(Debug)]
struct Sockets {
    family: Family,
    receiver: OwnedFd,
    tunnel: OwnedFd,
    native: OwnedFd,
}

impl Sockets {
    fn open(family: Family) -> io::Result<Self> {
        let protocol = family.pick([SockProtocol::Icmp, SockProtocol::IcmpV6]);
        let receiver = raw(family, protocol)?;
        setsockopt(&receiver, RcvBuf, &BUFFER)?;
        if family == Family::V6 {
            // Neighbours' messages would fill it.
            let mut unwanted = [u32::MAX; 8];
            unwanted[usize::from(REPLIES[1] / 32)] ^= 1 << (REPLIES[1] % 32);
            setsockopt(&receiver, Unwanted, &unwanted)?;
        }
        Ok(Self {
            family,
            receiver,
            tunnel: sender(family, mark::PROBE_TUNNEL)?,
            native: sender(family, mark::PROBE_NATIVE)?,
        })
    }
}

fn raw(family: Family, protocol: SockProtocol) -> io::Result<OwnedFd> {
    let family = family.pick([AddressFamily::Inet, AddressFamily::Inet6]);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Raw, flags, protocol)?)
}

/// A socket that takes whole IP packets and holds them against the device's
/// MTU, not the route's, which may be the smaller one of another form.
fn sender(family: Family, mark: u32) -> io::Result<OwnedFd> {
    let socket = raw(family, SockProtocol::Raw)?;
    setsockopt(&socket, Mark, &mark)?;
    match family {
        Family::V4 => setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_PROBE)?,
        Family::V6 => setsockopt(&socket, MtuDiscoverV6, &libc::IPV6_PMTUDISC_PROBE)?,
    }
    Ok(socket)
}

/// An echo request of `length` bytes that must not be fragmented.
fn packet(from: IpAddr, to: IpAddr, (id, seq): (u16, u16), length: usize) -> io::Result<Vec<u8>> {
    let echo = IcmpEchoHeader { id, seq };
    // Only a length that IP cannot say is refused.
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(0, 64, ip_number::ICMP, from.octets(), to.octets())
                .map_err(|_| invalid())?;
            ip.dont_fragment = true;
            IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ip = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: ip_number::IPV6_ICMP,
                hop_limit: 64,
                source: from.octets(),
                destination: to.octets(),
            };
            IpHeaders::Ipv6(ip, etherparse::Ipv6Extensions::default())
        }
        _ => return Err(invalid()),
    };
    let headers = ip.header_len() + ECHO;
    let payload = vec![0; length.saturating_sub(headers)];
    let mut bytes = Vec::with_capacity(length);
    let builder = PacketBuilder::ip(ip);
    let written = if to.is_ipv4() {
        let echo = Icmpv4Type::EchoRequest(echo);
        builder.icmpv4(echo).write(&mut bytes, &payload)
    } else {
        let echo = Icmpv6Type::EchoRequest(echo);
        builder.icmpv6(echo).write(&mut bytes, &payload)
    };
    written.map_err(|_| invalid())?;
    Ok(bytes)
}

/// Sends an ask's echo with this id and number, from the address of its family.
fn send(
    sockets: &[Sockets],
    from: &[IpAddr],
    ask: &Ask,
    number: (u16, u16),
    length: usize,
) -> io::Result<()> {
    let family = Family::of(ask.to);
    let from = family.first(from);
    let sockets = sockets.iter().find(|s| s.family == family);
    let (from, sockets) = from
        .zip(sockets)
        .ok_or_else(|| io::Error::other("this node has no health address of that family"))?;
    let socket = if ask.form == Form::Native {
        &sockets.native
    } else {
        &sockets.tunnel
    };
    let packet = packet(from, ask.to, number, length)?;
    let to = SockaddrStorage::from(SocketAddr::new(ask.to, 0));
    sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// Strikes answered echoes off until `deadline` or until none is open.
fn receive(
    sockets: &[Sockets],
    asks: &[Ask],
    id: u16,
    open: &mut HashMap<u16, Open>,
    deadline: Instant,
) -> io::Result<()> {
    while !open.is_empty() {
        for socket in sockets {
            drain(&socket.receiver, asks, id, open)?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || open.is_empty() {
            return Ok(());
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let fds = sockets.iter().map(|s| s.receiver.as_fd());
        let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, timeout) {
            // Shorter than a millisecond is no time for poll.
            Ok(0) if left < Duration::from_millis(1) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Strikes off what a socket holds.
fn drain(socket: &OwnedFd, asks: &[Ask], id: u16, open: &mut HashMap<u16, Open>) -> io::Result<()> {
    // The end of a large one is cut off.
    let mut buffer = [0; 128];
    loop {
        match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, source)) => {
                let source = source.as_ref().and_then(address);
                let seen = &buffer[..length.min(buffer.len())];
                if let Some(source) = source
                    && let Some(number) = reply(source, seen, id)
                    && open.get(&number).is_some_and(|o| asks[o.at].to == source)
                {
                    open.remove(&number);
                }
            }
            Err(Errno::EAGAIN) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = of.as_sockaddr_in().map(|a| a.ip().into());
    v4.or_else(|| of.as_sockaddr_in6().map(|a| a.ip().into()))
}

/// Number of an echo reply with this id. Of IPv4 the kernel hands the IP header over too.
fn reply(source: IpAddr, packet: &[u8], id: u16) -> Option<u16> {
    let (kind, header) = if source.is_ipv4() {
        (REPLIES[0], usize::from(packet.first()? & 0xf) * 4)
    } else {
        (REPLIES[1], 0)
    };
    let echo = packet.get(header..)?.get(..ECHO)?;
    let number = |at: usize| u16::from_be_bytes([echo[at], echo[at + 1]]);
    (echo[..2] == [kind, 0] && number(4) == id).then(|| number(6))
}

fn answers(asks: Vec<Ask>, open: &HashMap<u16, Open>) -> Vec<Answer> {
    let unanswered = |at: usize, size| number(at, size).map(|n| open.get(&n));
    asks.into_iter()
        .enumerate()
        .map(|(at, ask)| {
            let small = unanswered(at, Size::Small);
            let full = unanswered(at, Size::Full);
            let outcome = match (small, full) {
                (Some(Some(echo)), _) => Err(silent(&ask, echo)),
                (_, Some(Some(echo))) => Err(cut(&ask, echo)),
                (None, _) | (_, None) => {
                    Err("more nodes than one job of probes has numbers for".to_owned())
                }
                (Some(None), Some(None)) => Ok(()),
            };
            Answer { ask, outcome }
        })
        .collect()
}

/// Why a peer does not answer at all.
fn silent(ask: &Ask, echo: &Open) -> String {
    if let Some(error) = &echo.error {
        return format!("a probe cannot be sent: {error}");
    }
    if ask.form == Form::Native {
        format!(
            "no answer from {} to bare packets: does the underlay carry pod addresses (routes, \
             security groups, source checks), and do they enter both nodes by a device with \
             veer's programs?",
            ask.to
        )
    } else {
        format!(
            "no answer from {} through the tunnel: is its UDP port open between the nodes?",
            ask.to
        )
    }
}

/// Why a peer answers small packets only.
fn cut(ask: &Ask, echo: &Open) -> String {
    let why = echo
        .error
        .as_ref()
        .map_or_else(String::new, |error| format!(" ({error})"));
    format!(
        "{} answers small packets but none of {} bytes{why}: set spec.mtu to what the path \
         between the nodes carries",
        ask.to,
        ask.full.get()
    )
}

#[cfg(test)]
mod tests;
