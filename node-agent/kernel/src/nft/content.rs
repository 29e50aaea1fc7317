//! What a table can hold, and the messages that make or change it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use veer_agent_core::family::Family;

use super::{
    DELETE_ELEMENT, DELETE_TABLE, NEW_CHAIN, NEW_ELEMENT, NEW_OBJECT, NEW_RULE, NEW_SET, NEW_TABLE,
    TABLE, TABLE_NAME,
    expr::{COUNTER, Expr, OfPackets, padded},
    message, table,
};
use crate::netlink::{
    address::octets,
    message::{APPEND, CREATE, Message},
};

/// Elements in one message, whose attributes hold 64 KiB at most.
const ELEMENTS_PER_MESSAGE: usize = 1000;
/// `NFT_SET_INTERVAL`.
const INTERVAL: u32 = 4;
/// `NFT_SET_MAP`.
const MAP: u32 = 8;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;
/// nft's numbers for types of keys, so that `nft list` prints them as such.
const TYPES_ADDRESS: [u32; 2] = [7, 8];
const TYPE_IFNAME: u32 = 41;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;
/// Bits of each type of a concatenation.
const TYPE_BITS: u32 = 6;

/// A hook of netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A chain on a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: HookPoint,
    pub(super) priority: i32,
    pub(super) rules: Vec<Vec<Expr>>,
}

impl Chain {
    pub(super) fn new(
        name: &'static str,
        kind: &'static str,
        hook: HookPoint,
        priority: i32,
    ) -> Self {
        Self {
            name,
            kind,
            hook,
            priority,
            rules: Vec::new(),
        }
    }

    /// Adds a rule for packets of a family.
    pub(super) fn rule(mut self, family: Family, exprs: impl IntoIterator<Item = Expr>) -> Self {
        let family = [Expr::Family(family)];
        self.rules.push(family.into_iter().chain(exprs).collect());
        self
    }
}

/// A port of the node, or of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Of this address; `None`: of all.
    pub(super) address: Option<IpAddr>,
    /// Number of the protocol.
    pub(super) protocol: u8,
    pub(super) port: u16,
}

/// What a set or a map consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// Single addresses.
    Addresses(BTreeSet<IpAddr>),
    /// Blocks that do not overlap.
    Blocks(Vec<IpNet>),
    /// Names of devices.
    Devices(BTreeSet<String>),
    /// Single addresses, each as source and destination.
    Twice(BTreeSet<IpAddr>),
    /// Where ports of the node lead that are of no certain address.
    Targets(BTreeMap<Place, SocketAddr>),
    /// The same of those that are of a certain one.
    TargetsAt(BTreeMap<Place, SocketAddr>),
    /// Ports that are of a certain address.
    Places(BTreeSet<Place>),
}

/// An element as the kernel takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Element {
    key: Vec<u8>,
    /// It is the end (exclusive) of an interval.
    end: bool,
    /// What a map has for it.
    data: Vec<u8>,
}

/// Types, lengths and flags of a set.
struct Shape {
    flags: u32,
    key: Vec<u32>,
    length: u32,
    data: Vec<u32>,
    data_length: u32,
}

impl Elements {
    /// All elements but those that `other` has too.
    fn without(&self, other: Option<&Self>) -> Vec<Element> {
        match (self, other) {
            (Self::Addresses(own), Some(Self::Addresses(other))) => {
                own.difference(other).copied().map(address).collect()
            }
            (Self::Addresses(own), _) => own.iter().copied().map(address).collect(),
            (Self::Devices(own), Some(Self::Devices(other))) => {
                own.difference(other).map(device).collect()
            }
            (Self::Devices(own), _) => own.iter().map(device).collect(),
            (Self::Twice(own), Some(Self::Twice(other))) => {
                own.difference(other).copied().map(twice).collect()
            }
            (Self::Twice(own), _) => own.iter().copied().map(twice).collect(),
            (Self::Targets(own), Some(Self::Targets(other)))
            | (Self::TargetsAt(own), Some(Self::TargetsAt(other))) => {
                let new = own
                    .iter()
                    .filter(|(place, to)| other.get(place) != Some(to));
                new.map(target).collect()
            }
            (Self::Targets(own) | Self::TargetsAt(own), _) => own.iter().map(target).collect(),
            (Self::Places(own), Some(Self::Places(other))) => {
                own.difference(other).map(place).collect()
            }
            (Self::Places(own), _) => own.iter().map(place).collect(),
            (Self::Blocks(own), _) => intervals(own),
        }
    }

