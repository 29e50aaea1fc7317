//! veer's own nftables table `inet veer`, written as one transaction and put
//! back when somebody changes it.
//!
//! Speaks netlink itself (`include/uapi/linux/netfilter/nf_tables.h`): the image
//! has no nft program.

mod expr;
mod ruleset;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
};

use crate::{
    desired::{Facts, Step},
    netlink::wire::{Attrs, Message, Received, Socket, text},
    repair::Kind,
    shared::Shared,
};

use ruleset::Ruleset;

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
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
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

/// The table as last written.
#[derive(Debug, Default)]
pub(crate) struct Table {
    written: Option<(Ruleset, Prints)>,
}

impl Table {
    /// Writes the table if it should differ from what was written, or does. While
    /// lists of nodes are not complete, the table of an earlier agent stays: it
    /// knew more.
    pub(crate) fn converge(
        &mut self,
        shared: &Shared,
        facts: &Facts,
        step: &Step,
    ) -> io::Result<()> {
        let block = shared.store().block();
        let (wanted, complete) = {
            let index = shared.index();
            let wanted = ruleset::ruleset(&index, facts, step, block);
            (wanted, index.complete.nodes)
        };
        let mut socket = Socket::netfilter()?;
        if self.written.is_none() && !complete && exists(&mut socket)? {
            return Ok(());
        }
        let mut changed = None;
        if let Some((ruleset, print)) = &self.written
            && *ruleset == wanted
        {
            let found = fingerprint(&mut socket).unwrap_or_default();
            let differs = PARTS.iter().zip(found.iter().zip(print));
            let differs: Vec<&str> = differs
                .filter(|(_, (found, print))| found != print)
                .map(|(part, _)| *part)
                .collect();
            if differs.is_empty() {
                return Ok(());
            }
            changed = Some(differs.join(", "));
        }
        commit(&mut socket, wanted.messages())?;
        if let Some(parts) = changed {
            let what = format!("table inet veer was changed or removed ({parts})");
            shared.repaired(Kind::Nftables, what);
        }
        self.written = Some((wanted, fingerprint(&mut socket)?));
        Ok(())
    }

    /// Removes the table; fine when there is none.
    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.written = None;
        let mut socket = Socket::netfilter()?;
        commit(
            &mut socket,
            vec![
                table(NEW_TABLE, crate::netlink::wire::CREATE),
                table(DELETE_TABLE, 0),
            ],
        )
    }
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
fn fingerprint(socket: &mut Socket) -> io::Result<Prints> {
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
    for set in ruleset::SETS {
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
