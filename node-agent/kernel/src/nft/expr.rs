//! Expressions of nftables rules, as the kernel takes them.

use std::net::IpAddr;

use ipnet::IpNet;
use veer_agent_core::family::Family;

use crate::netlink::{address::octets, message::Message};

/// `NFT_REG_1`. Its first four bytes are those of `NFT_REG32_00`.
const REGISTER: u32 = 1;
/// `NFT_REG32_00`: the registers of four bytes, for the parts of a concatenation.
const REGISTERS: u32 = 8;
/// `NFT_REG_VERDICT`.
const VERDICT_REGISTER: u32 = 0;

/// Names of a set or a map for IPv4 and for IPv6.
pub(super) type Names = [&'static str; 2];

/// What packets of a family look like to the kernel.
pub(super) trait OfPackets: Sized {
    /// `NFPROTO_*`.
    fn number(self) -> u8;

    /// Bytes of an address.
    fn length(self) -> u32;

    /// Registers that an address takes.
    fn registers(self) -> u32 {
        self.length() / 4
    }

    /// Where the source is in the header (RFC 791, section 3.1; RFC 8200, section 3).
    fn source(self) -> u32;

    /// Where the destination is.
    fn destination(self) -> u32;
}

impl OfPackets for Family {
    fn number(self) -> u8 {
        self.pick([2, 10])
    }

    fn length(self) -> u32 {
        self.pick([4, 16])
    }

    fn source(self) -> u32 {
        self.pick([12, 8])
    }

    fn destination(self) -> u32 {
        self.source() + self.length()
    }
}

/// A part of a rule: a test that ends the rule when it fails, or an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    /// The packet is of this family: what begins a rule, and says what the rest of it reads.
    Family(Family),
    /// It entered by this device.
    InDevice(&'static str),
    /// It entered by a device whose name begins so.
    InDevices(&'static str),
    /// It entered by a device of a set of names.
    InDeviceOf(&'static str),
    /// It leaves by this device.
    OutDevice(&'static str),
    /// It leaves by a device whose name begins so.
    OutDevices(&'static str),
    /// It leaves by a device of a set of names.
    OutDeviceOf(&'static str),
    /// Of these bits of its mark the second number is what is set.
    Mark(u32, u32),
    /// Its source is (or is not) in a block.
    Source(IpNet, bool),
    /// Its source is in a set.
    SourceIn(Names),
    /// An answer to its source would not leave by the device that it entered by.
    NoWayBack,
    /// Its destination is in a set.
    DestinationIn(Names),
    /// Source and destination, one after the other, are in a set.
    EndsIn(Names),
    /// Its destination is an address of the node.
    ToOwn,
    /// A map has a target for its protocol and destination port.
    Target(Names),
    /// A map has a target for its protocol, destination and destination port.
    TargetAt(Names),
    /// Its protocol, destination and destination port are in a set.
    PlaceIn(Names),
    /// It is UDP to this port.
    UdpTo(u16),
    /// It is TCP.
    Tcp,
    /// Connection tracking takes it for part of no flow.
    Invalid,
    /// Count it, by the table's counter of this name.
    Count(&'static str),
    /// Count it, by a counter of the rule's own.
    CountHere,
    /// Leave the chain; the next one looks at it.
    Return,
    /// Let it pass this chain.
    Accept,
    /// Discard it.
    Drop,
    /// Discard it, and answer what is TCP by a reset.
    Reset,
    /// Discard it, and answer by ICMP or `ICMPv6` that the port is unreachable.
    PortUnreachable,
    /// Do not track its flow.
    NoTrack,
    /// Translate the source to the address of the device it leaves by.
    Masquerade,
    /// Translate the source to this address.
    SourceNat(IpAddr),
    /// Translate the destination, with its port, to the target found before.
    DestinationNat,
}

const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// `NFT_RETURN`.
const RETURN: u32 = (-5_i32).cast_unsigned();
/// `NF_DROP`.
pub(super) const DROP: u32 = 0;
/// `NF_ACCEPT`.
pub(super) const ACCEPT: u32 = 1;
/// `NFT_FIB_RESULT_OIF`.
const FIB_RESULT_DEVICE: u32 = 1;
/// `NFTA_FIB_F_SADDR` and `NFTA_FIB_F_IIF`.
const FIB_SOURCE_BY_DEVICE: u32 = 1 | 8;
/// `NFT_FIB_RESULT_ADDRTYPE`.
const FIB_RESULT_TYPE: u32 = 3;
/// `NFTA_FIB_F_DADDR`.
const FIB_DESTINATION: u32 = 2;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `NFT_NAT_SNAT` and `NFT_NAT_DNAT`.
const SOURCE_NAT: u32 = 0;
const DESTINATION_NAT: u32 = 1;
/// `NFT_CT_STATE` and `NF_CT_STATE_INVALID_BIT`.
const CT_STATE: u32 = 0;
const CT_INVALID: u32 = 1;
/// `NFT_REJECT_TCP_RST` and `NFT_REJECT_ICMPX_UNREACH`.
const REJECT_RESET: u32 = 1;
const REJECT_UNREACHABLE: u32 = 2;
/// `NFT_REJECT_ICMPX_PORT_UNREACH`.
const REJECT_PORT: u8 = 1;
/// `NFT_OBJECT_COUNTER`.
pub(super) const COUNTER: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`. Ports that are chosen in order collide
/// when many flows to one place begin at once, and the loser's first packet is
/// dropped.
const FULLY_RANDOM: u32 = 1 << 4;

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
    payload_to(m, REGISTER, base, offset, length);
}

fn payload_to(m: &mut Message, register: u32, base: u32, offset: u32, length: u32) {
    expr(m, "payload", |m| {
        m.be32(1, register)
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

/// Reads protocol, destination (with `address`) and destination port into registers
/// from [`REGISTER`] on, as a key that consists of them.
fn place(m: &mut Message, family: Family, address: bool) {
    meta(m, META_L4PROTO);
    let mut port = REGISTERS + 1;
    if address {
        let length = family.length();
        payload_to(m, port, NETWORK_HEADER, family.destination(), length);
        port += family.registers();
    }
    payload_to(m, port, TRANSPORT_HEADER, 2, 2);
}

/// Looks a place up in a map; what it has for it replaces it from [`REGISTER`] on.
fn target(m: &mut Message, family: Family, address: bool, map: &str) {
    place(m, family, address);
    expr(m, "lookup", |m| {
        m.string(1, map).be32(2, REGISTER).be32(3, REGISTER);
    });
}

fn source_nat(m: &mut Message, family: Family, address: IpAddr) {
    expr(m, "immediate", |m| {
        m.be32(1, REGISTER);
        value(m, 2, &octets(address));
    });
    expr(m, "nat", |m| {
        m.be32(1, SOURCE_NAT)
            .be32(2, u32::from(family.number()))
            .be32(3, REGISTER)
            .be32(7, FULLY_RANDOM);
    });
}

fn fib(m: &mut Message, result: u32, flags: u32, expected: [u8; 4]) {
    expr(m, "fib", |m| {
        m.be32(1, REGISTER).be32(2, result).be32(3, flags);
    });
    compare(m, CMP_EQ, &expected);
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

/// `code` is of ICMP, for what is answered by that.
fn reject(m: &mut Message, kind: u32, code: Option<u8>) {
    expr(m, "reject", |m| {
        m.be32(1, kind);
        if let Some(code) = code {
            m.attr(2, &[code]);
        }
    });
}

fn protocol(m: &mut Message, number: u8) {
    meta(m, META_L4PROTO);
    compare(m, CMP_EQ, &[number]);
}

/// A device's name as it is compared: with its padding to IFNAMSIZ.
pub(super) fn padded(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

impl Expr {
    /// Appends the expression to the list of a rule for packets of a family.
    pub(super) fn write(&self, m: &mut Message, family: Family) {
        let length = family.length();
        let source = |m: &mut Message| payload(m, NETWORK_HEADER, family.source(), length);
        match self {
            Self::Family(family) => {
                meta(m, META_NFPROTO);
                compare(m, CMP_EQ, &[family.number()]);
            }
            Self::InDevice(name) => {
                meta(m, META_IIFNAME);
                compare(m, CMP_EQ, &padded(name));
            }
            Self::InDevices(prefix) => {
                meta(m, META_IIFNAME);
                compare(m, CMP_EQ, prefix.as_bytes());
            }
            Self::InDeviceOf(set) => {
                meta(m, META_IIFNAME);
                lookup(m, set);
            }
            Self::OutDevice(name) => {
                meta(m, META_OIFNAME);
                compare(m, CMP_EQ, &padded(name));
            }
            Self::OutDevices(prefix) => {
                meta(m, META_OIFNAME);
                compare(m, CMP_EQ, prefix.as_bytes());
            }
            Self::OutDeviceOf(set) => {
                meta(m, META_OIFNAME);
                lookup(m, set);
            }
            Self::Mark(bits, set) => {
                meta(m, META_MARK);
                mask(m, &bits.to_ne_bytes());
                compare(m, CMP_EQ, &set.to_ne_bytes());
            }
            Self::Source(block, inside) => {
                source(m);
                mask(m, &octets(block.netmask()));
                let op = if *inside { CMP_EQ } else { CMP_NEQ };
                compare(m, op, &octets(block.network()));
            }
            Self::SourceIn(set) => {
                source(m);
                lookup(m, family.pick(*set));
            }
            Self::NoWayBack => fib(m, FIB_RESULT_DEVICE, FIB_SOURCE_BY_DEVICE, [0; 4]),
            Self::ToOwn => fib(m, FIB_RESULT_TYPE, FIB_DESTINATION, LOCAL.to_ne_bytes()),
            Self::EndsIn(set) => {
                source(m);
                let second = REGISTERS + family.registers();
                payload_to(m, second, NETWORK_HEADER, family.destination(), length);
                lookup(m, family.pick(*set));
            }
            Self::Target(map) => target(m, family, false, family.pick(*map)),
            Self::TargetAt(map) => target(m, family, true, family.pick(*map)),
            Self::PlaceIn(set) => {
                place(m, family, true);
                lookup(m, family.pick(*set));
            }
            Self::DestinationIn(set) => {
                payload(m, NETWORK_HEADER, family.destination(), length);
                lookup(m, family.pick(*set));
            }
            Self::UdpTo(port) => {
                protocol(m, UDP);
                payload(m, TRANSPORT_HEADER, 2, 2);
                compare(m, CMP_EQ, &port.to_be_bytes());
            }
            Self::Tcp => protocol(m, TCP),
            Self::Invalid => {
                expr(m, "ct", |m| {
                    m.be32(1, REGISTER).be32(2, CT_STATE);
                });
                mask(m, &CT_INVALID.to_ne_bytes());
                compare(m, CMP_NEQ, &[0; 4]);
            }
            Self::Count(name) => expr(m, "objref", |m| {
                m.be32(1, COUNTER).string(2, name);
            }),
            Self::CountHere => expr(m, "counter", |_| {}),
            Self::Return => verdict(m, RETURN),
            Self::Accept => verdict(m, ACCEPT),
            Self::Drop => verdict(m, DROP),
            Self::Reset => reject(m, REJECT_RESET, None),
            Self::PortUnreachable => reject(m, REJECT_UNREACHABLE, Some(REJECT_PORT)),
            Self::NoTrack => expr(m, "notrack", |_| {}),
            Self::Masquerade => expr(m, "masq", |m| {
                m.be32(1, FULLY_RANDOM);
            }),
            Self::SourceNat(address) => source_nat(m, family, *address),
            Self::DestinationNat => expr(m, "nat", |m| {
                m.be32(1, DESTINATION_NAT)
                    .be32(2, u32::from(family.number()))
                    .be32(3, REGISTER)
                    .be32(5, REGISTERS + family.registers());
            }),
        }
    }
}