    fn shape(&self, family: Family) -> Shape {
        let address = family.pick(TYPES_ADDRESS);
        let (flags, key) = match self {
            Self::Addresses(_) => (0, vec![address]),
            Self::Blocks(_) => (INTERVAL, vec![address]),
            Self::Devices(_) => (0, vec![TYPE_IFNAME]),
            Self::Twice(_) => (0, vec![address, address]),
            Self::Targets(_) => (MAP, vec![TYPE_PROTOCOL, TYPE_PORT]),
            Self::TargetsAt(_) => (MAP, vec![TYPE_PROTOCOL, address, TYPE_PORT]),
            Self::Places(_) => (0, vec![TYPE_PROTOCOL, address, TYPE_PORT]),
        };
        // Of a concatenation every part takes whole registers of four bytes.
        let lengths = |types: &[u32]| types.iter().map(|t| length(*t, family)).sum();
        let data = match flags {
            MAP => vec![address, TYPE_PORT],
            _ => Vec::new(),
        };
        Shape {
            flags,
            length: lengths(&key),
            key,
            data_length: lengths(&data),
            data,
        }
    }
}

/// Bytes of a part of a key of this type.
fn length(kind: u32, family: Family) -> u32 {
    match kind {
        TYPE_IFNAME => 16,
        TYPE_PROTOCOL | TYPE_PORT => 4,
        _ => family.length(),
    }
}

/// The number of a concatenation of types.
fn concatenated(types: &[u32]) -> u32 {
    types.iter().fold(0, |all, one| (all << TYPE_BITS) | one)
}

fn key(key: Vec<u8>) -> Element {
    Element {
        key,
        ..Element::default()
    }
}

fn address(address: IpAddr) -> Element {
    key(octets(address))
}

fn twice(address: IpAddr) -> Element {
    key(octets(address).repeat(2))
}

/// Every part of a concatenation takes whole registers of four bytes.
fn padded_port(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    vec![high, low, 0, 0]
}

fn place(place: &Place) -> Element {
    let protocol = vec![place.protocol, 0, 0, 0];
    let address = place.address.map(octets).unwrap_or_default();
    key([protocol, address, padded_port(place.port)].concat())
}

fn target((from, to): (&Place, &SocketAddr)) -> Element {
    Element {
        data: [octets(to.ip()), padded_port(to.port())].concat(),
        ..place(from)
    }
}

#[expect(
    clippy::ptr_arg,
    reason = "what an iterator over a set of strings gives"
)]
fn device(name: &String) -> Element {
    key(padded(name).to_vec())
}

/// Beginnings and ends (exclusive) of blocks.
fn intervals(blocks: &[IpNet]) -> Vec<Element> {
    blocks
        .iter()
        .flat_map(|b| {
            let end = next(b.broadcast()).map(|end| Element {
                end: true,
                ..address(end)
            });
            [Some(address(b.network())), end]
        })
        .flatten()
        .collect()
}

/// The address after one; `None`: it is the last.
fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => Some(Ipv4Addr::from_bits(a.to_bits().checked_add(1)?).into()),
        IpAddr::V6(a) => Some(Ipv6Addr::from_bits(a.to_bits().checked_add(1)?).into()),
    }
}

/// A named set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    /// Of the addresses in it.
    pub(super) family: Family,
    pub(super) elements: Elements,
}

impl Set {
    /// The messages that make it this, whatever it holds.
    pub(super) fn refilled(&self) -> Vec<Message> {
        let mut all = vec![elements(DELETE_ELEMENT, self.name)];
        let come = self.elements.without(None);
        all.extend(change(NEW_ELEMENT, self.name, None, &come));
        all
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The table's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) sets: Vec<Set>,
    /// Names of counters.
    pub(super) counters: Vec<&'static str>,
    pub(super) chains: Vec<Chain>,
}

impl Ruleset {
    /// Whether a set of addresses or blocks has this one.
    pub(super) fn holds(&self, set: &str, address: IpAddr) -> bool {
        self.sets
            .iter()
            .filter(|s| s.name == set)
            .any(|s| match &s.elements {
                Elements::Addresses(all) => all.contains(&address),
                Elements::Blocks(all) => all.iter().any(|b| b.contains(&address)),
                Elements::Devices(_)
                | Elements::Twice(_)
                | Elements::Targets(_)
                | Elements::TargetsAt(_)
                | Elements::Places(_) => false,
            })
    }

