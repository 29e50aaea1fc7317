//! veer's own nftables table `inet veer`, written as one transaction and put
//! back when somebody changes it.
//!
//! Speaks netlink itself (`include/uapi/linux/netfilter/nf_tables.h`): the image
//! has no nft program.

mod abilities;
mod content;
mod expr;
mod forward;
mod host_ports;
mod legacy;
mod ruleset;
#[cfg(test)]
pub(crate) mod tests;
mod unserved;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    netlink::conntrack,
    netlink::message::{Attrs, Message, Received, Socket, text},
};
use veer_agent_core::{
    endpoint::LocalEndpoint,
    facts::Facts,
    family::Family,
    index::Index,
    repair::{Kind, RoundLog},
    services::Unserved,
    switch::RoutingStep,
};

use abilities::Abilities;
pub use content::Count;
use content::{Ruleset, Set};
pub use forward::Forward;
use host_ports::HostPorts;
use ruleset::RulesetInputs;

/// Name of the table, of family inet.
const TABLE: &str = "veer";
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
const BATCH: (u16, u16) = (0x10, 0x11);

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
const GET_GENERATION: u16 = 16;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;
/// Bytes of `struct nfgenmsg`, the last two of which number the kernel's
/// generations.
const NFGENMSG: usize = 4;
/// `NFTA_TABLE_FLAGS`.
const TABLE_FLAGS: u16 = 2;
/// `NFTA_CHAIN_USE`.
const CHAIN_USE: u16 = 6;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`.
const ELEMENTS: u16 = 3;
const TABLE_NAME: u16 = 1;
/// `NFTA_OBJ_NAME`, `NFTA_OBJ_DATA`.
const OBJECT_NAME: u16 = 2;
const OBJECT_DATA: u16 = 4;

/// A message of nftables.
fn message(command: u16, flags: u16) -> Message {
    Message::new((SUBSYSTEM << 8) | command, flags, &[INET, 0, 0, 0])
}

fn bracket(kind: u16) -> Message {
    let mut fixed = [0; 4];
    fixed[2..].copy_from_slice(&SUBSYSTEM.to_be_bytes());
    Message::new(kind, 0, &fixed)
}

fn table(command: u16, flags: u16) -> Message {
    let mut m = message(command, flags);
    m.string(TABLE_NAME, TABLE);
    m
}

/// Sends messages as one transaction.
fn commit(socket: &mut Socket, messages: Vec<Message>) -> io::Result<()> {
    let mut batch = vec![(bracket(BATCH.0), false)];
    batch.extend(messages.into_iter().map(|m| (m, true)));
    batch.push((bracket(BATCH.1), false));
    socket.batch(batch)
}

/// What the table follows from.
#[derive(Clone, Copy)]
pub struct TableInputs<'a> {
    /// What the API server said.
    pub index: &'a Index,
    /// The node.
    pub facts: &'a Facts,
    /// What the epoch asks.
    pub step: &'a RoutingStep,
    /// The own blocks of pod addresses.
    pub blocks: &'a [IpNet],
    /// Devices with programs that are not veer's own.
    pub uplinks: &'a BTreeSet<String>,
    /// Local pods, those whose ADD waits for its hostPorts included.
    pub pods: &'a [Arc<LocalEndpoint>],
    /// Frontends that no backend serves: refused or dropped, if they reach the stack.
    /// Where the kernel cannot answer in a rule (no `nft_reject_inet`), all are dropped.
    pub unserved: Option<&'a Unserved>,
}

/// The table as last written.
#[derive(Debug)]
pub struct Table {
    written: Option<Written>,
    /// What rules can do in this kernel.
    can: Abilities,
    /// Of what is written; none after a start.
    host_ports: HostPorts,
}

#[derive(Debug)]
struct Written {
    content: Ruleset,
    prints: Prints,
    /// Number of the tables' state that the prints are of.
    generation: Option<u32>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            written: None,
            can: Abilities::ALL,
            host_ports: HostPorts::default(),
        }
    }
}

impl Table {
    /// Writes the table if it should differ from what was written, or does. While
    /// lists of nodes are not complete, the table of an earlier agent stays but for
    /// hostPorts: it knew more.
    pub fn converge(&mut self, done: &mut RoundLog, wanted: TableInputs<'_>) -> io::Result<()> {
        let TableInputs {
            index,
            facts,
            step,
            blocks,
            uplinks,
            pods,
            unserved,
        } = wanted;
        let host_ports = HostPorts::of(pods.iter().map(|pod| &**pod));
        let mut socket = Socket::netfilter()?;
        if self.written.is_none() && !index.complete.nodes && exists(&mut socket)? {
            return self.host_ports_alone(&mut socket, host_ports, facts);
        }
        let mut can = self.can;
        loop {
            let wanted = ruleset::ruleset(RulesetInputs {
                index,
                facts,
                step,
                blocks,
                uplinks,
                can,
                host_ports: &host_ports,
                unserved,
            });
            // What an incremental change misses the whole table has.
            let incremental = self.written.is_some();
            match self.write(&mut socket, &wanted) {
                Ok(Wrote { restored, changed }) => {
                    if can != self.can {
                        can.tell();
                        self.can = can;
                    }
                    if let Some(parts) = changed {
                        let what = format!("table inet veer was changed or removed ({parts})");
                        done.repaired(Kind::Nftables, what);
                    }
                    if restored {
                        let ended = conntrack::end(|flow| {
                            flow.answered == flow.source && wanted.translates(facts, blocks, &flow)
                        });
                        tell(ended, "that began without the nftables table");
                    }
                    if restored || host_ports != self.host_ports {
                        self.wrote_host_ports(host_ports, facts);
                    }
                    return Ok(());
                }
                Err(e) if e.raw_os_error() != Some(nix::libc::ENOENT) => return Err(e),
                Err(_) if incremental => {}
                Err(e) => can = can.fewer().ok_or(e)?,
            }
        }
    }

    /// Writes hostPorts into the table of an earlier agent. One of a release without
    /// them stays as it is.
    fn host_ports_alone(
        &mut self,
        socket: &mut Socket,
        host_ports: HostPorts,
        facts: &Facts,
    ) -> io::Result<()> {
        if host_ports == self.host_ports {
            return Ok(());
        }
        let mut wrote = false;
        for family in Family::ALL {
            let sets = host_ports.sets(family, facts);
            match commit(socket, sets.iter().flat_map(Set::refilled).collect()) {
                Ok(()) => wrote = true,
                // Without sets of that family, or of a release without hostPorts.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => {}
                Err(e) => return Err(e),
            }
        }
        if wrote {
            self.wrote_host_ports(host_ports, facts);
        }
        Ok(())
    }

    /// Ends flows that go on to where a hostPort led before.
    fn wrote_host_ports(&mut self, now: HostPorts, facts: &Facts) {
        let before = std::mem::replace(&mut self.host_ports, now);
        let now = &self.host_ports;
        if before.outlive_pods() || now.outlive_pods() {
            let ended = conntrack::end(|flow| now.is_stale(&before, facts, &flow));
            tell(ended, "of hostPorts that lead elsewhere now");
        }
    }

    /// Brings the table to `wanted`.
    fn write(&mut self, socket: &mut Socket, wanted: &Ruleset) -> io::Result<Wrote> {
        let mut changed = None;
        let mut messages = None;
        if let Some(written) = &mut self.written {
            let generation = generation(socket).ok();
            if generation.is_none() || generation != written.generation {
                let found = fingerprint(socket, &written.content.sets).unwrap_or_default();
                let differs = PARTS.iter().zip(found.iter().zip(&written.prints));
                let differs: Vec<&str> = differs
                    .filter(|(_, (found, print))| found != print)
                    .map(|(part, _)| *part)
                    .collect();
                if differs.is_empty() {
                    written.generation = generation;
                } else {
                    changed = Some(differs.join(", "));
                }
            }
            if changed.is_none() {
                messages = wanted.changes(&written.content);
            }
            if messages.as_ref().is_some_and(Vec::is_empty) {
                return Ok(Wrote::default());
            }
        }
        let restored = changed.is_some() || (self.written.is_none() && !exists(socket)?);
        let messages = if let Some(messages) = messages {
            messages
        } else {
            let counts = counts_by(socket).unwrap_or_default();
            wanted.messages(|name| counts.get(name).copied().unwrap_or_default())
        };
        // What fails half-way through is looked at in full next time.
        self.written = None;
        commit(socket, messages)?;
        let generation = generation(socket).ok();
        self.written = Some(Written {
            content: wanted.clone(),
            prints: fingerprint(socket, &wanted.sets)?,
            generation,
        });
        Ok(Wrote { restored, changed })
    }

    /// Removes the table; fine when there is none.
    pub fn remove(&mut self) -> io::Result<()> {
        self.written = None;
        self.host_ports = HostPorts::default();
        let mut socket = Socket::netfilter()?;
        commit(
            &mut socket,
            vec![
                table(NEW_TABLE, crate::netlink::message::CREATE),
                table(DELETE_TABLE, 0),
            ],
        )
    }
}

/// What writing the table was.
#[derive(Debug, Default)]
struct Wrote {
    /// There was none, or not veer's: flows may have begun without it.
    restored: bool,
    /// What of it somebody else had changed.
    changed: Option<String>,
}

/// Ends the flows that were translated to addresses which the node has no more:
/// no answer can come.
pub fn addresses_gone(before: &[IpAddr], now: &[IpAddr]) {
    let gone: Vec<IpAddr> = before
        .iter()
        .filter(|a| !now.contains(a))
        .copied()
        .collect();
    if !gone.is_empty() {
        let ended = conntrack::end(|flow| gone.contains(&flow.answered));
        tell(ended, "of an address that is gone");
    }
}

fn tell(ended: io::Result<usize>, which: &str) {
    match ended {
        Ok(0) => {}
        Ok(flows) => tracing::info!(flows, "ended flows {which}"),
        Err(error) => tracing::warn!(%error, "cannot end flows {which}"),
    }
}

/// The table's counters: what it dropped, by reason.
pub fn counts() -> io::Result<BTreeMap<String, Count>> {
    counts_by(&mut Socket::netfilter()?)
}

fn counts_by(socket: &mut Socket) -> io::Result<BTreeMap<String, Count>> {
    let mut found = socket.dump(&table(GET_OBJECT, 0))?;
    found.retain(of_table);
    Ok(found.iter().filter_map(count).collect())
}

fn count(object: &Received) -> Option<(String, Count)> {
    let attrs = object.attrs(NFGENMSG);
    let data = Attrs(attrs.find(OBJECT_DATA)?);
    let number = |kind| Some(u64::from_be_bytes(data.find(kind)?.try_into().ok()?));
    let count = Count {
        bytes: number(1)?,
        packets: number(2)?,
    };
    Some((text(attrs.find(OBJECT_NAME)?), count))
}

/// Number of the state of all tables of the namespace: it changes with every
/// change of any of them.
fn generation(socket: &mut Socket) -> io::Result<u32> {
    let answer = socket.get(message(GET_GENERATION, 0))?;
    let number = answer.attrs(NFGENMSG).find(1);
    number
        .and_then(|n| n.try_into().ok())
        .map(u32::from_be_bytes)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn exists(socket: &mut Socket) -> io::Result<bool> {
    let found = socket.dump(&table(GET_TABLE, 0))?;
    Ok(found.iter().any(of_table))
}

/// What of the table is looked at.
const PARTS: [&str; 4] = ["flags", "chains", "rules", "elements"];

/// A hash of each of [`PARTS`].
type Prints = [u64; PARTS.len()];

/// Hashes of what the kernel says of the table and its chains, rules and sets.
/// They change only when somebody changes these: rules have no counters, what
/// counts references is left out, and elements, which the kernel tells in the
/// order of a hash table that it may rebuild, are sorted.
fn fingerprint(socket: &mut Socket, sets: &[Set]) -> io::Result<Prints> {
    let mut get = |message: Message| -> io::Result<Vec<Received>> {
        let mut found = socket.dump(&message)?;
        // Old kernels ignore the filter by table for chains.
        found.retain(of_table);
        Ok(found)
    };
    let mut flags = DefaultHasher::new();
    for found in get(table(GET_TABLE, 0))? {
        found.attrs(NFGENMSG).find(TABLE_FLAGS).hash(&mut flags);
    }
    let mut chains = DefaultHasher::new();
    for found in get(table(GET_CHAIN, 0))? {
        for attr in found.attrs(NFGENMSG).filter(|(k, _)| *k != CHAIN_USE) {
            attr.hash(&mut chains);
        }
    }
    let mut rules = DefaultHasher::new();
    for found in get(table(GET_RULE, 0))? {
        found.body.get(NFGENMSG..).hash(&mut rules);
    }
    let mut elements = DefaultHasher::new();
    for set in sets.iter().map(|set| set.name) {
        let mut message = table(GET_ELEMENT, 0);
        message.string(2, set);
        let found = get(message)?;
        let mut all: Vec<&[u8]> = found
            .iter()
            .filter_map(|f| f.attrs(NFGENMSG).find(ELEMENTS))
            .flat_map(|list| Attrs(list).map(|(_, element)| element))
            .collect();
        all.sort_unstable();
        (set, all).hash(&mut elements);
    }
    Ok([flags, chains, rules, elements].map(|h| h.finish()))
}

fn of_table(received: &Received) -> bool {
    received
        .attrs(NFGENMSG)
        .find(TABLE_NAME)
        .is_some_and(|name| text(name) == TABLE)
}
