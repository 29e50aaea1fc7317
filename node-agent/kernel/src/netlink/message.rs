//! The netlink wire format (RFC 3549; `include/uapi/linux/netlink.h`) and a
//! blocking socket for it.
//!
//! A socket belongs to the network namespace of the thread that opened it for
//! as long as it lives, so one that was opened inside a pod's namespace can be
//! used from any thread. Every request is acknowledged by the kernel before the
//! call returns; nothing here keeps state besides the sequence number.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket,
    sockopt::{RcvBufForce, ReceiveTimeout, SndBufForce},
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the table changed while it was being read.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// How often a table that changes while it is read is read again: hundreds of
/// pods at once change links and routes without a pause.
const ATTEMPTS: usize = 50;
/// Seconds after which an answer of the kernel is given up.
const PATIENCE: i64 = 10;
/// Bytes of a batch that every socket's buffer holds (`net.core.wmem_default` is
/// twice as much, and at least this is left of it for data).
const SMALL_BATCH: usize = 64 << 10;
/// Bytes for the answers to a large one.
const ANSWERS: usize = 1 << 20;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A message being built: its header, a fixed part, attributes.
#[derive(Clone, Debug)]
pub struct Message {
    buf: Vec<u8>,
}

impl Message {
    /// A message of a type with extra `NLM_F_*` flags and its fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut buf = Vec::with_capacity(256);
        buf.extend_from_slice(&[0; 4]);
        buf.extend_from_slice(&kind.to_ne_bytes());
        buf.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        buf.extend_from_slice(&[0; 8]);
        buf.extend_from_slice(fixed);
        let mut message = Self { buf };
        message.align();
        message
    }

    fn align(&mut self) {
        while !self.buf.len().is_multiple_of(4) {
            self.buf.push(0);
        }
    }

    /// Raw bytes, for a fixed part inside an attribute.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(bytes);
        self.align();
        self
    }

    /// An attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.buf.extend_from_slice(&length.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// An attribute of 32 bits in host byte order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// An attribute of 32 bits in network byte order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// An attribute that holds a zero-terminated string.
    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.buf.len() - start).unwrap_or(u16::MAX);
        self.buf[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub(super) fn finish(mut self, sequence: u32, flags: u16) -> Vec<u8> {
        let length = u32::try_from(self.buf.len()).unwrap_or(u32::MAX);
        self.buf[0..4].copy_from_slice(&length.to_ne_bytes());
        let all = u16::from_ne_bytes([self.buf[6], self.buf[7]]) | flags;
        self.buf[6..8].copy_from_slice(&all.to_ne_bytes());
        self.buf[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.buf
    }
}

/// A received message without its header.
#[derive(Clone, Debug)]
pub struct Received {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Received {
    /// The attributes behind a fixed part of `fixed` bytes.
    pub fn attrs(&self, fixed: usize) -> Attrs<'_> {
        Attrs(self.body.get(fixed.next_multiple_of(4)..).unwrap_or(&[]))
    }
}

/// Iterator over attributes, as (type without flag bits, value).
#[derive(Clone, Debug)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

impl<'a> Attrs<'a> {
    /// The first attribute of a type.
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self.clone(), |(k, _)| *k == kind).map(|(_, v)| v)
    }
}

/// The messages of one datagram, up to the first that is cut off.
pub fn messages(mut bytes: &[u8]) -> Vec<Received> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = length as usize;
        let Some(body) = bytes.get(HEADER..length) else {
            break;
        };
        found.push(Received {
            kind,
            body: body.to_vec(),
        });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

/// 16 bits in host byte order at an offset.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes([bytes[0], bytes[1]]))
}

