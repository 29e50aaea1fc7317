//! Whether other nodes answer in a form: asked before the form is used, and
//! again to confirm that it works.
//!
//! A probe is an ICMP echo from this node's health address to the peer's. Its
//! mark names the form, whatever form traffic has now, so probes disturb
//! nothing. The peer's kernel answers: a peer whose agent is dead still does.
//!
//! All peers of a job are asked at once.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, IpHeaders, Ipv4Header, LaxNetSlice, LaxSlicedPacket, PacketBuilder,
    TransportSlice, ip_number,
};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
        setsockopt, socket,
        sockopt::{Mark, RcvBuf, SetStruct},
    },
};
use veer_bpf_common::{mark, tables::FORM_NATIVE};

use veer_agent_core::switch::{Answer, Ask};

/// How often a packet that was not answered is sent again.
const TRIES: u32 = 5;
/// How long each try is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// Packets sent before answers are read: less than a socket's buffer holds.
const BURST: usize = 64;
/// Bytes of the small probe's IP packet.
const SMALL: usize = 64;
/// Bytes of an IPv4 and an ICMP echo header.
const HEADERS: usize = 28;
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
    let receiver = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Icmp,
    )?;
    setsockopt(&receiver, RcvBuf, &BUFFER)?;
    let tunnel = sender(mark::PROBE_TUNNEL)?;
    let native = sender(mark::PROBE_NATIVE)?;
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
                    Size::Full => ask.full,
                };
                let socket = if ask.form == FORM_NATIVE {
                    &native
                } else {
                    &tunnel
                };
                let ends = ends(from, ask.to);
                let sent = ends.and_then(|(from, to)| {
                    let packet = packet(from, to, id, *number, length)?;
                    send(socket, to, &packet)
                });
                echo.error = sent.err().map(|e| e.to_string());
            }
            receive(&receiver, &asks, id, &mut open, Instant::now())?;
        }
        receive(&receiver, &asks, id, &mut open, Instant::now() + PATIENCE)?;
        if open.is_empty() {
            break;
        }
    }
    Ok(answers(asks, &open))
}

/// The two ends of a probe.
fn ends(from: &[IpAddr], to: IpAddr) -> io::Result<(Ipv4Addr, Ipv4Addr)> {
    let from = from.iter().find(|from| from.is_ipv4() == to.is_ipv4());
    match (from, to) {
        (Some(IpAddr::V4(from)), IpAddr::V4(to)) => Ok((*from, to)),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
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

/// A socket that takes whole IP packets and holds them against the device's
/// MTU, not the route's, which may be the smaller one of another form.
fn sender(mark: u32) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Raw,
    )?;
    setsockopt(&socket, Mark, &mark)?;
    setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_PROBE)?;
    Ok(socket)
}

/// An echo request of `length` bytes that must not be fragmented.
fn packet(
    from: Ipv4Addr,
    to: Ipv4Addr,
    id: u16,
    number: u16,
    length: usize,
) -> io::Result<Vec<u8>> {
    let payload = vec![0; length.saturating_sub(HEADERS)];
    // Only a length that IP cannot say is refused.
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut ip =
        Ipv4Header::new(0, 64, ip_number::ICMP, from.octets(), to.octets()).map_err(too_long)?;
    ip.dont_fragment = true;
    let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id, seq: number });
    let builder = PacketBuilder::ip(IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default()));
    let mut bytes = Vec::with_capacity(length);
    builder
        .icmpv4(echo)
        .write(&mut bytes, &payload)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(bytes)
}

fn send(socket: &OwnedFd, to: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// Strikes answered echoes off until `deadline` or until none is open.
fn receive(
    socket: &OwnedFd,
    asks: &[Ask],
    id: u16,
    open: &mut HashMap<u16, Open>,
    deadline: Instant,
) -> io::Result<()> {
    let mut buffer = [0; 128];
    while !open.is_empty() {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
            Ok(length) => {
                let seen = length.min(buffer.len());
                if let Some((source, number)) = reply(&buffer[..seen], id)
                    && open
                        .get(&number)
                        .is_some_and(|o| asks[o.at].to == IpAddr::V4(source))
                {
                    open.remove(&number);
                }
            }
            Err(Errno::EAGAIN) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, timeout) {
                    // Shorter than a millisecond is no time for poll.
                    Ok(0) if left < Duration::from_millis(1) => return Ok(()),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sender and number of an echo reply with this id. The end of a large one was
/// cut off, so its length fields say more than is there.
fn reply(packet: &[u8], id: u16) -> Option<(Ipv4Addr, u16)> {
    let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
    if let Some(LaxNetSlice::Ipv4(ip)) = sliced.net
        && let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport
        && let Icmpv4Type::EchoReply(echo) = icmp.icmp_type()
        && echo.id == id
    {
        return Some((ip.header().source_addr(), echo.seq));
    }
    None
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
    if ask.form == FORM_NATIVE {
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
        ask.to, ask.full
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);

    fn answer(number: u16, id: u16) -> Vec<u8> {
        let mut bytes = packet(TO, FROM, id, number, SMALL).unwrap();
        bytes[20] = 0; // echo reply
        bytes
    }

    fn ask(form: u8) -> Ask {
        Ask {
            node: "b".into(),
            to: TO.into(),
            form,
            full: 1500,
            confirms: false,
        }
    }

    #[test]
    fn a_probe_has_the_size_asked_for_and_must_not_be_fragmented() {
        for length in [SMALL, 1450, 1500, 9000] {
            let bytes = packet(FROM, TO, 7, 3, length).unwrap();
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes[6] & 0x40, 0x40);
        }
    }

    #[test]
    fn only_replies_of_this_job_count() {
        assert_eq!(reply(&answer(3, 7), 7), Some((TO, 3)));
        assert_eq!(reply(&answer(3, 7), 8), None);
        assert_eq!(reply(&packet(TO, FROM, 7, 3, SMALL).unwrap(), 7), None);
        for cut in 0..SMALL {
            // Whatever is made of a piece, it is not taken apart beyond its end.
            let _ = reply(&answer(3, 7)[..cut], 7);
        }
        assert_eq!(reply(&[0x45; 64], 7), None);
    }

    #[test]
    fn what_is_not_answered_says_what_to_look_at() {
        let open = |size| {
            let number = number(0, size).unwrap();
            let error = None;
            HashMap::from([(number, Open { at: 0, size, error })])
        };
        let text = |form, open: &HashMap<u16, Open>| {
            let mut all = answers(vec![ask(form)], open);
            all.pop().unwrap().outcome.unwrap_err()
        };
        assert!(text(FORM_NATIVE, &open(Size::Small)).contains("underlay"));
        assert!(text(1, &open(Size::Small)).contains("UDP port"));
        assert!(text(FORM_NATIVE, &open(Size::Full)).contains("1500 bytes"));
        let none = HashMap::new();
        assert_eq!(answers(vec![ask(1)], &none)[0].outcome, Ok(()));
    }
}
