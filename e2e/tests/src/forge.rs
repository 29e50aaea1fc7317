//! Packets with forged sources, sent as frames past the sender's own stack and counted
//! where they must not arrive.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder, PacketBuilderStep,
    SingleVlanHeader, VlanId, VlanPcp,
};
use nix::libc;
use veer_e2e_cluster::Mac;

use crate::{client::udp_socket, site::Site};

/// What every forged datagram says first.
pub const TEXT: &[u8] = b"veer-e2e-forged";
/// Its source port.
const PORT: u16 = 40_000;

/// An IPv6 header.
fn ipv6(source: Ipv6Addr, target: Ipv6Addr, hop_limit: u8) -> Ipv6Header {
    Ipv6Header {
        hop_limit,
        source: source.octets(),
        destination: target.octets(),
        ..Ipv6Header::default()
    }
}

/// A packet up to its payload, of the family that both ends have.
fn ip(source: IpAddr, target: IpAddr) -> Result<PacketBuilderStep<IpHeaders>> {
    let headers = match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let header = Ipv4Header {
                identification: 1,
                dont_fragment: false,
                time_to_live: 64,
                source: source.octets(),
                destination: target.octets(),
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            IpHeaders::Ipv6(ipv6(source, target, 64), Ipv6Extensions::default())
        }
        _ => bail!("no packet goes from {source} to {target}"),
    };
    Ok(PacketBuilder::ip(headers))
}

/// A packet with a UDP datagram that says [`TEXT`].
pub fn datagram(source: IpAddr, target: IpAddr, port: u16) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ip(source, target)?
        .udp(PORT, port)
        .write(&mut packet, TEXT)?;
    Ok(packet)
}

/// The same with a routing header in front of it, of a type and with so many segments
/// left.
pub fn routed_datagram(
    (source, target): (Ipv6Addr, Ipv6Addr),
    port: u16,
    (kind, left): (u8, u8),
) -> Result<Vec<u8>> {
    // Type, segments left, four octets of zero, and one address.
    let mut content = vec![kind, left, 0, 0, 0, 0];
    content.extend(target.octets());
    let extensions = Ipv6Extensions {
        routing: Some(Ipv6RoutingExtensions {
            routing: Ipv6RawExtHeader::new_raw(IpNumber::UDP, &content)?,
            final_destination_options: None,
        }),
        ..Ipv6Extensions::default()
    };
    let mut packet = Vec::new();
    PacketBuilder::ip(IpHeaders::Ipv6(ipv6(source, target, 64), extensions))
        .udp(PORT, port)
        .write(&mut packet, TEXT)?;
    Ok(packet)
}

/// Messages of neighbour discovery (RFC 4861, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discovery {
    /// "I am the router": with a lifetime of half an hour.
    RouterAdvertisement,
    /// "Who has this address?"
    Solicitation(Ipv6Addr),
    /// "I have this address", unasked, in place of what was known.
    Advertisement(Ipv6Addr),
    /// "To this destination by me."
    Redirect(Ipv6Addr),
}

/// A message of neighbour discovery with the link-layer address of its sender.
pub fn discovery(
    (source, target): (Ipv6Addr, Ipv6Addr),
    own: Mac,
    message: Discovery,
) -> Result<Vec<u8>> {
    const OVERRIDE: [u8; 4] = [0x20, 0, 0, 0];
    // Which of the two link-layer addresses an option has.
    const SOURCE: u8 = 1;
    const TARGET: u8 = 2;
    let (kind, head, mut content, option) = match message {
        // A hop limit of 64; neither reachable time nor interval.
        Discovery::RouterAdvertisement => (134, [64, 0, 7, 8], vec![0; 8], SOURCE),
        Discovery::Solicitation(address) => (135, [0; 4], address.octets().to_vec(), SOURCE),
        Discovery::Advertisement(address) => (136, OVERRIDE, address.octets().to_vec(), TARGET),
        Discovery::Redirect(destination) => {
            let to = [source.octets(), destination.octets()].concat();
            (137, [0; 4], to, TARGET)
        }
    };
    content.extend([option, 1]);
    content.extend(own.0);
    let mut packet = Vec::new();
    let header = ipv6(source, target, 255);
    PacketBuilder::ip(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
        .icmpv6_raw(kind, 0, head)
        .write(&mut packet, &content)?;
    Ok(packet)
}

/// A packet with a TCP segment that acknowledges octet 1 and has no data.
pub fn acknowledgement(source: SocketAddr, target: SocketAddr, sequence: u32) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ip(source.ip(), target.ip())?
        .tcp(source.port(), target.port(), sequence, 256)
        .ack(1)
        .write(&mut packet, &[])?;
    Ok(packet)
}

