//! Flows that connection tracking knows
//! (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`): some are to be ended,
//! since a flow is translated as it was when it began.

use std::{io, net::IpAddr};

use super::{
    address::from_octets,
    message::{Attrs, Message, Socket, u32_at},
};

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
/// `CTA_IP_V4_SRC`, `CTA_IP_V4_DST`, `CTA_IP_V6_SRC`, `CTA_IP_V6_DST`.
const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Bytes of `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// The ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who began it.
    pub source: IpAddr,
    /// Whom it asked, before any translation.
    pub destination: IpAddr,
    /// Number of its protocol.
    pub protocol: u8,
    /// The port that it asked; 0 where there is none.
    pub port: u16,
    /// Who answers, after translation of the destination.
    pub answers: IpAddr,
    /// Where answers go, before the source's translation is taken back.
    pub answered: IpAddr,
}

/// A message about flows of a family; 0: of all.
fn message(kind: u16, family: u8) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, 0, &[family, 0, 0, 0])
}

fn ends(tuple: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let ip = Attrs(Attrs(tuple).find(CTA_TUPLE_IP)?);
    let address = |kinds: [u16; 2]| from_octets(kinds.into_iter().find_map(|k| ip.find(k))?);
    Some((address(SOURCES)?, address(DESTINATIONS)?))
}

/// Protocol and destination port.
fn service(tuple: &[u8]) -> Option<(u8, u16)> {
    let protocol = Attrs(Attrs(tuple).find(CTA_TUPLE_PROTO)?);
    let port = protocol.find(CTA_PROTO_DST_PORT);
    let port = port.and_then(|p| p.try_into().ok());
    let number = *protocol.find(CTA_PROTO_NUM)?.first()?;
    Some((number, port.map_or(0, u16::from_be_bytes)))
}

/// Ends the flows that `which` chooses: their next packets begin new ones.
/// Returns how many.
pub fn end(which: impl Fn(Flow) -> bool) -> io::Result<usize> {
    let mut socket = Socket::netfilter()?;
    let mut chosen: Vec<Message> = Vec::new();
    socket.dump_each(&message(GET, 0), |_, body| {
        let family = body.first().copied().unwrap_or_default();
        let attrs = Attrs(body.get(NFGENMSG..).unwrap_or(&[]));
        let Some((original, reply)) = attrs.find(CTA_TUPLE_ORIG).zip(attrs.find(CTA_TUPLE_REPLY))
        else {
            return;
        };
        let Some(((source, destination), (answers, answered))) = ends(original).zip(ends(reply))
        else {
            return;
        };
        let (protocol, port) = service(original).unwrap_or_default();
        if which(Flow {
            source,
            destination,
            protocol,
            port,
            answers,
            answered,
        }) {
            let mut m = message(DELETE, family);
            m.nest(CTA_TUPLE_ORIG, |m| {
                m.raw(original);
            });
            // Not another flow that took the place meanwhile.
            if let Some(id) = attrs.find(CTA_ID).and_then(|v| u32_at(v, 0)) {
                m.u32(CTA_ID, id);
            }
            if let Some(zone) = attrs.find(CTA_ZONE) {
                m.attr(CTA_ZONE, zone);
            }
            chosen.push(m);
        }
    })?;
    let mut ended = 0;
    for m in chosen {
        match socket.request(m) {
            Ok(()) => ended += 1,
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(ended)
}
