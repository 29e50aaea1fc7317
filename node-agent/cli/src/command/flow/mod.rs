//! `veer flow list`: flows that the host's stack or veer's programs translate; once, or
//! again whenever one comes, goes or changes.

mod options;

use std::{thread, time::Duration};

use veer_agent_api::{FlowRow, Request};

use super::{Ask, answer};
use crate::{
    arguments::Format,
    output::{self, Next, columns_or, or_dash, span},
    remote,
};
pub(crate) use options::Options;

/// Time between looks for changes.
const LOOK: Duration = Duration::from_secs(1);

/// How many looks in a row may fail.
const PATIENCE: u32 = 60;

/// The wanted flows, and how many there are with those that are not wanted.
struct Found {
    rows: Vec<FlowRow>,
    all: usize,
}

impl Found {
    fn ask(options: &Options, ask: Ask<'_>) -> anyhow::Result<Self> {
        let mut rows: Vec<FlowRow> = answer(ask, &Request::Flows)?;
        let all = rows.len();
        rows.retain(|row| options.wants(row));
        Ok(Self { rows, all })
    }

    fn text(&self, format: Format) -> anyhow::Result<String> {
        output::render(&self.rows, format, |rows| table(rows, self.all))
    }

    /// The flows without what time alone changes.
    fn lasting(&self) -> Vec<FlowRow> {
        let rows = self.rows.iter().cloned();
        rows.map(|row| FlowRow {
            age: None,
            expires_in: 0,
            ..row
        })
        .collect()
    }
}

/// The wanted flows.
pub(super) fn list(options: &Options, format: Format, ask: Ask<'_>) -> anyhow::Result<String> {
    Found::ask(options, ask)?.text(format)
}

/// Prints the wanted flows, and all of them again whenever one comes, goes or changes its
/// state; until nobody reads.
pub(crate) fn watch(options: &Options, format: Format, ask: Ask<'_>) -> anyhow::Result<()> {
    if options.until_stdin_ends {
        remote::end_with_stdin()?;
    }
    let mut shown: Option<Vec<FlowRow>> = None;
    let mut unanswered = 0;
    loop {
        let found = match Found::ask(options, ask) {
            Ok(found) => found,
            // An agent that is replaced is back within seconds.
            Err(_) if shown.is_some() && unanswered < PATIENCE => {
                unanswered += 1;
                thread::sleep(LOOK);
                continue;
            }
            Err(error) => return Err(error),
        };
        unanswered = 0;
        let lasting = found.lasting();
        if shown.as_ref() != Some(&lasting) {
            let text = found.text(format)?;
            let before = if shown.is_some() { between(format) } else { "" };
            if output::print(&format!("{before}{}", text.trim_end()))? == Next::Unwanted {
                return Ok(());
            }
            shown = Some(lasting);
        }
        thread::sleep(LOOK);
    }
}

/// What parts one output from the next.
const fn between(format: Format) -> &'static str {
    match format {
        Format::Table => "\n",
        Format::Json => "",
        Format::Yaml => "---\n",
    }
}

/// The table; `all`: how many flows there are with those that are not wanted.
fn table(rows: &[FlowRow], all: usize) -> String {
    let cells = rows.iter().map(|row| {
        [
            row.protocol.clone(),
            or_dash(&row.state),
            row.source.clone(),
            destination(row),
            or_dash(&row.translation),
            row.age.map_or_else(|| "-".to_owned(), span),
            span(row.expires_in),
        ]
    });
    let nothing = if all == 0 {
        "No flow has an entry: nothing that the host's stack or veer translates is under way."
            .to_owned()
    } else {
        format!("No flow is as the options say; without them {all} are shown.")
    };
    columns_or(
        &nothing,
        [
            "PROTOCOL",
            "STATE",
            "SOURCE",
            "DESTINATION",
            "TRANSLATED BY",
            "AGE",
            "EXPIRES IN",
        ],
        cells.collect(),
    )
}