/// A packet with an SCTP INIT (`answer` false) or INIT ACK, which etherparse does
/// not know: `tag` is its sender's verification tag, `to_tag` the receiver's.
pub fn sctp_init(
    source: SocketAddr,
    target: SocketAddr,
    answer: bool,
    (tag, to_tag): (u32, u32),
) -> Result<Vec<u8>> {
    let mut sctp: Vec<u8> = [source.port(), target.port()]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect();
    sctp.extend(to_tag.to_be_bytes());
    // The checksum's place; then type, flags, length of the chunk.
    sctp.extend([0; 4]);
    sctp.extend([1 + u8::from(answer), 0, 0, 20]);
    sctp.extend(tag.to_be_bytes());
    // A window, one stream each way, the first sequence number.
    sctp.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&sctp);
    // Lowest octet first, other than all else (RFC 9260, appendix A).
    sctp[8..12].copy_from_slice(&sum.to_le_bytes());
    let mut packet = Vec::new();
    ip(source.ip(), target.ip())?.write(&mut packet, IpNumber::SCTP, &sctp)?;
    Ok(packet)
}

/// CRC-32C (Castagnoli), bit by bit.
fn crc32c(octets: &[u8]) -> u32 {
    const REVERSED: u32 = 0x82f6_3b78;
    let sum = octets.iter().fold(u32::MAX, |sum, octet| {
        (0..8).fold(sum ^ u32::from(*octet), |sum, _| {
            (sum >> 1) ^ (REVERSED * (sum & 1))
        })
    });
    !sum
}

/// A frame; `tagged` puts a VLAN tag of id 0 before the packet, a priority alone.
pub fn frame(from: Mac, to: Mac, tagged: bool, packet: &[u8]) -> Vec<u8> {
    let carried = if packet.first().is_some_and(|octet| octet >> 4 == 6) {
        EtherType::IPV6
    } else {
        EtherType::IPV4
    };
    let ethernet = Ethernet2Header {
        source: from.0,
        destination: to.0,
        ether_type: if tagged {
            EtherType::VLAN_TAGGED_FRAME
        } else {
            carried
        },
    };
    let tag = SingleVlanHeader {
        pcp: VlanPcp::try_new(VlanPcp::MAX_U8).unwrap_or_default(),
        drop_eligible_indicator: false,
        vlan_id: VlanId::ZERO,
        ether_type: carried,
    };
    let mut frame = ethernet.to_bytes().to_vec();
    if tagged {
        frame.extend(tag.to_bytes());
    }
    frame.extend(packet);
    frame
}

/// What a VXLAN datagram to the tunnel port says: `vni`, and a frame inside.
pub fn wrapped(vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut load = vec![0x08, 0, 0, 0];
    load.extend((vni << 8).to_be_bytes());
    load.extend(inner);
    load
}

/// A packet socket for one device of the calling thread's network.
fn packet_socket(device: &str) -> Result<OwnedFd> {
    let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("make a packet socket");
    }
    // SAFETY: a descriptor just made that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = nix::net::if_::if_nametoindex(device)?;
    let address = address(all, index)?;
    // SAFETY: an address of the size given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error()).context("bind a packet socket");
    }
    Ok(socket)
}

/// `protocol` in network byte order, `index` of a device.
fn address(protocol: u16, index: u32) -> Result<libc::sockaddr_ll> {
    // SAFETY: integers only, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    Ok(address)
}

/// Sends a frame `count` times from a device of a site.
pub fn burst(site: &Site, device: &str, frame: &[u8], count: u64) -> Result<()> {
    site.within(|| {
        let socket = packet_socket(device)?;
        let mut sent = 0;
        while sent < count {
            // SAFETY: a descriptor and readable octets.
            let result =
                unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if result >= 0 {
                sent += 1;
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // The device's queue is full: it empties by itself.
                Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => std::thread::yield_now(),
                _ => return Err(error).with_context(|| format!("send by {device}")),
            }
        }
        Ok(())
    })
}

/// Counts what says [`TEXT`] and arrives at a place.
#[derive(Debug)]
pub enum Receiver {
    /// At a pod: whatever reaches its eth0, whichever port it is for.
    Device(OwnedFd),
    /// At a node or the world: what its stack hands to a socket.
    Socket(UdpSocket),
}

impl Receiver {
    /// Everything that reaches a device of a site.
    pub fn device(site: &Site, device: &str) -> Result<Self> {
        site.within(|| packet_socket(device).map(Self::Device))
    }

    /// A UDP socket at a site; the kernel chooses the port where it is 0.
    pub fn socket(site: &Site, at: SocketAddr) -> Result<Self> {
        site.within(|| {
            let socket = UdpSocket::bind(at).with_context(|| format!("bind {at}"))?;
            socket.set_nonblocking(true)?;
            Ok(Self::Socket(socket))
        })
    }

