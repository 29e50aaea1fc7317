//! `veer traffic list`: who talks to whom, and what becomes of it.

use std::{cmp::Reverse, collections::HashMap};

use serde::Serialize;
use veer_agent_api::{IdentityRow, Request, TrafficRow};

use super::{Ask, answer};
use crate::{
    arguments::Format,
    filter, labels,
    output::{self, columns_or},
};

/// Options of `veer traffic list`. Values of one option are alternatives, and all options
/// must hold together. Identities and namespaces may be of either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// Only from or to this security identity.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) identity: Vec<u32>,

    /// Only from or to pods of this namespace.
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Vec<String>,

    /// Only what was dropped.
    #[arg(long)]
    pub(crate) drops: bool,
}

/// One line.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct Row {
    source: End,
    destination: End,
    program: String,
    outcome: String,
    dropped: bool,
    packets: u64,
    bytes: u64,
}

/// Who sends or receives.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct End {
    /// 0: not known.
    identity: u32,
    /// Of the pods; empty: they are none.
    namespace: String,
    labels: Vec<String>,
}

impl End {
    fn of(identity: u32, known: &HashMap<u32, Vec<String>>) -> Self {
        let labels = known.get(&identity).cloned().unwrap_or_default();
        Self {
            identity,
            namespace: labels::namespace(&labels).unwrap_or_default().to_owned(),
            labels,
        }
    }
}

impl Options {
    fn wants(&self, row: &Row) -> bool {
        let ends = [&row.source, &row.destination];
        let either = |holds: &dyn Fn(&End) -> bool| ends.iter().any(|end| holds(end));
        (self.identity.is_empty() || either(&|end| self.identity.contains(&end.identity)))
            && (self.namespace.is_empty() || either(&|end| self.namespace.contains(&end.namespace)))
            && (!self.drops || row.dropped)
    }

    /// Adds the same options to the words of a command line.
    pub(super) fn add_to(&self, words: &mut Vec<String>) {
        filter::add(words, "identity", &self.identity);
        filter::add(words, "namespace", &self.namespace);
        if self.drops {
            words.push("--drops".to_owned());
        }
    }
}

/// The wanted rows: drops first, since they are what one looks for, then what is most.
pub(super) fn list(options: &Options, format: Format, ask: Ask<'_>) -> anyhow::Result<String> {
    let rows: Vec<TrafficRow> = answer(ask, &Request::Traffic)?;
    let identities: Vec<IdentityRow> = answer(ask, &Request::Identities)?;
    let known = identities.into_iter().map(|row| (row.identity, row.labels));
    let known: HashMap<u32, Vec<String>> = known.collect();
    let is_any = !rows.is_empty();
    let mut rows: Vec<Row> = rows.into_iter().map(|row| named(row, &known)).collect();
    rows.retain(|row| options.wants(row));
    rows.sort_by_key(|row| (Reverse(row.dropped), Reverse(row.bytes)));
    output::render(&rows, format, |rows| table(rows, is_any))
}

fn named(row: TrafficRow, known: &HashMap<u32, Vec<String>>) -> Row {
    Row {
        source: End::of(row.source, known),
        destination: End::of(row.destination, known),
        program: row.program,
        outcome: row.outcome,
        dropped: row.dropped,
        packets: row.packets,
        bytes: row.bytes,
    }
}

/// The table. `is_any`: there is some traffic, wanted or not.
fn table(rows: &[Row], is_any: bool) -> String {
    let end = |end: &End| labels::brief(end.identity, &end.labels);
    let cells = rows.iter().map(|row| {
        [
            end(&row.source),
            end(&row.destination),
            if row.dropped { "drop" } else { "forward" }.to_owned(),
            row.program.clone(),
            row.outcome.clone(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]
    });
    let nothing = if is_any {
        "No traffic is as the options say (veer traffic list)."
    } else {
        "The programs of this node have seen no packets from or to pods yet."
    };
    let header = [
        "SOURCE",
        "DESTINATION",
        "VERDICT",
        "BY",
        "OUTCOME",
        "PACKETS",
        "BYTES",
    ];
    columns_or(nothing, header, cells.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::filter::parsed;

    fn listed(words: &[&str]) -> String {
        let ask: Ask<'_> = &|request| {
            #[expect(clippy::wildcard_enum_match_arm, reason = "all that is asked for")]
            Ok(match request {
                Request::Traffic => json!([
                    {"source": 40_000, "destination": 41_000, "program": "pod_egress",
                     "outcome": "deliver", "dropped": false, "packets": 2, "bytes": 196},
                    {"source": 41_000, "destination": 2, "program": "pod_egress",
                     "outcome": "to-stack", "dropped": false, "packets": 9, "bytes": 9000},
                    {"source": 40_000, "destination": 0, "program": "pod_egress",
                     "outcome": "spoofed-address", "dropped": true, "packets": 1, "bytes": 60},
                ]),
                Request::Identities => json!([
                    {"identity": 2, "state": "Reserved", "labels": ["reserved:world"]},
                    {"identity": 40_000, "state": "Active",
                     "labels": ["app=cart", "io.kubernetes.pod.namespace=shop"]},
                    {"identity": 41_000, "state": "Active",
                     "labels": ["io.kubernetes.pod.namespace=bank"]},
                ]),
                other => panic!("{other:?}"),
            })
        };
        list(&parsed(words).unwrap(), Format::Table, ask).unwrap()
    }

    #[test]
    fn drops_come_first_and_then_what_is_most() {
        let expected = [
            "SOURCE                DESTINATION  VERDICT  BY          OUTCOME          PACKETS  BYTES",
            "40000 shop: app=cart  unknown      drop     pod_egress  spoofed-address  1        60",
            "41000 bank            2 world      forward  pod_egress  to-stack         9        9000",
            "40000 shop: app=cart  41000 bank   forward  pod_egress  deliver          2        196",
        ];
        assert_eq!(listed(&[]), expected.join("\n"));
    }

    #[test]
    fn filters_hold_for_either_end_and_all_must_hold() {
        for (words, lines) in [
            (&["--namespace", "bank"][..], 2),
            (&["--identity", "40000"], 2),
            (&["--identity", "40000", "--namespace", "bank"], 1),
            (&["--identity", "2", "--identity", "40000"], 3),
            (&["--drops"], 1),
        ] {
            assert_eq!(listed(words).lines().count(), 1 + lines, "{words:?}");
        }
        let none = "No traffic is as the options say (veer traffic list).";
        assert_eq!(listed(&["--namespace", "nobodys"]), none);
    }

    #[test]
    fn another_nodes_command_gets_the_same_words() {
        let words = ["--identity", "7", "--namespace", "shop", "--drops"];
        let mut again = Vec::new();
        parsed::<Options>(&words).unwrap().add_to(&mut again);
        assert_eq!(again, words);
        assert!(parsed::<Options>(&["--identity", "0"]).is_err());
    }
}
