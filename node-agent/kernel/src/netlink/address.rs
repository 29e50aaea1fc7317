//! Addresses of links (`include/uapi/linux/if_addr.h`).

use std::{io, net::IpAddr};

use super::message::{CREATE, Message, REPLACE, Received, Socket, u32_at};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_HOST: u8 = 254;
const RTM_DELADDR: u16 = 21;
const HEADER: usize = 8;

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Whether its scope is the whole network.
    pub global: bool,
    /// Whether its scope is the node itself.
    pub host: bool,
}

fn header(ip: IpAddr, index: u32, scope: u8) -> [u8; HEADER] {
    let (family, length) = match ip {
        IpAddr::V4(_) => (AF_INET, 32),
        IpAddr::V6(_) => (AF_INET6, 128),
    };
    let mut h = [family, length, 0, scope, 0, 0, 0, 0];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
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

fn parse(message: &Received) -> Option<Address> {
    if message.kind != RTM_NEWADDR {
        return None;
    }
    let attrs = message.attrs(HEADER);
    // On point-to-point links the own address is LOCAL and the peer's ADDRESS.
    let ip = attrs.find(IFA_LOCAL).or_else(|| attrs.find(IFA_ADDRESS))?;
    Some(Address {
        index: u32_at(&message.body, 4)?,
        ip: from_octets(ip)?,
        global: message.body.get(3) == Some(&SCOPE_UNIVERSE),
        host: message.body.get(3) == Some(&SCOPE_HOST),
    })
}

/// All addresses of the socket's namespace.
pub fn list(socket: &mut Socket) -> io::Result<Vec<Address>> {
    let message = Message::new(RTM_GETADDR, 0, &[0; HEADER]);
    Ok(socket.dump(&message)?.iter().filter_map(parse).collect())
}

/// Gives a link an address with the full prefix length.
pub fn add(socket: &mut Socket, index: u32, ip: IpAddr) -> io::Result<()> {
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
pub fn add_for_host(socket: &mut Socket, index: u32, ip: IpAddr) -> io::Result<()> {
    change(socket, RTM_NEWADDR, CREATE | REPLACE, ip, index, SCOPE_HOST)
}

/// Takes an address off a link.
pub fn remove(socket: &mut Socket, index: u32, ip: IpAddr) -> io::Result<()> {
    change(socket, RTM_DELADDR, 0, ip, index, SCOPE_HOST)
}

fn change(
    socket: &mut Socket,
    kind: u16,
    flags: u16,
    ip: IpAddr,
    index: u32,
    scope: u8,
) -> io::Result<()> {
    let mut message = Message::new(kind, flags, &header(ip, index, scope));
    message
        .attr(IFA_LOCAL, &octets(ip))
        .attr(IFA_ADDRESS, &octets(ip));
    socket.request(message)
}