    /// Its port, 0 for a device.
    pub fn port(&self) -> u16 {
        match self {
            Self::Device(_) => 0,
            Self::Socket(socket) => socket.local_addr().map_or(0, |a| a.port()),
        }
    }

    /// How many forged datagrams have come since the last call.
    pub fn drain(&self) -> Result<u64> {
        let mut count = 0;
        let mut buffer = [0; 2048];
        loop {
            let length = match self {
                Self::Device(socket) => incoming(socket, &mut buffer)?,
                Self::Socket(socket) => match socket.recv(&mut buffer) {
                    Ok(length) => Some(length),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    Err(error) => return Err(error).context("receive"),
                },
            };
            let Some(length) = length else {
                return Ok(count);
            };
            let got = &buffer[..length];
            count += u64::from(got.windows(TEXT.len()).any(|w| w == TEXT));
        }
    }
}

/// The length of the next frame, 0 for one that the place itself sent; none when there
/// is none.
fn incoming(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>> {
    let mut from = address(0, 0)?;
    let mut size = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: writable octets, and an address of the size given.
    let length = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            0,
            (&raw mut from).cast(),
            &raw mut size,
        )
    };
    if length < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock {
            return Ok(None);
        }
        return Err(error).context("receive a frame");
    }
    if from.sll_pkttype == libc::PACKET_OUTGOING {
        return Ok(Some(0));
    }
    Ok(Some(usize::try_from(length)?.min(buffer.len())))
}

/// The address that a socket of `site` sends to `to` from.
pub fn own_source(site: &Site, to: IpAddr) -> Result<IpAddr> {
    site.within(|| {
        let socket = udp_socket(to)?;
        socket.connect((to, 9))?;
        Ok(socket.local_addr()?.ip())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_a_packet_with_its_ends_and_tags() {
        let [a, b] = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 9)));
        let packet = sctp_init(a, b, true, (7, 5)).expect("a packet");
        assert_eq!(packet[9], 132);
        assert_eq!(packet[12..20], [10, 0, 0, 1, 10, 0, 0, 2]);
        assert_eq!(packet[20..28], [0, 9, 0, 9, 0, 0, 0, 5]);
        assert_eq!(packet[32..40], [2, 0, 0, 20, 0, 0, 0, 7]);
    }

    #[test]
    fn the_crc_of_the_known_text_is_the_known_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_tag_stands_between_addresses_and_type() {
        let (from, to) = (Mac([2; 6]), Mac([4; 6]));
        let (plain, tagged) = (frame(from, to, false, &[9]), frame(from, to, true, &[9]));
        assert_eq!(plain[12..], [0x08, 0, 9]);
        assert_eq!(tagged[12..], [0x81, 0, 0xe0, 0, 0x08, 0, 9]);
        assert_eq!(tagged[..6], [4; 6]);
        let [plain, tagged] = [false, true].map(|tagged| frame(from, to, tagged, &[0x60]));
        assert_eq!(plain[12..], [0x86, 0xdd, 0x60]);
        assert_eq!(tagged[12..], [0x81, 0, 0xe0, 0, 0x86, 0xdd, 0x60]);
    }

    #[test]
    fn a_packet_has_the_family_of_its_ends_and_none_where_they_differ() {
        let [four, six]: [IpAddr; 2] = ["10.0.0.1", "fd00::1"].map(|a| a.parse().expect("one"));
        for (end, length) in [(four, 28), (six, 48)] {
            let packet = datagram(end, end, 9).expect("a packet");
            assert_eq!(packet.len(), length + TEXT.len());
        }
        assert!(datagram(four, six, 9).is_err());
    }

    #[test]
    fn messages_of_neighbour_discovery_are_as_long_as_rfc_4861_has_them() {
        let end: Ipv6Addr = "fd00::7".parse().expect("an address");
        for (message, kind, length) in [
            (Discovery::RouterAdvertisement, 134, 16 + 8),
            (Discovery::Solicitation(end), 135, 24 + 8),
            (Discovery::Advertisement(end), 136, 24 + 8),
            (Discovery::Redirect(end), 137, 40 + 8),
        ] {
            let packet = discovery((end, end), Mac([2; 6]), message).expect("a packet");
            assert_eq!((packet[6], packet[7], packet[40]), (58, 255, kind));
            assert_eq!(packet.len(), 40 + length, "{message:?}");
        }
    }

    #[test]
    fn a_routing_header_stands_before_the_datagram() {
        let end: Ipv6Addr = "fd00::7".parse().expect("an address");
        let packet = routed_datagram((end, end), 9, (4, 1)).expect("a packet");
        // Routing (43), then UDP (17) behind 24 octets of type 4.
        assert_eq!((packet[6], packet[40], packet[41]), (43, 17, 2));
        assert_eq!(packet[42..44], [4, 1]);
        assert_eq!(packet.len(), 40 + 24 + 8 + TEXT.len());
    }
}