    /// The messages of the one transaction that replaces the table. Counters go
    /// on from what `counted` says.
    pub(super) fn messages(&self, counted: impl Fn(&str) -> Count) -> Vec<Message> {
        // Making it first lets the deletion succeed where there is none.
        let mut all = vec![
            table(NEW_TABLE, CREATE),
            table(DELETE_TABLE, 0),
            table(NEW_TABLE, CREATE),
        ];
        for (id, set) in (1..).zip(&self.sets) {
            let shape = set.elements.shape(set.family);
            let mut m = message(NEW_SET, CREATE);
            m.string(TABLE_NAME, TABLE)
                .string(2, set.name)
                .be32(3, shape.flags)
                .be32(4, concatenated(&shape.key))
                .be32(5, shape.length);
            if !shape.data.is_empty() {
                m.be32(6, concatenated(&shape.data))
                    .be32(7, shape.data_length);
            }
            m.be32(10, id);
            all.push(m);
            let elements = set.elements.without(None);
            all.extend(change(NEW_ELEMENT, set.name, Some(id), &elements));
        }
        for name in &self.counters {
            let Count { packets, bytes } = counted(name);
            let mut m = message(NEW_OBJECT, CREATE);
            m.string(TABLE_NAME, TABLE)
                .string(2, name)
                .be32(3, COUNTER)
                .nest(4, |m| {
                    m.attr(1, &bytes.to_be_bytes())
                        .attr(2, &packets.to_be_bytes());
                });
            all.push(m);
        }
        for chain in &self.chains {
            let mut m = message(NEW_CHAIN, CREATE);
            m.string(TABLE_NAME, TABLE)
                .string(3, chain.name)
                .nest(4, |m| {
                    m.be32(1, chain.hook as u32)
                        .be32(2, chain.priority.cast_unsigned());
                })
                .string(7, chain.kind);
            all.push(m);
            for rule in &chain.rules {
                let mut m = message(NEW_RULE, CREATE | APPEND);
                m.string(TABLE_NAME, TABLE).string(2, chain.name);
                write(&mut m, rule);
                all.push(m);
            }
        }
        all
    }

    /// The messages that make this of `old`; `None`: more than elements of sets
    /// differs.
    pub(super) fn changes(&self, old: &Self) -> Option<Vec<Message>> {
        let names = |r: &Self| -> Vec<&str> { r.sets.iter().map(|s| s.name).collect() };
        if self.chains != old.chains || self.counters != old.counters || names(self) != names(old) {
            return None;
        }
        let mut all = Vec::new();
        for (new, old) in self.sets.iter().zip(&old.sets) {
            if new == old {
                continue;
            }
            if matches!(new.elements, Elements::Blocks(_)) {
                // Intervals are cut and joined: the set is emptied and filled,
                // which nobody sees in between.
                all.extend(new.refilled());
                continue;
            }
            let gone = old.elements.without(Some(&new.elements));
            all.extend(change(DELETE_ELEMENT, new.name, None, &gone));
            let come = new.elements.without(Some(&old.elements));
            all.extend(change(NEW_ELEMENT, new.name, None, &come));
        }
        Some(all)
    }
}

/// Writes a rule's expressions into its message.
pub(super) fn write(m: &mut Message, rule: &[Expr]) {
    let family = match rule.first() {
        Some(Expr::Family(family)) => *family,
        _ => Family::V4,
    };
    m.nest(4, |m| {
        for expr in rule {
            expr.write(m, family);
        }
    });
}

fn elements(command: u16, set: &str) -> Message {
    let flags = if command == NEW_ELEMENT { CREATE } else { 0 };
    let mut m = message(command, flags);
    m.string(TABLE_NAME, TABLE).string(2, set);
    m
}

/// Messages that add elements to a set or remove them. `id` names a set that is
/// made in the same transaction.
fn change(command: u16, set: &str, id: Option<u32>, all: &[Element]) -> Vec<Message> {
    let message = |part: &[Element]| {
        let mut m = elements(command, set);
        if let Some(id) = id {
            m.be32(4, id);
        }
        m.nest(3, |m| {
            for element in part {
                m.nest(1, |m| {
                    m.nest(1, |m| {
                        m.attr(1, &element.key);
                    });
                    if command == NEW_ELEMENT && !element.data.is_empty() {
                        m.nest(2, |m| {
                            m.attr(1, &element.data);
                        });
                    }
                    if element.end {
                        m.be32(3, INTERVAL_END);
                    }
                });
            }
        });
        m
    };
    all.chunks(ELEMENTS_PER_MESSAGE).map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_up_to_the_last_address_has_no_end() {
        for block in [
            "255.255.255.0/24",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120",
        ] {
            let block: IpNet = block.parse().unwrap();
            assert_eq!(intervals(&[block]), [address(block.network())]);
        }
    }

    #[test]
    fn another_address_is_one_element_and_another_rule_is_another_table() {
        let addresses = |last: u8| {
            let all = (0..last).map(|n| IpAddr::from([192, 0, 2, n]));
            Ruleset {
                sets: vec![Set {
                    name: "s",
                    family: Family::V4,
                    elements: Elements::Addresses(all.collect()),
                }],
                ..Ruleset::default()
            }
        };
        let (few, more) = (addresses(9), addresses(10));
        assert_eq!(more.changes(&few).unwrap().len(), 1);
        assert_eq!(few.changes(&more).unwrap().len(), 1);
        assert!(few.changes(&few).unwrap().is_empty());
        let other = Ruleset {
            counters: vec!["c"],
            ..few.clone()
        };
        assert!(other.changes(&few).is_none());
    }
}
