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
    netlink::wire::{Message, Socket},
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
    written: Option<(Ruleset, u64)>,
}

impl Table {
    /// Writes the table if it should differ from what was written, or does.
    pub(crate) fn converge(
        &mut self,
        shared: &Shared,
        facts: &Facts,
        step: &Step,
    ) -> io::Result<()> {
        let block = shared.store().block();
        let wanted = ruleset::ruleset(&shared.index(), facts, step, block);
        let mut socket = Socket::netfilter()?;
        let mut changed = false;
        if let Some((ruleset, print)) = &self.written
            && *ruleset == wanted
        {
            if fingerprint(&mut socket).ok() == Some(*print) {
                return Ok(());
            }
            changed = true;
        }
        commit(&mut socket, wanted.messages())?;
        if changed {
            let what = "table inet veer was changed or removed";
            shared.repaired(Kind::Nftables, what.into());
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

/// A hash of what the kernel says of the table and its chains, rules and sets.
/// The rules have no counters, so it changes only when somebody changes them.
fn fingerprint(socket: &mut Socket) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut dumps: Vec<Message> = [GET_TABLE, GET_CHAIN, GET_RULE]
        .map(|get| table(get, 0))
        .into();
    for set in ruleset::SETS {
        let mut elements = table(GET_ELEMENT, 0);
        elements.string(2, set);
        dumps.push(elements);
    }
    for dump in dumps {
        for received in socket.dump(&dump)? {
            // The first four bytes hold the number of the kernel's generation.
            let body = received.body.get(4..).unwrap_or(&[]);
            // Old kernels ignore the filter by table for chains.
            if of_table(&received) {
                body.hash(&mut hasher);
            }
        }
    }
    Ok(hasher.finish())
}

fn of_table(received: &crate::netlink::wire::Received) -> bool {
    received
        .attrs(4)
        .find(TABLE_NAME)
        .is_some_and(|name| crate::netlink::wire::text(name) == TABLE)
}