/// Whom the end that opened the flow sends to, and where that goes instead.
fn destination(row: &FlowRow) -> String {
    let sent_to = &row.destination;
    match &row.backend {
        Some(backend) => format!("{sent_to} → {backend}"),
        None => sent_to.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<FlowRow> {
        let row = |protocol: &str, state: &str, source: &str, destination: &str| FlowRow {
            protocol: protocol.to_owned(),
            state: state.to_owned(),
            source: source.to_owned(),
            destination: destination.to_owned(),
            translation: "host".to_owned(),
            backend: None,
            age: Some(65),
            expires_in: 431_999,
        };
        let stream = FlowRow {
            age: None,
            expires_in: 110,
            ..row("udp", "stream", "[fd00::5]:5353", "[fd00::a]:53")
        };
        let connection = row("tcp", "established", "10.0.1.5:40000", "10.96.0.10:443");
        vec![connection, stream]
    }

    fn listed(options: &Options, format: Format, rows: &[FlowRow]) -> String {
        let ask: Ask<'_> = &|request| {
            assert_eq!(*request, Request::Flows);
            serde_json::to_value(rows).map_err(anyhow::Error::from)
        };
        list(options, format, ask).unwrap()
    }

    #[test]
    fn the_table_has_a_line_for_each_flow() {
        let expected = [
            "PROTOCOL  STATE        SOURCE          DESTINATION     TRANSLATED BY  AGE  EXPIRES IN",
            "tcp       established  10.0.1.5:40000  10.96.0.10:443  host           65s  4d",
            "udp       stream       [fd00::5]:5353  [fd00::a]:53    host           -    110s",
        ];
        let text = listed(&Options::default(), Format::Table, &rows());
        assert_eq!(text, expected.join("\n"));
    }

    #[test]
    fn a_flow_that_veer_translates_shows_its_backend() {
        let mut rows = rows();
        rows[0].translation = "veer".to_owned();
        rows[0].backend = Some("10.0.2.7:8443".to_owned());
        let text = listed(&Options::default(), Format::Table, &rows);
        let line = text.lines().nth(1).unwrap();
        let ends = " 10.0.1.5:40000  10.96.0.10:443 → 10.0.2.7:8443  veer ";
        assert!(line.contains(ends), "{line}");
        let json = listed(&Options::default(), Format::Json, &rows);
        let read: Vec<FlowRow> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, rows);
    }

    #[test]
    fn no_flow_and_no_wanted_flow_are_told_apart() {
        let options = Options {
            state: vec!["closed".to_owned()],
            ..Options::default()
        };
        let none = listed(&options, Format::Table, &[]);
        assert!(none.starts_with("No flow has an entry"), "{none}");
        let unwanted = listed(&options, Format::Table, &rows());
        let expected = "No flow is as the options say; without them 2 are shown.";
        assert_eq!(unwanted, expected);
        assert_eq!(listed(&options, Format::Json, &rows()), "[]");
    }

    #[test]
    fn json_has_the_wanted_flows_as_the_agent_gives_them() {
        let options = Options {
            state: vec!["stream".to_owned()],
            ..Options::default()
        };
        let text = listed(&options, Format::Json, &rows());
        let read: Vec<FlowRow> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, rows()[1..]);
    }

    #[test]
    fn an_agent_that_says_less_of_flows_is_understood() {
        let rows = serde_json::json!([{
            "protocol": "udp",
            "source": "10.0.1.5:1",
            "destination": "10.96.0.10:53",
            "expires_in": 7,
        }]);
        let text = list(&Options::default(), Format::Table, &|_| Ok(rows.clone())).unwrap();
        let line: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let expected = ["udp", "-", "10.0.1.5:1", "10.96.0.10:53", "-", "-", "7s"];
        assert_eq!(line, expected);
    }

    #[test]
    fn time_alone_is_no_change() {
        let lasting = |rows: Vec<FlowRow>| Found { rows, all: 2 }.lasting();
        let first = lasting(rows());
        let mut later = rows();
        later[0].age = Some(66);
        later[1].expires_in = 109;
        assert_eq!(lasting(later.clone()), first);
        later[0].state = "half-closed".to_owned();
        assert_ne!(lasting(later.clone()), first);
        assert_ne!(lasting(later[1..].to_vec()), lasting(later));
    }
}
