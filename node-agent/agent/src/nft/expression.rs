//! The few nf_tables expressions that veer's rules are made of, and how each is
//! written as netlink attributes (`include/uapi/linux/netfilter/nf_tables.h`).

use std::{ffi::CStr, net::Ipv4Addr};

use ipnet::Ipv4Net;
use netlink_bindings::{
    nftables::{CmpOps, MetaKeys, PayloadBase, PushExprListAttrs, Registers, VerdictCode},
    traits::Pusher,
};

/// Name of the set of nodes that see bare pod addresses.
pub(super) const NODE_SET: &CStr = c"nodes";
/// Id of that set within a batch.
pub(super) const NODE_SET_ID: u32 = 1;

/// `NFTA_LOOKUP_SREG` (2) = register 1, as netlink has it: length and type in
/// host byte order, the value in network byte order. By hand, because the
/// bindings (0.3.5) give this attribute the number of another one, and the
/// kernel then finds no register to look up.
const LOOKUP_SOURCE_REGISTER: [u8; 8] = {
    let [l0, l1] = 8_u16.to_ne_bytes();
    let [t0, t1] = 2_u16.to_ne_bytes();
    [l0, l1, t0, t1, 0, 0, 0, 1]
};

/// `NF_NAT_MANIP_SRC` as `NFTA_NAT_TYPE`: `NFT_NAT_SNAT`.
const SNAT: u32 = 0;
/// `NFPROTO_IPV4`.
const IPV4: u32 = 2;

/// One expression; all loads go to register 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Expression {
    /// Load a property of the packet.
    Meta(Meta),
    /// Load bytes of the IPv4 header: offset, length.
    NetworkHeader(u32, u32),
    /// Load bytes of the transport header: offset, length.
    TransportHeader(u32, u32),
    /// Keep the bits of a mask.
    Mask(Vec<u8>),
    /// Go on only if the register has this value.
    Equal(Vec<u8>),
    /// Go on only if it has not.
    NotEqual(Vec<u8>),
    /// Go on only if the register is in the set of nodes.
    InNodes,
    /// Count.
    Counter,
    /// End: nothing more in this hook's chain.
    Accept,
    /// End: drop.
    Drop,
    /// Not for conntrack.
    NoTrack,
    /// Translate the source to the output device's address.
    Masquerade,
    /// Translate the source to this.
    SourceNat(Ipv4Addr),
}

/// Properties of a packet that rules ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Meta {
    /// Address family.
    Family,
    /// Transport protocol.
    Transport,
    /// Input device's name.
    Input,
    /// Output device's name.
    Output,
    /// `skb->mark`, host byte order.
    Mark,
}

impl Expression {
    /// Only IPv4.
    pub(super) fn ipv4() -> [Self; 2] {
        [Self::Meta(Meta::Family), Self::Equal(vec![2])]
    }

    /// Only packets from (offset 12) or to (offset 16) a block, RFC 791 section 3.1.
    fn address(offset: u32, block: &Ipv4Net) -> [Self; 3] {
        [
            Self::NetworkHeader(offset, 4),
            Self::Mask(block.netmask().octets().to_vec()),
            Self::Equal(block.network().octets().to_vec()),
        ]
    }

    /// Only packets from a block.
    pub(super) fn from(block: &Ipv4Net) -> [Self; 3] {
        Self::address(12, block)
    }

    /// Only packets to a block.
    pub(super) fn to(block: &Ipv4Net) -> [Self; 3] {
        Self::address(16, block)
    }

    /// Only UDP to this port.
    pub(super) fn udp_to(port: u16) -> [Self; 4] {
        [
            Self::Meta(Meta::Transport),
            Self::Equal(vec![17]),
            Self::TransportHeader(2, 2),
            Self::Equal(port.to_be_bytes().to_vec()),
        ]
    }

    /// A device's whole name as the kernel compares it: padded with zeros.
    pub(super) fn device(name: &str) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        for (to, from) in bytes.iter_mut().zip(name.bytes().take(15)) {
            *to = from;
        }
        bytes
    }

    /// Writes the expression as the next element of a rule's list.
    pub(super) fn push<P: Pusher>(&self, list: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
        const R1: u32 = Registers::Reg1 as u32;
        let element = list.nested_elem();
        match self {
            Self::Meta(key) => {
                let key = match key {
                    Meta::Family => MetaKeys::Nfproto,
                    Meta::Transport => MetaKeys::L4Proto,
                    Meta::Input => MetaKeys::Iifname,
                    Meta::Output => MetaKeys::Oifname,
                    Meta::Mark => MetaKeys::Mark,
                };
                element
                    .nested_data_meta()
                    .push_dreg(R1)
                    .push_key(key as u32)
                    .end_nested()
                    .end_nested()
            }
            Self::NetworkHeader(offset, length) => {
                payload(element, PayloadBase::NetworkHeader, *offset, *length)
            }
            Self::TransportHeader(offset, length) => {
                payload(element, PayloadBase::TransportHeader, *offset, *length)
            }
            Self::Mask(mask) => element
                .nested_data_bitwise()
                .push_sreg(R1)
                .push_dreg(R1)
                .push_len(u32::try_from(mask.len()).unwrap_or(0))
                .nested_mask()
                .push_value(mask)
                .end_nested()
                .nested_xor()
                .push_value(&vec![0; mask.len()])
                .end_nested()
                .end_nested()
                .end_nested(),
            Self::Equal(value) => compare(element, CmpOps::Eq, value),
            Self::NotEqual(value) => compare(element, CmpOps::Neq, value),
            Self::InNodes => {
                let mut lookup = element.nested_data_lookup();
                lookup.as_vec_mut().extend(LOOKUP_SOURCE_REGISTER);
                lookup.push_set(NODE_SET).end_nested().end_nested()
            }
            Self::Counter => element.nested_data_counter().end_nested().end_nested(),
            Self::Accept => verdict(element, VerdictCode::Accept),
            Self::Drop => verdict(element, VerdictCode::Drop),
            Self::NoTrack => element.push_name(c"notrack").end_nested(),
            // Without attributes the kernel takes the device's address.
            Self::Masquerade => element.push_name(c"masq").end_nested(),
            Self::SourceNat(address) => {
                // The address goes to register 1 first, as an expression of its own.
                let list = element
                    .nested_data_immediate()
                    .push_dreg(R1)
                    .nested_data()
                    .push_value(&address.octets())
                    .end_nested()
                    .end_nested()
                    .end_nested();
                list.nested_elem()
                    .nested_data_nat()
                    .push_type(SNAT)
                    .push_family(IPV4)
                    .push_reg_addr_min(R1)
                    .end_nested()
                    .end_nested()
            }
        }
    }
}

type Element<P> = netlink_bindings::nftables::PushExprAttrs<PushExprListAttrs<P>>;

fn payload<P: Pusher>(
    element: Element<P>,
    base: PayloadBase,
    offset: u32,
    length: u32,
) -> PushExprListAttrs<P> {
    element
        .nested_data_payload()
        .push_dreg(Registers::Reg1 as u32)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn compare<P: Pusher>(element: Element<P>, how: CmpOps, value: &[u8]) -> PushExprListAttrs<P> {
    element
        .nested_data_cmp()
        .push_sreg(Registers::Reg1 as u32)
        .push_op(how as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

fn verdict<P: Pusher>(element: Element<P>, code: VerdictCode) -> PushExprListAttrs<P> {
    element
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32)
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested()
}
