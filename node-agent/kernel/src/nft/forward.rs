//! Chains of others that drop what is forwarded: of Docker, of a firewall. A
//! packet has to get through every chain of the hook, so an accept in a chain of
//! veer's own helps nobody; it has to be said in theirs. So veer adds two rules to
//! such a chain, for its own devices, behind everything that its owner says for
//! himself and before what drops the rest. It knows them again by their comment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
};

use super::{
    DELETE_RULE, GET_CHAIN, GET_RULE, INET, NEW_RULE, NFGENMSG, SUBSYSTEM, TABLE, TABLE_NAME,
    commit,
    content::write,
    expr::{ACCEPT, DROP, Expr},
    generation,
    legacy::Legacy,
    ruleset::OWN_DEVICES,
};
use crate::netlink::message::{APPEND, Attrs, CREATE, Message, Received, Socket, text, u32_at};

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NFT_JUMP`, `NFT_GOTO`.
const JUMPS: [u32; 2] = [(-3_i32).cast_unsigned(), (-4_i32).cast_unsigned()];
/// How deep unconditional jumps are followed.
const DEPTH: usize = 8;
/// The comment of veer's rules (`NFTNL_UDATA_RULE_COMMENT`), as nft shows it.
const COMMENT: &[u8] = b"\x00\x14veer: pods' traffic\0";

/// A chain of somebody else's on the hook.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    family: u8,
    table: String,
    chain: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let family = match self.family {
            IPV4 => "ip",
            IPV6 => "ip6",
            _ => "inet",
        };
        write!(f, "chain {} of table {family} {}", self.chain, self.table)
    }
}

/// What a rule does to every packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Always {
    /// Nothing, or not to every packet.
    No,
    Drop,
    Accept,
    Jump(String),
}

#[derive(Clone, Debug)]
struct Rule {
    handle: Vec<u8>,
    always: Always,
    own: bool,
}

#[derive(Debug, Default)]
pub struct Forward {
    /// Chains that veer's rules are in.
    opened: BTreeSet<Key>,
    /// Number of the tables' state that was last looked at, and whether of IPv6 too.
    generation: Option<(u32, bool)>,
    /// Chains that keep pods' packets from the stack, and why nothing helps.
    blocked: BTreeMap<Key, String>,
    legacy: Legacy,
}

/// What a round did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Chains that have veer's rules now and had not.
    pub opened: Vec<String>,
    /// Those that somebody took the rules out of again.
    pub again: Vec<String>,
}

impl Forward {
    /// Looks at all chains, those of IPv6 alone only where pods have it, and adds or
    /// removes veer's rules.
    pub fn converge(&mut self, ipv6: bool) -> io::Result<Changes> {
        self.legacy.look(ipv6);
        let mut socket = Socket::netfilter()?;
        let now = generation(&mut socket).ok().map(|number| (number, ipv6));
        // Something that could not be done may be possible without a change.
        if now.is_some() && now == self.generation && self.blocked.is_empty() {
            return Ok(Changes::default());
        }
        let mut changes = Changes::default();
        self.blocked.clear();
        let mut there = BTreeSet::new();
        for (key, drops) in chains(&mut socket)? {
            let rules = rules(&mut socket, &key)?;
            let of_chain = rules.get(&key.chain).map_or(&[][..], Vec::as_slice);
            let end = end(of_chain, &rules, 0);
            let asked = ipv6 || key.family != IPV6;
            let blocks = asked && end.as_ref().map_or(drops, |(_, drops)| *drops);
            let before = end.as_ref().map(|(at, _)| *at);
            let own = of_chain.iter().take(before.unwrap_or(usize::MAX));
            let own = own.filter(|r| r.own).count();
            if !blocks {
                close(&mut socket, &key, of_chain)?;
                continue;
            }
            if own < 2 {
                close(&mut socket, &key, of_chain)?;
                let position = before.map(|at| of_chain[at].handle.as_slice());
                if let Err(error) = commit(&mut socket, open(&key, position)) {
                    self.blocked.insert(key, error.to_string());
                    continue;
                }
                if self.opened.contains(&key) {
                    changes.again.push(key.to_string());
                } else {
                    changes.opened.push(key.to_string());
                }
            }
            there.insert(key);
        }
        self.opened = there;
        self.generation = generation(&mut socket).ok().map(|number| (number, ipv6));
        Ok(changes)
    }

    /// What is dropped although it should not be, and what to do.
    pub fn concerns(&self) -> impl Iterator<Item = String> {
        self.concern().into_iter().chain(self.legacy.concerns())
    }

    fn concern(&self) -> Option<String> {
        let named = self.blocked.iter().map(|(chain, why)| {
            format!("{chain} drops what it does not know, and veer cannot add a rule ({why})")
        });
        let named: Vec<String> = named.collect();
        if named.is_empty() {
            return None;
        }
        Some(format!(
            "{}: pods lose Services, NodePorts and everything outside the cluster that passes the \
             node's stack. Add there what accepts packets from and to devices named veer*",
            named.join("; ")
        ))
    }

    /// Takes veer's rules out of all chains.
    pub fn remove(&mut self) -> io::Result<()> {
        *self = Self::default();
        let mut socket = Socket::netfilter()?;
        for (key, _) in chains(&mut socket)? {
            let rules = rules(&mut socket, &key)?;
            close(&mut socket, &key, rules.get(&key.chain).map_or(&[], |r| r))?;
        }
        Ok(())
    }
}

fn message(family: u8, command: u16, flags: u16) -> Message {
    Message::new((SUBSYSTEM << 8) | command, flags, &[family, 0, 0, 0])
}

fn family(received: &Received) -> u8 {
    received.body.first().copied().unwrap_or_default()
}

/// Other tables' chains on the hook, and whether they drop what gets to their
/// end.
fn chains(socket: &mut Socket) -> io::Result<Vec<(Key, bool)>> {
    let found = socket.dump(&message(0, GET_CHAIN, 0))?;
    Ok(found.iter().filter_map(chain).collect())
}

fn chain(found: &Received) -> Option<(Key, bool)> {
    let attrs = found.attrs(NFGENMSG);
    let key = Key {
        family: family(found),
        table: text(attrs.find(TABLE_NAME)?),
        chain: text(attrs.find(3)?),
    };
    let number = u32_at(Attrs(attrs.find(4)?).find(1)?, 0)?;
    let drops = attrs.find(5).and_then(|p| u32_at(p, 0)) == Some(DROP);
    let own = key.family == INET && key.table == TABLE;
    let ours = [IPV4, IPV6, INET].contains(&key.family) && u32::from_be(number) == FORWARD && !own;
    ours.then_some((key, drops))
}

/// The rules of the chain's table, by chain.
fn rules(socket: &mut Socket, key: &Key) -> io::Result<HashMap<String, Vec<Rule>>> {
    let mut get = message(key.family, GET_RULE, 0);
    get.string(TABLE_NAME, &key.table);
    let mut all: HashMap<String, Vec<Rule>> = HashMap::new();
    for found in socket.dump(&get)? {
        let attrs = found.attrs(NFGENMSG);
        let table = attrs.find(TABLE_NAME).map(text);
        if family(&found) != key.family || table.as_deref() != Some(&*key.table) {
            continue;
        }
        if let Some((chain, handle)) = attrs.find(2).zip(attrs.find(3)) {
            all.entry(text(chain)).or_default().push(Rule {
                handle: handle.to_vec(),
                always: always(attrs.find(4).unwrap_or(&[])),
                own: attrs.find(7) == Some(COMMENT),
            });
        }
    }
    Ok(all)
}

/// What a rule's expressions do to every packet.
fn always(expressions: &[u8]) -> Always {
    for (_, expression) in Attrs(expressions) {
        let attrs = Attrs(expression);
        let name = attrs.find(1).map(text).unwrap_or_default();
        let data = Attrs(attrs.find(2).unwrap_or(&[]));
        match name.as_str() {
            "counter" | "log" => {}
            "reject" => return Always::Drop,
            "target" if data.find(1).map(text).as_deref() == Some("REJECT") => {
                return Always::Drop;
            }
            "immediate" => {
                let value = Attrs(data.find(2).unwrap_or(&[]));
                let Some(verdict) = value.find(2).map(Attrs) else {
                    // A value for a register.
                    return Always::No;
                };
                let code = verdict.find(1).and_then(|c| u32_at(c, 0));
                return match code.map(u32::from_be) {
                    Some(DROP) => Always::Drop,
                    Some(code) if JUMPS.contains(&code) => {
                        Always::Jump(verdict.find(2).map(text).unwrap_or_default())
                    }
                    Some(ACCEPT) => Always::Accept,
                    Some(_) | None => Always::No,
                };
            }
            _ => return Always::No,
        }
    }
    Always::No
}

/// Which rule of a chain is the first that no packet gets past, and whether it
/// drops; `None`: there is none, and the chain's policy counts.
fn end(chain: &[Rule], all: &HashMap<String, Vec<Rule>>, depth: usize) -> Option<(usize, bool)> {
    chain
        .iter()
        .enumerate()
        .find_map(|(at, rule)| match &rule.always {
            Always::Drop => Some((at, true)),
            Always::Accept => Some((at, false)),
            Always::Jump(to) if depth < DEPTH => {
                let (_, drops) = end(all.get(to)?, all, depth + 1)?;
                Some((at, drops))
            }
            Always::No | Always::Jump(_) => None,
        })
}

/// The messages that add veer's rules before the rule with this handle, or at
/// the end.
fn open(key: &Key, position: Option<&[u8]>) -> Vec<Message> {
    let ways = [Expr::InDevices(OWN_DEVICES), Expr::OutDevices(OWN_DEVICES)];
    let rule = |way: Expr| {
        let flags = if position.is_some() {
            CREATE
        } else {
            CREATE | APPEND
        };
        let mut m = message(key.family, NEW_RULE, flags);
        m.string(TABLE_NAME, &key.table).string(2, &key.chain);
        // As iptables writes it, which reads the chain too.
        write(&mut m, &[way, Expr::CountHere, Expr::Accept]);
        if let Some(handle) = position {
            m.attr(6, handle);
        }
        m.attr(7, COMMENT);
        m
    };
    ways.into_iter().map(rule).collect()
}

/// Takes veer's rules out of a chain.
fn close(socket: &mut Socket, key: &Key, rules: &[Rule]) -> io::Result<()> {
    let own: Vec<Message> = rules
        .iter()
        .filter(|r| r.own)
        .map(|r| {
            let mut m = message(key.family, DELETE_RULE, 0);
            m.string(TABLE_NAME, &key.table)
                .string(2, &key.chain)
                .attr(3, &r.handle);
            m
        })
        .collect();
    if own.is_empty() {
        return Ok(());
    }
    commit(socket, own)
}