/// 32 bits in host byte order at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// The text of an attribute, without its terminating zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A blocking netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses, routes and neighbours of the calling
    /// thread's network namespace.
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// A socket for nftables of the calling thread's network namespace.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    /// A socket for the sockets of the calling thread's network namespace.
    pub fn sock_diag() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkSockDiag)
    }

    /// A socket that receives notifications of these groups (`RTMGRP_*`) in the calling
    /// thread's network namespace. It has no timeout.
    pub fn listen(groups: u32) -> io::Result<OwnedFd> {
        Self::bound(SockProtocol::NetlinkRoute, groups)
    }

    fn bound(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(fd)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = Self::bound(protocol, 0)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; 32 << 10],
        })
    }

    /// Sends a request and waits for the kernel's acknowledgement.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, ACK).map(|_| ())
    }

    /// Sends a request and returns the first message of the answer.
    pub fn get(&mut self, message: Message) -> io::Result<Received> {
        self.exchange(message, ACK)?
            .into_iter()
            .next()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Reads a table. One that changes while it is read is read again.
    pub fn dump(&mut self, message: &Message) -> io::Result<Vec<Received>> {
        for _ in 0..ATTEMPTS {
            match self.exchange(message.clone(), DUMP) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
        Err(io::Error::other(
            "the table changed during every attempt to read it",
        ))
    }

    /// Shows type and body of each message of a large table that may change while
    /// it is read.
    pub fn dump_each(&mut self, message: &Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let sequence = self.send(message.clone(), DUMP)?;
        match self.collect_each(sequence, sequence, each) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other,
        }
    }

    fn exchange(&mut self, message: Message, flags: u16) -> io::Result<Vec<Received>> {
        let sequence = self.send(message, flags)?;
        self.collect(sequence, sequence)
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<u32> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence, flags);
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(self.sequence)
    }

    /// Sends several messages as one datagram, which nftables applies as one
    /// transaction; the messages with a set `acknowledge` are waited for.
    pub fn batch(&mut self, messages: Vec<(Message, bool)>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let first = self.sequence + 1;
        let mut last = first;
        for (message, acknowledge) in messages {
            self.sequence += 1;
            if acknowledge {
                last = self.sequence;
            }
            bytes.extend(message.finish(self.sequence, if acknowledge { ACK } else { 0 }));
        }
        // A transaction is one datagram, and the kernel refuses one that is larger
        // than the socket's buffer: 212,900 bytes, some 13,000 addresses, unless
        // it is made larger (CAP_NET_ADMIN). It answers every part at once, and an
        // answer takes some hundred bytes of the other buffer.
        if bytes.len() > SMALL_BATCH {
            setsockopt(&self.fd, SndBufForce, &bytes.len())?;
            setsockopt(&self.fd, RcvBufForce, &ANSWERS)?;
        }
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        self.collect(first, last).map(|_| ())
    }

    fn collect(&mut self, first: u32, last: u32) -> io::Result<Vec<Received>> {
        let mut found = Vec::new();
        self.collect_each(first, last, |kind, body| {
            let body = body.to_vec();
            found.push(Received { kind, body });
        })?;
        Ok(found)
    }

    /// Reads until the message `last` is acknowledged, or one since `first`
    /// failed, or a dump ended.
    fn collect_each(
        &mut self,
        first: u32,
        last: u32,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let mut interrupted = false;
        let mut failure = None;
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = &self.buffer[..length];
            while let (Some(length), Some(kind), Some(flags), Some(sequence)) = (
                u32_at(rest, 0),
                u16_at(rest, 4),
                u16_at(rest, 6),
                u32_at(rest, 8),
            ) {
                let length = length as usize;
                let Some(body) = rest.get(HEADER..length) else {
                    return Err(io::Error::from(io::ErrorKind::InvalidData));
                };
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
                if sequence < first || sequence > last {
                    continue;
                }
                interrupted |= flags & DUMP_INTERRUPTED != 0;
                match kind {
                    ERROR => {
                        let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                        if code != 0 && failure.is_none() {
                            failure = Some(io::Error::from_raw_os_error(-code));
                        }
                        // A batch that is refused as a whole is answered by
                        // its first message.
                        if sequence == last || (failure.is_some() && sequence == first) {
                            return failure.map_or(Ok(()), Err);
                        }
                    }
                    DONE if interrupted => {
                        return Err(io::Error::from(io::ErrorKind::Interrupted));
                    }
                    DONE => return Ok(()),
                    _ => each(kind, body),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_put_in() {
        let mut message = Message::new(16, 0, &[0; 16]);
        message.string(3, "eth0").nest(18, |m| {
            m.attr(1, b"veth").u32(2, 7);
        });
        let bytes = message.finish(1, ACK);
        let received = Received {
            kind: 16,
            body: bytes[HEADER..].to_vec(),
        };
        let attrs = received.attrs(16);
        assert_eq!(attrs.find(3).map(text).as_deref(), Some("eth0"));
        let nested = Attrs(attrs.find(18).unwrap());
        assert_eq!(nested.find(1), Some(b"veth".as_slice()));
        assert_eq!(nested.find(2).and_then(|v| u32_at(v, 0)), Some(7));
    }

    #[test]
    fn a_truncated_attribute_ends_the_list() {
        assert_eq!(Attrs(&[8, 0, 1, 0, 1, 2]).next(), None);
        assert_eq!(Attrs(&[2, 0, 1, 0]).next(), None);
    }
}
