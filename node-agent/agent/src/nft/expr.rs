//! Expressions of nftables rules, as the kernel takes them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::netlink::wire::Message;

/// `NFT_REG_1`, the only data register used here.
const REGISTER: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

/// A part of a rule: a test that ends the rule when it fails, or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// The packet is IPv4.
    Ipv4,
    /// It leaves by this device.
    OutDevice(&'static str),
    /// These bits of its mark are set.
    MarkBits(u32),
    /// Its source is (or is not) in a block.
    Source(Ipv4Net, bool),
    /// Its source is in a set.
    SourceIn(&'static str),
    /// Its destination is in a set.
    DestinationIn(&'static str),
    /// It is UDP to this port.
    UdpTo(u16),
    /// Leave the chain; the next one looks at it.
    Return,
    /// Discard it.
    Drop,
    /// Do not track its flow.
    NoTrack,
    /// Translate the source to the address of the device it leaves by.
    Masquerade,
    /// Translate the source to this address.
    SourceNat(Ipv4Addr),
}

const META_MARK: u32 = 3;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const NFPROTO_IPV4: u8 = 2;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const UDP: u8 = 17;
/// `NFT_RETURN`.
const RETURN: u32 = (-5_i32).cast_unsigned();

fn expr(m: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    m.nest(1, |m| {
        m.string(1, name).nest(2, data);
    });
}

fn value(m: &mut Message, kind: u16, bytes: &[u8]) {
    m.nest(kind, |m| {
        m.attr(1, bytes);
    });
}

fn meta(m: &mut Message, key: u32) {
    expr(m, "meta", |m| {
        m.be32(2, key).be32(1, REGISTER);
    });
}

fn compare(m: &mut Message, op: u32, bytes: &[u8]) {
    expr(m, "cmp", |m| {
        m.be32(1, REGISTER).be32(2, op);
        value(m, 3, bytes);
    });
}

fn payload(m: &mut Message, base: u32, offset: u32, length: u32) {
    expr(m, "payload", |m| {
        m.be32(1, REGISTER)
            .be32(2, base)
            .be32(3, offset)
            .be32(4, length);
    });
}

fn mask(m: &mut Message, bytes: &[u8]) {
    expr(m, "bitwise", |m| {
        m.be32(1, REGISTER)
            .be32(2, REGISTER)
            .be32(3, u32::try_from(bytes.len()).unwrap_or(4));
        value(m, 4, bytes);
        value(m, 5, &vec![0; bytes.len()]);
    });
}

fn lookup(m: &mut Message, set: &str) {
    expr(m, "lookup", |m| {
        m.string(1, set).be32(2, REGISTER);
    });
}

fn verdict(m: &mut Message, code: u32) {
    expr(m, "immediate", |m| {
        m.be32(1, VERDICT_REGISTER).nest(2, |m| {
            m.nest(2, |m| {
                m.be32(1, code);
            });
        });
    });
}

/// Offsets of the addresses in an IPv4 header (RFC 791, section 3.1).
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

impl Expr {
    /// Appends the expression to a rule's list.
    pub(super) fn write(&self, m: &mut Message) {
        match self {
            Self::Ipv4 => {
                meta(m, META_NFPROTO);
                compare(m, CMP_EQ, &[NFPROTO_IPV4]);
            }
            Self::OutDevice(name) => {
                // Names are compared with their padding to IFNAMSIZ.
                let mut padded = [0; 16];
                let length = name.len().min(15);
                padded[..length].copy_from_slice(&name.as_bytes()[..length]);
                meta(m, META_OIFNAME);
                compare(m, CMP_EQ, &padded);
            }
            Self::MarkBits(bits) => {
                meta(m, META_MARK);
                mask(m, &bits.to_ne_bytes());
                compare(m, CMP_EQ, &bits.to_ne_bytes());
            }
            Self::Source(block, inside) => {
                payload(m, NETWORK_HEADER, SOURCE, 4);
                mask(m, &block.netmask().octets());
                let op = if *inside { CMP_EQ } else { CMP_NEQ };
                compare(m, op, &block.network().octets());
            }
            Self::SourceIn(set) => {
                payload(m, NETWORK_HEADER, SOURCE, 4);
                lookup(m, set);
            }
            Self::DestinationIn(set) => {
                payload(m, NETWORK_HEADER, DESTINATION, 4);
                lookup(m, set);
            }
            Self::UdpTo(port) => {
                meta(m, META_L4PROTO);
                compare(m, CMP_EQ, &[UDP]);
                payload(m, TRANSPORT_HEADER, 2, 2);
                compare(m, CMP_EQ, &port.to_be_bytes());
            }
            Self::Return => verdict(m, RETURN),
            Self::Drop => verdict(m, 0),
            Self::NoTrack => expr(m, "notrack", |_| {}),
            Self::Masquerade => expr(m, "masq", |_| {}),
            Self::SourceNat(address) => {
                expr(m, "immediate", |m| {
                    m.be32(1, REGISTER);
                    value(m, 2, &address.octets());
                });
                expr(m, "nat", |m| {
                    m.be32(1, 0)
                        .be32(2, u32::from(NFPROTO_IPV4))
                        .be32(3, REGISTER);
                });
            }
        }
    }
}
