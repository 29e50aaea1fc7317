//! Which flows are wanted: the options of `veer flow list`.

use std::net::SocketAddr;

use clap::builder::PossibleValuesParser;
use veer_agent_api::{FlowRow, flow_state, packet::End};

use crate::filter::{self, Filter};

/// Options of `veer flow list`. Values of one option are alternatives, and all options
/// must hold together. Addresses and ports may be of either end, or of the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Options {
    /// By what headers say.
    #[command(flatten)]
    pub(crate) filter: Filter,

    /// Only flows in this state.
    #[arg(long, value_name = "STATE", value_parser = PossibleValuesParser::new(flow_state::ALL))]
    pub(crate) state: Vec<String>,

    /// Print them again whenever one comes, goes or changes its state.
    #[arg(short, long)]
    pub(crate) watch: bool,

    /// End with standard input: where `kubectl exec --stdin` runs it, so that it does not
    /// stay behind.
    #[arg(long, requires = "watch")]
    pub(crate) until_stdin_ends: bool,
}

impl Options {
    /// Whether a flow is wanted.
    pub(super) fn wants(&self, row: &FlowRow) -> bool {
        let ends: Vec<End> = [&row.source, &row.destination]
            .into_iter()
            .chain(&row.backend)
            .map(|text| end(&row.protocol, text))
            .collect();
        (self.state.is_empty() || self.state.contains(&row.state))
            && self.filter.wants(&row.protocol, &ends)
    }

    /// Adds the same options to the words of a command line, but for how it ends.
    pub(crate) fn add_to(&self, words: &mut Vec<String>) {
        self.filter.add_to(words);
        filter::add(words, "state", &self.state);
        if self.watch {
            words.push("--watch".into());
        }
    }
}

/// An end of a flow, of which the agent tells the text.
fn end(protocol: &str, text: &str) -> End {
    let both = text.parse::<SocketAddr>().ok();
    // That of an ICMP query is an identifier.
    let has_port = !["icmp", "icmpv6"].contains(&protocol);
    End {
        address: both.map(|both| both.ip()).or_else(|| text.parse().ok()),
        port: both.filter(|_| has_port).map(|both| both.port()),
        mac: None,
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::filter::parsed;

    fn options(words: &[&str]) -> Options {
        parsed(words).unwrap()
    }

    fn row(protocol: &str, ends: [&str; 2]) -> FlowRow {
        let [source, destination] = ends.map(ToOwned::to_owned);
        FlowRow {
            protocol: protocol.to_owned(),
            state: flow_state::REPLIED.to_owned(),
            source,
            destination,
            translation: "host".to_owned(),
            backend: None,
            age: None,
            expires_in: 7,
        }
    }

    #[test]
    fn each_filter_holds_for_either_end_and_all_must_hold() {
        let row = row("udp", ["10.0.1.5:4000", "10.96.0.10:53"]);
        for (words, wanted) in [
            (&[][..], true),
            (&["--address", "10.0.1.5"], true),
            (&["--address", "10.96.0.0/16"], true),
            (&["--address", "10.0.1.6"], false),
            (&["--address", "fd00::/8"], false),
            (&["--address", "10.0.1.6", "--address", "10.0.1.5"], true),
            (&["--port", "53"], true),
            (&["--port", "4000"], true),
            (&["--port", "54"], false),
            (&["--protocol", "udp"], true),
            (&["--protocol", "17"], true),
            (&["--protocol", "tcp"], false),
            (&["--protocol", "tcp", "--protocol", "udp"], true),
            (&["--state", "replied"], true),
            (&["--state", "stream"], false),
            (&["--state", "stream", "--state", "replied"], true),
            (&["--port", "53", "--address", "10.0.1.5"], true),
            (&["--port", "53", "--state", "stream"], false),
            (&["--port", "54", "--address", "10.0.1.5"], false),
        ] {
            assert_eq!(options(words).wants(&row), wanted, "{words:?}");
        }
    }

    #[test]
    fn a_flow_is_found_by_its_backend_too() {
        let row = FlowRow {
            backend: Some("10.0.2.7:5353".to_owned()),
            ..row("udp", ["10.0.1.5:4000", "10.96.0.10:53"])
        };
        for (words, wanted) in [
            (&["--address", "10.0.2.7"][..], true),
            (&["--port", "5353"], true),
            (&["--address", "10.96.0.10", "--port", "5353"], true),
            (&["--address", "10.0.3.0/24"], false),
        ] {
            assert_eq!(options(words).wants(&row), wanted, "{words:?}");
        }
    }

    #[test]
    fn ends_of_ipv6_and_without_ports_are_understood() {
        let ping = row("icmpv6", ["[fd00::1]:53", "[fd00::2]:53"]);
        let lookup = row("udp", ["[fd00::1]:4000", "[fd00::2]:53"]);
        let tunnel = row("47", ["10.0.1.5", "192.0.2.1"]);
        for (words, wanted) in [
            (&["--address", "fd00::2"], [true, true, false]),
            (&["--address", "192.0.2.0/24"], [false, false, true]),
            // An identifier is no port.
            (&["--port", "53"], [false, true, false]),
            (&["--protocol", "icmpv6"], [true, false, false]),
            (&["--protocol", "47"], [false, false, true]),
        ] {
            let options = options(words);
            let wants = [&ping, &lookup, &tunnel].map(|row| options.wants(row));
            assert_eq!(wants, wanted, "{words:?}");
        }
    }

    #[test]
    fn the_words_for_another_node_mean_the_same() {
        let words = [
            "--address",
            "10.0.0.0/8",
            "--port",
            "53",
            "--protocol",
            "udp",
            "--state",
            "stream",
            "--watch",
        ];
        let first = options(&words);
        let mut again = Vec::new();
        first.add_to(&mut again);
        assert_eq!(again, words);
        let again: Vec<&str> = again.iter().map(String::as_str).collect();
        assert_eq!(options(&again), first);
    }

    #[test]
    fn what_is_misspelt_is_refused_with_what_there_is() {
        for (words, hint) in [
            (&["--state", "established?"][..], "half-closed"),
            (&["--address", "10.0.0"], "10.0.0.0/8"),
            (&["--until-stdin-ends"], "--watch"),
        ] {
            let error = parsed::<Options>(words).unwrap_err();
            assert!(error.to_string().contains(hint), "{error}");
        }
    }
}
