//! Repairs: the agent restores what somebody else changed or removed. They are counted
//! by kind, and reported once per round and kind.

use std::collections::BTreeMap;

/// Things named in one message; the rest is counted.
const NAMED: usize = 5;

/// What was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The VXLAN device, or a setting of it.
    Device,
    /// The health address.
    Address,
    /// A route.
    Route,
    /// A permanent neighbour entry.
    Neighbour,
    /// A program on its hook.
    Program,
    /// The pin of a map.
    Pin,
    /// An entry of a map.
    MapEntry,
    /// The nftables table.
    Nftables,
    /// A sysctl.
    Sysctl,
    /// The CNI configuration.
    Conflist,
    /// A status in the API that this agent writes.
    Status,
    /// A PodEndpoint of this node.
    PodEndpoint,
    /// A CNI plugin.
    Plugin,
    /// The socket for veer-cni.
    Socket,
    /// The record of a pod.
    Record,
}

impl Kind {
    /// Its name in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "addresses",
            Self::Route => "routes",
            Self::Neighbour => "neighbours",
            Self::Program => "programs",
            Self::Pin => "pins",
            Self::MapEntry => "map entries",
            Self::Nftables => "nftables",
            Self::Sysctl => "sysctls",
            Self::Conflist => "conflist",
            Self::Status => "statuses",
            Self::PodEndpoint => "podendpoints",
            Self::Plugin => "plugins",
            Self::Socket => "socket",
            Self::Record => "records",
        }
    }
}

/// Something for the log and the node's Events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Reason of the Event.
    pub reason: &'static str,
    /// The sentence.
    pub text: String,
    /// Whether somebody should look at it.
    pub warning: bool,
}

/// What a round did, reported when it ends.
#[derive(Debug, Default)]
pub struct RoundLog {
    repairs: Vec<(Kind, String)>,
    notes: Vec<Note>,
}

impl RoundLog {
    /// Adds one repair, see [`Ledger::enter`].
    pub fn repaired(&mut self, kind: Kind, what: impl Into<String>) {
        self.repairs.push((kind, what.into()));
    }

    /// Adds something that somebody should look at.
    pub fn warn(&mut self, reason: &'static str, text: String) {
        self.notes.push(Note {
            reason,
            text,
            warning: true,
        });
    }

    /// Adds something that is good to know.
    pub fn inform(&mut self, reason: &'static str, text: String) {
        self.notes.push(Note {
            reason,
            text,
            warning: false,
        });
    }

    /// The repairs and the notes, in the order in which they were added.
    pub fn take(&mut self) -> (Vec<(Kind, String)>, Vec<Note>) {
        (
            std::mem::take(&mut self.repairs),
            std::mem::take(&mut self.notes),
        )
    }
}

/// Repairs since the agent started.
#[derive(Debug, Default)]
pub struct Ledger {
    counts: BTreeMap<Kind, u64>,
    /// Since they were last told: how many, and the first ones in words.
    untold: BTreeMap<Kind, (usize, Vec<String>)>,
}

impl Ledger {
    /// Enters one repair; `what` says what was found, as in "route
    /// 10.244.2.0/24 was removed".
    pub fn enter(&mut self, kind: Kind, what: String) {
        *self.counts.entry(kind).or_default() += 1;
        let (times, named) = self.untold.entry(kind).or_default();
        *times += 1;
        if named.len() < NAMED {
            named.push(what);
        }
    }

    /// The counts by name.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        self.counts
            .iter()
            .map(|(kind, times)| (kind.name().to_owned(), *times))
            .collect()
    }

    /// One sentence per kind for what was entered since the last call.
    pub fn sentences(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untold)
            .into_values()
            .map(|(times, mut named)| {
                // Which five of many are named is no matter, but the same five
                // make the same message, and so one Event with a count.
                named.sort_unstable();
                let rest = times - named.len();
                let more = if rest == 0 {
                    String::new()
                } else {
                    format!(" and {rest} more")
                };
                format!("{}{more}; put back", named.join(", "))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_repairs_of_one_round_are_one_sentence_per_kind() {
        let mut ledger = Ledger::default();
        ledger.enter(Kind::Device, "veer_vxlan was set down".into());
        for i in 0..7 {
            ledger.enter(Kind::Route, format!("route 10.1.{i}.0/24 was removed"));
        }
        let sentences = ledger.sentences();
        assert_eq!(sentences[0], "veer_vxlan was set down; put back");
        assert!(sentences[1].starts_with("route 10.1.0.0/24 was removed, route 10.1.1.0/24"));
        assert!(sentences[1].ends_with("10.1.4.0/24 was removed and 2 more; put back"));
        assert_eq!(ledger.counts()["routes"], 7);
        assert!(ledger.sentences().is_empty(), "told once");
        assert_eq!(ledger.counts()["device"], 1, "and still counted");
    }
}
