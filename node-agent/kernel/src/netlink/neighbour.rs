//! Permanent neighbour entries, so that the host never asks for a pod's MAC
//! (`include/uapi/linux/neighbour.h`).

use std::{io, net::IpAddr};

use veer_bpf_common::device::IfIndex;

use super::{
    address::{from_octets, octets},
    link::Mac,
    message::{CREATE, Message, REPLACE, Socket, u16_at, u32_at},
};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const HEADER: usize = 12;

/// Makes or changes a permanent entry.
pub fn replace(socket: &mut Socket, index: IfIndex, ip: IpAddr, mac: Mac) -> io::Result<()> {
    let mut fixed = [0; HEADER];
    fixed[0] = if ip.is_ipv4() { 2 } else { 10 };
    fixed[4..8].copy_from_slice(&index.get().to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let mut message = Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &fixed);
    message.attr(NDA_DST, &octets(ip)).attr(NDA_LLADDR, &mac);
    socket.request(message)
}

/// All permanent entries, as (device, address, MAC).
pub fn list(socket: &mut Socket) -> io::Result<Vec<(IfIndex, IpAddr, Mac)>> {
    let message = Message::new(RTM_GETNEIGH, 0, &[0; HEADER]);
    Ok(socket
        .dump(&message)?
        .iter()
        .filter_map(|m| {
            let attrs = m.attrs(HEADER);
            (u16_at(&m.body, 8)? & NUD_PERMANENT != 0).then_some(())?;
            Some((
                IfIndex::new(u32_at(&m.body, 4)?)?,
                from_octets(attrs.find(NDA_DST)?)?,
                attrs.find(NDA_LLADDR)?.try_into().ok()?,
            ))
        })
        .collect())
}
