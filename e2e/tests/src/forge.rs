//! Packets with forged sources, sent as frames past the sender's own stack and counted
//! where they must not arrive.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, bail};
use etherparse::{
    EtherType, Ethernet2Header, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, PacketBuilder,
    PacketBuilderStep, SingleVlanHeader, VlanId, VlanPcp,
};
use nix::libc;
use veer_e2e_cluster::Mac;

use crate::site::Site;

/// What every forged datagram says first.
pub const TEXT: &[u8] = b"veer-e2e-forged";
/// Its source port.
const PORT: u16 = 40_000;

/// An IPv4 packet up to its payload.
fn ipv4(source: Ipv4Addr, target: Ipv4Addr) -> PacketBuilderStep<IpHeaders> {
    let header = Ipv4Header {
        identification: 1,
        dont_fragment: false,
        time_to_live: 64,
        source: source.octets(),
        destination: target.octets(),
        ..Ipv4Header::default()
    };
    PacketBuilder::ip(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
}

/// An IPv4 packet with a UDP datagram that says [`TEXT`].
pub fn datagram(source: Ipv4Addr, target: Ipv4Addr, port: u16) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ipv4(source, target)
        .udp(PORT, port)
        .write(&mut packet, TEXT)?;
    Ok(packet)
}

/// An IPv4 packet with a TCP segment that acknowledges octet 1 and has no data.
pub fn acknowledgement(
    source: SocketAddrV4,
    target: SocketAddrV4,
    sequence: u32,
) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ipv4(*source.ip(), *target.ip())
        .tcp(source.port(), target.port(), sequence, 256)
        .ack(1)
        .write(&mut packet, &[])?;
    Ok(packet)
}

/// An IPv4 packet with an SCTP INIT (`answer` false) or INIT ACK, which etherparse does
/// not know: `tag` is its sender's verification tag, `to_tag` the receiver's.
pub fn sctp_init(
    source: SocketAddrV4,
    target: SocketAddrV4,
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
    ipv4(*source.ip(), *target.ip()).write(&mut packet, IpNumber::SCTP, &sctp)?;
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
    let ethernet = Ethernet2Header {
        source: from.0,
        destination: to.0,
        ether_type: if tagged {
            EtherType::VLAN_TAGGED_FRAME
        } else {
            EtherType::IPV4
        },
    };
    let tag = SingleVlanHeader {
        pcp: VlanPcp::try_new(VlanPcp::MAX_U8).unwrap_or_default(),
        drop_eligible_indicator: false,
        vlan_id: VlanId::ZERO,
        ether_type: EtherType::IPV4,
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
pub fn own_source(site: &Site, to: IpAddr) -> Result<Ipv4Addr> {
    site.within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((to, 9))?;
        match socket.local_addr()?.ip() {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => bail!("{address} is not IPv4"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_a_packet_with_its_ends_and_tags() {
        let [a, b] = [1, 2].map(|n| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 9));
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
    }
}
