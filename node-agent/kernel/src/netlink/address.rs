//! Addresses of links (`include/uapi/linux/if_addr.h`).

use std::{io, net::IpAddr};

use veer_bpf_common::device::IfIndex;

use super::message::{CREATE, Message, REPLACE, Received, Socket, u32_at};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_HOST: u8 = 254;
const RTM_DELADDR: u16 = 21;
const HEADER: usize = 8;
/// Of IPv6 addresses (`IFA_F_*`). Of IPv4 ones bit 0 says that another of the link is in
/// the same network.
const TEMPORARY: u32 = 0x01;
const NO_DUPLICATE_DETECTION: u32 = 0x02;
const DUPLICATE: u32 = 0x08;
const DEPRECATED: u32 = 0x20;
const TENTATIVE: u32 = 0x40;
const NO_PREFIX_ROUTE: u32 = 0x200;
/// Seconds of a lifetime that does not end.
const FOREVER: u32 = u32::MAX;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: IfIndex,
    /// The address.
    pub ip: IpAddr,
    /// Whether its scope is the whole network, and it is neither temporary nor another's.
    pub global: bool,
    /// Whether only the node itself uses it as a source: by its scope, or, of IPv6, which
    /// has no such scope, as one that is deprecated.
    pub host: bool,
    /// Whether the kernel still looks for another that has it, or takes it for no new
    /// connection any more.
    pub passing: bool,
}

fn header(ip: IpAddr, index: IfIndex, scope: u8) -> [u8; HEADER] {
    let (family, length) = match ip {
        IpAddr::V4(_) => (AF_INET, 32),
        IpAddr::V6(_) => (AF_INET6, 128),
    };
    let mut h = [family, length, 0, scope, 0, 0, 0, 0];
    h[4..8].copy_from_slice(&index.get().to_ne_bytes());
    h
}

/// The bytes of an address in network order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// The address that these bytes are.
pub fn from_octets(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(v4));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

pub(super) fn parse(message: &Received) -> Option<Address> {
    let attrs = message.attrs(HEADER);
    let scope = *message.body.get(3)?;
    let flags = match attrs.find(IFA_FLAGS) {
        Some(all) => u32_at(all, 0)?,
        None => u32::from(*message.body.get(2)?),
    };
    // On point-to-point links the own address is LOCAL and the peer's ADDRESS.
    let ip = attrs.find(IFA_LOCAL).or_else(|| attrs.find(IFA_ADDRESS))?;
    let ip = from_octets(ip)?;
    let is = |flag| ip.is_ipv6() && flags & flag != 0;
    Some(Address {
        index: IfIndex::new(u32_at(&message.body, 4)?)?,
        ip,
        global: scope == SCOPE_UNIVERSE && !is(TEMPORARY | DUPLICATE),
        host: scope == SCOPE_HOST || (scope == SCOPE_UNIVERSE && is(DEPRECATED)),
        passing: is(TENTATIVE | DEPRECATED),
    })
}

/// All addresses of the socket's namespace.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Address>> {
    let message = Message::new(RTM_GETADDR, 0, &[0; HEADER]);
    let found = socket.dump(&message)?;
    let addresses = found.iter().filter(|m| m.kind == RTM_NEWADDR);
    Ok(addresses.filter_map(parse).collect())
}

/// Gives a link an address with the full prefix length. Nobody is asked whether another
/// has it.
pub fn add(socket: &mut Socket, index: IfIndex, ip: IpAddr) -> io::Result<()> {
    change(
        socket,
        RTM_NEWADDR,
        CREATE | REPLACE,
        ip,
        index,
        SCOPE_UNIVERSE,
    )
}

/// Gives a link an address that only the node itself uses as a source.
pub fn add_for_host(socket: &mut Socket, index: IfIndex, ip: IpAddr) -> io::Result<()> {
    change(socket, RTM_NEWADDR, CREATE | REPLACE, ip, index, SCOPE_HOST)
}

/// Takes an address off a link.
pub fn remove(socket: &mut Socket, index: IfIndex, ip: IpAddr) -> io::Result<()> {
    change(socket, RTM_DELADDR, 0, ip, index, SCOPE_HOST)
}

fn change(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    ip: IpAddr,
    index: IfIndex,
    scope: u8,
) -> io::Result<()> {
    let mut message = Message::new(kind, flags, &header(ip, index, scope));
    message
        .attr(IFA_LOCAL, &octets(ip))
        .attr(IFA_ADDRESS, &octets(ip));
    if ip.is_ipv6() && kind == RTM_NEWADDR {
        // Deprecated is what the kernel takes for no packet unless it is told to.
        let preferred = if scope == SCOPE_HOST { 0 } else { FOREVER };
        let lifetimes = [preferred, FOREVER, 0, 0].map(u32::to_ne_bytes);
        message
            .u32(IFA_FLAGS, NO_DUPLICATE_DETECTION | NO_PREFIX_ROUTE)
            .attr(IFA_CACHEINFO, lifetimes.as_flattened());
    }
    socket.request(message)
}
